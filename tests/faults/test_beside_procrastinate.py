"""
Five things that befall a queue in production, on both systems, by the same code where the API is the same.

Each test returns whether the system holds. Procrastinate is used by its public API and its SQL functions, as its
documentation says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import psycopg
import pytest

import pyprocrastinate

PATIENCE = 20.0
# The versions that were found not to hold.
BEHIND = ("3.9", "3.10")
# More digits than any Python reads.
HUGE = '{"huge": %s}' % ("1" * 5000)
# Legal as a name of 128 characters, and too long for the name of a channel with a prefix.
LONG_QUEUE = "q" * 41


@dataclass
class System:
    """One of the two, its API, and what differs between them."""

    library: Any
    app: Any
    conn: psycopg.Connection[Any]
    add_poison: str
    forged_abort: tuple[str, Callable[[int], str]]

    async def work(self, **options: Any) -> None:
        """Run a worker until nothing is ready; what it raises, it raises."""
        quiet = {"wait": False, "install_signal_handlers": False, "listen_notify": False}
        await asyncio.wait_for(self.app.run_worker_async(**(quiet | options)), PATIENCE)

    async def status(self, job: int) -> str:
        return str((await self.app.job_manager.get_job_status_async(job)).value)


@pytest.fixture
async def theirs(conn: psycopg.Connection[Any], dsn: str) -> AsyncIterator[System]:
    procrastinate: Any = pytest.importorskip("procrastinate")
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        add = (
            "insert into procrastinate_jobs (task_name, queue_name, args) values ('touch', 'default', %s) returning id"
        )
        payload = lambda job: json.dumps({"type": "abort_job_requested", "job_id": job})  # noqa: E731
        yield System(procrastinate, app, conn, add, ("procrastinate_any_queue_v1", payload))


@pytest.fixture
async def ours(conn: psycopg.Connection[Any], dsn: str) -> AsyncIterator[System]:
    app = pyprocrastinate.App(connector=pyprocrastinate.PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        add = "insert into procrastinate.job (task, queue, args) values ('touch', 'default', %s) returning id"
        yield System(pyprocrastinate, app, conn, add, ("procrastinate_v1", lambda _: "a"))


@pytest.fixture(params=["theirs", "ours"])
def system(request: pytest.FixtureRequest, ours: System, theirs: System) -> System:
    return ours if request.param == "ours" else theirs


def judged(system: System, holds: bool) -> None:
    """Ours has to hold; theirs is known not to, in the versions that were looked at."""
    if system.library is pyprocrastinate:
        assert holds
    elif version("procrastinate").rpartition(".")[0] in BEHIND:
        assert not holds
    else:
        pytest.skip("a version of Procrastinate that nobody has looked at")


def touching(system: System) -> list[str]:
    """Give the app a task that writes down its argument."""
    touched: list[str] = []

    @system.app.task(name="touch")  # type: ignore[untyped-decorator]
    async def touch(what: str = "") -> None:
        touched.append(what)

    return touched


def one(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params).fetchone()
    assert row is not None
    return row[0]


async def soon(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_worker_that_lost_its_job_cannot_finish_it_theirs(theirs: System) -> None:
    manager, status = theirs.app.job_manager, theirs.library.jobs.Status
    job = await theirs.app.configure_task("touch").defer_async()
    late, heir = await manager.register_worker(), await manager.register_worker()
    lost = await manager.fetch_job(None, late)
    await manager.retry_job(lost)
    assert (await manager.fetch_job(None, heir)).id == job
    with contextlib.suppress(theirs.library.exceptions.ConnectorException):
        await manager.finish_job(lost, status.SUCCEEDED, delete_job=False)
    judged(theirs, await theirs.status(job) == "doing")


async def test_a_worker_that_lost_its_job_cannot_finish_it_ours(ours: System) -> None:
    conn, register = ours.conn, "select procrastinate.register_worker_v1('w')"
    job = await ours.app.configure_task("touch").defer_async()
    late = one(conn, register)
    conn.execute("select procrastinate.enable_test_clock()")
    fetch = "select id, token from procrastinate.fetch_v1(%s)"
    _, token = conn.execute(fetch, [late]).fetchone() or (0, 0)
    conn.execute("select procrastinate.advance('1 minute')")
    heir = one(conn, register)
    conn.execute("select procrastinate.tick_v1()")
    assert one(conn, fetch, heir) == job
    finish = "select verdict from procrastinate.finish_v1(%s, array[%s::bigint], array[%s::bigint])"
    assert one(conn, finish, late, job, token) == "stale"
    judged(ours, await ours.status(job) == "doing")


async def test_a_row_that_python_cannot_read_harms_no_other(system: System) -> None:
    touched = touching(system)
    one(system.conn, system.add_poison, HUGE)
    await system.app.tasks["touch"].defer_async(what="healthy")
    # what a supervisor does: start the worker again when it has fallen
    for _ in range(3):
        with contextlib.suppress(Exception):
            await system.work()
    judged(system, touched == ["healthy"])


async def test_a_forged_notification_aborts_nothing(system: System) -> None:
    running, gate = asyncio.Event(), asyncio.Event()

    @system.app.task(name="wait")  # type: ignore[untyped-decorator]
    async def wait() -> None:
        running.set()
        await gate.wait()

    job = await system.app.tasks["wait"].defer_async()
    worker = asyncio.create_task(system.work(listen_notify=True))
    await asyncio.wait_for(running.wait(), PATIENCE)
    role = f"stranger_{system.conn.info.backend_pid}"
    channel, payload = system.forged_abort
    system.conn.execute(f"create role {role}".encode())
    try:
        system.conn.execute(f"set role {role}".encode())
        # Whoever believes it stops the task, once it listens; who does not, is done once the gate opens.
        for _ in range(20):
            system.conn.execute("select pg_notify(%s, %s)", [channel, payload(job)])
            if (await asyncio.wait({worker}, timeout=0.2))[0]:
                break
        gate.set()
        await worker
    finally:
        system.conn.execute("reset role")
        system.conn.execute(f"drop role {role}".encode())
    judged(system, await system.status(job) == "succeeded")


async def test_a_queue_may_have_a_long_name(system: System) -> None:
    touched = touching(system)
    with contextlib.suppress(system.library.exceptions.ConnectorException):
        await system.app.tasks["touch"].configure(queue=LONG_QUEUE).defer_async(what="x")
    await system.work()
    judged(system, touched == ["x"])


async def test_a_job_of_tomorrow_holds_nobody_back(system: System) -> None:
    touched = touching(system)
    task = system.app.tasks["touch"]
    await task.configure(lock="L", schedule_in={"days": 1}).defer_async(what="tomorrow")
    await task.configure(lock="L").defer_async(what="today")
    await system.work()
    judged(system, touched == ["today"])
