"""Two sessions at one lock: who runs next is never forgotten, and never two at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from sessions import Session, end, fetch, finish

pytestmark = pytest.mark.usefixtures("patient")

Sessions = Callable[[], Session]
Defer = Callable[..., int]
Register = Callable[..., int]
States = Callable[[], dict[int, str]]
Orphans = Callable[[], list[Any]]

WORK = (
    "select id, token from procrastinate.work_v1({}, array[{}]::bigint[], array[{}]::bigint[],"
    " '[]', true, {}, 0, null) where id is not null"
)


def test_a_job_that_a_fetch_lines_up_while_its_holder_ends_is_called_up(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    running = defer("L")
    (claim,) = a.run(fetch(worker))
    waiting = defer("L")
    # the fetch finds the lock taken and lines its candidate up, but has not committed
    b.run("begin")
    assert b.run(fetch(other)) == []
    ended = a.start(finish(worker, claim)).blocked()
    assert states() == {running: "x", waiting: "r"}
    b.run("commit")
    assert ended.rows() == [(running, "ok")]
    assert states() == {waiting: "r"}
    assert [row[0] for row in b.run(fetch(other))] == [waiting]


def test_a_job_deferred_while_its_lock_is_passed_on_is_called_up(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker = register()
    defer("L")
    (claim,) = a.run(fetch(worker))
    b.run("begin")
    late = b.one("select procrastinate.defer('t', lock => 'L')")
    assert a.run(finish(worker, claim)) == [(claim[0], "ok")]
    b.run("commit")
    assert states() == {late: "r"}


@pytest.mark.scenario("R1")
def test_two_fetches_never_both_get_a_lock(session: Sessions, register: Register, defer: Defer, states: States) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    first = defer("L")
    a.run("begin")
    assert [row[0] for row in a.run(fetch(worker, 1))] == [first]
    # deferred after the fetch has looked, so that only the lock itself keeps it back
    second = defer("L")
    assert b.run(fetch(other)) == []
    a.run("commit")
    assert b.run(fetch(other)) == []
    assert states() == {first: "x", second: "w"}


def test_two_fetches_share_many_locks_out(session: Sessions, register: Register, defer: Defer) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    ids = [defer(lock) for lock in ("L", "M", "L", "M")]
    a.run("begin")
    b.run("begin")
    mine = [row[0] for row in a.run(fetch(worker, 1))]
    # it may not see what the first one holds, so it may not take anything of L
    theirs = [row[0] for row in b.run(fetch(other))]
    a.run("commit")
    b.run("commit")
    assert (mine, theirs) == ([ids[0]], [ids[1]])


@pytest.mark.scenario("R1")
def test_a_better_job_waits_for_the_one_that_runs_and_is_next(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    defer("L")
    (claim,) = a.run(fetch(worker))
    worse = defer("L")
    better = defer("L", priority=5)
    b.run("begin")
    assert b.run(fetch(other)) == []
    ended = a.start(finish(worker, claim)).blocked()
    b.run("commit")
    ended.rows()
    assert states() == {worse: "w", better: "r"}


def test_work_hands_the_lock_to_its_own_fetch(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    defer("L")
    (claim,) = a.run(fetch(worker))
    second, third = defer("L"), defer("L")
    b.run("begin")
    assert b.run(fetch(other)) == []
    worked = a.start(WORK.format(worker, *claim, 5)).blocked()
    b.run("commit")
    assert [row[0] for row in worked.rows()] == [second]
    assert states() == {second: "x", third: "w"}


def test_a_head_in_a_queue_the_worker_does_not_serve_is_left_to_others(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker, other = register(["here"]), register(["there"])
    defer("L", queue="here")
    (claim,) = a.run(fetch(worker))
    there, here = defer("L", queue="there"), defer("L", queue="here")
    assert a.run(WORK.format(worker, *claim, 5)) == []
    assert a.run(fetch(worker)) == []
    assert states() == {there: "r", here: "w"}
    assert [row[0] for row in b.run(fetch(other))] == [there]


def test_a_fetch_passes_over_a_job_that_is_being_cancelled(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker = register()
    gone, free = defer(), defer()
    a.run("begin")
    assert a.one("select procrastinate.cancel(%s)", gone) == "cancelled"
    assert [row[0] for row in b.run(fetch(worker))] == [free]
    a.run("rollback")
    assert [row[0] for row in b.run(fetch(worker))] == [gone]
    assert states() == {gone: "x", free: "x"}


def test_a_cancel_waits_for_a_fetch_and_then_leaves_the_job_alone(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer()
    a.run("begin")
    a.run(fetch(worker))
    cancelled = b.start("select procrastinate.cancel(%s)", job).blocked()
    a.run("commit")
    assert cancelled.one() is None
    assert states() == {job: "x"}


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_cancelling_the_head_of_a_lock_keeps_the_line(
    session: Sessions, register: Register, defer: Defer, orphans: Orphans, ends: str
) -> None:
    a, b = session(), session()
    worker = register()
    head, second, third = defer("L"), defer("L"), defer("L")
    a.run("begin")
    a.run("select procrastinate.cancel(%s)", head)
    # whether the head is gone is not known yet, so nothing may run in its place
    assert b.run(fetch(worker)) == []
    a.run(ends)
    assert orphans() == []
    order = []
    while claims := b.run(fetch(worker)):
        order += [claims[0][0]]
        b.run(finish(worker, *claims))
    assert order == ([second, third] if ends == "commit" else [head, second, third])


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_the_next_in_line_is_cancelled_while_the_lock_is_passed_on(
    session: Sessions, register: Register, defer: Defer, orphans: Orphans, ends: str
) -> None:
    a, b = session(), session()
    worker = register()
    defer("L")
    (claim,) = a.run(fetch(worker))
    second, third = defer("L"), defer("L")
    assert a.run(fetch(worker)) == []
    b.run("begin")
    b.run("select procrastinate.cancel(%s)", second)
    a.run(finish(worker, claim))
    b.run(ends)
    assert orphans() == []
    assert [row[0] for row in a.run(fetch(worker))] == [third if ends == "commit" else second]


def test_two_candidates_cancelled_at_once_leave_a_candidate(
    session: Sessions, register: Register, defer: Defer, orphans: Orphans
) -> None:
    a, b = session(), session()
    worker = register()
    (third,) = (
        row[0]
        for row in a.run(
            """select id from procrastinate.defer_many(
              '[{"task": "t", "lock": "L"}, {"task": "t", "lock": "L"}]') order by ord offset 1"""
        )
    )
    head = third - 1
    second = defer("L", priority=1)
    a.run("begin")
    b.run("begin")
    a.run("select procrastinate.cancel(%s)", head)
    b.run("select procrastinate.cancel(%s)", second)
    a.run("commit")
    b.run("commit")
    assert orphans() == []
    assert [row[0] for row in a.run(fetch(worker))] == [third]


def test_a_lined_up_job_is_called_up_though_the_candidate_is_being_cancelled(
    session: Sessions, register: Register, defer: Defer, orphans: Orphans
) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    defer("L")
    (claim,) = a.run(fetch(worker))
    head, second = defer("L"), defer("L")
    b.run("begin")
    b.run("select procrastinate.cancel(%s)", head)
    # the cancel saw a second candidate and called nobody up; now that one lines up
    assert a.run(fetch(other)) == []
    a.run(finish(worker, claim))
    b.run("commit")
    assert orphans() == []
    assert [row[0] for row in a.run(fetch(other))] == [second]


def test_a_retry_that_holds_its_lock_is_cancelled_while_the_lock_is_passed_on(
    session: Sessions, register: Register, defer: Defer, orphans: Orphans
) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    head = defer("L")
    (first,) = a.run(fetch(worker))
    a.run(*end(worker, first, "failed", retry={"in": 3600}))
    better = defer("L", priority=5)
    (claim,) = a.run(fetch(worker))
    assert claim[0] == better
    second = defer("L")
    b.run("begin")
    b.run("select procrastinate.cancel(%s)", head)
    assert a.run(fetch(other)) == []
    a.run(finish(worker, claim))
    b.run("commit")
    assert orphans() == []
    assert [row[0] for row in a.run(fetch(other))] == [second]


@pytest.mark.parametrize("others", [0, 2])
def test_cancels_of_a_whole_lock_rolled_back_are_healed_by_the_next_tick(
    session: Sessions, register: Register, defer: Defer, others: int
) -> None:
    a, b = session(), session()
    worker = register()
    defer("L")
    (claim,) = a.run(fetch(worker))
    better = defer("L", priority=1)
    assert a.run(fetch(worker)) == []
    for _ in range(others):
        defer("L")
        assert a.run(fetch(worker)) == []
    b.run("begin")
    b.run("select procrastinate.cancel(id) from procrastinate.job where state in ('w', 'b')")
    a.run(finish(worker, claim))
    b.run("rollback")
    a.run("update procrastinate.tick set next_at = procrastinate.now_()")
    a.run("select * from procrastinate.tick_v1()")
    assert [row[0] for row in a.run(fetch(worker))] == [better]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("change", ["lock => 'M'", "lock => 'L', schedule_in => '1 hour'"])
def test_a_replace_takes_the_head_away_from_a_fetch(
    session: Sessions, register: Register, defer: Defer, states: States, change: str, ends: str
) -> None:
    a, b = session(), session()
    worker = register()
    head = defer("L", queueing_lock="q")
    second = defer("L")
    a.run("begin")
    replaced = a.one(f"select procrastinate.defer('t', {change}, queueing_lock => 'q', on_conflict => 'replace')")
    assert replaced == head
    assert b.run(fetch(worker)) == []
    a.run(ends)
    got = {row[0] for row in b.run(fetch(worker))}
    assert got == ({head} if ends == "rollback" else {second} | ({head} & _ready(states, head)))


def _ready(states: States, job: int) -> set[int]:
    return {job} if states()[job] in ("r", "x") else set()


def test_a_replace_waits_for_a_fetch_and_then_defers_another_job(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker = register()
    job = defer("L", queueing_lock="q")
    a.run("begin")
    a.run(fetch(worker))
    replaced = b.start(
        "select procrastinate.defer('t', lock => 'L', queueing_lock => 'q', on_conflict => 'replace')"
    ).blocked()
    a.run("commit")
    other = replaced.one()
    assert other != job
    assert states() == {job: "x", other: "r"}


def test_a_retry_in_time_keeps_its_place_at_the_head(
    session: Sessions, register: Register, defer: Defer, states: States
) -> None:
    a, b = session(), session()
    worker, other = register(), register()
    head = defer("L")
    (claim,) = a.run(fetch(worker))
    behind = defer("L")
    b.run("begin")
    assert b.run(fetch(other)) == []
    failed = a.start(*end(worker, claim, "failed", retry={"in": 0})).blocked()
    b.run("commit")
    assert failed.rows() == [("ok", "todo", None)]
    assert states() == {head: "r", behind: "w"}
    assert [row[0] for row in b.run(fetch(other))] == [head]


@pytest.mark.parametrize("takes_away", ["select procrastinate.cancel({})", "select procrastinate.defer('t', {})"])
def test_who_is_called_up_instead_of_another_is_announced_to_idle_workers(
    session: Sessions, register: Register, defer: Defer, takes_away: str
) -> None:
    a, b = session(), session()
    worker = register()
    head = defer("L", queueing_lock="q")
    (claim,) = a.run(fetch(worker))
    defer("L", queue="special")
    a.run(*end(worker, claim, "failed", retry={"in": 3600}))
    assert a.run(fetch(worker)) == []
    a.run("select procrastinate.idle_v1(%s)", worker)
    b.run("listen procrastinate_v1")
    replace = "queueing_lock => 'q', on_conflict => 'replace', schedule_in => '1 hour'"
    a.run(takes_away.format(head if "cancel" in takes_away else replace))
    payloads = {n.payload for n in b.conn.notifies(timeout=20, stop_after=1)}
    assert "q" + hashlib.sha256(b"special").hexdigest()[:8] in payloads
    assert len(a.run(fetch(worker))) == 1
