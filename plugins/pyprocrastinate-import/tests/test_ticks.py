"""A schedule that Procrastinate has fired does not fire the same tick again."""

from __future__ import annotations

import datetime
import json

import pytest


@pytest.fixture
def clock(conn):
    """Return a function that moves the queue's time on to 30 seconds after a full hour, and returns that hour."""
    conn.execute("select procrastinate.enable_test_clock()")

    def clock() -> datetime.datetime:
        conn.execute(
            "select procrastinate.advance("
            " date_trunc('hour', procrastinate.now_()) + '1 hour 30 seconds' - procrastinate.now_())"
        )
        return conn.execute("select date_trunc('hour', procrastinate.now_())").fetchone()[0]

    return clock


@pytest.fixture
def declare(conn):
    """Return a function that starts a worker which declares an hourly schedule, and lets fire what is due."""

    def declare(task: str, name: str | None = None) -> None:
        schedule = {"name": name or task, "task": task, "cron": "0 * * * *", "max_delay": 600}
        query = "select procrastinate.register_worker_v1('w', schedules => %s, stalled_after => '10 years')"
        conn.execute(query, [json.dumps([schedule])])
        tick(conn)

    return declare


def tick(conn) -> None:
    conn.execute("update procrastinate.tick set next_at = '2000-01-01'")
    conn.execute("select procrastinate.tick_v1()")


@pytest.mark.parametrize(("name", "periodic_id"), [("task", ""), ("task:id", "id")])
def test_a_tick_that_has_fired_there_does_not_fire_here(old, run, jobs, clock, declare, conn, name, periodic_id):
    hour = clock()
    old.periodic("task", int(hour.timestamp()), periodic_id)
    assert run().output == "moved 1 waiting and 0 finished jobs; 1 schedules know their last tick\n"
    declare("task", name)
    assert [job.args for job in jobs()] == [{}]
    hour = clock()
    tick(conn)
    assert [job.args for job in jobs()] == [{}, {"timestamp": int(hour.timestamp())}]


def test_a_tick_that_has_not_fired_there_fires_here(old, run, jobs, clock, declare):
    hour = clock()
    old.periodic("task", int(hour.timestamp()) - 3600)
    run()
    declare("task")
    assert [job.args for job in jobs()] == [{}, {"timestamp": int(hour.timestamp())}]


def test_another_schedule_of_the_task_does_not_count(old, run, jobs, clock, declare):
    hour = clock()
    old.periodic("task", int(hour.timestamp()), "other")
    run()
    declare("task")
    assert len(jobs()) == 2


def test_a_schedule_that_runs_here_already_is_only_moved_on(old, run, jobs, clock, declare, conn):
    declare("task")
    fired = len(jobs())
    hour = clock()
    old.periodic("task", int(hour.timestamp()))
    run()
    tick(conn)
    assert len(jobs()) == fired + 1  # the one that was moved
    next_tick = conn.execute("select next_tick from procrastinate.schedules").fetchone()[0]
    assert next_tick == hour + datetime.timedelta(hours=1)
    assert run().output.endswith("0 schedules know their last tick\n")


def test_a_tick_of_the_future_is_not_believed(old, run, jobs, clock, declare):
    hour = clock()
    old.periodic("task", int(hour.timestamp()) + 36000)
    assert run().output.endswith("; 0 schedules know their last tick\n")
    declare("task")
    assert len(jobs()) == 2
