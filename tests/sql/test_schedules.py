"""
What fires, when, and how often.

The clock is the queue's test clock: every test begins at noon of 1 January 2030, ten seconds past.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

START = datetime(2030, 1, 1, 12, 0, 10, tzinfo=UTC)


def go_to(db, time: datetime) -> None:
    """Set the clock of the queue."""
    db.conn.execute("select procrastinate.enable_test_clock()")
    db.conn.execute("select procrastinate.advance(%s - procrastinate.now_())", [time])


@pytest.fixture
def db(db):
    go_to(db, START)
    return db


def at(minute: float) -> datetime:
    """Return the time so many minutes past noon."""
    return START.replace(second=0) + timedelta(minutes=minute)


def pass_time(db, **delta: float) -> None:
    db.advance(str(timedelta(**delta)))


def fire(db) -> list[tuple[str, str, datetime]]:
    """Do what is due, and return what came of which tick of which schedule."""
    return [
        (row.kind, row.detail["schedule"], datetime.fromisoformat(row.detail["tick"]))
        for row in db.call("tick_v1")[:-1]
        if "schedule" in row.detail
    ]


def fired(db) -> list[float]:
    """Do what is due, and return the ticks for which a job was deferred, in minutes past noon."""
    return [(tick - at(0)) / timedelta(minutes=1) for kind, _, tick in fire(db) if kind == "scheduled"]


def schedule(db, name="name", task="task", cron="* * * * *", **options):
    return db.value("schedule", name=name, task=task, cron=cron, **options)


def declared(name="name", task="task", cron="* * * * *", **options):
    return {"name": name, "task": task, "cron": cron} | options


def declare(db, *schedules, **options):
    """Register a worker that declares these schedules and lives for an hour without a heartbeat."""
    return db.worker(schedules=list(schedules), **{"stalled_after": "1 hour"} | options)


def state(db, name="name"):
    (row,) = db.rows("select * from procrastinate.schedule where name = %s", name)
    return row


def jobs(db):
    return db.rows("select * from procrastinate.jobs order by id")


# ---- schedules made in SQL


def test_a_schedule_defers_its_job_at_each_tick(db):
    schedule(db, args={"to": "a@b.c"}, queue="q", priority=7, lock="l")
    assert fired(db) == []
    for minute in (1, 2, 3):
        pass_time(db, minutes=1)
        assert fired(db) == [minute]
        assert fired(db) == []
    for job in jobs(db):
        assert (job.task, job.args, job.queue, job.priority, job.lock) == (("task", {"to": "a@b.c"}, "q", 7, "l"))
        assert (job.status, job.queueing_lock, job.scheduled_at) == ("todo", None, None)
    assert len(jobs(db)) == 3


def test_a_header_names_the_schedule(db):
    schedule(db, "made in SQL")
    declare(db, declared("declared"))
    pass_time(db, minutes=1)
    fire(db)
    assert {job.headers["schedule"] for job in jobs(db)} == {"made in SQL", "declared"}


def test_what_a_schedule_leaves_out_comes_from_the_task(db):
    db.value("register_task", name="task", queue="q", priority=3, lock="l", queueing_lock="ql")
    schedule(db)
    pass_time(db, minutes=1)
    assert fired(db) == [1]
    (job,) = jobs(db)
    assert (job.queue, job.priority, job.lock, job.queueing_lock) == ("q", 3, "l", "ql")


def test_nulls_are_the_defaults(db):
    schedule(db, timezone=None, args=None, catch_up=None, enabled=None, options=None, max_delay=None)
    pass_time(db, minutes=1)
    assert fired(db) == [1]
    assert state(db).timezone == "UTC"
    assert state(db).catch_up == "last"


def test_the_timestamp_is_passed_where_it_is_wanted(db):
    schedule(db, "with", args={"a": 1}, options={"timestamp": True})
    schedule(db, "without", args={"a": 2}, options={"timestamp": False})
    pass_time(db, minutes=1)
    fire(db)
    assert [job.args for job in jobs(db)] == [{"a": 1, "timestamp": int(at(1).timestamp())}, {"a": 2}]


def test_a_schedule_goes_by_its_time_zone(db):
    schedule(db, cron="0 9 * * *", timezone="America/New_York")
    assert state(db).next_tick == datetime(2030, 1, 1, 14, tzinfo=UTC)


def test_seconds(db):
    schedule(db, cron="* * * * * */20", catch_up="all")
    pass_time(db, minutes=1)
    assert fired(db) == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_schedule_belongs_to_its_transaction(session):
    writer, reader = session(autocommit=False), session()
    go_to(reader, START)
    schedule(writer)
    pass_time(reader, minutes=1)
    assert fired(reader) == []
    writer.conn.rollback()
    assert reader.rows("select from procrastinate.schedule") == []


def test_what_is_deferred_belongs_to_the_transaction_of_the_tick(db):
    schedule(db)
    pass_time(db, minutes=1)
    with db.conn.transaction(force_rollback=True):
        assert fired(db) == [1]
    assert jobs(db) == []
    assert fired(db) == [1]


# ---- what is missed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [10]),
        ({"catch_up": "all"}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"catch_up": "last"}, [10]),
        ({"catch_up": "none"}, [10]),
        ({"catch_up": "all", "max_delay": "3 minutes"}, [8, 9, 10]),
        ({"catch_up": "all", "max_delay": "5 seconds"}, []),
        ({"catch_up": "last", "max_delay": "3 minutes"}, [10]),
        ({"catch_up": "last", "max_delay": "5 seconds"}, []),
        ({"catch_up": "none", "max_delay": "3 minutes"}, [8, 9, 10]),
        ({"catch_up": "none", "max_delay": "5 seconds"}, []),
    ],
)
def test_ticks_that_were_missed(db, options, expected):
    schedule(db, **options)
    pass_time(db, minutes=10)  # to ten seconds past the tick
    assert fired(db) == expected
    assert state(db).last_tick == at(10)
    pass_time(db, seconds=50)
    assert fired(db) == [11]


def test_ticks_that_are_too_late_are_reported(db):
    schedule(db, max_delay="5 seconds")
    pass_time(db, minutes=10)
    assert fire(db) == [("skipped", "name", at(10))]
    assert fire(db) == []


@pytest.mark.parametrize("late", [59, 61])
def test_none_allows_a_minute(db, late):
    schedule(db, cron="0 13 * * *", catch_up="none")
    go_to(db, START.replace(hour=13, second=0) + timedelta(seconds=late))
    assert fired(db) == ([60] if late < 60 else [])


def test_exactly_as_late_as_allowed_is_not_too_late(db):
    schedule(db, catch_up="all", max_delay="2 minutes")
    rows = db.rows("select (procrastinate._fire_schedules(%s)).*", at(5))
    assert [row.detail["tick"] for row in rows] == [at(m).isoformat() for m in (3, 4, 5)]


def test_a_long_backlog_is_fired_in_parts_and_in_order(db):
    schedule(db, cron="* * * * * *", catch_up="all")
    pass_time(db, seconds=2500)
    found = []
    while ticks := fired(db):
        assert len(ticks) <= 1000
        found += ticks
    assert len(found) in (2500, 2501)
    assert found == sorted(set(found))


# ---- replacing, stopping, removing


def test_schedule_replaces_what_the_schedule_was(db):
    schedule(db, args={"a": 1}, queue="q", lock="l", priority=1, queueing_lock="x", max_delay="1 h")
    schedule(db, task="other", args={"b": 2})
    pass_time(db, minutes=1)
    assert fired(db) == [1]
    (job,) = jobs(db)
    assert (job.task, job.args, job.queue, job.priority) == ("other", {"b": 2}, "default", 0)
    assert (job.lock, job.queueing_lock, state(db).max_delay) == (None, None, None)


def test_saying_the_same_again_loses_no_tick(db):
    schedule(db, catch_up="all")
    pass_time(db, minutes=2)
    schedule(db, catch_up="all", args={"now": "different"})
    assert fired(db) == [1, 2]


@pytest.mark.parametrize("new", [{"cron": "*/1 * * * *"}, {"timezone": "Europe/Berlin"}])
def test_other_times_hold_from_now_on(db, new):
    schedule(db, catch_up="all")
    pass_time(db, minutes=2)
    schedule(db, catch_up="all", **new)
    assert fired(db) == []
    pass_time(db, minutes=1)
    assert fired(db) == [3]


def test_a_change_never_fires_a_tick_again(db):
    schedule(db)
    pass_time(db, minutes=5)
    assert fired(db) == [5]
    go_to(db, START)  # the clock is put back
    schedule(db, cron="*/1 * * * *")
    schedule(db, cron="0-59 * * * *", catch_up="all")
    assert state(db).next_tick == at(6)
    pass_time(db, minutes=5)
    assert fired(db) == []


def test_a_change_by_a_newer_release_never_fires_a_tick_again(db):
    declare(db, declared(), stalled_after="1 day")
    pass_time(db, minutes=5)
    assert fired(db) == [0, 1, 2, 3, 4, 5]
    go_to(db, START)
    declare(db, declared(cron="*/1 * * * *"))
    assert state(db).next_tick == at(6)


@pytest.mark.scenario("R5")
def test_no_tick_fires_twice_when_the_clock_is_put_back(db):
    schedule(db, catch_up="all")
    declare(db, declared("theirs"), stalled_after="1 day")
    pass_time(db, minutes=3)
    assert len(fired(db)) == 7  # theirs of noon, too
    pass_time(db, hours=-1)
    assert fired(db) == []
    pass_time(db, minutes=61)
    assert fired(db) == [4, 4]


def test_a_schedule_that_is_stopped_does_not_fire(db):
    schedule(db, catch_up="all")
    pass_time(db, minutes=1)
    schedule(db, catch_up="all", enabled=False)
    pass_time(db, minutes=2)
    assert fired(db) == []
    assert db.one("select procrastinate._next_schedule_at()") is None
    schedule(db, catch_up="all", enabled=True)
    assert fired(db) == []
    pass_time(db, minutes=1)
    assert fired(db) == [4]


def test_unschedule(db):
    schedule(db)
    pass_time(db, minutes=1)
    assert fired(db) == [1]
    assert db.value("unschedule", name="name") is True
    assert db.value("unschedule", name="name") is False
    pass_time(db, minutes=5)
    assert fired(db) == []
    assert len(jobs(db)) == 1


def test_scheduling_again_fires_nothing_of_the_past(db):
    schedule(db)
    pass_time(db, minutes=1)
    assert fired(db) == [1]
    db.value("unschedule", name="name")
    schedule(db)
    assert fired(db) == []
    pass_time(db, minutes=1)
    assert fired(db) == [2]


def test_unschedule_nothing(db):
    assert db.value("unschedule", name="nothing") is False
    assert db.value("unschedule", name=None) is False


# ---- what a queueing lock, an error or another session makes of a tick


@pytest.mark.scenario(69)
def test_a_tick_is_skipped_while_its_queueing_lock_is_taken(db):
    schedule(db, queueing_lock="x", catch_up="all")
    schedule(db, "other", catch_up="all")
    pass_time(db, minutes=2)
    rows = db.call("tick_v1")[:-1]
    first = next(row.job_id for row in rows if row.detail["schedule"] == "name")
    assert [(row.kind, row.detail.get("reason")) for row in rows if row.job_id == first] == [
        ("scheduled", None),
        ("skipped", "queueing lock"),
    ]
    assert len(rows) == 4
    pass_time(db, minutes=1)
    assert fire(db) == [("skipped", "name", at(3)), ("scheduled", "other", at(3))]
    db.cancel(first)
    assert fire(db) == []
    pass_time(db, minutes=1)
    assert fire(db) == [("scheduled", "name", at(4)), ("scheduled", "other", at(4))]


def test_a_schedule_that_fails_stops_no_other_and_is_tried_again(db):
    for name in ("a", "b", "c"):
        schedule(db, name, args={"text": name * 100})
    db.conn.execute("update procrastinate.schedule set args = '{\"text\": 1}' where name in ('a', 'c')")
    db.set("max_args_bytes", 50)
    pass_time(db, minutes=1)
    assert sorted(fire(db)) == [("error", "b", at(1)), ("scheduled", "a", at(1)), ("scheduled", "c", at(1))]
    assert db.tick() == []
    assert db.now() < db.one("select procrastinate._next_schedule_at()") < at(2)
    db.set("max_args_bytes", 1048576)
    pass_time(db, seconds=10)
    assert fire(db) == [("scheduled", "b", at(1))]


def test_an_error_says_what_it_was(db, secret):
    schedule(db, args={"text": secret * 100})
    db.set("max_args_bytes", 50)
    pass_time(db, minutes=1)
    (row,) = db.call("tick_v1")[:-1]
    assert (row.kind, row.job_id) == ("error", None)
    assert row.detail == {
        "schedule": "name",
        "tick": at(1).isoformat(),
        "sqlstate": "JQ012",
        "message": "args are too large",
    }


def test_a_transaction_that_holds_a_schedule_keeps_back_only_that_one(db, session):
    schedule(db, "held")
    schedule(db, "free")
    db.conn.execute("set lock_timeout = '5s'")
    with session(autocommit=False).conn as other:
        other.execute("select procrastinate.schedule('held', 'other', '* * * * *')")
        pass_time(db, minutes=1)
        assert fire(db) == [("scheduled", "free", at(1))]
    assert fire(db) == [("scheduled", "held", at(1))]
    assert jobs(db)[-1].task == "other"


def test_workers_are_told_of_a_new_schedule(db, worker, listener):
    listener.heard()
    schedule(db)
    assert listener.heard() == ["a"]
    assert worker.heartbeat().next_tick_at <= at(1)
    db.set("notify", False)
    schedule(db, "other")
    assert listener.heard() == []


def test_the_next_tick_of_all_schedules(db):
    def soonest():
        return db.one("select procrastinate._next_schedule_at()")

    assert soonest() is None
    schedule(db, "b", cron="5 * * * *")
    assert soonest() == at(5)
    worker = declare(db, declared("c", cron="3 * * * *"))
    assert soonest() == at(3)
    worker.unregister()
    assert soonest() <= at(3)
    pass_time(db, minutes=3)
    assert fire(db) == []
    assert soonest() == at(5)
    assert db.call("tick_v1")[-1].next_tick_at <= at(5)


# ---- schedules that workers declare


def test_a_declared_schedule_passes_the_timestamp(db):
    declare(db, declared(args={"a": 1}, queue="q", priority=2, lock="l", queueing_lock="ql"))
    assert fired(db) == [0]
    (job,) = jobs(db)
    assert job.args == {"a": 1, "timestamp": int(at(0).timestamp())}
    assert (job.queue, job.priority, job.lock, job.queueing_lock) == ("q", 2, "l", "ql")


def test_keys_may_be_null(db):
    nulls = ("timezone", "args", "queue", "priority", "lock", "queueing_lock", "max_delay")
    declare(db, declared(**dict.fromkeys(nulls)))
    assert fired(db) == [0]
    assert (state(db).timezone, state(db).max_delay) == ("UTC", timedelta(minutes=10))


@pytest.mark.parametrize(("max_delay", "expected"), [(600, [0]), (10.5, [0]), (9, []), (0, []), (1e9, [0])])
def test_the_first_worker_fires_the_last_tick_unless_it_is_too_late(db, max_delay, expected):
    declare(db, declared(cron="*/30 * * * *", max_delay=max_delay))
    # Some of the half second may pass on a slow machine.
    go_to(db, START)
    assert fired(db) == expected
    pass_time(db, minutes=30)
    assert fired(db) == [30]


@pytest.mark.scenario(69)
def test_every_tick_missed_while_a_worker_lived_fires(db):
    declare(db, declared())
    assert fired(db) == [0]
    pass_time(db, minutes=20)
    assert fired(db) == list(range(1, 21))


@pytest.mark.scenario(69)
def test_only_the_last_tick_missed_without_a_worker_fires(db):
    worker = declare(db, declared())
    assert fired(db) == [0]
    worker.unregister()
    pass_time(db, minutes=20)
    assert fired(db) == []
    declare(db, declared())
    assert fired(db) == [20]
    pass_time(db, minutes=3)
    assert fired(db) == [21, 22, 23]


@pytest.mark.scenario(69)
def test_a_tick_too_old_after_a_gap_is_passed_over(db):
    declare(db, declared(cron="*/30 * * * *")).unregister()
    pass_time(db, minutes=45)
    declare(db, declared(cron="*/30 * * * *"))
    assert fired(db) == []
    pass_time(db, minutes=15)
    assert fired(db) == [60]


def test_a_restart_repeats_no_tick(db):
    for _ in range(3):
        worker = declare(db, declared())
        fire(db)
        worker.unregister()
    assert len(jobs(db)) == 1


def test_a_rolling_restart_misses_no_tick(db):
    worker = declare(db, declared())
    found = fired(db)
    for _ in range(4):
        pass_time(db, minutes=2)
        old, worker = worker, declare(db, declared())
        old.unregister()
        pass_time(db, minutes=1)
        found += fired(db)
    assert found == list(range(13))


def test_a_dead_worker_stops_what_it_declared(db):
    worker = declare(db, declared(), stalled_after="30 seconds")
    assert fired(db) == [0]
    pass_time(db, minutes=1)
    assert fired(db) == []  # and the worker is forgotten
    assert not worker.heartbeat().registered
    assert db.one("select procrastinate._next_schedule_at()") is None
    assert state(db).last_tick == at(0)
    pass_time(db, minutes=1)
    declare(db, declared())
    assert fired(db) == [2]


def test_a_worker_that_seemed_dead_and_lives_again_fires_only_the_last_tick(db):
    worker = declare(db, declared(), stalled_after="30 seconds")
    assert fired(db) == [0]
    pass_time(db, minutes=5)
    # It is found dead, and gives a heartbeat before it is forgotten.
    assert db.rows("select from procrastinate._fire_schedules(procrastinate.now_())") == []
    assert state(db).next_tick is None
    assert worker.heartbeat().registered
    assert fired(db) == [5]


def test_the_newest_worker_is_right(db):
    declare(db, declared(task="old", cron="*/5 * * * *"), declared("only old"))
    fire(db)
    new = declare(db, declared(task="new"))
    assert fire(db) == []
    pass_time(db, minutes=1)
    assert fire(db) == [("scheduled", "name", at(1)), ("scheduled", "only old", at(1))]
    assert [job.task for job in jobs(db)] == ["old", "task", "new", "task"]
    new.unregister()
    assert db.one("select procrastinate._next_schedule_at()") == at(2)
    pass_time(db, minutes=1)
    assert fire(db) == [("scheduled", "only old", at(2))]
    assert (state(db).task, state(db).next_tick) == ("old", at(5))


def test_the_newest_is_right_whoever_registers_last_in_the_same_moment(db):
    """A worker whose registration commits late must not undo what a newer one declared."""
    first = declare(db)
    declare(db, declared(task="newer"))
    db.conn.execute(
        "update procrastinate.worker set schedules = %s::jsonb where id = %s",
        ['[{"name": "name", "task": "older", "cron": "* * * * *"}]', first.id],
    )
    db.conn.execute(
        "select procrastinate._declare_schedules(w.id, w.schedules)  from procrastinate.worker as w where w.id = %s",
        [first.id],
    )
    assert state(db).task == "newer"


def test_a_name_declared_twice_by_one_worker_is_the_last(db):
    declare(db, declared(task="first"), declared(task="second"))
    assert state(db).task == "second"


def test_what_a_newer_release_no_longer_declares_ends_with_the_older(db):
    old = declare(db, declared("kept"), declared("dropped"))
    declare(db, declared("kept"))
    fire(db)
    pass_time(db, minutes=1)
    assert {name for _, name, _ in fire(db)} == {"kept", "dropped"}
    old.unregister()
    pass_time(db, minutes=1)
    assert {name for _, name, _ in fire(db)} == {"kept"}


def test_other_times_of_a_newer_release_hold_from_now_on(db):
    declare(db, declared())
    assert fired(db) == [0]
    pass_time(db, minutes=2)
    declare(db, declared(cron="*/1 * * * *"))
    assert fired(db) == []
    pass_time(db, minutes=1)
    assert fired(db) == [3]


# ---- one name, one kind


def test_what_workers_declare_cannot_be_scheduled_or_unscheduled(db):
    worker = declare(db, declared())
    with db.refused("JQ022", 'schedule name "name" is taken', detail="declare"):
        schedule(db)
    with db.refused("JQ022", 'schedule "name" is declared by workers'):
        db.value("unschedule", name="name")
    assert state(db).kind == "declared"
    fire(db)
    worker.unregister()
    schedule(db, task="mine")
    assert (state(db).kind, state(db).task, state(db).last_tick) == ("sql", "mine", at(0))
    assert state(db).declaration is None
    pass_time(db, minutes=1)
    assert fired(db) == [1]
    assert jobs(db)[-1].args == {}


def test_what_was_scheduled_cannot_be_declared(db):
    schedule(db)
    with db.refused("JQ022", 'schedule name "name" is taken', detail="schedule()"):
        declare(db, declared("free"), declared())
    assert db.rows("select from procrastinate.worker") == []
    assert len(db.rows("select from procrastinate.schedule")) == 1
    db.value("unschedule", name="name")
    declare(db, declared())
    assert state(db).kind == "declared"


def test_what_nobody_declares_any_more_can_be_removed(db):
    declare(db, declared()).unregister()
    assert db.value("unschedule", name="name") is True
    assert db.rows("select from procrastinate.schedule") == []


# ---- what is refused


BAD = {
    "no name": ({"name": ""}, "JQ014"),
    "null name": ({"name": None}, "JQ014"),
    "long name": ({"name": "x" * 513}, "JQ014"),
    "no task": ({"task": ""}, "JQ014"),
    "null task": ({"task": None}, "JQ014"),
    "long queue": ({"queue": "x" * 129}, "JQ014"),
    "empty lock": ({"lock": ""}, "JQ014"),
    "long queueing lock": ({"queueing_lock": "x" * 513}, "JQ014"),
    "priority": ({"priority": -(2**31)}, "JQ015"),
    "args": ({"args": ["s3cr3t"]}, "JQ010"),
    "large args": ({"args": {"text": "s3cr3t" * 200_000}}, "JQ012"),
    "no room for the timestamp": ({"args": {"text": "x" * (1048576 - 20)}}, "JQ012"),
    "cron": ({"cron": "s3cr3t" * 100_000}, "JQ020"),
    "null cron": ({"cron": None}, "JQ020"),
    "never": ({"cron": "0 0 31 2 *"}, "JQ020"),
    "zone": ({"timezone": "Mars"}, "JQ021"),
}


@pytest.mark.parametrize(("bad", "sqlstate"), BAD.values(), ids=BAD)
def test_a_bad_schedule_is_refused(db, bad, sqlstate):
    with db.refused(sqlstate):
        schedule(db, **bad)
    with db.refused(sqlstate):
        declare(db, declared("good"), declared(**bad))
    assert db.rows("select from procrastinate.schedule") == []


def test_of_many_declared_schedules_the_bad_one_is_named(db):
    with db.refused("JQ020", 'schedule "bad": bad cron expression', detail='minute: "61" is not', hint="minute, hour"):
        declare(db, declared("good"), declared("bad", cron="61 * * * *"))
    with db.refused("22023", 'schedule "bad": max_delay is out of range'):
        declare(db, declared("good"), declared("bad", max_delay=-1))


@pytest.mark.parametrize(
    ("bad", "sqlstate"),
    [
        ({"catch_up": "some"}, "22023"),
        ({"max_delay": "-1 second"}, "22023"),
        ({"max_delay": "101 years"}, "22023"),
        ({"options": {"timestamps": "s3cr3t"}}, "JQ016"),
        ({"options": []}, "JQ016"),
        ({"options": {"timestamp": "s3cr3t"}}, "22023"),
        ({"options": {"timestamp": None}}, "22023"),
    ],
)
def test_bad_options_are_refused(db, bad, sqlstate):
    with db.refused(sqlstate):
        schedule(db, **bad)


@pytest.mark.parametrize(
    ("schedules", "sqlstate"),
    [
        ({}, "22023"),
        (7, "22023"),
        ([7], "22023"),
        ([[]], "22023"),
        ([{}], "JQ014"),
        ([declared(catch_up="all")], "JQ016"),
        ([declared(max_delay=-1)], "22023"),
        ([declared(max_delay=1e10)], "22023"),
    ],
)
def test_a_bad_list_of_schedules_is_refused(db, schedules, sqlstate):
    with db.refused(sqlstate):
        db.worker(schedules=schedules)
    assert db.rows("select from procrastinate.worker") == []


# ---- many at once


@contextmanager
def repeated(session, *calls):
    """Make each of these calls, in a session of its own, over and over again; at least once."""
    stop = threading.Event()

    def repeat(call):
        own = session()
        count = 0
        while not (count and stop.is_set()):
            call(own)
            count += 1

    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(repeat, call) for call in calls]
        try:
            yield
        finally:
            stop.set()
        for one in running:
            one.result()


@pytest.mark.scenario("R5")
@pytest.mark.parametrize("tick", ["procrastinate.tick_v1()", "procrastinate._fire_schedules(procrastinate.now_())"])
def test_each_tick_of_an_hour_fires_once_with_eight_who_tick(db, session, tick):
    rng = random.Random(tick)
    schedule(db, cron="* * * * * *", catch_up="all", options={"timestamp": True})
    first = state(db).next_tick
    end = first + timedelta(hours=1)

    def tick_once(own):
        own.rows(f"select 1 from {tick}")

    with repeated(session, *[tick_once] * 8):
        while db.now() < end:
            # Mostly on, and now and then back.
            db.advance(f"{rng.choice([0.5, 1, 2, 5, 20, -10])} seconds")
    while fire(db):
        pass
    assert state(db).last_tick >= end
    stamps = [job.args["timestamp"] for job in jobs(db)]
    assert stamps == list(range(int(first.timestamp()), int(state(db).last_tick.timestamp()) + 1))
    assert len(stamps) > 3600


def test_workers_may_register_and_leave_while_others_tick(db, session):
    """All of that locks the same rows: nobody is refused, and no tick is lost."""
    schedules = [declared(f"s{n}", cron="* * * * * *", max_delay=86400) for n in range(5)]

    def come_and_go(own):
        declare(own, *random.sample(schedules, 5)).unregister()

    declare(db, *schedules, stalled_after="1 day")
    first = int(state(db, "s0").next_tick.timestamp())
    with repeated(session, come_and_go, come_and_go, fire, fire):
        for _ in range(150):
            pass_time(db, seconds=1)
    fire(db)
    stamps = [job.args["timestamp"] for job in jobs(db)]
    assert max(stamps) >= START.timestamp() + 150
    expected = range(first, max(stamps) + 1)
    assert {stamp: stamps.count(stamp) for stamp in expected} == dict.fromkeys(expected, 5)
    assert len(stamps) == 5 * len(expected)
