"""
Every two functions that can meet on a row, in two sessions at once.

One is called in a transaction that stays open; the other is called meanwhile, and ends or waits; then the first
commits. What comes of it is what would come of one after the other, in some order: the same rows, the same answers.
So nobody waits for ever, no change is lost, and no client meets an error that it would not meet alone.
Functions that pass over what others hold may leave a row as if they had not been called, and then say so; no row is
otherwise, and no two fetch the same job or end the same run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gates
import psycopg
import pytest
from scenes import OPERATIONS, OTHERS, READERS, SCENES, Operation, Scene, check
from sessions import Row, Session

pytestmark = pytest.mark.usefixtures("patient")

Connection = psycopg.Connection[Any]
# What a call comes to: the SQLSTATE of a refusal, or rows.
Answer = tuple[str | None, list[Row]]
Answers = tuple[Answer, ...]
Outcome = tuple[Answers, list[str]]

CALLS = OPERATIONS | OTHERS

# All that stays, without times and tokens. Only old jobs are told by their ids: sequences take nothing back. A job that
# is due may be a candidate or stand behind one, which a fetch finds out.
ROWS = """
select array(
  select t || ' ' || jsonb_strip_nulls(
      r - '{token,deferred_at,scheduled_at,started_at,finished_at,worker_id,result,at,updated_at,created_at}'::text[]
        - '{registered_at,heartbeat_at,idle_at,next_tick,last_tick,clock_offset,id,detail}'::text[]
      || case when t in ('job', 'done') and (r ->> 'id')::int < 10000000 then jsonb_build_object('id', r -> 'id')
              else '{}' end
      || case when t = 'job' and r ->> 'state' in ('r', 'w', 'b') then '{"state": "waits"}' else '{}' end::jsonb)::text
    from (
      select 'job', to_jsonb(j) from procrastinate.job as j
      union all select 'done', to_jsonb(d) from procrastinate.done as d
      union all select 'event', to_jsonb(e) from procrastinate.event as e
      union all select 'worker', to_jsonb(w) from procrastinate.worker as w
      union all select 'task', to_jsonb(k) from procrastinate.task as k
      union all select 'schedule', to_jsonb(s) from procrastinate.schedule as s
      union all select 'hook', to_jsonb(h) from procrastinate.sql_hook as h
      union all select 'role', to_jsonb(a) from procrastinate.role as a
      union all select 'config', to_jsonb(c) from procrastinate.config as c) as u (t, r)
   order by 1)
"""
# The tables in which it locks or writes rows.
TOUCHED = """
select relation::regclass::text from pg_locks
 where pid = pg_backend_pid() and locktype = 'relation' and mode in ('RowShareLock', 'RowExclusiveLock')
   and relation in (select oid from pg_class where relnamespace = 'procrastinate'::regnamespace and relkind = 'r')
"""


def function_of(operation: Operation) -> str:
    """Return the name of the function that an operation calls."""
    names = dict.fromkeys([f"worker {n}" for n in "abc"], 1)
    jobs = dict.fromkeys(("running", "second", "third", "fourth", "better", "ended"), 1)
    query, _ = operation(Scene(jobs, {"running": 1}, {n.removeprefix("worker "): 1 for n in names}))
    found = re.search(r"procrastinate\.(\w+)\(", query)
    assert found
    return found[1]


FUNCTIONS = {name: function_of(operation) for name, operation in CALLS.items()}
SKIPPERS = {"fetch_v1", "finish_v1", "purge", "tick_v1", "unregister_worker_v1", "work_v1"}
FETCHERS = {"fetch_v1", "work_v1"}
EXCLUSIVE = FETCHERS | {"finish_v1"}
# One call for each function, and those that meet others on another row, or read otherwise; with --long, all.
CHOSEN = [
    *{function: name for name, function in reversed(FUNCTIONS.items())}.values(),
    "bring back",
    "cancel the second",
    "fetch one",
]


def test_every_function_is_called_or_only_reads(conn: Connection) -> None:
    public = conn.execute(
        r"select proname from pg_proc where pronamespace = 'procrastinate'::regnamespace and proname not like '\_%'"
    )
    assert {name for (name,) in public} == set(FUNCTIONS.values()) | READERS, "give the new one a call"
    assert not READERS & set(FUNCTIONS.values())


class Stage:
    """Plays two calls, at once or one after the other, always from the same scene."""

    def __init__(self, conn: Connection, one: Session, two: Session, scene: str) -> None:
        self.conn, self.sessions = conn, (one, two)
        conn.execute("create schema if not exists gates")
        conn.execute("create or replace function public.hook(bigint[]) returns void language sql as ''")
        self.scene = SCENES[scene](conn)
        conn.execute("select procrastinate.schedule('s', 't', '0 0 1 1 *')")
        conn.execute(gates.SAVE)
        self._orders: dict[tuple[str, ...], Outcome] = {}
        self._checked: set[str] = set()

    def touched(self, name: str) -> set[str]:
        """Return the tables in which a call locks rows."""
        self.conn.execute(gates.RESTORE)
        with self.conn.transaction(force_rollback=True):
            try:
                with self.conn.transaction():
                    self.conn.execute(*self._call(name))
            except psycopg.Error:
                return set()
            return {table for (table,) in self.conn.execute(TOUCHED).fetchall()}

    def one_by_one(self, *names: str) -> Outcome:
        """Return what comes of calls one after the other: their answers, and all rows."""
        if names not in self._orders:
            self.conn.execute(gates.RESTORE)
            calls = zip(names, self.sessions, strict=False)
            answers = [self._answer(session.start(*self._flat(name)).rows) for name, session in calls]
            self._orders[names] = (tuple(answers), self._rows())
        return self._orders[names]

    def at_once(self, first: str, second: str) -> Outcome:
        """Return the same, the second called before the first one's transaction has ended."""
        one, two = self.sessions
        self.conn.execute(gates.RESTORE)
        one.run("begin")
        answer = self._answer(lambda: one.run(*self._flat(first)))
        step = two.start(*self._flat(second))
        while not (step.done() or two.waits()):
            pass
        one.run("commit")
        answers, rows = (answer, self._answer(step.rows)), self._rows()
        # the check takes most of the time, and looks at what is left: other ids in an answer are no reason for another
        key = str(([refusal for refusal, _ in answers], rows))
        if key not in self._checked:
            self._checked.add(key)
            check(self.conn, f"{first} | {second}")
        return answers, rows

    def _rows(self) -> list[str]:
        return list((self.conn.execute(ROWS).fetchone() or ([],))[0])

    def _call(self, name: str) -> tuple[str, tuple[Any, ...]]:
        return CALLS[name](self.scene)

    def _flat(self, name: str) -> tuple[Any, ...]:
        query, parameters = self._call(name)
        return query, *parameters

    def _answer(self, call: Callable[[], list[Row]]) -> Answer:
        try:
            return None, call()
        except psycopg.Error as error:
            return str(error.sqlstate), []


def broken(stage: Stage, names: list[str]) -> list[str]:
    """Return those pairs of which something comes that no order explains."""
    touched = {name: stage.touched(name) for name in names}
    pairs = [(first, second) for first in names for second in names if touched[first] & touched[second]]
    assert len(pairs) > len(names)
    return [said for pair in pairs if (said := difference(stage, *pair))]


def difference(stage: Stage, first: str, second: str) -> str:
    """Return what comes of two calls at once that comes of no order, or nothing."""
    functions = FUNCTIONS[first], FUNCTIONS[second]
    answers, rows = stage.at_once(first, second)
    if EXCLUSIVE.issuperset(functions) and (twice := _won(answers[0]) & _won(answers[1])):
        return f"{first} | {second}: both have {twice}"
    forth, back = stage.one_by_one(first, second), stage.one_by_one(second, first)
    orders = [forth, (back[0][::-1], back[1])]
    if (answers, rows) in orders:
        return ""
    alone = [stage.one_by_one(first), stage.one_by_one(second)]
    said = wrong_answers(functions, answers, [told for told, _ in orders]) or wrong_rows(
        functions, rows, [left for _, left in orders], [left for _, left in alone]
    )
    return said and f"{first} | {second}: {said}"


def _won(answer: Answer) -> set[str]:
    """Return what a call alone may have: the ids of jobs that it fetched; ok, for the one run that is ended here."""
    return {first for first, *_ in answer[1] if first == "ok" or str(first).isdigit()}


def wrong_answers(functions: tuple[str, str], answers: Answers, orders: list[Answers]) -> str:
    """Return what is wrong with two answers, beside those of both orders; or nothing."""
    of_its_own = [n for n in (0, 1) if answers[n] not in [order[n] for order in orders]]
    if of_its_own:
        # only who passes something over; and it is refused no more, and no less
        right = all(functions[n] in SKIPPERS and answers[n][0] in [order[n][0] for order in orders] for n in of_its_own)
    else:
        # A worker that is deleted while it fetches: who deletes it does not see those jobs, as if it had been first.
        # The next tick rescues them.
        unseen = {"tick_v1", "unregister_worker_v1"}.intersection(functions) and FETCHERS.intersection(functions)
        right = bool(unseen) or answers in orders
    return "" if right else f"{answers}, not {orders}"


def wrong_rows(functions: tuple[str, str], rows: list[str], orders: list[list[str]], alone: list[list[str]]) -> str:
    """Return what is wrong with rows that no order leaves; or nothing."""
    if not SKIPPERS.intersection(functions):
        changes = [f"has {set(rows) - set(order)}, lacks {set(order) - set(rows)}" for order in orders]
        return "\n  ".join(["neither", *changes])
    explained = set().union(*orders, *alone)
    strange = [row for row in rows if row not in explained]
    if FETCHERS.intersection(functions):
        # Past a lock that is held, it takes the next best; that this one may run now, the stage has checked.
        strange = [row for row in strange if not (row.startswith("job ") and '"state": "x"' in row)]
    return "\n  ".join(["rows of no order", *strange]) if strange else ""


@pytest.fixture
def play(conn: Connection, session: Callable[[], Session]) -> Callable[[str], Stage]:
    return lambda scene: Stage(conn, session(), session(), scene)


@pytest.mark.parametrize("scene", ["held", "fresh"])
def test_every_two_functions_that_meet_on_a_row(play: Callable[[str], Stage], scene: str) -> None:
    found = broken(play(scene), CHOSEN)
    assert not found, "\n".join(found)


# What the comparison is for: each gives two calls what only one may have; and what must then be said of these two.
FLAWS = {
    "jobs of all queues not held": (
        "_candidates",
        "order by j.rank, j.id limit v_need for update skip locked",
        "order by j.rank, j.id limit v_need",
        "work",
        "both have",
    ),
    "jobs of one queue not held": (
        "_candidates",
        "order by j.queue, j.rank, j.id limit v_need for update skip locked",
        "order by j.queue, j.rank, j.id limit v_need",
        "fetch one",
        "both have",
    ),
    "jobs of several queues not held": (
        "_candidates_of_several",
        "offset 0 for update skip locked",
        "offset 0",
        "fetch",
        "both have",
    ),
    "a refused end is called ok": ("_verdict", "'refused'", "'ok'", "succeed", "both have"),
    "a retry reads first": (
        "retry",
        "delete from procrastinate.done as d where d.id = job_id returning d.* into v_done;",
        "select d.* into v_done from procrastinate.done as d where d.id = job_id; "
        + "delete from procrastinate.done as d where d.id = job_id;",
        "bring back",
        "23505",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_schema_that_gives_something_twice_is_found_out(
    conn: Connection, play: Callable[[str], Stage], flaw: str
) -> None:
    function, old, new, call, verdict = FLAWS[flaw]
    stage = play("held")
    assert call in CHOSEN
    assert not difference(stage, call, call)
    gates.rewrite(conn, function, old, new)
    assert verdict in difference(stage, call, call)


@pytest.mark.long
@pytest.mark.parametrize("scene", SCENES)
def test_every_two_calls_in_every_scene(play: Callable[[str], Stage], scene: str) -> None:
    stage = play(scene)
    names = [name for name in CALLS if _can_be_called(stage, name)]
    found = broken(stage, names)
    assert not found, "\n".join(found)


def _can_be_called(stage: Stage, name: str) -> bool:
    try:
        CALLS[name](stage.scene)
    except KeyError:
        return False
    return True
