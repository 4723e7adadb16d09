"""A transaction that stays open: whom it keeps waiting, and whom not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    b.run("select procrastinate.schedule('s', 't', '* * * * *', queueing_lock => 'q')")
    b.run("select procrastinate.schedule('u', 't', '* * * * *')")
    b.run("update procrastinate.schedule set next_tick = date_trunc('minute', now())")
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
