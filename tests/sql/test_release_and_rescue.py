"""Jobs that come back: released, taken from dead workers, or left by workers that take leave."""

from __future__ import annotations

import datetime as dt

import pytest


def die(db, *survivors, after="1 hour"):
    """Let the workers that are no survivors miss their heartbeats, and return what the tick did."""
    db.advance(after)
    for worker in survivors:
        worker.heartbeat()
    return db.tick()


# Releases


def test_a_released_job_is_as_if_it_had_not_been_fetched(db, worker):
    job_id = db.defer(args={"a": 1}, priority=3, schedule_in="-1 hour", lock="l", retry=True)
    before = db.job(job_id)
    verdict = worker.end(worker.take(), "released")
    assert (verdict.verdict, verdict.status, verdict.retry_at) == ("ok", "todo", None)
    assert db.job(job_id) == before
    assert db.events(job_id) == ["deferred"]
    assert worker.ids() == [job_id]


def test_a_released_retry_keeps_its_attempts_and_its_error(db, worker):
    job_id = db.defer(retry=True)
    worker.fail(worker.take(), "KeyError")
    before = db.job(job_id)
    worker.end(worker.take(), "released")
    assert db.job(job_id) == before


# Heartbeats


@pytest.mark.scenario(61)
def test_a_worker_that_gives_heartbeats_keeps_its_jobs(db, worker):
    job_id = db.defer()
    job = worker.take()
    for _ in range(5):
        db.advance("29 seconds")
        assert worker.heartbeat().registered is True
        assert db.tick() == []
    assert worker.finish(job)[0].verdict == "ok"
    assert db.status(job_id) == "succeeded"


def test_a_worker_without_a_heartbeat_loses_its_jobs(db, worker):
    job_id = db.defer()
    worker.take()
    assert die(db, after="29 seconds") == []
    assert die(db, after="1 second") == [("rescued", job_id)]
    job = db.job(job_id)
    assert (job.status, job.attempts, job.worker_id, job.started_at) == ("todo", 1, None, None)
    assert job.error_class == "WorkerLost"
    assert db.events(job_id)[-1] == "rescued"


@pytest.mark.scenario(61)
def test_a_dead_worker_is_forgotten_and_told_so(db, worker):
    alive = db.worker("alive")
    die(db, alive)
    assert [row.id for row in db.rows("select id from procrastinate.workers")] == [alive.id]
    assert worker.heartbeat().registered is False
    with db.refused("JQ004"):
        worker.fetch()


@pytest.mark.scenario(63)
def test_only_jobs_of_the_dead_are_rescued(db, worker):
    alive = db.worker("alive")
    lost, kept, waiting = (db.defer() for _ in range(3))
    worker.take(), alive.take()
    assert die(db, alive) == [("rescued", lost)]
    assert db.status(lost, kept, waiting) == ["todo", "doing", "todo"]


def test_how_long_a_worker_may_be_silent_is_its_own_choice(db):
    patient, hasty = db.worker(stalled_after="1 hour"), db.worker(stalled_after="2 seconds")
    ids = [db.defer(), db.defer()]
    patient.take(), hasty.take()
    assert die(db, after="2 seconds") == [("rescued", ids[1])]
    assert die(db, after="59 minutes") == []
    assert die(db, after="1 minute") == [("rescued", ids[0])]


def test_how_long_a_worker_may_be_silent_has_a_default(db):
    db.set("stalled_after", "10 minutes")
    worker = db.worker()
    (row,) = db.rows("select * from procrastinate.workers where id = %s", worker.id)
    assert (row.stalled_after, row.live) == (dt.timedelta(minutes=10), True)


@pytest.mark.parametrize("stalled_after", ["0.9 seconds", "-1 hour"])
def test_no_worker_dies_within_a_second(db, stalled_after):
    with db.refused("22023", "stalled_after is out of range"):
        db.worker(stalled_after=stalled_after)


def test_a_late_outcome_of_a_dead_worker_is_stale(db, worker):
    job_id = db.defer()
    job = worker.take()
    die(db)
    before = db.job(job_id)
    assert worker.finish(job)[0].verdict == "stale"
    assert worker.fail(job).verdict == "stale"
    assert db.job(job_id) == before
    db.worker().take()
    assert worker.finish(job)[0].verdict == "stale"
    assert db.status(job_id) == "doing"


def test_a_rescued_job_runs_again_whatever_its_policy(db):
    job_id = db.defer(retry=False)
    db.worker().take()
    die(db)
    worker = db.worker()
    job = worker.take()
    assert (job.id, job.attempts) == (job_id, 1)
    worker.finish(job)
    assert (db.status(job_id), db.job(job_id).attempts) == ("succeeded", 2)


def test_a_lost_run_counts_as_an_attempt_of_the_policy(db):
    db.defer(retry=1)
    db.worker().take()
    die(db)
    worker = db.worker()
    assert worker.fail(worker.take()).status == "failed"


def lives(db, job_id):
    """Return what became of a job each time its worker died."""
    kinds = []
    while db.status(job_id) == "todo":
        db.worker().take()
        kinds += [kind for kind, _ in die(db)]
    return kinds


@pytest.mark.parametrize(
    ("policy", "rescues"),
    [
        (None, 3),
        (5, 3),
        (True, 3),
        ({"rescues": 0}, 0),
        ({"rescues": 1}, 1),
        ({"rescues": 5, "wait": 3}, 5),
        ({"rescues": None}, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("whose", ["job", "worker", "task"])
def test_a_job_outlives_so_many_workers_and_no_more(db, policy, rescues, whose):
    if whose == "task":
        db.value("register_task", name="task", retry=policy)
    job_id = db.defer("task", retry=policy if whose == "job" else None)
    kinds = []
    while db.status(job_id) == "todo":
        db.worker(tasks={"task": {"retry": policy}} if whose == "worker" else {}).take()
        kinds += [kind for kind, _ in die(db)]
    assert kinds == ["rescued"] * rescues + ["failed"]
    job = db.job(job_id)
    assert (job.status, job.error_class, job.attempts) == ("failed", "WorkerLost", rescues + 1)


def test_the_setting_says_how_many_workers_a_job_outlives(db):
    db.set("max_rescues", 0)
    assert lives(db, db.defer()) == ["failed"]
    db.set("max_rescues", 1)
    assert lives(db, db.defer()) == ["rescued", "failed"]


def test_an_operators_retry_grants_new_lives(db):
    job_id = db.defer(retry={"rescues": 1})
    assert lives(db, job_id) == ["rescued", "failed"]
    db.retry(job_id)
    assert lives(db, job_id) == ["rescued", "failed"]


def test_the_outcome_of_a_worker_that_killed_its_job_is_stale_too(db, worker):
    job_id = db.defer(retry={"rescues": 0})
    job = worker.take()
    assert die(db) == [("failed", job_id)]
    assert worker.finish(job)[0].verdict == "stale"
    assert db.status(job_id) == "failed"


def test_a_job_to_be_aborted_is_not_run_again(db, worker):
    job_id = db.defer(retry=True)
    worker.take()
    db.cancel(job_id, abort=True)
    assert die(db) == [("failed", job_id)]
    job = db.job(job_id)
    assert (job.status, job.error_class, job.abort_requested) == ("failed", "WorkerLost", False)


@pytest.mark.parametrize(("rescues", "first"), [(1, 0), (0, 1)])
def test_the_lock_of_a_lost_job_is_free(db, worker, rescues, first):
    ids = [db.defer(lock="l", retry={"rescues": rescues}), db.defer(lock="l")]
    worker.take()
    die(db)
    assert db.worker().ids(9) == [ids[first]]


@pytest.mark.scenario(63)
def test_jobs_whose_worker_is_not_even_known_are_rescued(db, worker):
    job_id = db.defer()
    worker.take()
    db.conn.execute("delete from procrastinate.worker")
    assert db.tick() == [("rescued", job_id)]
    assert db.worker().ids() == [job_id]


def test_a_worker_with_more_jobs_than_a_tick_can_do_loses_them_all(db, worker):
    db.defer_many(*({} for _ in range(1005)))
    worker.fetch(2000)
    assert len(die(db)) == 1000
    assert len(db.call("tick_v1")) == 6, "the next tick is due at once"
    assert db.rows("select * from procrastinate.workers") == []
    assert len(db.worker().ids(2000)) == 1005


# Ticks


def test_a_tick_that_is_not_due_does_nothing(db, worker):
    db.defer()
    worker.take()
    db.call("tick_v1")
    db.advance("29 seconds")
    assert [row.kind for row in db.call("tick_v1")] == [None]
    db.advance("1 second")
    assert [row.kind for row in db.call("tick_v1")] == ["rescued", None]


def test_the_last_row_tells_when_the_next_tick_is_due(db, worker):
    (row,) = db.call("tick_v1")
    (heartbeat_at, stalled_after) = db.rows("select heartbeat_at, stalled_after from procrastinate.workers")[0]
    assert (row.kind, row.job_id, row.detail) == (None, None, None)
    assert row.next_tick_at == heartbeat_at + stalled_after
    assert worker.heartbeat().next_tick_at == row.next_tick_at
    assert abs(row.at - db.now()) < dt.timedelta(minutes=1)


def test_without_workers_the_next_tick_is_due_within_a_minute(db):
    row = db.call("tick_v1")[-1]
    assert dt.timedelta(0) < row.next_tick_at - db.now() <= dt.timedelta(minutes=1)


def test_a_worker_that_starts_brings_the_next_tick_forward(db):
    before = db.call("tick_v1")[-1].next_tick_at
    worker = db.worker(stalled_after="5 seconds")
    assert worker.heartbeat().next_tick_at < before
    assert worker.heartbeat().next_tick_at <= db.now() + dt.timedelta(seconds=5)


def test_of_two_ticks_at_once_one_does_the_work_and_none_waits(db, worker, session):
    job_id = db.defer()
    worker.take()
    db.advance("1 hour")
    other = session(autocommit=False)
    assert [row.kind for row in other.call("tick_v1")] == ["rescued", None]
    assert [row.kind for row in db.call("tick_v1")] == [None]
    other.conn.rollback()
    assert [row.job_id for row in db.call("tick_v1")] == [job_id, None]


def test_what_a_rescue_tells(db, worker):
    db.defer("task", queue="q")
    worker.take()
    db.advance("1 hour")
    row = db.call("tick_v1")[0]
    assert row.detail == {"task": "task", "queue": "q", "worker_id": worker.id}


# Taking leave


def test_what_a_leaving_worker_still_holds_goes_back_at_no_attempt(db, worker):
    ids = [db.defer(), db.defer(retry=False), db.defer()]
    before = [db.job(job_id) for job_id in ids]
    held = worker.fetch(2)
    assert worker.unregister() == 2
    assert [db.job(job_id) for job_id in ids] == before
    assert db.rows("select * from procrastinate.workers") == []
    assert db.worker().ids(9) == ids
    assert [row.verdict for row in worker.finish(*held)] == ["stale", "stale"]


@pytest.mark.scenario(61)
def test_leaving_twice_is_leaving_once(db, worker):
    assert (worker.unregister(), worker.unregister()) == (0, 0)
    assert db.value("unregister_worker_v1", worker_id=77) == 0


def test_a_leaving_worker_frees_its_locks(db, worker):
    ids = [db.defer(lock="l", priority=1), db.defer(lock="l")]
    worker.take()
    worker.unregister()
    assert db.worker().ids(9) == ids[:1]


def test_a_job_to_be_aborted_ends_with_its_leaving_worker(db, worker):
    job_id = db.defer(lock="l", retry=True)
    follower = db.defer(lock="l")
    worker.take()
    db.cancel(job_id, abort=True)
    assert worker.unregister() == 1
    job = db.job(job_id)
    assert (job.status, job.attempts, job.abort_requested) == ("aborted", 1, False)
    assert db.worker().ids(9) == [follower]


def test_an_identity_is_never_used_twice(db):
    ids = []
    for _ in range(3):
        worker = db.worker("the same name")
        ids.append(worker.id)
        worker.unregister()
    assert ids == sorted(set(ids))


def test_a_worker_can_ask_what_it_holds(db, worker):
    other = db.worker("other")
    ids = [db.defer() for _ in range(4)]
    held = worker.fetch(3)
    other.fetch(1)
    worker.finish(held[1])
    rows = db.call("held_v1", worker_id=worker.id)
    assert [(row.id, row.token) for row in rows] == [(job.id, job.token) for job in (held[0], held[2])]
    assert db.status(*ids) == ["doing", "succeeded", "doing", "doing"]


@pytest.mark.parametrize("stalled_after", ["11 years", "10000 years"])
def test_no_worker_may_be_silent_for_so_long_that_the_clock_cannot_tell(db, stalled_after):
    with db.refused("22023", "stalled_after is out of range"):
        db.worker(stalled_after=stalled_after)
    with db.refused("JQ018", "bad value for the setting stalled_after"):
        db.set("stalled_after", stalled_after)


def test_a_token_that_is_spent_and_negated_ends_no_waiting_job(db, worker):
    job_id = db.defer(retry=5)
    job = worker.take()
    failed = f'[{{"id": {job_id}, "token": {job.token}, "outcome": "failed"}}]'
    db.rows("select * from procrastinate.finish_v1(%s, outcomes => %s)", worker.id, failed)
    db.rows("select * from procrastinate.finish_v1(%s, %s, %s)", worker.id, [job_id], [-job.token])
    outcome = f'[{{"id": {job_id}, "token": {-job.token}, "outcome": "succeeded"}}]'
    db.rows("select * from procrastinate.finish_v1(%s, outcomes => %s)", worker.id, outcome)
    assert [row.status for row in db.rows("select status from procrastinate.jobs where id = %s", job_id)] == ["todo"]
