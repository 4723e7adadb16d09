"""Locks: one job at a time, in the order of priority, then of id."""

from __future__ import annotations

import random

import pytest


def run_all(worker, capacity=9):
    """Run what there is, and return the ids in the order of the starts."""
    order = []
    while jobs := worker.fetch(capacity):
        order += [job.id for job in jobs]
        worker.finish(*jobs)
    return order


@pytest.mark.scenario(19)
def test_a_fetch_takes_one_job_of_a_lock(db, worker):
    ids = [db.defer(lock="l") for _ in range(3)]
    assert worker.ids(9) == ids[:1]
    assert worker.ids(9) == []


def test_the_end_of_a_job_lets_the_next_one_start(db, worker):
    ids = [db.defer(lock="l") for _ in range(3)]
    assert run_all(worker) == ids


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("succeeded", {}),
        ("failed", {}),
        ("aborted", {}),
        ("unknown_task", {}),
        ("succeeded", {"keep": False}),
        ("failed", {"keep": False}),
    ],
)
def test_however_a_job_ends_its_lock_is_free(db, worker, kind, more):
    first, second = db.defer(lock="l"), db.defer(lock="l")
    job = worker.take()
    worker.end(job, kind, **more)
    assert worker.ids() == [second]
    assert db.status(first) != "doing"


@pytest.mark.scenario(23)
def test_inside_a_lock_priority_comes_first_then_id(db, worker):
    rng = random.Random(5)
    jobs = [(-p, db.defer(lock="l", priority=p)) for p in rng.choices(range(3), k=20)]
    assert run_all(worker) == [job_id for _, job_id in sorted(jobs)]


def test_locks_do_not_mind_each_other(db, worker):
    a = [db.defer(lock="a") for _ in range(2)]
    b = [db.defer(lock="b") for _ in range(2)]
    free = [db.defer() for _ in range(2)]
    assert worker.ids(9) == [a[0], b[0], *free]


def test_a_lock_spans_queues_and_workers(db):
    first = db.defer(queue="one", lock="l")
    second = db.defer(queue="two", lock="l")
    one, two = db.worker(queues=["one"]), db.worker(queues=["two"])
    job = one.take()
    assert (job.id, two.ids()) == (first, [])
    one.finish(job)
    assert two.ids() == [second]


def test_a_running_job_is_never_jumped(db, worker):
    running = db.defer(lock="l")
    job = worker.take()
    late = db.defer(lock="l")
    urgent = db.defer(lock="l", priority=9)
    assert worker.ids(9) == []
    assert db.status(running, urgent, late) == ["doing", "todo", "todo"]
    worker.finish(job)
    assert run_all(worker) == [urgent, late]


def test_two_that_are_better_than_the_running_one_keep_their_order(db, worker):
    db.defer(lock="l")
    job = worker.take()
    good, better, last = (db.defer(lock="l", priority=p) for p in (1, 2, 0))
    assert worker.ids(9) == []
    worker.finish(job)
    assert run_all(worker) == [better, good, last]


@pytest.mark.scenario(20)
def test_an_abort_request_does_not_free_the_lock(db, worker):
    running, _ = db.defer(lock="l"), db.defer(lock="l")
    worker.take()
    db.cancel(running, abort=True)
    assert worker.ids() == []


@pytest.mark.scenario(21)
def test_waiting_on_a_lock_does_not_slow_other_jobs(db, worker):
    db.defer(lock="l")
    worker.take()
    db.defer_many(*({"lock": "l", "priority": 5} for _ in range(1200)))
    free = db.defer()
    assert worker.ids() == [free]


def test_a_hundred_jobs_of_one_lock_run_one_by_one_in_order(db, worker):
    rows = db.defer_many(*({"lock": "l"} for _ in range(100)))
    order = []
    jobs, last = worker.work(capacity=5)
    while jobs:
        assert len(jobs) == 1
        order.append(jobs[0].id)
        jobs, last = worker.work(*jobs, capacity=5, scan_from=last.scan_next)
    assert order == [row.id for row in rows]


def test_a_thousand_locks_in_one_fetch_are_all_taken(db, worker):
    rows = db.defer_many(*({"lock": f"l{n}"} for n in range(300)))
    got = []
    while jobs := worker.fetch(300):
        got += [job.id for job in jobs]
    assert sorted(got) == [row.id for row in rows]


@pytest.mark.parametrize("name", ["l", " ", "l\n", "'; drop table job --", "ł" * 512, "🦀" * 512])
def test_a_lock_may_have_any_name(db, worker, name):
    ids = [db.defer(lock=name) for _ in range(2)]
    assert worker.ids(9) == ids[:1]


def test_names_that_differ_in_anything_are_different_locks(db, worker):
    ids = [db.defer(lock=name) for name in ("l", "L", "l ", "ĺ", "l\u0301")]
    assert worker.ids(9) == ids


# Time


@pytest.mark.scenario("R10")
def test_a_job_not_yet_due_for_its_first_run_does_not_hold_back(db, worker):
    later = db.defer(lock="l", schedule_in="1 hour", priority=9)
    now = db.defer(lock="l")
    job = worker.take()
    assert job.id == now
    db.advance("1 hour")
    last = db.defer(lock="l")
    assert worker.ids() == []
    worker.finish(job)
    assert run_all(worker) == [later, last]


def test_a_job_that_waits_for_its_retry_holds_back(db, worker):
    first = db.defer(lock="l", retry={"wait": 3600})
    second = db.defer(lock="l")
    worker.fail(worker.take())
    assert worker.ids() == []
    db.advance("1 hour")
    job = worker.take()
    assert job.id == first
    worker.finish(job)
    assert worker.ids() == [second]


def test_what_is_better_than_a_retry_need_not_wait_for_it(db, worker):
    first = db.defer(lock="l", retry={"wait": 3600})
    worker.fail(worker.take())
    better = db.defer(lock="l", priority=1)
    worse = db.defer(lock="l")
    assert run_all(worker) == [better]
    db.advance("1 hour")
    assert run_all(worker) == [first, worse]


def test_better_ones_that_came_while_it_ran_go_before_its_retry(db, worker):
    first = db.defer(lock="l", retry={"wait": 3600})
    job = worker.take()
    better, worse = db.defer(lock="l", priority=1), db.defer(lock="l")
    assert worker.ids(9) == []
    worker.fail(job)
    assert run_all(worker) == [better]
    db.advance("1 hour")
    assert run_all(worker) == [first, worse]


def test_a_retry_at_once_keeps_its_place(db, worker):
    first = db.defer(lock="l", retry=1)
    second = db.defer(lock="l")
    worker.fail(worker.take())
    assert run_all(worker) == [first, second]


def test_a_release_keeps_the_place(db, worker):
    first, second = db.defer(lock="l"), db.defer(lock="l")
    worker.end(worker.take(), "released")
    assert run_all(worker) == [first, second]


def test_an_operators_retry_for_later_holds_back_too(db, worker):
    first = db.defer(lock="l")
    worker.finish(worker.take())
    second = db.defer(lock="l")
    db.retry(first, schedule_in="1 hour")
    assert worker.ids() == []
    db.advance("1 hour")
    assert run_all(worker) == [first, second]


# A head that no fetch serves


@pytest.mark.scenario("R10")
def test_a_head_in_a_queue_that_nobody_serves_blocks_its_lock(db):
    head = db.defer(queue="elsewhere", lock="l")
    blocked = db.defer(queue="here", lock="l")
    free = db.defer(queue="here", lock="other")
    worker = db.worker(queues=["here"])
    assert worker.ids(9) == [free]
    lock = db.lock("l")
    assert (lock.next_job_id, lock.next_queue, lock.state) == (head, "elsewhere", "ready")
    assert (lock.running_job_id, lock.waiting) == (None, 2)
    elsewhere = db.worker(queues=["elsewhere"])
    elsewhere.finish(elsewhere.take())
    assert worker.ids(9) == [blocked]


def test_a_head_elsewhere_is_found_by_who_serves_it_however_deep_it_was_in_line(db):
    here, there = db.worker(queues=["here"]), db.worker(queues=["there"])
    db.defer(queue="here", lock="l")
    job = here.take()
    first = db.defer(queue="there", lock="l", priority=2)
    second = db.defer(queue="here", lock="l", priority=1)
    assert here.ids(9) == there.ids(9) == []
    here.finish(job)
    assert here.ids(9) == []
    job = there.take()
    assert job.id == first
    there.finish(job)
    assert here.ids(9) == [second]


def test_a_finish_hands_the_lock_only_to_a_job_that_the_same_fetch_may_take(db):
    here, there = db.worker(queues=["here"]), db.worker(queues=["there"])
    db.defer(queue="here", lock="l")
    elsewhere = db.defer(queue="there", lock="l")
    jobs, _ = here.work(capacity=1)
    jobs, _ = here.work(*jobs, capacity=1)
    assert jobs == []
    assert there.ids() == [elsewhere]


def test_a_job_handed_over_waits_its_turn_among_better_ones(db, worker):
    db.defer(lock="l", priority=9)
    jobs, _ = worker.work(capacity=1)
    next_of_lock = db.defer(lock="l", priority=1)
    better = db.defer(priority=5)
    jobs, _ = worker.work(*jobs, capacity=1)
    assert [job.id for job in jobs] == [better]
    assert worker.ids() == [next_of_lock]


def test_a_job_that_goes_back_with_a_worse_priority_lets_those_pass_that_lined_up_behind_it(db, worker, outcome):
    db.defer(lock="l")
    jobs, _ = worker.work(capacity=1)
    behind = db.defer(lock="l")
    assert worker.ids() == []
    back = outcome(*jobs, "failed", error={"class": "ValueError"}, retry={"priority": -5})
    jobs, _ = worker.work(outcomes=[back], capacity=1)
    assert [job.id for job in jobs] == [behind]


def test_a_job_taken_away_hands_its_lock_to_the_first_in_line_in_whichever_queue(db):
    here, there = db.worker(queues=["here"]), db.worker(queues=["there"])
    running = db.defer(queue="here", lock="l")
    here.take()
    first = db.defer(queue="there", lock="l")
    assert there.ids() == []
    assert db.retry(running, priority=-5) is True
    assert there.ids() == [first]


# Changes while jobs wait


@pytest.mark.parametrize("delete", [False, True])
def test_cancelling_the_head_lets_the_next_one_start(db, worker, delete):
    head, second, third = (db.defer(lock="l") for _ in range(3))
    worker.end(worker.take(), "released")
    db.cancel(head, delete=delete)
    assert run_all(worker) == [second, third]


def test_cancelling_a_head_that_waits_for_its_retry_lets_the_next_one_start(db, worker):
    head = db.defer(lock="l", retry={"wait": 3600})
    second = db.defer(lock="l")
    worker.fail(worker.take())
    assert worker.ids() == []
    assert db.cancel(head) == "cancelled"
    assert worker.ids() == [second]


def test_cancelling_in_the_middle_of_the_line_changes_nothing_else(db, worker):
    ids = [db.defer(lock="l") for _ in range(4)]
    job = worker.take()
    assert worker.ids(9) == []
    db.cancel(ids[2])
    worker.finish(job)
    assert run_all(worker) == [ids[1], ids[3]]


def test_replacing_the_head_with_another_lock_lets_the_next_one_start(db, worker):
    head = db.defer(lock="l", queueing_lock="q", priority=1, schedule_in="-1 second")
    second = db.defer(lock="l")
    worker.end(worker.take(), "released")
    db.defer(lock="other", queueing_lock="q", on_conflict="replace")
    assert worker.ids(9) == [head, second]


def test_a_head_replaced_for_later_does_not_hold_back(db, worker):
    head = db.defer(lock="l", queueing_lock="q", retry={"wait": 3600})
    second = db.defer(lock="l")
    worker.fail(worker.take())
    assert worker.ids() == []
    db.defer(lock="l", queueing_lock="q", on_conflict="replace", schedule_in="2 hours")
    assert run_all(worker) == [second]
    db.advance("2 hours")
    assert run_all(worker) == [head]


def test_replacing_moves_a_job_inside_its_lock(db, worker):
    db.defer(lock="l")
    job = worker.take()
    moved = db.defer(lock="l", queueing_lock="q")
    other = db.defer(lock="l")
    assert worker.ids(9) == []
    db.defer(lock="l", queueing_lock="q", priority=-5, on_conflict="replace")
    worker.finish(job)
    assert run_all(worker) == [other, moved]


def test_a_retry_decision_moves_the_job_to_another_lock(db, worker):
    moved = db.defer(lock="old")
    job = worker.take()
    held = db.defer(lock="new")
    other = worker.take()
    waiting_old, waiting_new = db.defer(lock="old"), db.defer(lock="new")
    assert worker.ids(9) == []
    worker.fail(job, retry={"in": 0, "lock": "new"})
    assert db.job(moved).lock == "new"
    assert worker.ids(9) == [waiting_old]
    worker.finish(other)
    assert db.status(held) == "succeeded"
    assert run_all(worker) == [moved, waiting_new]


def test_a_retry_decision_gives_a_lock_to_a_job_without(db, worker):
    db.defer(lock="l")
    running = worker.take()
    job_id = db.defer()
    job = worker.take()
    worker.fail(job, retry={"in": 0, "lock": "l"})
    assert worker.ids(9) == []
    worker.finish(running)
    assert worker.ids(9) == [job_id]


def test_a_retry_decision_changes_the_place_in_the_lock(db, worker):
    first, second = db.defer(lock="l"), db.defer(lock="l")
    worker.fail(worker.take(), retry={"in": 0, "priority": -1})
    assert run_all(worker) == [second, first]


def test_an_operators_retry_changes_the_lock(db, worker):
    job_id = db.defer(lock="old")
    worker.finish(worker.take())
    db.defer(lock="new")
    running = worker.take()
    db.retry(job_id, lock="new", priority=9)
    assert worker.ids(9) == []
    worker.finish(running)
    assert worker.ids(9) == [job_id]


def test_a_refused_outcome_does_not_free_the_lock(db, worker, outcome):
    first = db.defer(lock="l")
    db.defer(lock="l")
    job = worker.take()
    bad = outcome(job, "failed", retry={"in": "soon"})
    jobs, last = worker.work(outcomes=[bad], capacity=9)
    assert [v["verdict"] for v in last.verdicts] == ["refused"]
    assert jobs == []
    assert (db.status(first), worker.ids(9)) == ("doing", [])


def test_a_stale_outcome_does_not_free_the_lock(db, worker):
    first = db.defer(lock="l")
    db.defer(lock="l")
    old = worker.take()
    worker.end(old, "released")
    new = worker.take()
    assert new.id == first
    jobs, _ = worker.work(old, capacity=9)
    assert jobs == []


# Transactions


def test_a_lock_is_held_until_the_finish_commits(db, worker, session):
    db.defer(lock="l")
    second = db.defer(lock="l")
    job = worker.take()
    other = session(autocommit=False)
    worker.on(other).finish(job)
    assert worker.ids(9) == []
    other.conn.rollback()
    assert worker.ids(9) == []
    worker.on(other).finish(job)
    other.conn.commit()
    assert worker.ids(9) == [second]


def test_a_job_that_commits_late_finds_its_place_by_its_id(db, worker, session):
    other = session(autocommit=False)
    early = other.defer(lock="l")
    running = db.defer(lock="l")
    job = worker.take()
    last = db.defer(lock="l")
    other.conn.commit()
    assert worker.ids(9) == []
    worker.finish(job)
    assert (job.id, run_all(worker)) == (running, [early, last])


def test_a_head_that_somebody_is_just_changing_is_not_jumped(db, worker, session):
    head, second = db.defer(lock="l"), db.defer(lock="l")
    other = session(autocommit=False)
    other.rows("select id from procrastinate.job where id = %s for update", head)
    assert worker.ids(9) == []
    other.conn.rollback()
    assert worker.ids(9) == [head]
    assert db.status(second) == "todo"


def test_a_candidate_lost_in_a_rollback_is_found_by_the_next_tick(db, worker):
    db.defer(lock="l")
    job = worker.take()
    ids = [db.defer(lock="l") for _ in range(2)]
    assert worker.ids(9) == []
    worker.finish(job)
    # what the notes on the sweep call possible: a line without a candidate
    db.conn.execute("update procrastinate.job set state = 'w'")
    assert worker.ids(9) == []
    db.tick()
    assert run_all(worker) == ids


@pytest.mark.parametrize("priority", [0, 5])
def test_completing_under_an_old_snapshot_loses_no_job_of_the_lock(db, worker, session, priority):
    db.defer(lock="l")
    job = worker.take()
    other = session(autocommit=False)
    other.conn.execute("set transaction isolation level repeatable read")
    other.rows("select")
    after_the_snapshot = db.defer(lock="l", priority=priority)
    assert worker.ids(9) == []
    other.call("complete_v1", job_id=job.id, token=job.token)
    other.conn.commit()
    db.tick()
    assert worker.ids(9) == [after_the_snapshot]


# The view


def test_the_view_tells_who_runs_and_who_waits(db, worker):
    ids = [db.defer(lock="l") for _ in range(3)]
    assert (db.lock("l").state, db.lock("l").next_job_id) == ("ready", ids[0])
    worker.take()
    lock = db.lock("l")
    assert (lock.running_job_id, lock.worker_id, lock.state) == (ids[0], worker.id, "running")
    assert lock.running_since == db.job(ids[0]).started_at
    assert (lock.next_job_id, lock.next_queue, lock.waiting) == (ids[1], "default", 2)


def test_the_view_tells_that_a_retry_is_awaited(db, worker):
    job_id = db.defer(lock="l", retry={"wait": 3600})
    db.defer(lock="l")
    worker.fail(worker.take())
    lock = db.lock("l")
    assert (lock.running_job_id, lock.next_job_id) == (None, job_id)
    assert (lock.state, lock.next_due_at) == ("waits for its retry", db.job(job_id).scheduled_at)


def test_the_view_tells_nothing_of_locks_that_nothing_wants(db, worker):
    db.defer(lock="l")
    worker.finish(worker.take())
    db.defer(lock="later", schedule_in="1 hour")
    assert db.rows("select * from procrastinate.locks") == []
