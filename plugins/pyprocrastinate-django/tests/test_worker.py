"""Jobs run by a worker on Django's connector, and what becomes of Django's connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from bookshop.models import Order
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import override_settings

from pyprocrastinate import JobContext
from pyprocrastinate.contrib.django import app
from pyprocrastinate.testing import InMemoryConnector

# Of Django; those of workers have a name.
SESSIONS = """
    select count(*) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and application_name = ''
"""
END_SESSIONS = SESSIONS.replace("count(*)", "pg_terminate_backend(pid, 20000)")


@pytest.fixture(autouse=True)
def no_task_is_left() -> Iterator[None]:
    app.perform_import_paths()
    tasks = dict(app.tasks)
    yield
    app.tasks.clear()
    app.tasks.update(tasks)


def work() -> None:
    app.run_worker(wait=False, install_signal_handlers=False)


@pytest.mark.scenario(77)
def test_tasks_use_the_orm_and_leave_no_session(dsn: str, conn: Any, jobs: Any) -> None:
    @app.task(name="sync")
    def sync() -> None:
        Order.objects.create(customer="Ada")

    @app.task(name="async")
    async def async_() -> None:
        await Order.objects.acreate(customer="Grace")

    @app.task(name="failing")
    def failing() -> None:
        Order.objects.create(customer="Edsger")
        raise ZeroDivisionError

    for task in (sync, async_, failing):
        task.defer()
    connection.close()
    work()
    assert [status for *_, status in jobs()] == ["succeeded", "succeeded", "failed"]
    assert conn.execute(SESSIONS).fetchone() == (0,)
    assert Order.objects.count() == 3


def test_what_a_task_defers_is_in_its_transaction(dsn: str, jobs: Any) -> None:
    @app.task(name="first")
    def first() -> None:
        with transaction.atomic():
            app.configure_task("kept").defer()
            assert len(jobs()) == 2
        with transaction.atomic():
            app.configure_task("gone").defer()
            transaction.set_rollback(True)

    @app.task(name="second")
    async def second() -> None:
        await app.configure_task("kept").defer_async()

    first.defer()
    second.defer()
    work()
    assert sorted((task, status) for task, _, status in jobs()) == [
        ("first", "succeeded"),
        ("kept", "failed"),  # nobody knows it
        ("kept", "failed"),
        ("second", "succeeded"),
    ]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_broken_connection_hurts_one_job_only(dsn: str, conn: Any, jobs: Any, kind: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)

    @app.task(name="sync")
    def sync(a: int) -> None:
        Order.objects.count()
        if a == 1:
            conn.execute(END_SESSIONS)
            Order.objects.count()
        connections.close_all()  # else it would live as long as this thread

    @app.task(name="async")
    async def async_(a: int) -> None:
        await Order.objects.acount()
        if a == 1:
            conn.execute(END_SESSIONS)
            await Order.objects.acount()
        await sync_to_async(connections.close_all)()

    for a in (1, 2):
        app.configure_task(kind).defer(a=a)
    connection.close()
    work()
    assert [status for *_, status in jobs()] == ["failed", "succeeded"]
    errors = conn.execute("select error_class from procrastinate.jobs where id = 1").fetchone()
    assert errors[0].endswith(OperationalError.__name__)


def test_queries_do_not_pile_up(dsn: str) -> None:
    seen: list[int] = []

    @app.task(name="t")
    def task() -> None:
        Order.objects.count()
        seen.append(len(connection.queries))

    for _ in range(3):
        task.defer()
    with override_settings(DEBUG=True):
        work()
    assert seen == [1, 1, 1]


def test_a_run_is_completed_in_djangos_transaction(dsn: str, jobs: Any) -> None:
    committed: list[str] = []

    @app.task(name="t", pass_context=True)
    def task(context: JobContext) -> None:
        with transaction.atomic():
            Order.objects.create(customer="Ada")
            context.complete(connection)
            committed.append(jobs()[0][2])
        committed.append(jobs()[0][2])

    task.defer()
    work()
    assert committed == ["doing", "succeeded"]


def test_connections_are_looked_after_outside_of_the_users_middleware(dsn: str, conn: Any) -> None:
    @app.task(name="t")
    def task() -> None:
        seen.append("task")

    def middleware(call_next: Any, context: Any, worker: Any) -> Any:
        seen.append(f"{Order.objects.count()} orders")
        return call_next()

    seen: list[str] = []
    task.defer()
    connection.close()
    app.run_worker(wait=False, install_signal_handlers=False, task_middleware=[middleware])
    assert seen == ["0 orders", "task"]
    assert conn.execute(SESSIONS).fetchone() == (0,)


def test_a_task_that_is_called_leaves_connections_alone(dsn: str) -> None:
    @app.task(name="t")
    def task() -> int:
        return Order.objects.count()

    Order.objects.count()
    before = connection.connection
    task()
    assert connection.connection is before


def test_a_worker_can_be_given_a_connector_of_psycopgs(dsn: str, jobs: Any) -> None:
    """As programs written for Procrastinate do."""
    app.configure_task("bookshop.tasks.count").defer()
    with app.replace_connector(app.connector.get_worker_connector()):  # type: ignore[attr-defined]
        work()
    assert [status for *_, status in jobs()] == ["succeeded"]


def test_a_queue_in_memory_takes_its_place() -> None:
    """In a test that has no database, say a SimpleTestCase."""

    @app.task(name="t")
    def task(a: int) -> None:
        ran.append(a)

    ran: list[int] = []
    with app.replace_connector(InMemoryConnector()):
        task.defer(a=1)
        work()
    assert ran == [1]
