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
