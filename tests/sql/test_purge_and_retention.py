"""Deleting jobs that have ended: by hand, and by the setting `retention`."""

from __future__ import annotations

import pytest

KINDS = ["succeeded", "failed", "aborted", "cancelled"]


@pytest.fixture
def ended(db, worker):
    """Return the ids of a job of each kind that ended, by kind."""
    ids = {kind: db.defer(kind) for kind in KINDS}
    db.cancel(ids["cancelled"])
    for job in worker.fetch(3):
        worker.end(job, job.task)
    return ids


def purge(db, older_than, statuses, **options):
    return db.value("purge", older_than=older_than, statuses=statuses, **options)


def left(db):
    return {row.status for row in db.rows("select status from procrastinate.jobs")}


@pytest.mark.scenario(65)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_given_statuses_are_purged(db, ended, kind):
    assert purge(db, "0", [kind]) == 1
    assert left(db) == set(KINDS) - {kind}
    assert purge(db, "0", KINDS) == 3


def test_only_what_ended_long_ago_is_purged(db, ended):
    assert purge(db, "1 hour", KINDS) == 0
    db.advance("59 minutes")
    assert purge(db, "1 hour", KINDS) == 0
    db.advance("2 minutes")
    assert purge(db, "1 hour", KINDS) == 4


@pytest.mark.scenario("R16")
def test_the_age_of_a_job_counts_from_its_end(db, worker):
    job_id = db.defer(schedule_in="10 years")
    db.cancel(job_id)
    db.advance("2 hours")
    assert purge(db, "1 hour", ["cancelled"]) == 1, "when it was to run makes no difference"
    db.defer()
    db.advance("2 hours")
    worker = db.worker()
    worker.finish(worker.take())
    assert purge(db, "1 hour", ["succeeded"]) == 0, "nor when it was deferred"


@pytest.mark.scenario(65)
def test_what_waits_or_runs_is_never_purged(db, worker):
    db.defer(), db.defer(), db.defer(schedule_in="-1 year"), db.defer(schedule_in="1 year")
    worker.take()
    db.advance("100 years")
    assert purge(db, "0", KINDS) == 0
    assert purge(db, "-1 year", KINDS) == 0
    assert left(db) == {"todo", "doing"}


@pytest.mark.scenario(65)
def test_one_queue_may_be_purged(db, worker):
    for queue in ("a", "b", "a"):
        db.defer(queue=queue)
    worker.finish(*worker.fetch(3))
    assert purge(db, "0", KINDS, queue="a") == 2
    assert purge(db, "0", KINDS, queue="nowhere") == 0
    assert purge(db, "0", KINDS) == 1


def test_the_story_goes_with_the_job_and_only_its(db, worker):
    gone, kept = (db.defer(retry=1) for _ in range(2))
    for job in worker.fetch(2):
        worker.fail(job)
    worker.finish(worker.take())
    assert purge(db, "0", KINDS) == 1
    assert db.events(gone) == []
    assert db.events(kept) == ["deferred", "started", "deferred_for_retry"]


def test_a_purge_stops_after_max_rows(db, worker):
    db.defer_many(*({} for _ in range(25)))
    worker.finish(*worker.fetch(25))
    assert [purge(db, "0", KINDS, max_rows=10) for _ in range(4)] == [10, 10, 5, 0]


@pytest.mark.parametrize("statuses", [None, ["todo"], ["doing"], ["succeeded", "nope"], [None]])
def test_what_is_no_status_of_a_finished_job_is_refused(db, ended, statuses):
    with db.refused("22023", "not a status of finished jobs", hint="succeeded"):
        purge(db, "0", statuses)
    assert left(db) == set(KINDS)


def test_no_status_and_no_age_purge_nothing(db, ended):
    assert purge(db, "0", []) == 0
    assert purge(db, None, KINDS) == 0


def test_a_purge_passes_over_what_somebody_else_is_purging(db, session, ended):
    other = session(autocommit=False)
    assert purge(other, "0", ["failed"]) == 1
    assert purge(db, "0", KINDS) == 3
    other.conn.rollback()
    assert purge(db, "0", KINDS) == 1


# Retention


def test_by_default_everything_is_kept(db, ended):
    db.advance("100 years")
    assert db.tick() == []
    assert left(db) == set(KINDS)


def test_each_status_is_kept_as_long_as_the_setting_says(db, ended):
    db.set("retention", {"succeeded": "1 hour", "failed": 7200, "cancelled": None})
    db.advance("1 hour 1 minute")
    assert db.tick() == [("purged", None)]
    assert left(db) == set(KINDS) - {"succeeded"}
    db.advance("1 hour")
    db.set("retention", {"succeeded": "1 hour", "failed": 7200, "cancelled": None})
    row = db.call("tick_v1")[0]
    assert (row.kind, row.detail) == ("purged", {"status": "failed", "jobs": 1})
    db.advance("100 years")
    db.tick()
    assert left(db) == {"aborted", "cancelled"}


def test_retention_is_applied_once_a_minute(db, worker):
    db.set("retention", {"succeeded": 0})
    worker.finish(*[worker.take() for _ in range(2) if db.defer()])
    assert db.tick() == [("purged", None)]
    db.defer()
    worker.finish(worker.take())
    db.advance("59 seconds")
    assert db.tick() == []
    db.advance("1 second")
    assert db.tick() == [("purged", None)]


def test_more_than_a_batch_is_purged_at_once_all_the_same(db):
    db.conn.execute("""
        insert into procrastinate.done (
          id, deferred_at, finished_at, rank, attempts, status, task, queue, args)
        select n, now(), now() - interval '1 hour', 0, 1, 'succeeded', 'task', 'default', '{}'
          from generate_series(1, 20001) as n
    """)
    db.set("retention", {"succeeded": 60})
    ticks = [db.call("tick_v1") for _ in range(4)]
    assert [sum(row.detail["jobs"] for row in rows[:-1]) for rows in ticks] == [10_000, 10_000, 1, 0]


# ---- in a database that is published


@pytest.fixture
def published(db):
    """Publish all tables, so that a row can only be changed where a subscriber could find it."""
    db.conn.execute("set client_min_messages = error; create publication everything for all tables")
    yield
    db.conn.execute("drop publication everything; reset client_min_messages")


@pytest.mark.usefixtures("published")
def test_what_has_ended_is_retried_and_purged_where_all_tables_are_published(db, ended):
    assert db.retry(ended["failed"])
    assert db.status(ended["failed"]) == "todo"
    assert purge(db, "0", KINDS) == 3
    db.set("retention", {"cancelled": "1 hour"})
    db.cancel(ended["failed"])
    db.advance("2 hours")
    assert ("purged", None) in db.tick()
