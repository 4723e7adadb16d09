"""
What two operations meet: jobs under a lock in several states, and the operations themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

# All that decides what happens next. Of what has ended, that it has.
STATE = """
select (select jsonb_agg(
                 to_jsonb(j) - '{token,deferred_at,scheduled_at,started_at,worker_id}'::text[]
                 order by j.id)
          from procrastinate.job as j)::text,
       (select jsonb_agg(d.id order by d.id) from procrastinate.done as d)::text
"""
ORPHANS = """
select lock from procrastinate.job as j
 where state in ('w', 'b') and not exists (
   select from procrastinate.job as k where k.lock = j.lock and k.state in ('r', 'h', 'x'))
"""


@dataclass
class Scene:
    """What the two meet: jobs by name, tokens of those that run, workers by name."""

    jobs: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)
    attempts: int = 0


# A fetch reads all queues, several, and one by statements of their own.
QUEUES: dict[str, list[str] | None] = {"a": None, "b": ["default", "none"], "c": ["default"]}

Operation = Callable[[Scene], tuple[str, tuple[Any, ...]]]


def _clear(conn: psycopg.Connection[Any]) -> Scene:
    for table in ("job", "done", "event", "worker"):
        conn.execute(f"delete from procrastinate.{table}")
    conn.execute("update procrastinate.tick set next_at = '2000-01-01', swept_lock = ''")
    conn.execute("select setval(pg_get_serial_sequence('procrastinate.job', 'id'), 1)")
    conn.execute("select procrastinate.enable_test_clock(false)")
    conn.execute("select procrastinate.enable_test_clock(true)")
    scene = Scene()
    for name in QUEUES:
        _register(conn, scene, name)
    return scene


def _register(conn: psycopg.Connection[Any], scene: Scene, name: str) -> None:
    query = "select procrastinate.register_worker_v1(%s, %s)"
    scene.workers[name] = value(conn, query, name, QUEUES[name])


def value(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query, params).fetchone()
    return row[0] if row else None


def _defer(conn: psycopg.Connection[Any], scene: Scene, name: str, **more: Any) -> None:
    names = "".join(f", {n} => %s" for n in more)
    scene.jobs[name] = value(conn, f"select procrastinate.defer('t'{names})", *more.values())


def _claim(conn: psycopg.Connection[Any], scene: Scene, worker: str, count: int = 1) -> None:
    for id_, token in conn.execute(
        "select id, token from procrastinate.fetch_v1(%s, %s)", [scene.workers[worker], count]
    ).fetchall():
        scene.tokens[next(n for n, i in scene.jobs.items() if i == id_)] = token


def held(conn: psycopg.Connection[Any]) -> Scene:
    """One runs; behind it a candidate, two that line up, one better, one that came back; two are alone, one ended."""
    scene = _clear(conn)
    _defer(conn, scene, "ended")
    _claim(conn, scene, "c")
    _finish_all(conn)
    del scene.tokens["ended"]
    _defer(conn, scene, "later", lock="L", priority=2, retry=json.dumps({"wait": 3600}))
    _claim(conn, scene, "c")
    conn.execute(
        "select procrastinate.finish_v1(%s, outcomes => jsonb_build_array(jsonb_build_object("
        "'id', %s::bigint, 'token', %s::bigint, 'outcome', 'released')))",
        [scene.workers["c"], scene.jobs["later"], scene.tokens.pop("later")],
    )
    conn.execute("select procrastinate.cancel(%s)", [scene.jobs.pop("later")])
    _defer(conn, scene, "running", lock="L", queueing_lock="running", retry="3")
    _claim(conn, scene, "a")
    conn.execute(
        "select * from procrastinate.defer_many(%s)",
        [json.dumps([{"task": "t", "lock": "L", "priority": -p} for p in (1, 2, 3)])],
    )
    second, third, fourth = (
        i for (i,) in conn.execute("select id from procrastinate.job where state <> 'x' order by id").fetchall()
    )
    scene.jobs |= {"second": second, "third": third, "fourth": fourth}
    _defer(conn, scene, "better", lock="L", priority=5)
    _defer(conn, scene, "unique", lock="L", queueing_lock="unique")
    _defer(conn, scene, "other", lock="M", priority=-9)
    _defer(conn, scene, "alone", priority=-1)
    _defer(conn, scene, "alone, too")
    # the worker of the running job has been silent for too long
    conn.execute(
        "update procrastinate.worker set heartbeat_at = '2001-01-01', idle_at = '2001-01-01' where id = %s",
        [scene.workers["a"]],
    )
    return scene


def lined_up(conn: psycopg.Connection[Any]) -> Scene:
    """As held, but a fetch has looked, so that all the rest waits without a candidate."""
    scene = held(conn)
    conn.execute("select procrastinate.fetch_v1(%s, 10)", [scene.workers["c"]])
    conn.execute("select procrastinate.unregister_worker_v1(%s)", [scene.workers["c"]])
    _register(conn, scene, "c")
    return scene


def free(conn: psycopg.Connection[Any]) -> Scene:
    """Nothing runs under the lock; two candidates and a line behind them."""
    scene = held(conn)
    conn.execute("select procrastinate.fetch_v1(%s, 10)", [scene.workers["c"]])
    for worker in ("a", "c"):
        conn.execute("select procrastinate.unregister_worker_v1(%s)", [scene.workers[worker]])
        _register(conn, scene, worker)
    scene.tokens["running"] = 1
    return scene


def fresh(conn: psycopg.Connection[Any]) -> Scene:
    """Nobody has looked at the lock yet: two candidates, one that lines up, and two alone; a job has ended."""
    scene = _clear(conn)
    _defer(conn, scene, "running", lock="L", queueing_lock="running")
    _claim(conn, scene, "a")
    _finish_all(conn)
    conn.execute(
        "select * from procrastinate.defer_many(%s)",
        [json.dumps([{"task": "t", "lock": "L"}, {"task": "t", "lock": "L"}])],
    )
    second, fourth = (i for (i,) in conn.execute("select id from procrastinate.job order by id").fetchall())
    scene.jobs |= {"second": second, "fourth": fourth}
    scene.jobs["ended"] = scene.jobs["running"]
    scene.attempts = 1
    _defer(conn, scene, "better", lock="L", priority=5, queueing_lock="unique")
    _defer(conn, scene, "alone", priority=-1)
    _defer(conn, scene, "alone, too")
    return scene


def _outcome(how: dict[str, Any]) -> Operation:
    def operation(s: Scene) -> tuple[str, tuple[Any, ...]]:
        told = {"id": s.jobs["running"], "token": s.tokens["running"], **how}
        return (
            "select verdict, sqlstate from procrastinate.finish_v1(%s, outcomes => %s)",
            (s.workers["a"], json.dumps([told])),
        )

    return operation


def _work(s: Scene) -> tuple[str, tuple[Any, ...]]:
    ids, tokens = [s.jobs["running"]], [s.tokens["running"]]
    query = (
        "select coalesce(id::text, verdicts -> 0 ->> 'verdict', 'ok')"
        "  from procrastinate.work_v1(%s, %s::bigint[], %s::bigint[], '[]', true, 3, 2, null)"
    )
    return query, (s.workers["a"], ids, tokens)


def _call(query: str, *names: str) -> Operation:
    def operation(s: Scene) -> tuple[str, tuple[Any, ...]]:
        known = s.jobs | {f"worker {n}": w for n, w in s.workers.items()}
        known |= {f"token {n}": t for n, t in s.tokens.items()}
        return query, tuple(known[n] for n in names)

    return operation


_DEFER = "select procrastinate.defer('t', lock => 'L', "
_REPLACE = "select procrastinate.defer('t', queueing_lock => 'unique', on_conflict => 'replace', "
OPERATIONS: dict[str, Operation] = {
    "succeed": _outcome({"outcome": "succeeded"}),
    "work": _work,
    "release": _outcome({"outcome": "released"}),
    "retry later": _outcome({"outcome": "failed", "retry": {"in": 3600}}),
    "retry elsewhere": _outcome({"outcome": "failed", "retry": {"lock": "M", "priority": 1}}),
    "fetch": _call("select id::text from procrastinate.fetch_v1(%s, 10)", "worker b"),
    "fetch one": _call("select id::text from procrastinate.fetch_v1(%s, 1)", "worker c"),
    "work on": _call("select id::text from procrastinate.work_v1(%s, '{}', '{}', '[]', true, 1, 0, null)", "worker a"),
    "tick": _call("select kind, job_id from procrastinate.tick_v1()"),
    "unregister": _call("select procrastinate.unregister_worker_v1(%s)", "worker a"),
    "complete": _call("select procrastinate.complete_v1(%s, %s)", "running", "token running"),
    "abort": _call("select procrastinate.cancel(%s, abort => true)", "running"),
    "take back": _call("select procrastinate.retry(%s)", "running"),
    "cancel the head": _call("select procrastinate.cancel(%s)", "better"),
    "cancel the second": _call("select procrastinate.cancel(%s, delete => true)", "second"),
    "cancel the last": _call("select procrastinate.cancel(%s)", "fourth"),
    "replace away": _call(_REPLACE + "lock => 'M')"),
    "replace by later": _call(_REPLACE + "lock => 'L', schedule_in => '1 hour')"),
    "replace by best": _call(_REPLACE + "lock => 'L', priority => 9)"),
    "defer": _call(_DEFER + "priority => 7)"),
    "defer many": _call(
        'select created from procrastinate.defer_many(\'[{"task": "t", "lock": "L"}, {"task": "t"}]\')'
    ),
    "end by hand": _call("select procrastinate.finish_job_v1(%s, 'failed')", "running"),
    "take its place": _call(_DEFER + "queueing_lock => 'running', on_conflict => 'ignore')"),
}
EXPECTED = {
    "complete": {"JQ002"},
    "take back": {"JQ003", "23505"},
    "work": {"JQ004"},
    "work on": {"JQ004"},
    "fetch": {"JQ004"},
}
EXPECTED["fetch one"] = EXPECTED["fetch"]
EXPECTED["end by hand"] = {"JQ003"}

_ALL = "'{succeeded,failed,aborted,cancelled}'"
_SCHEDULE = '[{"name": "declared", "task": "t", "cron": "* * * * *"}]'
# What meets on other rows, besides.
OTHERS: dict[str, Operation] = {
    "heartbeat": _call("select registered from procrastinate.heartbeat_v1(%s)", "worker a"),
    "idle": _call("select ready from procrastinate.idle_v1(%s)", "worker b"),
    "register": _call(
        f"select procrastinate.register_worker_v1('d', tasks => '{{\"t\": {{}}}}', schedules => '{_SCHEDULE}') > 0"
    ),
    "bring back": _call("select procrastinate.retry(%s)", "ended"),
    "purge": _call(f"select procrastinate.purge('-1 hour', {_ALL})"),
    "register task": _call("select procrastinate.register_task('t', priority => 2)"),
    "schedule": _call("select procrastinate.schedule('s', 't', '* * * * *')"),
    "take the schedule's name": _call("select procrastinate.schedule('declared', 't', '* * * * *')"),
    "unschedule": _call("select procrastinate.unschedule('s')"),
    "set": _call("select procrastinate.set_setting('max_rescues', '5')"),
    "let in": _call("select procrastinate.grant_access('pg_monitor', 'client', '{default}')"),
    "let others in": _call("select procrastinate.grant_access('pg_read_all_stats', 'client')"),
    "shut out": _call("select procrastinate.revoke_access('pg_monitor')"),
    "register a hook": _call("select procrastinate.register_sql_hook('deferred', 'public.hook(bigint[])')"),
    "unregister a hook": _call("select procrastinate.unregister_sql_hook('deferred', 'public.hook(bigint[])')"),
    "move the clock": _call("select procrastinate.advance('1 second') is null"),
    "stop the clock": _call("select procrastinate.enable_test_clock()"),
}
# They change nothing and lock no row.
READERS = {"backend_v1", "count_jobs_v1", "cron_next", "held_v1", "now_", "protocol", "stalled_jobs_v1"}


SCENES = {"held": held, "lined up": lined_up, "free": free, "fresh": fresh}


def check(conn: psycopg.Connection[Any], where: str) -> None:
    assert not conn.execute(ORPHANS).fetchall(), f"a lock is forgotten: {where}"
    assert not conn.execute("select id from procrastinate.jobs group by id having count(*) > 1").fetchall(), (
        f"a job is there twice: {where}"
    )
    worker = value(conn, "select procrastinate.register_worker_v1('drain')")
    _finish_all(conn)
    for due in ("{r,w,b}", "{r,w,b,h,s}"):
        expected = dict(
            conn.execute(
                "select lock, array_agg(id order by rank, id) from procrastinate.job"
                " where state = any (%s) group by lock",
                [due],
            ).fetchall()
        )
        ran: dict[str, list[int]] = {}
        while claims := conn.execute("select id, token, lock from procrastinate.fetch_v1(%s, 10)", [worker]).fetchall():
            for id_, _, lock in claims:
                ran.setdefault(lock, []).append(id_)
            conn.execute(
                "select procrastinate.finish_v1(%s, %s, %s)", [worker, [c[0] for c in claims], [c[1] for c in claims]]
            )
        later = conn.execute(
            "select count(*) from procrastinate.job where state not in ('s', 'h')"
            "  and lock not in (select lock from procrastinate.job where state = 'h')"
        ).fetchone()
        assert later == (0,), f"jobs are stuck: {where}"
        for lock, ids in expected.items():
            got = ran.get(lock, [])
            assert got == ids[: len(got)], f"the order of {lock} is broken: {where}"
        conn.execute("select procrastinate.advance('2 hours')")
        conn.execute("update procrastinate.worker set heartbeat_at = procrastinate.now_()")
    assert value(conn, "select count(*) from procrastinate.job") == 0, f"jobs are left: {where}"


def _finish_all(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "select procrastinate.finish_v1(worker_id, array_agg(id), array_agg(token))"
        "  from procrastinate.job where state = 'x' group by worker_id"
    )
