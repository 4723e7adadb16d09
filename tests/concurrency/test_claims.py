"""Two sessions at one claim: a run is ended once, and only by whoever holds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gates
import psycopg
import pytest
from sessions import Session, Step, end, fetch, finish

Sessions = Callable[[], Session]
Defer = Callable[..., int]
Register = Callable[..., int]
States = Callable[[], dict[int, str]]

TICK = "select kind, job_id from procrastinate.tick_v1() where kind is not null"
SILENCE = """
with w as (update procrastinate.worker set heartbeat_at = '2001-01-01' where id = %s)
update procrastinate.tick set next_at = '2001-01-01'
"""


def attempts(session: Session, job: int) -> tuple[Any, ...]:
    (row,) = session.run("select status, attempts from procrastinate.jobs where id = %s", job)
    return row


def test_a_tick_leaves_a_job_alone_that_is_just_ending(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L")
    (claim,) = a.run(fetch(worker))
    a.run(SILENCE, worker)
    a.run("begin")
    assert a.run(finish(worker, claim)) == [(job, "ok")]
    assert b.run(TICK) == []
    a.run("commit")
    assert attempts(a, job) == ("succeeded", 1)
    assert b.one("select count(*) from procrastinate.worker") == 1
    # the worker has nothing left to lose, so that now it is forgotten
    b.run(SILENCE, worker)
    assert b.run(TICK) == []
    assert b.one("select count(*) from procrastinate.worker") == 0


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "released", "aborted", "unknown_task"])
def test_whoever_ends_a_run_during_its_rescue_is_told_that_it_is_stale(
    session: Sessions, register: Register, defer: Defer, outcome: str
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L")
    (claim,) = a.run(fetch(worker))
    a.run(SILENCE, worker)
    b.run("begin")
    assert b.run(TICK) == [("rescued", job)]
    # whose it is, is not known yet; nobody waits for that
    assert a.run(*end(worker, claim, outcome)) == [("refused", None, "55P03")]
    b.run("commit")
    assert a.run(*end(worker, claim, outcome)) == [("stale", None, None)]
    assert attempts(a, job) == ("todo", 1)


def test_a_success_during_a_rescue_is_stale(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    jobs = [defer(), defer("L")]
    claims = a.run(fetch(worker))
    a.run(SILENCE, worker)
    b.run("begin")
    b.run(TICK)
    assert a.run(finish(worker, *claims)) == [(j, "refused") for j in jobs]
    b.run("commit")
    assert a.run(finish(worker, *claims)) == [(j, "stale") for j in jobs]
    taken = b.run(fetch(other))
    assert a.run(finish(worker, *claims)) == [(j, "stale") for j in jobs]
    assert b.run(finish(other, *taken)) == [(j, "ok") for j in jobs]
    assert [attempts(a, j) for j in jobs] == [("succeeded", 2)] * 2


@pytest.mark.parametrize("first", ["old", "new"])
@pytest.mark.parametrize("how", ["succeeded", "outcomes"])
def test_the_old_and_the_new_run_of_a_job_end_in_one_call(
    session: Sessions, register: Register, defer: Defer, how: str, first: str
) -> None:
    """A worker that was taken for dead may have fetched its own job again."""
    a = session()
    worker = register()
    job = defer("L")
    (old,) = a.run(fetch(worker))
    a.run("select procrastinate.retry(%s)", job)
    (new,) = a.run(fetch(worker))
    order = [old, new] if first == "old" else [new, old]
    if how == "succeeded":
        told = a.run(
            "select token, verdict from procrastinate.finish_v1(%s, %s, %s)",
            worker, [c[0] for c in order], [c[1] for c in order],
        )  # fmt: skip
    else:
        outcomes = [{"id": i, "token": t, "outcome": "released"} for i, t in order]
        told = a.run(
            "select token, verdict from procrastinate.finish_v1(%s, outcomes => %s)",
            worker, json.dumps(outcomes),
        )  # fmt: skip
    assert dict(told) == {old[1]: "stale", new[1]: "ok"}


def test_a_worker_that_works_on_while_it_is_found_dead_is_in_nobodys_way(
    conn: psycopg.Connection[Any], session: Sessions, register: Register, defer: Defer
) -> None:
    gates.install(conn)
    tick, work, keeper = session(), session(), session()
    for stop in range(1, 1000):
        worker = register()
        defer("L")
        work.run(fetch(worker))
        defer("L", priority=1)
        defer()
        work.run("update procrastinate.worker set idle_at = '2001-01-01' where id = %s", worker)
        keeper.run(SILENCE, worker)
        keeper.run(gates.SHUT)
        tick.run(f"set gates.count = 0; set gates.stop = {stop}")
        ticked = tick.start(TICK)
        _halted(ticked)
        halted = not ticked.done()
        worked = work.start("select id from procrastinate.work_v1(%s, '{}', '{}', '[]', true, 1, 0, null)", worker)
        _halted(worked)
        keeper.run(gates.OPEN)
        ticked.rows()
        try:
            worked.rows()
        except psycopg.DatabaseError as error:
            assert error.sqlstate == "JQ004"  # noqa: PT017
        for table in ("job", "worker"):
            conn.execute(f"delete from procrastinate.{table}")
        if not halted:
            return
    raise AssertionError


def _halted(step: Step) -> None:
    while not (step.done() or step.waits()):
        pass


def test_an_operators_retry_takes_a_run_away_while_it_ends(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L")
    (claim,) = a.run(fetch(worker))
    b.run("begin")
    assert b.one("select procrastinate.retry(%s)", job) is True
    assert a.run(finish(worker, claim)) == [(job, "refused")]
    b.run("commit")
    assert a.run(finish(worker, claim)) == [(job, "stale")]
    assert attempts(a, job) == ("todo", 1)


def test_an_operators_retry_waits_for_the_end_of_the_run_and_then_retries_it(
    session: Sessions, register: Register, defer: Defer
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L")
    (claim,) = a.run(fetch(worker))
    a.run("begin")
    a.run(finish(worker, claim))
    retried = b.start("select procrastinate.retry(%s)", job).blocked()
    a.run("commit")
    assert retried.one() is True
    assert attempts(a, job) == ("todo", 1)


def test_two_operators_retry_a_finished_job_once(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    job = defer()
    a.run(finish(worker, *a.run(fetch(worker))))
    a.run("begin")
    assert a.one("select procrastinate.retry(%s)", job) is True
    second = b.start("select procrastinate.retry(%s)", job).blocked()
    a.run("commit")
    with pytest.raises(psycopg.DatabaseError) as raised:
        second.rows()
    assert raised.value.sqlstate == "JQ003"
    assert a.run("select id, status from procrastinate.jobs") == [(job, "todo")]


def test_an_abort_and_the_end_of_the_run(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L")
    (claim,) = a.run(fetch(worker))
    a.run("begin")
    a.run(finish(worker, claim))
    aborted = b.start("select procrastinate.cancel(%s, abort => true)", job).blocked()
    a.run("commit")
    assert aborted.one() is None
    assert attempts(a, job) == ("succeeded", 1)


def test_an_abort_that_comes_with_the_failure_forbids_the_retry(
    session: Sessions, register: Register, defer: Defer
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L", retry="true")
    (claim,) = a.run(fetch(worker))
    b.run("begin")
    assert b.one("select procrastinate.cancel(%s, abort => true)", job) == "abort_requested"
    assert a.run(*end(worker, claim, "failed")) == [("refused", None, "55P03")]
    b.run("commit")
    assert a.run(*end(worker, claim, "failed")) == [("ok", "failed", None)]


def test_an_abort_that_finds_the_job_back_in_its_queue_cancels_it(
    session: Sessions, register: Register, defer: Defer
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L", retry="true")
    (claim,) = a.run(fetch(worker))
    a.run("begin")
    a.run(*end(worker, claim, "failed"))
    aborted = b.start("select procrastinate.cancel(%s, abort => true)", job).blocked()
    a.run("commit")
    assert aborted.one() == "cancelled"
    assert attempts(a, job) == ("cancelled", 1)


@pytest.mark.parametrize("how", ["both kinds", "successes", "failures"])
@pytest.mark.parametrize("order", ["up", "down"])
def test_the_end_of_a_batch_beside_aborts_of_the_same_jobs_in_one_transaction(
    session: Sessions, register: Register, defer: Defer, how: str, order: str
) -> None:
    a, b = session(), session()
    worker = register()
    # claimed, and so written, in the other order
    jobs = [defer(), defer(priority=1), defer("L", priority=2)]
    claims = sorted(a.run(fetch(worker)))
    failed = {"successes": [], "both kinds": [claims[1]], "failures": claims}[how]
    plain = [c for c in claims if c not in failed]

    def told() -> dict[int, str]:
        rows = a.run(
            "select id, verdict from procrastinate.finish_v1(%s, %s, %s, %s)",
            worker,
            [c[0] for c in plain],
            [c[1] for c in plain],
            json.dumps([{"id": i, "token": t, "outcome": "failed"} for i, t in failed]),
        )
        return dict(rows)

    touched = jobs[:2] if order == "up" else jobs[:0:-1]
    b.run("begin")
    b.run("select procrastinate.cancel(%s, abort => true)", touched[0])
    # only those that somebody holds have to wait, and they do not wait here
    first = told()
    assert first == {job: "refused" if job == touched[0] else "ok" for job in jobs}
    assert b.one("select procrastinate.cancel(%s, abort => true)", touched[1]) is None
    b.run("commit")
    plain, failed = ([c for c in some if c[0] == touched[0]] for some in (plain, failed))
    assert told() == {touched[0]: "ok"}


def test_a_worker_takes_leave_while_one_of_its_runs_ends(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    first, second = defer("L"), defer("M")
    claims = a.run(fetch(worker))
    a.run("begin")
    a.run(finish(worker, claims[1]))
    # it does not wait for that one, and a tick forgets the worker later
    assert b.one("select procrastinate.unregister_worker_v1(%s)", worker) == 1
    a.run("commit")
    assert attempts(a, first) == ("todo", 0)
    assert attempts(a, second) == ("succeeded", 1)


def test_a_run_that_ends_after_its_worker_took_leave(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    jobs = [defer("L"), defer("M")]
    claims = a.run(fetch(worker))
    b.run("begin")
    assert b.one("select procrastinate.unregister_worker_v1(%s)", worker) == 2
    assert [v for _, v in a.run(finish(worker, *claims))] == ["refused", "refused"]
    b.run("commit")
    assert [v for _, v in a.run(finish(worker, *claims))] == ["already", "already"]
    assert [attempts(a, j) for j in jobs] == [("todo", 0)] * 2


def test_a_purge_passes_over_a_job_that_is_being_retried(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    kept, gone = defer(), defer()
    a.run(finish(worker, *a.run(fetch(worker))))
    a.run("begin")
    assert a.one("select procrastinate.retry(%s)", kept) is True
    assert b.one("select procrastinate.purge('-1 hour', '{succeeded}')") == 1
    a.run("commit")
    assert a.run("select id, status from procrastinate.jobs") == [(kept, "todo")]
    assert a.one("select count(*) from procrastinate.events where job_id = %s", gone) == 0


def test_a_retry_of_a_job_that_is_being_purged_finds_nothing(
    session: Sessions, register: Register, defer: Defer
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer()
    a.run(finish(worker, *a.run(fetch(worker))))
    a.run("begin")
    assert a.one("select procrastinate.purge('-1 hour', '{succeeded}')") == 1
    retried = b.start("select procrastinate.retry(%s)", job).blocked()
    a.run("commit")
    assert retried.one() is False
    assert a.one("select count(*) from procrastinate.jobs") == 0


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_job_completed_in_an_open_transaction(
    session: Sessions, register: Register, defer: Defer, states: States, ends: str
) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    job, behind = defer("L"), defer("L")
    (claim,) = a.run(fetch(worker))
    a.run("begin")
    a.run("select procrastinate.complete_v1(%s, %s)", *claim)
    # neither a fetch nor a tick waits for it, or takes it for dead
    assert b.run(fetch(other)) == []
    b.run(SILENCE, worker)
    assert b.run(TICK) == []
    assert b.run(finish(worker, claim)) == [(job, "refused")]
    a.run(ends)
    assert b.run(finish(worker, claim)) == [(job, "already" if ends == "commit" else "ok")]
    assert attempts(a, job) == ("succeeded", 1)
    assert states() == {behind: "r"}


def test_a_job_completed_by_two_transactions_counts_once(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L")
    (claim,) = a.run(fetch(worker))
    a.run("create table effect (n int)")
    for s in (a, b):
        s.run("begin")
        s.run("insert into effect values (1)")
    a.run("select procrastinate.complete_v1(%s, %s)", *claim)
    second = b.start("select procrastinate.complete_v1(%s, %s)", *claim).blocked()
    a.run("commit")
    with pytest.raises(psycopg.DatabaseError) as raised:
        second.rows()
    assert raised.value.sqlstate == "JQ002"
    b.run("rollback")
    assert attempts(a, job) == ("succeeded", 1)
    assert a.one("select count(*) from effect") == 1


def test_a_job_completed_while_it_is_given_away_is_refused(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L")
    (claim,) = a.run(fetch(worker))
    a.run(SILENCE, worker)
    b.run("begin")
    assert b.run(TICK) == [("rescued", job)]
    completed = a.start("select procrastinate.complete_v1(%s, %s)", *claim).blocked()
    b.run("commit")
    with pytest.raises(psycopg.DatabaseError) as raised:
        completed.rows()
    assert raised.value.sqlstate == "JQ002"


def test_a_replace_does_not_bend_the_queue_of_a_fetch(
    conn: psycopg.Connection[Any], session: Sessions, register: Register, defer: Defer
) -> None:
    """A fetch of several queues picks first and holds later; in between, a job may move."""
    _race_a_replace(conn, session, register(["a", "b"]), defer, "queue => 'c'")


@pytest.mark.parametrize(
    "change", ["lock => 'L', schedule_in => '1 hour'", "lock => 'M'", "lock => 'L', priority => -9"]
)
def test_a_replace_does_not_bend_the_line_of_a_lock(
    conn: psycopg.Connection[Any], session: Sessions, register: Register, defer: Defer, change: str
) -> None:
    """A fetch finds the head of a lock first and holds it later; in between, it may change."""
    _race_a_replace(conn, session, register(), defer, change)


def _race_a_replace(conn: psycopg.Connection[Any], session: Sessions, worker: int, defer: Defer, change: str) -> None:
    gates.install(conn)
    a, b, keeper = session(), session(), session()
    for stop in range(1, 1000):
        moved = defer("L", priority=1, queueing_lock="q", queue="a")
        defer("L", queue="a")
        other = defer("M", queue="b")
        # candidates may stand behind a head that is none: it has been called up by mistake
        conn.execute("update procrastinate.job set state = 'w' where id = %s", [moved])
        if "queue" in change:
            conn.execute("update procrastinate.job set state = 'r'")
        keeper.run(gates.SHUT)
        a.run(f"set gates.count = 0; set gates.stop = {stop}")
        fetched = a.start(fetch(worker))
        _halted(fetched)
        halted = not fetched.done()
        replaced = b.start(f"select procrastinate.defer('t', queueing_lock => 'q', on_conflict => 'replace', {change})")
        _halted(replaced)
        keeper.run(gates.OPEN)
        got = [row[0] for row in fetched.rows()]
        if replaced.one() == moved:
            wrong = {moved, other} if "'M'" in change else {moved}
            assert not wrong <= set(got), f"fetched after it was replaced, halted at {stop}"
        assert len(got) == 2 or moved not in got
        conn.execute("delete from procrastinate.job")
        if not halted:
            return
    raise AssertionError
