"""
The queue in memory as users of Procrastinate know it, and workers on it.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib
import json
import sys
import threading

import psycopg
import pytest

from pyprocrastinate import App, PsycopgConnector, RetryStrategy, exceptions
from pyprocrastinate.jobs import Status
from pyprocrastinate.operations import Call
from pyprocrastinate.testing import InMemoryConnector


@pytest.fixture
def ran(app):
    """Return a list of what the tasks have been given; `echo` adds to it, `fail` does and fails."""
    ran = []

    @app.task(name="echo", queue="q")
    def echo(n):
        ran.append(n)

    @app.task(name="fail", retry=RetryStrategy(max_attempts=1, wait=3600))
    async def fail(n):
        ran.append(n)
        raise ValueError(n)

    return ran


def rests(queue):
    """Tell whether a worker has looked as often as it does before it sleeps."""
    return [name for name, _ in queue.queries].count("idle_v1") >= 4


def test_jobs_are_rows_with_the_names_of_procrastinate(app, queue, ran):
    app.tasks["echo"].configure(priority=2, lock="x", queueing_lock="y", task_kwargs={"n": 1}).defer()
    assert queue.jobs == {
        1: {
            "id": 1,
            "queue_name": "q",
            "task_name": "echo",
            "priority": 2,
            "lock": "x",
            "queueing_lock": "y",
            "args": {"n": 1},
            "status": "todo",
            "scheduled_at": None,
            "attempts": 0,
            "abort_requested": False,
            "worker_id": None,
        }
    }


def test_jobs_are_run_and_tell_their_story(app, queue, ran, drain):
    app.tasks["echo"].defer(n=1)
    app.tasks["fail"].defer(n=2)
    drain()
    assert ran == [1, 2]
    assert [job["status"] for job in queue.finished_jobs] == ["succeeded"]
    assert [event["type"] for event in queue.events[1]] == ["deferred", "started", "succeeded"]
    assert [event["type"] for event in queue.events[2]] == ["deferred", "started", "deferred_for_retry"]


def test_what_was_looked_up_before_a_run_tells_of_it_after(app, queue, ran, drain):
    jobs, events, workers, ticks = queue.jobs, queue.events, queue.workers, queue.periodic_defers
    job = jobs[app.tasks["echo"].defer(n=1)]
    drain()
    assert (job["status"], job, len(events[1])) == ("succeeded", jobs[1], 3)
    app.job_manager.cancel_job_by_id(gone := app.tasks["echo"].configure(queue="else").defer(n=2))
    kept = jobs[gone]
    asyncio.run(app.job_manager.delete_old_jobs(0, queue="else", include_cancelled=True))
    assert (list(jobs), list(events), workers, ticks) == ([1], [1], {}, {})
    assert kept["status"] == "cancelled"
    queue.reset()
    assert (jobs, job["status"]) == ({}, "succeeded")
    with pytest.raises(KeyError):
        jobs[1]


def test_a_connection_changes_nothing(app, queue, ran):
    app.tasks["echo"].configure(connection=object()).defer(n=1)
    assert list(queue.jobs) == [1]


def test_time_passes_when_the_test_says_so(app, queue, ran, drain):
    app.tasks["fail"].defer(n=1)
    drain()
    queue.advance(3500)
    drain()
    assert ran == [1]
    queue.advance(datetime.timedelta(seconds=100))
    drain()
    assert ran == [1, 1]
    assert queue.jobs[1]["status"] == "failed"


def test_reset_forgets_all(app, queue, ran, drain):
    app.tasks["echo"].defer(n=1)
    drain()
    queue.advance(86400)
    queue.reset()
    assert (queue.jobs, queue.events, queue.queries, queue.workers) == ({}, {}, [], {})
    assert queue.advance(0) - datetime.datetime.now(datetime.UTC) < datetime.timedelta(hours=1)
    assert app.tasks["echo"].defer(n=1) == 1


def test_queries_are_the_calls_with_their_arguments(app, queue, ran):
    app.tasks["echo"].defer(n=1)
    app.job_manager.cancel_job_by_id(1)
    assert queue.queries == [
        ("defer", {"task": "echo", "queue": "q", "priority": 0, "args": '{"n": 1}'}),
        ("cancel", {"job_id": 1, "abort": False, "delete": False}),
    ]


def test_locks_of_running_jobs_and_workers_can_be_seen(app, queue, drain):
    seen = []

    @app.task(name="look", lock="x")
    def look():
        seen.append((queue.current_locks, list(queue.workers), queue.jobs[1]["worker_id"]))

    look.defer()
    drain()
    assert seen == [({"x"}, [1], 1)]
    assert (queue.current_locks, queue.workers) == (set(), {})


def test_an_app_of_ones_own_gets_it_for_a_while():
    app = App(connector=PsycopgConnector("host=nowhere"))

    @app.task(name="t")
    def t():
        pass

    with app.replace_connector(InMemoryConnector()) as replaced:
        t.defer()
        app.run_worker(wait=False, install_signal_handlers=False)
        assert replaced.connector.jobs[1]["status"] == "succeeded"
    assert isinstance(app.connector, PsycopgConnector)


async def test_async_calls_do_the_same(app, queue, ran):
    async with app.open_async():
        assert await app.tasks["echo"].batch_defer_async({"n": 1}, {"n": 2}) == [1, 2]
        await app.run_worker_async(wait=False, install_signal_handlers=False)
        assert await app.job_manager.get_job_status_async(2) is Status.SUCCEEDED
        assert [job.id for job in await app.job_manager.list_jobs_async(task="echo")] == [1, 2]
    assert queue.states == ["open", "open_async", "closed_async"]
    assert ran == [1, 2]


async def test_a_waiting_worker_is_woken_by_a_defer_from_another_thread(app, queue, ran, working, until):
    async with working():
        await until(lambda: rests(queue))
        thread = threading.Thread(target=app.tasks["echo"].defer, kwargs={"n": 1})
        thread.start()
        await until(lambda: ran == [1])
        thread.join()
    assert queue._tables.listeners == []


async def test_a_waiting_worker_sees_that_time_was_moved_on(app, queue, ran, working, until):
    app.tasks["echo"].configure(schedule_in={"hours": 1}).defer(n=1)
    async with working():
        await until(lambda: rests(queue))
        queue.advance(3600)
        await until(lambda: ran == [1])


async def test_a_running_task_is_told_to_abort(app, queue, working, until):
    started = asyncio.Event()

    @app.task(name="long", retry=3)
    async def long():
        started.set()
        await asyncio.sleep(60)

    async with working():
        job_id = await long.defer_async()
        await started.wait()
        assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await until(lambda: queue.jobs[job_id]["status"] == "aborted")


async def test_a_worker_that_was_found_dead_registers_anew(app, queue, ran, working, until):
    async with working():
        await until(lambda: rests(queue))
        queue.reset()
        app.tasks["echo"].defer(n=1)
        queue.advance(0)  # which makes it look
        await until(lambda: ran == [1])


def test_periodic_tasks_are_deferred_when_it_is_time(app, queue, drain):
    times = []

    @app.periodic(cron="0 * * * *", periodic_id="hourly")
    @app.task(name="report")
    def report(timestamp):
        times.append(timestamp)

    queue.run(app.make_worker(stalled_worker_timeout=7200).registration())
    hour = queue.advance(3600).replace(minute=0, second=0, microsecond=0)
    queue.run(Call("tick_v1", {}, len))
    assert queue.periodic_defers == {("report", "hourly"): int(hour.timestamp())}
    drain()
    assert times[-1] == int(hour.timestamp())


def test_what_the_schema_refuses_is_refused_alike(app, ran):
    echo = app.tasks["echo"].configure(queueing_lock="y")
    echo.defer(n=1)
    with pytest.raises(exceptions.AlreadyEnqueued) as raised:
        echo.defer(n=2)
    assert raised.value.__cause__.queueing_lock == "y"
    with pytest.raises(exceptions.InvalidName, match="lock name is too long"):
        app.tasks["echo"].configure(lock="x" * 513).defer(n=1)
    with pytest.raises(exceptions.ArgsTooDeep, match="more than 64 levels"):
        app.tasks["echo"].defer(n=json.loads("[" * 64 + "]" * 64))
    with pytest.raises(exceptions.InvalidText, match="NUL"):
        app.tasks["echo"].configure(lock="\0").defer(n=1)
    with pytest.raises(exceptions.WrongJobState):
        app.job_manager.retry_job_by_id(1)


def test_a_batch_is_deferred_as_a_whole_or_not_at_all(app, queue, ran):
    with pytest.raises(exceptions.AlreadyEnqueued):
        app.tasks["echo"].configure(queueing_lock="y").batch_defer({"n": 1}, {"n": 2})
    assert queue.jobs == {}
    assert app.tasks["echo"].defer(n=1) == 3  # numbers are not given twice


def test_what_nobody_knows_cannot_be_called(queue):
    with pytest.raises(exceptions.ConnectorException, match=r"procrastinate\.dance\(\) does not exist"):
        queue.run(Call("dance", {}, list))
    with pytest.raises(exceptions.ConnectorException, match=r"procrastinate\.cancel\(loudly\) does not exist"):
        queue.run(Call("cancel", {"loudly": True}, list))
    with pytest.raises(exceptions.ConnectorException, match=r'"procrastinate\.dances" does not exist'):
        queue.run(Call("dances", {}, list, view=["id"]))


def test_no_migration_mistakes_it_for_the_database_of_the_environment(queue):
    with pytest.raises(exceptions.ConnectorException, match="no schema to migrate"):
        queue.address()


def test_without_the_distribution_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyprocrastinate_testing", None)
    monkeypatch.delitem(sys.modules, "pyprocrastinate.testing")
    with pytest.raises(ImportError, match=r"pip install 'pyprocrastinate\[testing\]'"):
        importlib.import_module("pyprocrastinate.testing")


async def test_a_line_that_was_cut_carries_nothing_more(queue):
    call = Call("protocol", {}, list)
    wire, pulse = await queue.open_wire(), queue.open_pulse_wire()
    assert await wire.call(call) == pulse.call(call) == [(1, 1)]
    wire.sever()
    pulse.sever()
    assert wire.closed
    with pytest.raises(psycopg.OperationalError):
        await wire.call(call)
    with pytest.raises(psycopg.OperationalError):
        pulse.call(call)


async def test_a_freed_lock_wakes_the_worker_of_the_job_behind(app, queue, ran, working, until):
    first = app.tasks["echo"].configure(queue="elsewhere", lock="x").defer(n=1)
    app.tasks["echo"].configure(lock="x").defer(n=2)
    async with working(queues=["q"]):
        await until(lambda: rests(queue))
        app.job_manager.cancel_job_by_id(first)
        await until(lambda: ran == [2])


def test_a_task_can_complete_its_job_once(app, queue, drain):
    refused = []

    @app.task(name="pay", pass_context=True)
    def pay(context):
        context.complete(None)
        with pytest.raises(exceptions.TokenNotCurrent):
            context.complete(None)
        refused.append(True)

    pay.defer()
    drain()
    assert (queue.jobs[1]["status"], refused) == ("succeeded", [True])


def test_a_task_can_abort_itself(app, queue, drain):
    @app.task(name="give_up", retry=5)
    def give_up():
        raise exceptions.JobAborted

    give_up.defer()
    drain()
    assert (queue.jobs[1]["status"], queue.jobs[1]["attempts"]) == ("aborted", 1)
