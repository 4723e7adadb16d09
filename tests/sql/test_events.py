"""The view `events`: the whole story of a job, most of it derived from the job's own times."""

from __future__ import annotations

import datetime as dt


def story(db, job_id):
    return db.rows("select * from procrastinate.events where job_id = %s order by at, abs(id) desc", job_id)


def test_a_plain_life_writes_no_event_rows(db, worker):
    job_id = db.defer()
    worker.finish(worker.take())
    assert db.events(job_id) == ["deferred", "started", "succeeded"]
    assert db.rows("select * from procrastinate.event") == []


def test_events_have_the_times_and_the_worker_of_the_job(db, worker):
    job_id = db.defer(schedule_in="-1 hour")
    worker.finish(worker.take())
    job = db.job(job_id)
    events = {event.type: event for event in story(db, job_id)}
    assert {kind: (event.at, event.worker_id) for kind, event in events.items()} == {
        "deferred": (job.deferred_at, None),
        "scheduled": (job.scheduled_at, None),
        "started": (job.started_at, worker.id),
        "succeeded": (job.finished_at, worker.id),
    }


def test_a_waiting_and_a_running_job_have_a_story_too(db, worker):
    job_id = db.defer()
    assert db.events(job_id) == ["deferred"]
    worker.take()
    assert db.events(job_id) == ["deferred", "started"]


def test_a_scheduled_job_tells_when_it_is_due(db):
    job_id = db.defer(schedule_at="2040-01-01 00:00Z")
    (event,) = [event for event in story(db, job_id) if event.type == "scheduled"]
    assert event.at == dt.datetime(2040, 1, 1, tzinfo=dt.UTC)


def test_every_run_of_a_retried_job_is_told(db):
    one, two = db.worker("one"), db.worker("two")
    job_id = db.defer(retry={"wait": 3600})
    failed = one.fail(one.take(), "KeyError")
    db.advance("1 hour")
    two.fail(two.take(), retry=None)
    assert db.events(job_id) == ["deferred", "started", "deferred_for_retry", "started", "failed"]
    events = [event for event in story(db, job_id) if event.type != "scheduled"]
    assert [event.worker_id for event in events] == [None, one.id, one.id, two.id, two.id]
    assert dt.datetime.fromisoformat(events[2].detail["retry_at"]) == failed.retry_at
    assert events[2].detail["error"]["class"] == "KeyError"
    assert events[4].detail["class"] == "ValueError"


def test_a_retry_is_not_told_as_a_schedule(db, worker):
    job_id = db.defer(retry={"wait": 3600})
    worker.fail(worker.take())
    assert "scheduled" not in {event.type for event in story(db, job_id)}
    db.cancel(job_id)
    assert [event.type for event in story(db, job_id)] == ["deferred", "started", "deferred_for_retry", "cancelled"]


def test_an_abort_is_told_with_its_request(db, worker):
    job_id = db.defer()
    job = worker.take()
    db.cancel(job_id, abort=True)
    worker.end(job, "aborted", reason="user")
    assert db.events(job_id) == ["deferred", "started", "abort_requested", "aborted"]


def test_a_cancelled_job_never_started(db):
    job_id = db.defer()
    db.cancel(job_id)
    assert db.events(job_id) == ["deferred", "cancelled"]


def test_a_rescue_is_told_with_the_lost_worker(db, worker):
    job_id = db.defer()
    worker.take()
    db.advance("1 hour")
    db.tick()
    assert db.events(job_id) == ["deferred", "started", "rescued"]
    assert story(db, job_id)[-1].worker_id == worker.id


def test_an_operators_retry_does_not_hide_how_it_ended_before(db, worker):
    job_id = db.defer()
    worker.fail(worker.take())
    before = db.job(job_id)
    db.retry(job_id)
    worker.finish(worker.take())
    assert db.events(job_id) == ["deferred", "started", "failed", "retried", "started", "succeeded"]
    failed, retried = story(db, job_id)[2:4]
    assert (failed.at, failed.worker_id) == (before.finished_at, worker.id)
    assert retried.detail["error"]["class"] == "ValueError"


def test_taking_a_running_job_away_is_told(db, worker):
    job_id = db.defer()
    worker.take()
    db.retry(job_id)
    assert db.events(job_id) == ["deferred", "started", "retried"]


def test_a_replaced_job_tells_what_it_was(db):
    job_id = db.defer("old", queue="old", queueing_lock="q")
    db.defer("new", queue="new", queueing_lock="q", on_conflict="replace")
    assert db.events(job_id) == ["deferred", "replaced"]
    assert story(db, job_id)[-1].detail == {"task": "old", "queue": "old"}


def test_every_event_has_an_id_of_its_own(db, worker):
    for n in range(6):
        db.defer(retry=True, schedule_in="-1 hour", queueing_lock=f"q{n}")
        db.defer(queueing_lock=f"q{n}", on_conflict="replace", retry=True)
    for job in worker.fetch(6):
        worker.fail(job)
        if job.id % 2:
            again = worker.take()
            worker.finish(again)
            db.retry(again.id)
            worker.fetch(1)
            db.cancel(again.id, abort=True)
    ids = [row.id for row in db.rows("select id from procrastinate.events")]
    assert len(ids) == len(set(ids)) > 30
