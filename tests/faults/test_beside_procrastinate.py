"""
Five things that befall a queue in production, on both systems, by the same code where the API is the same.

Each test says exactly what comes of it in either. Where a job does not run, another one does: a harness that does
nothing passes for neither. Procrastinate is used by its public API and its SQL functions, as its documentation says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import psycopg
import pytest

import pyprocrastinate

PATIENCE = 20.0
# What is said of Procrastinate here is said of this version.
LOOKED_AT = "3.10"
# More digits than any Python reads.
HUGE = '{"huge": %s}' % ("1" * 5000)
# The name of a channel has at most 63 characters, and Procrastinate's prefix has 23.
LONGEST_WITH_A_PREFIX = "q" * 40


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
    # In words that the summary lists.
    unseen = f"needs Procrastinate {LOOKED_AT}"
    procrastinate: Any = pytest.importorskip("procrastinate", reason=unseen)
    if not version("procrastinate").startswith(f"{LOOKED_AT}."):
        pytest.skip(unseen)
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
def system(request: pytest.FixtureRequest) -> System:
    found: System = request.getfixturevalue(request.param)
    return found


def judged(system: System, came: Any, *, ours: Any, theirs: Any) -> None:
    """Ours has to hold; theirs is known not to, and how."""
    assert came == (ours if system.library is pyprocrastinate else theirs)


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
    await manager.finish_job(lost, status.SUCCEEDED, delete_job=False)
    assert await theirs.status(job) == "succeeded"


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
    assert await ours.status(job) == "doing"


async def test_a_row_that_python_cannot_read_harms_no_other(system: System) -> None:
    touched, task = touching(system), system.app.tasks["touch"]
    await task.defer_async(what="before")
    await system.work()
    one(system.conn, system.add_poison, HUGE)
    await task.defer_async(what="behind")
    # what a supervisor does: start the worker again when it has fallen
    falls = 0
    for _ in range(3):
        try:
            await system.work()
        except ValueError as error:
            if "integer string conversion" not in str(error):
                raise
            falls += 1
    judged(system, (touched, falls), ours=(["before", "behind"], 0), theirs=(["before"], 3))


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
    judged(system, await system.status(job), ours="succeeded", theirs="aborted")


async def test_a_queue_may_have_a_long_name(system: System) -> None:
    touched, task = touching(system), system.app.tasks["touch"]
    await task.configure(queue=LONGEST_WITH_A_PREFIX).defer_async(what="40")
    try:
        await task.configure(queue=LONGEST_WITH_A_PREFIX + "q").defer_async(what="41")
    except system.library.exceptions.ConnectorException as error:
        if "channel name too long" not in str(error.__cause__):
            raise
    await system.work()
    judged(system, sorted(touched), ours=["40", "41"], theirs=["40"])


async def test_a_job_of_tomorrow_holds_nobody_back(system: System) -> None:
    touched, task = touching(system), system.app.tasks["touch"]
    await task.configure(lock="L", schedule_in={"days": 1}).defer_async(what="tomorrow")
    await task.configure(lock="L").defer_async(what="today")
    await task.configure(lock="M").defer_async(what="under another lock")
    await system.work()
    judged(system, sorted(touched), ours=["today", "under another lock"], theirs=["under another lock"])
