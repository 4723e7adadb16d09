"""What a fetch promises: which jobs, in which order, and what it tells about them."""

from __future__ import annotations

import datetime as dt
import random
import time

import pytest


def test_jobs_come_by_priority_then_by_id(db, worker):
    rng = random.Random(7)
    jobs = [(-p, db.defer(priority=p)) for p in rng.choices(range(-2, 3), k=40)]
    order = [job_id for _, job_id in sorted(jobs)]
    assert [job_id for n in (1, 7, 2, 30) for job_id in worker.ids(n)] == order


@pytest.mark.parametrize("priority", [2**31 - 1, -(2**31) + 1])
def test_the_greatest_and_the_least_priority_have_their_place(db, worker, priority):
    ids = {p: db.defer(priority=p) for p in (0, priority)}
    assert worker.ids(2) == [ids[p] for p in sorted(ids, reverse=True)]


def test_a_worker_gets_no_more_than_it_asks_for(db, worker):
    ids = [db.defer() for _ in range(5)]
    assert worker.ids(0) == []
    assert worker.ids(3) == ids[:3]
    assert worker.ids(3) == ids[3:]
    assert worker.ids(3) == []


@pytest.mark.parametrize("capacity", [None, -1])
def test_no_capacity_is_not_all_capacity(db, worker, capacity):
    db.defer()
    assert worker.fetch(capacity) == []


def test_all_that_an_integer_can_hold_is_not_too_much(db, worker):
    jobs = [db.defer(), db.defer(), db.defer(lock="L")]
    assert worker.ids(2**31 - 1) == jobs
    jobs = [db.defer(), db.defer()]
    fetched, _ = worker.work(capacity=2**31 - 1, extra=2**31 - 1)
    assert [job.id for job in fetched] == jobs


def test_a_worker_that_says_nothing_of_schedules_declares_none(db):
    worker = db.worker(schedules=None)
    assert worker.heartbeat().registered


def test_a_fetched_job_is_told_in_full(db, worker):
    job_id = db.defer(
        "send",
        args={"to": "ü", "n": 2**70},
        headers={"h": 1},
        queue="mail",
        priority=4,
        lock="l",
        queueing_lock="ql",
        schedule_in="-1 hour",
    )
    before = db.job(job_id)
    job = worker.take()
    assert (job.id, job.task, job.queue, job.priority) == (job_id, "send", "mail", 4)
    assert (job.lock, job.queueing_lock, job.attempts) == ("l", "ql", 0)
    assert (job.args, job.headers) == ('{"n": 1180591620717411303424, "to": "ü"}', '{"h": 1}')
    assert (job.scheduled_at, job.deferred_at) == (before.scheduled_at, before.deferred_at)
    assert job.abort_requested is False
    assert job.token > 0


def test_what_a_job_has_not_is_null(db, worker):
    db.defer()
    job = worker.take()
    assert (job.headers, job.lock, job.queueing_lock, job.scheduled_at) == (None,) * 4
    assert job.args == "{}"


@pytest.mark.scenario(16)
def test_a_fetched_job_is_doing(db, worker):
    job_id = db.defer()
    before = db.now()
    worker.take()
    job = db.job(job_id)
    assert (job.status, job.worker_id) == ("doing", worker.id)
    assert before <= job.started_at <= db.now()


def test_every_claim_has_a_token_of_its_own(db, worker):
    job_id = db.defer(retry=True)
    first = worker.take()
    worker.fail(first)
    second = worker.take()
    assert (first.id, second.id, second.attempts) == (job_id, job_id, 1)
    assert second.token > first.token


@pytest.mark.scenario(17)
def test_a_job_is_not_due_before_its_time(db, worker):
    later = db.defer(schedule_in="2 hours", priority=9)
    soon = db.defer(schedule_in="1 hour")
    now = db.defer()
    assert worker.ids(9) == [now]
    db.advance("1 hour")
    assert worker.ids(9) == [soon]
    db.advance("59 minutes")
    assert worker.ids(9) == []
    db.advance("1 minute")
    assert worker.ids(9) == [later]


MANY = 2000


def many_become_due(db):
    """Let many jobs of another queue become due, and then one of the worker's, which is returned."""
    db.defer_many(*[{"queue": "flood", "schedule_in": "1 hour"}] * MANY)
    mine = db.defer(queue="calm", schedule_in="61 minutes")
    db.advance("2 hours")
    return mine


def test_many_that_come_due_do_not_stop_what_is_ready(db):
    worker = db.worker(queues=["calm"])
    db.defer_many(*[{"queue": "calm"}] * 30)
    many_become_due(db)
    began, scan = time.monotonic(), None
    for _ in range(15):
        jobs, last = worker.work(capacity=2, scan_from=scan)
        assert len(jobs) == 2
        scan = last.scan_next
    looks = (time.monotonic() - began) // 0.1 + 2
    seen = db.one("select count(*) from procrastinate.job where queue = 'flood' and state = 'r'")
    assert 0 < seen <= 250 * looks


def test_who_has_nothing_else_to_do_looks_at_all_that_are_due(db):
    worker = db.worker(queues=["calm"])
    mine = many_become_due(db)
    fetched, scan = [], None
    for _ in range(MANY // 250 + 2):
        jobs, last = worker.work(capacity=5, scan_from=scan)
        fetched += [job.id for job in jobs]
        scan = last.scan_next
    assert fetched == [mine]


@pytest.mark.scenario(16)
def test_a_due_job_takes_its_place_among_the_waiting_ones(db, worker):
    first = db.defer(schedule_in="1 hour")
    second = db.defer()
    db.advance("1 hour")
    third = db.defer(priority=1)
    assert worker.ids(9) == [third, first, second]


@pytest.mark.scenario(16, 17)
@pytest.mark.parametrize(
    ("queues", "expected"),
    [
        (None, "dcbae"),
        ([], ""),
        (["one"], "ca"),
        (["two"], "db"),
        (["one", "two"], "dcba"),
        (["two", "one"], "dcba"),
        (["one", "one"], "ca"),
        (["nowhere", "three"], "e"),
    ],
)
def test_a_worker_gets_jobs_of_its_queues_only_and_in_one_order(db, queues, expected):
    for task, queue, priority in [
        ("a", "one", 1),
        ("b", "two", 2),
        ("c", "one", 3),
        ("d", "two", 4),
        ("e", "three", 0),
    ]:
        db.defer(task, queue=queue, priority=priority)
    worker = db.worker(queues=queues)
    assert "".join(job.task for _ in range(5) for job in worker.fetch(1)) == expected


@pytest.mark.parametrize("queues", [["one", "two"], ["two", "one"]])
def test_two_queues_are_merged_in_one_fetch(db, queues):
    for task, queue, priority in [("a", "one", 0), ("b", "two", 0), ("c", "one", 1)]:
        db.defer(task, queue=queue, priority=priority)
    jobs = db.worker(queues=queues).fetch(2)
    assert [job.task for job in jobs] == ["c", "a"]


def test_a_worker_that_never_registered_gets_nothing(db):
    job_id = db.defer()
    with db.refused("JQ004", "worker 77 is not registered", hint="register_worker_v1"):
        db.call("fetch_v1", worker_id=77, capacity=1)
    with db.refused("JQ004"):
        db.call("fetch_v1", worker_id=None, capacity=1)
    assert db.status(job_id) == "todo"


@pytest.mark.parametrize("call", ["fetch", "work", "idle"])
def test_a_worker_that_took_leave_gets_nothing(worker, db, call):
    worker.unregister()
    with db.refused("JQ004", "worker 1 is not registered"):
        getattr(worker, call)()


@pytest.mark.parametrize("call", ["fetch", "work", "idle"])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_jobs_are_not_fetched_under_an_old_snapshot(db, worker, session, level, call):
    other = session(autocommit=False)
    other.conn.execute(f"set transaction isolation level {level}")
    with other.refused("JQ006", f"jobs cannot be fetched in a {level} transaction"):
        getattr(worker.on(other), call)()


def test_a_fetch_rolled_back_never_was(db, worker, session):
    job_id = db.defer()
    other = session(autocommit=False)
    assert worker.on(other).ids() == [job_id]
    assert worker.fetch() == []
    other.conn.rollback()
    assert worker.ids() == [job_id]


@pytest.mark.scenario(18, 21)
def test_two_workers_at_once_get_different_jobs(db, worker, session):
    ids = [db.defer() for _ in range(4)]
    other = session(autocommit=False)
    assert worker.on(other).ids(2) == ids[:2]
    assert db.worker().ids(2) == ids[2:]


# work_v1: finish and fetch in one round trip


def test_nothing_done_and_nothing_to_do_is_one_row(worker):
    jobs, last = worker.work(capacity=5)
    assert (jobs, last.verdicts) == ([], None)


def test_what_ended_is_finished_and_what_fits_is_fetched(db, worker):
    ids = [db.defer() for _ in range(4)]
    first, _ = worker.work(capacity=2)
    second, last = worker.work(*first, capacity=2)
    assert ([job.id for job in first], [job.id for job in second]) == (ids[:2], ids[2:])
    assert last.verdicts is None
    assert db.status(*ids) == ["succeeded"] * 2 + ["doing"] * 2


def test_verdicts_on_plain_successes_are_left_out_unless_something_is_wrong(db, worker, outcome):
    for _ in range(3):
        db.defer()
    a, b, c = worker.fetch(3)
    worker.finish(b)
    jobs, last = worker.work(a, b, outcomes=[outcome(c, "failed")])
    assert jobs == []
    assert [(v["id"], v["token"], v["verdict"], v["status"]) for v in last.verdicts] == [
        (b.id, b.token, "already", "succeeded"),
        (c.id, c.token, "ok", "failed"),
    ]


def test_a_worker_without_free_slots_fetches_nothing(db, worker):
    db.defer()
    assert worker.work(capacity=0)[0] == []


@pytest.mark.parametrize("capacity", [None, -1])
def test_no_capacity_is_not_all_capacity_in_work_either(db, worker, capacity):
    db.defer()
    assert worker.work(capacity=capacity)[0] == []


def test_jobs_beyond_the_free_slots_have_no_lock_of_either_kind(db, worker):
    ids = [
        db.defer("free"),
        db.defer("lock", lock="l"),
        db.defer("free"),
        db.defer("queueing lock", queueing_lock="ql"),
        db.defer("free"),
        db.defer("free"),
    ]
    jobs, _ = worker.work(capacity=1, extra=4)
    assert [job.id for job in jobs] == [ids[0], ids[2], ids[4], ids[5]]
    jobs, _ = worker.work(capacity=2, extra=4)
    assert [job.id for job in jobs] == [ids[1], ids[3]]


def test_there_are_no_more_jobs_than_slots_and_extra(db, worker):
    ids = [db.defer() for _ in range(5)]
    assert [job.id for job in worker.work(capacity=2, extra=1)[0]] == ids[:3]
    assert [job.id for job in worker.work(capacity=0, extra=1)[0]] == ids[3:4]


def test_a_free_slot_takes_jobs_with_locks(db, worker):
    ids = [db.defer(lock="a"), db.defer(queueing_lock="b"), db.defer(), db.defer()]
    jobs, _ = worker.work(capacity=2, extra=1)
    assert [job.id for job in jobs] == ids[:3]


def test_a_job_left_out_for_its_lock_is_the_next_of_somebody_else(db, worker):
    ids = [db.defer(), db.defer(lock="l")]
    jobs, _ = worker.work(capacity=1, extra=5)
    assert [job.id for job in jobs] == ids[:1]
    assert db.worker().ids() == ids[1:]


def test_the_cursor_loses_no_job(db, worker):
    rng = random.Random(3)
    expected = []
    got = []
    scan = None
    for _ in range(30):
        for _ in range(rng.randrange(6)):
            expected.append(db.defer(priority=rng.randrange(3), lock=rng.choice([None, None, "a", "b"])))
        jobs, last = worker.work(capacity=3, scan_from=scan)
        scan = last.scan_next
        got += [job.id for job in jobs]
        if jobs:
            scan = worker.work(*jobs, scan_from=scan)[1].scan_next
    while jobs := worker.work(capacity=10, scan_from=scan)[0]:
        got += [job.id for job in jobs]
        worker.finish(*jobs)
    assert sorted(got) == expected


def lanes(db, *lanes, rescan_in=900, before=()):
    """Return a scan that passes over lanes (queue number, rank, id) for some ms, and then over those from before."""
    ms = int(db.one("select extract(epoch from clock_timestamp()) * 1000"))
    returned = db.one("select case when is_called then last_value else 0 end from procrastinate.returned_seq")
    head = [ms + rescan_in, 0, 0, 3, returned, returned, ms + 60_000, 0, 0, 0, 3 * len(before)]
    return [*head, *(part for lane in (*before, *lanes) for part in lane)]


def test_a_lane_passes_over_what_is_dead_and_over_nothing_else(db, worker):
    low = [db.defer(priority=0) for _ in range(4)]
    high = [db.defer(priority=1) for _ in range(4)]
    best = db.defer(priority=2)
    cursor = lanes(db, (0, -1, high[1]), (0, 0, low[2]), rescan_in=60_000)
    jobs, last = worker.work(capacity=9, scan_from=cursor)
    assert [job.id for job in jobs] == [best, *high[2:], *low[3:]]
    jobs, _ = worker.work(capacity=9, scan_from=last.scan_next)
    assert jobs == []
    jobs, _ = worker.work(capacity=9, scan_from=[0, *last.scan_next[1:]])
    assert [job.id for job in jobs] == high[:2] + low[:3]


def test_a_lane_holds_in_its_queue_only(db):
    a = [db.defer(queue="a") for _ in range(3)]
    b = [db.defer(queue="b") for _ in range(3)]
    worker = db.worker(queues=["a", "b"])
    cursor = lanes(db, (1, 0, a[1]), (2, 0, b[0]), rescan_in=60_000)
    jobs, _ = worker.work(capacity=9, scan_from=cursor)
    assert [job.id for job in jobs] == [a[2], b[1], b[2]]


def test_a_lane_lasts_until_the_next_scan_that_looks_behind(db, worker):
    a, b, c = (db.defer() for _ in range(3))
    jobs, _ = worker.work(capacity=9, scan_from=lanes(db, (0, 0, b), rescan_in=0, before=[(0, 0, a)]))
    assert [job.id for job in jobs] == [b, c]
    for job in jobs:
        worker.end(job, "released")
    scan = lanes(db, (0, 0, b), rescan_in=0)
    jobs, _ = worker.work(capacity=9, scan_from=scan)
    assert [job.id for job in jobs] == [a, b, c]


@pytest.mark.parametrize("how", ["retried", "released", "due", "freed"])
def test_what_becomes_ready_behind_a_lane_is_in_the_next_scan_that_looks_behind(db, worker, how):
    old, other = db.defer(retry=5, lock="a" if how == "freed" else None), db.defer()
    if how == "due":
        old = db.defer(schedule_in="1 hour")
    elif how == "freed":
        old = db.defer(lock="a")
    new = db.defer()
    held = {job.id: job for job in worker.fetch(9)}
    scan = lanes(db, (0, 0, new), rescan_in=0, before=[(0, 0, new)])
    if how == "retried":
        worker.fail(held[old])
    elif how == "released":
        worker.end(held[old], "released")
    elif how == "due":
        db.advance("1 hour")
    else:
        worker.finish(*held.values())
    jobs, _ = worker.work(capacity=9, scan_from=scan)
    assert [job.id for job in jobs] == [old], other


# Telling others


def test_idle_looks_once_more(db, worker):
    idle = worker.idle()
    assert (idle.ready, idle.next_due_at) == (False, None)
    db.defer()
    assert worker.idle().ready is True


def test_idle_tells_the_next_time_something_is_due(db, worker):
    db.defer(schedule_in="2 hours")
    job_id = db.defer(schedule_in="1 hour")
    idle = worker.idle()
    assert (idle.ready, idle.next_due_at) == (False, db.job(job_id).scheduled_at)
    assert abs(idle.at - db.now()) < dt.timedelta(minutes=1)
    db.advance("1 hour")
    assert worker.idle().ready is True


def test_what_is_past_due_does_not_hide_what_is_due_next(db, worker):
    db.defer(schedule_in="1 hour")
    job_id = db.defer(schedule_in="2 hours")
    db.advance("90 minutes")
    idle = worker.idle()
    assert (idle.ready, idle.next_due_at) == (True, db.job(job_id).scheduled_at)


@pytest.mark.parametrize(("queues", "ready"), [(None, True), ([], False), (["q"], True), (["other"], False)])
def test_idle_is_told_of_its_own_queues_only(db, queues, ready):
    db.defer(queue="q")
    assert db.worker(queues=queues).idle().ready is ready


def test_a_worker_is_idle_until_it_has_worked_for_a_while(db, worker):
    db.call("idle_v1", worker_id=worker.id)

    def idle():
        return db.one("select idle from procrastinate.workers")

    assert idle() is True
    for _ in range(3):
        db.defer()
    worker.work(capacity=1)
    assert idle() is True, "a moment of work rewrites no row"
    db.advance("2 seconds")
    worker.work(capacity=1)
    assert idle() is False
