"""What each of the roles needs is what it has: programs that run as one of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pyprocrastinate import App, JobContext, PsycopgConnector
from pyprocrastinate.exceptions import ConnectorException, QueueNotAllowed
from tests.worker.conftest import until

__all__ = ["until"]

pytestmark = pytest.mark.not_pooled("a role is set as it connects")

PREFIX = f"accept_{os.getpid()}"


@pytest.fixture
def as_role(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[Callable[[str], App]]:
    """Return a function that makes an app which may do no more than a role with this access."""
    made = []

    def as_role(access: str) -> App:
        made.append(name := f"{PREFIX}_{access}")
        conn.execute(f"create role {name}".encode())
        conn.execute("select procrastinate.grant_access(%s, %s)", [name, access])
        return App(connector=PsycopgConnector(conninfo=make_conninfo(dsn, options=f"-c role={name}")))

    yield as_role
    for name in made:
        conn.execute(f"drop owned by {name}; drop role {name}".encode())


async def test_a_worker_runs_jobs_with_the_rights_of_one(as_role: Callable[[str], App], app: App, until: Any) -> None:
    working = as_role("worker")
    ran: list[str] = []
    began = asyncio.Event()

    @working.periodic(cron="* * * * * *")
    @working.task(name="tick")
    async def tick(timestamp: int) -> None:
        ran.append("tick")

    @working.task(name="fails", retry=1)
    def fails() -> None:
        ran.append("fails")
        raise ValueError

    @working.task(name="completes", pass_context=True)
    async def completes(context: JobContext) -> None:
        async with working.connector._async_pool.connection() as connection:  # type: ignore[attr-defined]
            await context.complete_async(connection)
        ran.append("completes")

    @working.task(name="endless", pass_context=True)
    async def endless(context: JobContext) -> None:
        began.set()
        await asyncio.Event().wait()

    await app.configure_task("fails", lock="l").batch_defer_async({}, {})
    await app.configure_task("completes", lock="l").defer_async()
    last = await app.configure_task("endless").defer_async()
    async with working.open_async():
        worker = working.make_worker(install_signal_handlers=False, fetch_job_polling_interval=0.5)
        run = asyncio.create_task(worker.run())
        await asyncio.wait_for(began.wait(), 20)
        await app.job_manager.cancel_job_by_id_async(last, abort=True)
        await until(lambda: {"tick", "fails", "completes"} <= set(ran))
        worker.stop()
        await asyncio.wait_for(run, 20)
        with pytest.raises(ConnectorException, match="permission denied"):
            await working.configure_task("fails").defer_async()
        with pytest.raises(ConnectorException, match="permission denied"):
            await working.job_manager.list_jobs_async()
    statuses = {job.task_name: job.status for job in await app.job_manager.list_jobs_async() if job.task_name != "tick"}
    assert statuses == {"fails": "failed", "completes": "succeeded", "endless": "aborted"}


def test_a_client_defers_cancels_and_retries(as_role: Callable[[str], App]) -> None:
    app = as_role("client")
    with app.open():
        assert app.check_connection()
        first, second = app.configure_task("t", queueing_lock=None).batch_defer({}, {})
        assert app.job_manager.cancel_job_by_id(first)
        app.job_manager.retry_job_by_id(first)
        for forbidden in (
            app.job_manager.list_jobs,
            app.job_manager.list_queues,
            lambda: app.job_manager.get_job_status(second),
            lambda: app.run_worker(wait=False, install_signal_handlers=False),
        ):
            with pytest.raises(Exception, match="permission denied"):
                forbidden()


def test_an_observer_counts_and_an_admin_does_the_rest(as_role: Callable[[str], App]) -> None:
    observer, admin = as_role("observer"), as_role("admin")
    with observer.open(), admin.open():
        job = admin.configure_task("t").defer()
        assert [counts["jobs_count"] for counts in observer.job_manager.list_queues()] == [1]
        assert observer.job_manager.get_job_status(job).value == "todo"
        for forbidden in (
            lambda: observer.job_manager.cancel_job_by_id(job),
            observer.job_manager.list_jobs,
            lambda: observer.configure_task("t").defer(),
        ):
            with pytest.raises(ConnectorException, match="permission denied"):
                forbidden()
        assert [each.id for each in admin.job_manager.list_jobs()] == [job]
        assert admin.job_manager.cancel_job_by_id(job)


def test_a_client_outside_of_its_queues_is_told_so(dsn: str, conn: psycopg.Connection[Any]) -> None:
    name = f"{PREFIX}_limited"
    conn.execute(f"create role {name} login password 'x'".encode())
    try:
        conn.execute("select procrastinate.grant_access(%s, 'client', '{shop}')", [name])
        app = App(connector=PsycopgConnector(conninfo=make_conninfo(dsn, user=name, password="x")))
        with app.open():
            assert app.configure_task("t", queue="shop").defer()
            with pytest.raises(QueueNotAllowed, match="may not use this queue") as raised:
                app.configure_task("t").defer()
        assert raised.value.detail == "Its queues are: shop."
    finally:
        conn.execute(f"drop owned by {name}; drop role {name}".encode())


@pytest.fixture
async def app(dsn: str) -> Any:
    app = App(connector=PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        yield app
