"""Stopping: gracefully, at a signal, in a hurry, and with the database gone."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyprocrastinate import AbortReason, App, JobContext, PsycopgConnector
from pyprocrastinate.embedded import Server
from pyprocrastinate.exceptions import ConnectorException, JobAborted
from pyprocrastinate.migrate import migrate
from pyprocrastinate.pulse import Pulse
from tests.faults.proxy import Proxy

Status = Callable[[int], str]
SOON = 10.0


@pytest.fixture
def starting(app: App) -> Callable[..., Any]:
    """Return a function that starts a worker whose end is up to the test."""

    def starting(**options: Any) -> Any:
        worker = app.make_worker(**{"install_signal_handlers": False, "fetch_job_polling_interval": 30.0, **options})
        return worker, asyncio.create_task(worker.run())

    return starting


async def test_it_waits_for_a_database_that_does_not_answer_only_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing left to say on one connection, the other one is not waited for as well."""
    waited: list[float] = []
    stop = Pulse.stop

    def noted(self: Pulse, patience: float) -> None:
        waited.append(patience)
        stop(self, patience)

    monkeypatch.setattr(Pulse, "stop", noted)
    address = conninfo_to_dict(dsn)
    with Proxy(f"{address['host']}/.s.PGSQL.{address['port']}") as proxy:
        through = {"host": "127.0.0.1", "port": proxy.port, "sslmode": "disable", "gssencmode": "disable"}
        app = App(connector=PsycopgConnector(conninfo=make_conninfo(dsn, **through)))

        frozen = asyncio.Event()

        @app.task
        async def task() -> None:
            proxy.change("pyprocrastinate worker", frozen=True)
            frozen.set()

        async with app.open_async():
            await task.defer_async()
            worker = app.make_worker(install_signal_handlers=False)
            run = asyncio.create_task(worker.run())
            await asyncio.wait_for(frozen.wait(), SOON)
            worker.stop()
            with pytest.raises(ConnectorException):
                await asyncio.wait_for(run, SOON)
    assert waited == [0.0]


@pytest.mark.scenario(49)
async def test_running_jobs_end_first_and_no_other_begins(app: App, starting: Any, until: Any, status: Status) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def task() -> None:
        begun.set()
        await release.wait()

    first, second = await task.defer_async(), await task.defer_async()
    worker, run = starting()
    await asyncio.wait_for(begun.wait(), SOON)
    worker.stop()
    worker.stop()
    done, _ = await asyncio.wait({run}, timeout=0.2)
    assert not done
    release.set()
    await asyncio.wait_for(run, SOON)
    assert (status(first), status(second)) == ("succeeded", "todo")


async def test_an_idle_worker_stops_at_once(starting: Any, until: Any, conn: psycopg.Connection[Any]) -> None:
    worker, run = starting()
    await until(lambda: worker.worker_id)
    count = "select count(*) from procrastinate.workers"
    assert conn.execute(count).fetchone() == (1,)
    threading.Thread(target=worker.stop).start()
    await asyncio.wait_for(run, SOON)
    assert conn.execute(count).fetchone() == (0,)


@pytest.mark.scenario(54)
async def test_a_stop_before_the_start_is_not_lost(app: App, status: Status) -> None:
    @app.task
    async def task() -> None: ...

    job_id = await task.defer_async()
    worker = app.make_worker(install_signal_handlers=False)
    worker.stop()
    await asyncio.wait_for(worker.run(), SOON)
    assert status(job_id) == "todo"


@pytest.mark.scenario(57)
async def test_a_task_may_stop_its_worker(app: App, status: Status) -> None:
    @app.task
    def task() -> None:
        worker.stop()

    ids = await task.batch_defer_async(*({} for _ in range(300)))
    worker = app.make_worker(install_signal_handlers=False)
    await asyncio.wait_for(worker.run(), SOON)
    # What was fetched ahead is given back.
    assert [status(each) for each in ids] == ["succeeded"] + ["todo"] * 299


@pytest.mark.scenario(48)
async def test_cancelling_is_a_graceful_stop(app: App, starting: Any, until: Any, status: Status) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def task() -> None:
        begun.set()
        await release.wait()

    job_id = await task.defer_async()
    _, run = starting()
    await asyncio.wait_for(begun.wait(), SOON)
    run.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, SOON)
    assert status(job_id) == "succeeded"


async def test_cancelling_again_asks_the_tasks_to_stop(app: App, starting: Any, until: Any, status: Status) -> None:
    begun = asyncio.Event()

    @app.task
    async def task() -> None:
        begun.set()
        await asyncio.sleep(60)

    job_id = await task.defer_async()
    _, run = starting()
    await asyncio.wait_for(begun.wait(), SOON)
    run.cancel()
    await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, SOON)
    assert status(job_id) == "aborted"


@pytest.mark.scenario(50, 51, 52)
@pytest.mark.parametrize(("retry", "expected"), [(False, "aborted"), (1, "todo")])
async def test_after_the_graceful_timeout_tasks_are_asked_to_stop(
    app: App, starting: Any, until: Any, status: Status, retry: Any, expected: str
) -> None:
    reasons: list[Any] = []
    begun: list[str] = []
    pause = threading.Event()

    @app.task(retry=retry)
    async def coroutine() -> None:
        begun.append("coroutine")
        await asyncio.sleep(60)

    @app.task(retry=retry, pass_context=True)
    def function(context: JobContext) -> None:
        begun.append("function")
        while not context.should_abort():
            pause.wait(0.01)
        reasons.append(context.abort_reason())
        raise JobAborted

    @app.task(retry=retry)
    async def swallows() -> None:
        begun.append("swallows")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    ids = [await each.defer_async() for each in (coroutine, function, swallows)]
    worker, run = starting(concurrency=3, shutdown_graceful_timeout=0.1)
    await until(lambda: len(begun) == 3)
    worker.stop()
    await asyncio.wait_for(run, SOON)
    assert [status(each) for each in ids] == [expected, expected, "succeeded"]
    assert reasons == [AbortReason.SHUTDOWN]


@pytest.mark.scenario("R9")
async def test_requests_to_abort_are_heeded_while_it_stops(app: App, starting: Any, until: Any, status: Status) -> None:
    begun = asyncio.Event()

    @app.task
    async def task() -> None:
        begun.set()
        await asyncio.sleep(60)

    job_id = await task.defer_async()
    worker, run = starting()
    await asyncio.wait_for(begun.wait(), SOON)
    worker.stop()
    await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
    await asyncio.wait_for(run, SOON)
    assert status(job_id) == "aborted"


@pytest.mark.scenario("R9")
async def test_heartbeats_go_on_while_it_stops(
    app: App, starting: Any, until: Any, status: Status, conn: psycopg.Connection[Any]
) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def task() -> None:
        begun.set()
        await release.wait()

    await task.defer_async()
    worker, run = starting(update_heartbeat_interval=0.05)
    await asyncio.wait_for(begun.wait(), SOON)
    worker.stop()
    seen = set()

    def beats() -> bool:
        seen.add(conn.execute("select heartbeat_at from procrastinate.workers").fetchone())
        return len(seen) > 3

    await until(beats)
    release.set()
    await asyncio.wait_for(run, SOON)


async def test_schedules_and_rescues_go_on_while_it_stops(
    app: App, starting: Any, until: Any, status: Status, conn: psycopg.Connection[Any]
) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    @app.task(queue="mine")
    async def task() -> None:
        begun.set()
        await release.wait()

    await task.defer_async()
    worker, run = starting(queues=["mine"], update_heartbeat_interval=0.2)
    await asyncio.wait_for(begun.wait(), SOON)
    worker.stop()
    (dead,) = conn.execute("select procrastinate.register_worker_v1('dead', stalled_after => '1 second')").fetchone()
    (lost,) = conn.execute("select procrastinate.defer('any')").fetchone()
    conn.execute("select * from procrastinate.fetch_v1(%s)", [dead])
    assert status(lost) == "doing"
    await until(lambda: status(lost) == "todo")
    release.set()
    await asyncio.wait_for(run, SOON)


PROGRAM = """
    @app.task(name="task")
    async def task(block=False):
        say("begun")
        {body}
        say("ended")

    logging.basicConfig(level="INFO")
    app.run_worker(concurrency=2, {options})
    say("over")
"""


@pytest.fixture
def defer(conn: psycopg.Connection[Any]) -> Callable[[str], int]:
    def defer(task: str) -> int:
        row = conn.execute("select procrastinate.defer(%s)", [task]).fetchone()
        assert row
        return int(row[0])

    return defer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_lets_jobs_end(program: Any, defer: Callable[[str], int], status: Status, number: int) -> None:
    job_id = defer("task")
    worker = program(PROGRAM.format(body="await asyncio.sleep(0.5)", options=""))
    worker.expect("begun")
    worker.signal(number)
    worker.expect("ended")
    worker.expect("over")
    assert worker.finish()[0] == 0
    assert status(job_id) == "succeeded"


BODIES = {
    "coroutine": "await asyncio.sleep(60)",
    "stubborn": """while True:
            try: await asyncio.sleep(60)
            except BaseException: pass""",
    "thread": "await asyncio.to_thread(time.sleep, 60)",
    "blocked": "time.sleep(60)",
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("body", list(BODIES.values()), ids=list(BODIES))
def test_the_second_signal_ends_the_process(
    program: Any, defer: Callable[[str], int], status: Status, number: int, body: str
) -> None:
    job_id = defer("task")
    worker = program(PROGRAM.format(body=body, options=""))
    worker.expect("begun")
    worker.signal(number)
    # Not before the first one is handled, or the kernel makes one of both.
    deadline = time.monotonic() + SOON
    while worker.catches(number):
        assert time.monotonic() < deadline
    worker.signal(number)
    assert worker.finish(SOON)[0] == -number
    assert status(job_id) == "doing"


async def test_handlers_are_put_back(starting: Any, until: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for install in (True, False):
        worker, run = starting(install_signal_handlers=install)
        await until(lambda worker=worker: worker.worker_id)
        assert (signal.getsignal(signal.SIGTERM) is before) != install
        worker.stop()
        await asyncio.wait_for(run, SOON)
        assert signal.getsignal(signal.SIGTERM) is before


class TestWithoutADatabase:
    """The server is gone when the worker is to stop."""

    @pytest.mark.parametrize("body", ["await asyncio.sleep(0.5)", "await asyncio.sleep(60)"])
    def test_the_process_ends_all_the_same(self, program: Any, body: str) -> None:
        with Server(durable=False) as server:
            dsn = server.conninfo("postgres")
            migrate(dsn)
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("select procrastinate.defer('task')")
            options = "shutdown_graceful_timeout=1.0"
            worker = program(PROGRAM.format(body=body, options=options), dsn=dsn)
            worker.expect("begun")
            server.stop()
            worker.signal(signal.SIGTERM)
            code, errors = worker.finish(1 + 5 + SOON)
            assert code == 1
            assert "could not be told how 1 jobs ended" in errors

    def test_and_cleanly_if_it_has_nothing_to_tell(self, program: Any) -> None:
        with Server(durable=False) as server:
            dsn = server.conninfo("postgres")
            migrate(dsn)
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("select procrastinate.defer('task')")
            worker = program(PROGRAM.format(body="pass", options=""), dsn=dsn)
            worker.expect("ended")
            with psycopg.connect(dsn, autocommit=True) as conn:
                while conn.execute("select from procrastinate.jobs where status = 'doing'").rowcount:
                    pass
            server.stop()
            worker.signal(signal.SIGTERM)
            worker.expect("over")
            assert worker.finish(5 + SOON)[0] == 0
