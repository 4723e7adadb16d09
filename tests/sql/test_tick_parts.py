"""A part of a tick that fails stops neither the others nor itself for what is sound."""

from __future__ import annotations

import pytest


@pytest.fixture
def due(db):
    """Return what a tick has to do: a job to rescue, a schedule to fire, a job to purge."""
    old = db.defer("old")
    worker = db.worker()
    worker.finish(worker.take())
    lost = db.defer("lost")
    worker.take()
    db.value("schedule", name="hourly", task="scheduled", cron="0 * * * *")
    db.set("retention", {"succeeded": "1 hour"})
    db.advance("2 hours")
    return old, lost


def tick(db):
    db.conn.execute("update procrastinate.tick set next_at = '2000-01-01', purged_at = null")
    return [(row.kind, row.detail.get("part")) for row in db.call("tick_v1")[:-1]]


def test_all_that_is_due_is_done(db, due):
    assert tick(db) == [("rescued", None), ("scheduled", None), ("purged", None)]


def test_a_retention_that_nobody_can_read(db, due):
    db.conn.execute("""update procrastinate.config set retention = '{"succeeded": "s3cr3t"}'""")
    assert tick(db) == [("rescued", None), ("scheduled", None), ("error", "retention")]


def test_a_job_that_cannot_be_rescued(db, due):
    _, lost = due
    before = db.defer("before")
    db.conn.execute("""update procrastinate.job set id = 0, retry = '{"rescues": -1e30}' where id = %s""", [lost])
    db.conn.execute("update procrastinate.job set state = 'x', worker_id = 99, token = 99 where id = %s", [before])
    assert tick(db) == [("error", "rescue"), ("rescued", None), ("scheduled", None), ("purged", None)]
    assert db.status(0, before) == ["doing", "todo"]
    # not at once, where it would fail again; but soon, for a disk that was full may have room again, and others wait
    wait = db.one("select next_at - %s from procrastinate.tick", db.now())
    assert 0.5 < wait.total_seconds() <= 1
    db.conn.execute("update procrastinate.job set retry = null where id = 0")
    assert tick(db) == [("rescued", None)]


def test_a_rescue_that_fails_as_a_whole(db, due):
    db.conn.execute("alter table procrastinate.worker rename column stalled_after to x")
    try:
        parts = tick(db)
    finally:
        db.conn.execute("alter table procrastinate.worker rename column x to stalled_after")
    assert parts[0] == ("error", "rescue")
    assert ("purged", None) in parts


def test_a_declaration_that_nobody_can_read(db, due):
    db.worker(schedules=[{"name": "declared", "task": "t", "cron": "0 * * * *"}])
    db.conn.execute("""
        update procrastinate.worker set schedules = '[{"name": "declared", "task": "t", "cron": "bad"}]'
         where schedules <> '[]'""")
    assert [kind for kind, _ in tick(db)] == ["rescued", "error", "scheduled", "purged"]
    # not at once again
    assert tick(db) == []
    db.advance("10 seconds")
    assert [kind for kind, _ in tick(db)] == ["error"]


def test_what_the_error_says(db, due):
    db.conn.execute("""update procrastinate.config set retention = '{"succeeded": "x"}'""")
    db.conn.execute("update procrastinate.tick set next_at = '2000-01-01'")
    *_, error, last = db.call("tick_v1")
    assert (error.kind, error.job_id) == ("error", None)
    assert error.detail == {
        "part": "retention",
        "sqlstate": "22007",
        "message": 'invalid input syntax for type interval: "x"',
    }
    assert (last.kind, error.next_tick_at) == (None, last.next_tick_at)
