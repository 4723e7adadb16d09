"""The one clock, and the test clock that only the owner of the schema may move."""

from __future__ import annotations

import datetime as dt

import pytest

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def stranger(session):
    """Return a session of a role that may call all functions but owns nothing."""
    db = session()
    role = f"stranger_{db.conn.info.backend_pid}"
    db.conn.execute(f"""
        create role {role};
        grant usage on schema procrastinate to {role};
        grant execute on all functions in schema procrastinate to {role};
        set session authorization {role};
    """)
    yield db
    db.conn.execute(f"reset session authorization; drop owned by {role}; drop role {role}")


def ahead(db):
    """Return how far the time of the queue is ahead of the clock."""
    return db.one("select procrastinate.now_() - clock_timestamp()")


def test_the_time_of_the_queue_is_the_clock_of_the_database(db):
    assert abs(ahead(db)) < dt.timedelta(seconds=1)


def test_the_time_goes_on_inside_a_transaction(session):
    db = session(autocommit=False)
    first = db.now()
    assert db.now() > first


def test_time_moves_as_far_as_the_owner_says(db):
    db.value("enable_test_clock")
    reached = db.value("advance", duration="1 hour")
    assert abs(reached - db.now()) < dt.timedelta(seconds=5)
    db.value("advance", duration="2 days")
    db.value("advance", duration="-1 hour")
    assert abs(ahead(db) - dt.timedelta(days=2)) < dt.timedelta(seconds=1)


def test_time_does_not_move_unless_the_test_clock_is_enabled(db):
    with db.refused("JQ023", "the test clock is not enabled", hint="enable_test_clock"):
        db.value("advance", duration="1 hour")
    assert abs(ahead(db)) < dt.timedelta(seconds=1)


def test_enabling_twice_keeps_the_time(db):
    db.advance("1 hour")
    db.value("enable_test_clock")
    assert abs(ahead(db) - HOUR) < dt.timedelta(seconds=1)


def test_disabling_goes_back_to_the_clock(db):
    db.advance("1 hour")
    db.value("enable_test_clock", enabled=False)
    assert abs(ahead(db)) < dt.timedelta(seconds=1)
    with db.refused("JQ023"):
        db.value("advance", duration="1 hour")


@pytest.mark.parametrize(("function", "arguments"), [("enable_test_clock", {}), ("advance", {"duration": "1 hour"})])
def test_nobody_but_the_owner_moves_the_time(db, stranger, function, arguments):
    db.value("enable_test_clock")
    with stranger.refused("JQ023", "only the owner of the schema may move the test clock"):
        stranger.value(function, **arguments)
    assert abs(ahead(db)) < dt.timedelta(seconds=1)


def test_being_the_owner_is_a_matter_of_the_session_not_of_the_function(db, stranger):
    """Else any security definer function would hand the clock on."""
    db.conn.execute("""
        create function public.wrapped() returns timestamptz language sql security definer
        as $$ select procrastinate.advance('1 hour') $$;
        grant execute on function public.wrapped to public
    """)
    try:
        db.value("enable_test_clock")
        with stranger.refused("JQ023"):
            stranger.one("select public.wrapped()")
    finally:
        db.conn.execute("drop function public.wrapped")


def test_anybody_may_tell_the_time(stranger):
    assert abs(stranger.now() - dt.datetime.now(dt.UTC)) < HOUR


# ---- a clock that is put back, as by a failover to a server whose clock is behind


HOUR_MS = 3_600_000


def test_a_worker_finds_what_is_due_though_its_last_look_was_later(db, worker):
    _, last = worker.work(capacity=1)
    looked, next_full_look = last.scan_next[1:3]
    scan = [last.scan_next[0], looked + HOUR_MS, next_full_look + HOUR_MS, *last.scan_next[3:]]
    job_id = db.defer(schedule_in="1 hour")
    db.advance("1 hour")
    jobs, last = worker.work(capacity=1, scan_from=scan)
    assert [job.id for job in jobs] == [job_id]
    assert last.scan_next[2] < next_full_look + HOUR_MS, "and it looks on as often as before"


@pytest.mark.parametrize(("next_scan", "next_full_scan"), [(HOUR_MS, HOUR_MS), (0, HOUR_MS)])
def test_a_worker_looks_behind_its_lanes_though_it_did_so_later(db, worker, next_scan, next_full_scan):
    job_id = db.defer()
    ms = int(dt.datetime.now().timestamp() * 1000)
    lane = [0, 0, job_id]
    returned = [db.one("select case when is_called then last_value else 0 end from procrastinate.returned_seq")] * 2
    jobs, last = worker.work(
        capacity=1,
        scan_from=[ms + next_scan, ms, ms + 900, 3, *returned, ms + next_full_scan, 0, 0, 0, 3, *lane, *lane],
    )
    assert [job.id for job in jobs] == [job_id]
    assert last.scan_next[0] < ms + HOUR_MS / 2


def test_who_dies_is_found_though_the_heartbeat_was_later(db):
    db.advance("2 days")
    db.tick()
    db.defer()
    worker = db.worker()
    worker.take()
    survivor = db.worker()
    db.value("enable_test_clock", enabled=False)
    assert survivor.heartbeat().next_tick_at <= db.now()
    db.call("tick_v1")
    db.advance("29 seconds")
    survivor.heartbeat()
    assert [row.kind for row in db.call("tick_v1")] == [None]
    db.advance("1 second")
    assert [row.kind for row in db.call("tick_v1")] == ["rescued", None]
    assert not worker.heartbeat().registered


def test_a_tick_comes_though_the_last_one_was_later(db, worker):
    db.set("retention", {"cancelled": "0"})
    db.advance("2 days")
    db.tick()
    db.value("enable_test_clock", enabled=False)
    db.cancel(db.defer())
    assert ("purged", None) in [(row.kind, row.job_id) for row in db.call("tick_v1")]
