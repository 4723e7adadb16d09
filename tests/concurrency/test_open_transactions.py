"""A transaction that stays open: whom it keeps waiting, and whom not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gates
import psycopg
import pytest
from sessions import Session, end, fetch, finish

Sessions = Callable[[], Session]
Defer = Callable[..., int]
Register = Callable[..., int]
States = Callable[[], dict[int, str]]

TICK = "select kind, job_id from procrastinate.tick_v1() where kind is not null"
SILENCE = """
with w as (update procrastinate.worker set heartbeat_at = '2001-01-01' where id = %s)
update procrastinate.tick set next_at = '2001-01-01'
"""


def status(session: Session, job: int) -> Any:
    return session.one("select status from procrastinate.jobs where id = %s", job)


def test_a_defer_blocks_nobody(session: Sessions, register: Register, defer: Defer, states: States) -> None:
    a, b = session(), session()
    worker = register()
    running = defer("L", queueing_lock="q")
    (claim,) = b.run(fetch(worker))
    waiting = defer("L")
    a.run("begin")
    hidden = [
        a.one("select procrastinate.defer('t', lock => 'L', priority => 9)"),
        a.one("select procrastinate.defer('t', lock => 'L', queueing_lock => 'r')"),
        a.one('select min(id) from procrastinate.defer_many(\'[{"task": "t", "lock": "L"}]\')'),
    ]
    # each would fail here if it had to wait: run() gives up
    other = defer("L")
    b.run("select procrastinate.cancel(%s)", other)
    b.run("select procrastinate.heartbeat_v1(%s)", worker)
    b.run("select procrastinate.idle_v1(%s)", worker)
    b.run(TICK)
    assert b.run(finish(worker, claim)) == [(running, "ok")]
    (next_claim,) = b.run(fetch(worker))
    assert next_claim[0] == waiting
    assert b.one("select procrastinate.unregister_worker_v1(%s)", worker) == 1
    b.run("select procrastinate.purge('-1 hour', '{succeeded}')")
    a.run("commit")
    worker = register()
    order = []
    while claims := b.run(fetch(worker)):
        order += [c[0] for c in claims]
        b.run(finish(worker, *claims))
    assert order == [hidden[0], waiting, *hidden[1:]]


def test_a_defer_with_a_queueing_lock_waits_for_another_to_commit(session: Sessions, defer: Defer) -> None:
    a, b = session(), session()
    a.run("begin")
    first = a.one("select procrastinate.defer('t', queueing_lock => 'q')")
    second = b.start("select procrastinate.defer('t', queueing_lock => 'q', on_conflict => 'ignore')").blocked()
    third = defer(queueing_lock="another")
    a.run("commit")
    assert second.one() == first
    assert third != first


def test_a_defer_with_a_queueing_lock_takes_the_place_of_one_rolled_back(session: Sessions) -> None:
    a, b = session(), session()
    a.run("begin")
    first = a.one("select procrastinate.defer('t', queueing_lock => 'q')")
    second = b.start("select procrastinate.defer('t', queueing_lock => 'q')").blocked()
    a.run("rollback")
    assert second.one() > first


@pytest.mark.parametrize(
    ("outcome", "more", "taken"),
    [
        ("released", {}, "cancelled"),
        ("failed", {"retry": {"in": 0}}, "failed"),
        ("failed", {"retry": {"in": 3600}}, "failed"),
        ("aborted", {"reason": "shutdown", "retry": {"in": 0}}, "failed"),
    ],
)
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_job_does_not_go_back_while_its_queueing_lock_is_in_doubt(
    session: Sessions,
    register: Register,
    defer: Defer,
    states: States,
    ends: str,
    outcome: str,
    more: dict[str, Any],
    taken: str,
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L", queueing_lock="q")
    (claim,) = b.run(fetch(worker))
    behind = defer("L")
    a.run("begin")
    a.run("select procrastinate.defer('t', queueing_lock => 'q')")
    assert b.run(*end(worker, claim, outcome, **more)) == [("refused", None, "55P03")]
    # nothing has happened: it still runs, and its lock is still its own
    assert states()[job] == "x"
    assert b.run(fetch(worker)) == []
    a.run(ends)
    if ends == "commit":
        assert b.run(*end(worker, claim, outcome, **more)) == [("ok", taken, None)]
        assert status(b, job) == taken
        assert states()[behind] == "r"
    else:
        assert b.run(*end(worker, claim, outcome, **more)) == [("ok", "todo", None)]


def test_a_doubtful_outcome_does_not_hold_its_batch_up(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    jobs = [defer(queueing_lock=f"q{n}") for n in range(3)]
    claims = b.run(fetch(worker))
    a.run("begin")
    a.run("select procrastinate.defer('t', queueing_lock => 'q1')")
    told = b.run(
        """select id, verdict from procrastinate.finish_v1(%s, outcomes => (
             select jsonb_agg(jsonb_build_object('id', i, 'token', t, 'outcome', 'released'))
               from unnest(%s::bigint[], %s::bigint[]) as u (i, t)))""",
        worker,
        [c[0] for c in claims],
        [c[1] for c in claims],
    )
    assert told == [(jobs[0], "ok"), (jobs[1], "refused"), (jobs[2], "ok")]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_rescue_waits_for_the_next_tick_while_the_queueing_lock_is_in_doubt(
    session: Sessions, register: Register, defer: Defer, ends: str
) -> None:
    a, b = session(), session()
    worker = register()
    job, plain = defer("L", queueing_lock="q"), defer("M")
    b.run(fetch(worker))
    a.run("begin")
    a.run("select procrastinate.defer('t', queueing_lock => 'q')")
    b.run(SILENCE, worker)
    assert b.run(TICK) == [("rescued", plain)]
    assert status(b, job) == "doing"
    a.run(ends)
    b.run(SILENCE, worker)
    assert b.run(TICK) == [("failed" if ends == "commit" else "rescued", job)]
    assert b.one("select count(*) from procrastinate.worker") == 0


def test_a_worker_in_doubt_over_a_queueing_lock_leaves_the_job_to_a_tick(
    session: Sessions, register: Register, defer: Defer
) -> None:
    a, b = session(), session()
    worker = register()
    job, plain = defer("L", queueing_lock="q"), defer("M")
    b.run(fetch(worker))
    a.run("begin")
    a.run("select procrastinate.defer('t', queueing_lock => 'q')")
    assert b.one("select procrastinate.unregister_worker_v1(%s)", worker) == 1
    assert (status(b, job), status(b, plain)) == ("doing", "todo")
    a.run("rollback")
    b.run(SILENCE, worker)
    assert b.run(TICK) == [("rescued", job)]


def test_an_operator_is_told_that_a_queueing_lock_is_in_doubt(
    session: Sessions, register: Register, defer: Defer
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L", queueing_lock="q")
    b.run(fetch(worker))
    a.run("begin")
    a.run("select procrastinate.defer('t', queueing_lock => 'q')")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        b.run("select procrastinate.retry(%s)", job)
    a.run("rollback")
    assert b.one("select procrastinate.retry(%s)", job) is True


def test_of_two_ticks_one_works_and_none_waits(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    jobs = [defer("L"), defer()]
    a.run(fetch(worker))
    a.run(SILENCE, worker)
    a.run("begin")
    assert a.run(TICK) == [("rescued", j) for j in jobs]
    assert b.run(TICK) == []
    a.run("commit")
    assert b.run(TICK) == []
    assert a.run("select distinct status, attempts from procrastinate.jobs") == [("todo", 1)]


def test_a_heartbeat_beside_a_tick_that_finds_its_worker_dead(
    session: Sessions, register: Register, defer: Defer
) -> None:
    a, b = session(), session()
    worker = register()
    a.run(SILENCE, worker)
    a.run("begin")
    a.run(TICK)
    beat = b.start("select registered from procrastinate.heartbeat_v1(%s)", worker).blocked()
    a.run("commit")
    assert beat.one() is False
    with pytest.raises(psycopg.DatabaseError) as raised:
        b.run(fetch(worker))
    assert raised.value.sqlstate == "JQ004"


def test_a_tick_beside_a_heartbeat_leaves_the_worker_alive(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    defer()
    a.run(fetch(worker))
    a.run(SILENCE, worker)
    a.run("begin")
    assert a.one("select registered from procrastinate.heartbeat_v1(%s)", worker) is True
    assert b.run(TICK) == []
    a.run("commit")
    assert b.run(TICK) == []
    assert b.one("select running from procrastinate.workers where id = %s", worker) == 1


def test_two_workers_register_the_same_tasks(session: Sessions) -> None:
    a, b = session(), session()
    call = "select procrastinate.register_worker_v1('w', tasks => %s)"
    a.run("begin")
    first = a.one(call, '{"y": {"queue": "a"}, "x": {"queue": "a"}}')
    second = b.start(call, '{"x": {"queue": "b"}, "y": {"queue": "b"}}').blocked()
    a.run("commit")
    assert second.one() > first
    assert a.run("select name, queue from procrastinate.tasks order by name") == [("x", "b"), ("y", "b")]


def test_a_worker_of_known_tasks_starts_while_somebody_sets_their_defaults(session: Sessions) -> None:
    a, b = session(), session()
    call = "select procrastinate.register_worker_v1('w', tasks => %s)"
    tasks = '{"x": {"queue": "worker"}, "y": {}}'
    first = a.one(call, tasks)
    a.run("select procrastinate.register_task('y', queue => 'sql')")
    a.run("begin")
    a.run("select procrastinate.register_task('x', queue => 'sql')")
    a.run("select procrastinate.register_task('y', queue => 'other')")
    assert b.one(call, tasks) > first
    a.run("commit")
    assert b.run("select name, queue from procrastinate.tasks order by name") == [("x", "sql"), ("y", "other")]


def test_a_retry_puts_back_what_its_rollback_takes(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L")
    a.run(finish(worker, *a.run(fetch(worker))))
    a.run("begin")
    a.run("select procrastinate.retry(%s)", job)
    assert b.run(fetch(worker)) == []
    a.run("rollback")
    assert status(b, job) == "succeeded"
    assert b.run(fetch(worker)) == []


def test_a_tick_does_not_wait_for_the_queueing_lock_of_a_schedule(
    session: Sessions, register: Register, defer: Defer
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer()
    b.run(fetch(worker))
    b.run("select procrastinate.schedule('s', 't', '@yearly', queueing_lock => 'q')")
    b.run("select procrastinate.schedule('u', 't', '@yearly')")
    b.run("update procrastinate.schedule set next_tick = date_trunc('year', now())")
    b.run(SILENCE, worker)
    a.run("begin")
    a.run("select procrastinate.defer('t', queueing_lock => 'q')")
    told = b.run("select kind, job_id, detail ->> 'sqlstate' from procrastinate.tick_v1()")
    assert [row[0] for row in told] == ["rescued", "error", "scheduled", None]
    assert told[0][1] == job
    assert told[1][2] == "55P03"
    # it is due as before, and fires soon after
    a.run("rollback")
    b.run("update procrastinate.schedule set retry_at = null")
    b.run("update procrastinate.tick set next_at = '2001-01-01'")
    assert [row[0] for row in b.run(TICK)] == ["scheduled"]


# A fetch in a transaction that stays open holds the right to pass on the locks it looked at.


@pytest.fixture
def looked(session: Sessions, register: Register, defer: Defer) -> Any:
    """Return a worker, its claims of L and M, the job that waits for L, and the session whose fetch has looked at L."""
    a = session()
    worker = register(["here"])
    jobs = [defer("L", queue="here", retry="3"), defer("M", queue="here", retry="3")]
    claims = a.run(fetch(worker))
    assert [c[0] for c in claims] == jobs
    behind = defer("L", queue="there")
    other = register(["there"])
    a.run("begin")
    assert a.run(fetch(other)) == []
    return a, worker, claims, behind


def test_an_end_does_not_wait_for_who_holds_its_lock(session: Sessions, states: States, looked: Any) -> None:
    a, worker, claims, behind = looked
    b = session()
    assert b.run(finish(worker, *claims)) == [(claims[0][0], "refused"), (claims[1][0], "ok")]
    assert b.run(*end(worker, claims[0], "failed")) == [("refused", None, "55P03")]
    assert states() == {claims[0][0]: "x", behind: "r"}
    a.run("commit")
    assert b.run(finish(worker, claims[0])) == [(claims[0][0], "ok")]
    assert states() == {behind: "r"}


def test_work_does_not_wait_for_who_holds_a_lock(session: Sessions, states: States, looked: Any) -> None:
    a, worker, claims, behind = looked
    b = session()
    call = "select verdicts from procrastinate.work_v1({}, %s, %s, '[]', true, 5, 0, null) where id is null"
    ids, tokens = [c[0] for c in claims], [c[1] for c in claims]
    verdicts = b.one(call.format(worker), ids, tokens)
    assert [(v["id"], v["sqlstate"]) for v in verdicts] == [(ids[0], "55P03")]
    a.run("rollback")
    assert b.one(call.format(worker), ids[:1], tokens[:1]) is None
    assert states() == {behind: "r"}


def test_a_rescue_leaves_a_job_whose_lock_somebody_holds_to_the_next_tick(
    session: Sessions, states: States, looked: Any
) -> None:
    a, worker, claims, behind = looked
    b = session()
    b.run(SILENCE, worker)
    assert b.run(TICK) == [("rescued", claims[1][0])]
    assert states() == {claims[0][0]: "x", claims[1][0]: "r", behind: "r"}
    a.run("commit")
    b.run(SILENCE, worker)
    assert b.run(TICK) == [("rescued", claims[0][0])]


def test_a_worker_takes_leave_of_what_nobody_holds(session: Sessions, states: States, looked: Any) -> None:
    a, worker, claims, behind = looked
    b = session()
    assert b.one("select procrastinate.unregister_worker_v1(%s)", worker) == 1
    assert states() == {claims[0][0]: "x", claims[1][0]: "r", behind: "r"}
    a.run("commit")
    assert b.one("select procrastinate.unregister_worker_v1(%s)", worker) == 1
    assert states() == {claims[0][0]: "r", claims[1][0]: "r", behind: "w"}


def test_an_operator_is_told_that_somebody_holds_the_lock(session: Sessions, states: States, looked: Any) -> None:
    a, _, claims, _ = looked
    b = session()
    with pytest.raises(psycopg.errors.LockNotAvailable):
        b.run("select procrastinate.retry(%s)", claims[0][0])
    assert states()[claims[0][0]] == "x"
    a.run("commit")
    assert b.one("select procrastinate.retry(%s)", claims[0][0]) is True


def test_a_user_who_completes_a_job_waits_for_who_holds_its_lock(
    session: Sessions, states: States, looked: Any
) -> None:
    a, _, claims, behind = looked
    b = session()
    completed = b.start("select procrastinate.complete_v1(%s, %s)", *claims[0]).blocked()
    a.run("commit")
    completed.rows()
    assert states() == {claims[1][0]: "x", behind: "r"}


# There is one budget of time for a call, however many of its jobs are in doubt.


@pytest.mark.parametrize("call", ["finish", "unregister", "rescue", "schedules"])
def test_a_call_waits_once_for_queueing_locks_in_doubt(
    session: Sessions, register: Register, defer: Defer, conn: psycopg.Connection[Any], call: str
) -> None:
    a, b = session(), session()
    worker = register()
    for n in range(30):
        defer(queueing_lock=f"q{n}")
    claims = b.run(fetch(worker, 30))
    conn.execute("create sequence patience minvalue 0")
    gates.rewrite(
        conn,
        "_wait_until",
        "select set_config(",
        "select setval('public.patience', nextval('public.patience')"
        " + greatest(0, extract(epoch from until - clock_timestamp()) * 1000)::bigint);\nselect set_config(",
    )
    a.run("begin")
    for n in range(30):
        a.run("select procrastinate.defer('t', queueing_lock => %s)", f"q{n}")
    if call == "finish":
        told = [{"id": c[0], "token": c[1], "outcome": "released"} for c in claims]
        rows = b.run("select verdict from procrastinate.finish_v1(%s, outcomes => %s)", worker, json.dumps(told))
        assert rows == [("refused",)] * 30
    elif call == "unregister":
        assert b.one("select procrastinate.unregister_worker_v1(%s)", worker) == 0
    elif call == "rescue":
        b.run(SILENCE, worker)
        assert b.run(TICK) == []
    else:
        for n in range(30):
            b.run("select procrastinate.schedule(%s, 't', '* * * * *', queueing_lock => %s)", f"s{n}", f"q{n}")
        b.run("update procrastinate.schedule set next_tick = date_trunc('minute', now())")
        b.run("update procrastinate.tick set next_at = '2001-01-01'")
        assert b.run(TICK) == [("error", None)] * 30
    # what each was ready to wait for, one more for each: the first took it all
    assert 29 <= b.one("select last_value from patience") < 30 + 2 * 100
    a.run("rollback")
    assert b.one("select current_setting('lock_timeout')") == "0"


# Two batches


def test_two_batches_with_the_same_queueing_locks_do_not_wait_for_each_other(
    session: Sessions, conn: psycopg.Connection[Any]
) -> None:
    a, b = session(), session()
    gates.rewrite(
        conn,
        "_defer_once",
        "    if v_id is not null then\n",
        "    perform pg_advisory_xact_lock_shared(77, 77);\n    if v_id is not null then\n",
    )
    conn.execute(gates.SHUT)
    call = "select ord, id, created from procrastinate.defer_many(%s, 'ignore')"
    jobs = [{"task": "t", "queueing_lock": q} for q in ("x", "y")]
    one = a.start(call, json.dumps(jobs)).blocked()
    two = b.start(call, json.dumps(jobs[::-1])).blocked()
    conn.execute(gates.OPEN)
    assert [(row[0], row[2]) for row in one.rows()] == [(1, True), (2, True)]
    mine = [row[1] for row in one.rows()]
    assert mine == sorted(mine)
    assert [row[1:] for row in two.rows()] == [(mine[1], False), (mine[0], False)]
