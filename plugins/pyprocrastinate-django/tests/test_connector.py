"""Jobs deferred and managed on Django's connection."""

from __future__ import annotations

import datetime
import queue
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from bookshop.models import Order
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext, override_settings

from pyprocrastinate import PsycopgConnector, hookimpl
from pyprocrastinate.contrib.django import DjangoApp, DjangoConnector, app, connector_params
from pyprocrastinate.exceptions import AlreadyEnqueued, ConnectorException, InvalidText, JobNotFound
from pyprocrastinate.jobs import Status


def test_a_job_is_there_with_the_commit(jobs: Any) -> None:
    with transaction.atomic():
        app.configure_task("t").defer(a=1)
        app.configure_task("t").batch_defer({"a": 2}, {"a": 3})
        assert jobs() == []
    assert jobs() == [("t", {"a": a}, "todo") for a in (1, 2, 3)]


def test_a_job_is_gone_with_the_rollback(jobs: Any) -> None:
    with transaction.atomic():
        app.configure_task("kept").defer()
        with transaction.atomic():
            Order.objects.create(customer="Ada")
            app.configure_task("gone").defer()
            transaction.set_rollback(True)
    assert jobs() == [("kept", {}, "todo")]
    assert Order.objects.count() == 0


def test_outside_of_a_transaction_it_is_committed_at_once(jobs: Any) -> None:
    with app.open():
        job_id = app.configure_task("t").defer(a="%s")
    assert jobs() == [("t", {"a": "%s"}, "todo")]
    assert app.job_manager.cancel_job_by_id(job_id) is True
    assert app.job_manager.get_job_status(job_id) is Status.CANCELLED
    assert app.check_connection() is True


@pytest.mark.usefixtures("threads")
async def test_async(jobs: Any) -> None:
    async with app.open_async():
        job_id = await app.configure_task("t").defer_async(a=1)
    assert jobs() == [("t", {"a": 1}, "todo")]
    assert await app.job_manager.cancel_job_by_id_async(job_id) is True

    def in_a_transaction() -> None:
        with transaction.atomic():
            app.configure_task("gone").defer()
            transaction.set_rollback(True)

    await sync_to_async(in_a_transaction)()
    with pytest.raises(SynchronousOnlyOperation):
        app.configure_task("t").defer()
    assert jobs() == [("t", {"a": 1}, "cancelled")]


def test_djangos_tools_see_the_call(dsn: str) -> None:
    with CaptureQueriesContext(connection) as queries:
        app.configure_task("t").defer()
    assert [query["sql"] for query in queries] == ["select * from procrastinate.defer(task => 't', args => '{}')"]


@pytest.mark.scenario(29)
def test_errors_are_this_packages(jobs: Any) -> None:
    locked = app.configure_task("t", queueing_lock="l")
    locked.defer()
    with pytest.raises(AlreadyEnqueued):
        locked.defer()
    with pytest.raises(JobNotFound):
        app.job_manager.retry_job_by_id(77)
    with pytest.raises(InvalidText):
        app.configure_task("\ud800").defer()
    with pytest.raises(InvalidText):
        app.configure_task("\0").defer()
    with transaction.atomic():
        with pytest.raises(AlreadyEnqueued), transaction.atomic():
            locked.defer()
        app.configure_task("t").defer()
    assert len(jobs()) == 2


def test_after_an_error_a_block_can_only_be_rolled_back(jobs: Any) -> None:
    locked = app.configure_task("t", queueing_lock="l")
    locked.defer()
    with transaction.atomic():
        with pytest.raises(AlreadyEnqueued):
            locked.defer()
        with pytest.raises(TransactionManagementError):
            Order.objects.count()
        with pytest.raises(ConnectorException, match="until the end of the 'atomic' block"):
            app.configure_task("t").defer()


def test_connections_can_be_given(connect: Any, jobs: Any) -> None:
    raw = connect(autocommit=False)
    app.configure_task("raw", connection=raw).defer()
    raw.rollback()
    with transaction.atomic():
        app.configure_task("django", connection=connection).defer()
        assert jobs() == []
    assert jobs() == [("django", {}, "todo")]
    for other in (connections["other"], "x"):
        with pytest.raises(ConnectorException, match="PostgreSQL, not"):
            app.configure_task("t", connection=other).defer()


@pytest.mark.usefixtures("threads")
async def test_connections_can_be_given_async(aconnect: Any, jobs: Any) -> None:
    raw = await aconnect(autocommit=False)
    await app.configure_task("t", connection=raw).defer_async()
    assert jobs() == []
    await raw.commit()
    assert jobs() == [("t", {}, "todo")]


def test_plugins_are_told_whether_a_job_may_be_gone_again(connect: Any) -> None:
    own = DjangoApp(connector=DjangoConnector(), plugins=[Observer])
    own.configure_task("t").defer()
    with transaction.atomic():
        own.configure_task("t").defer()
        own.configure_task("t", connection=connection).defer()
    own.configure_task("t", connection=connect()).defer()
    own.configure_task("t", connection=connect(autocommit=False)).defer()
    assert [Observer.seen.get(timeout=20) for _ in range(5)] == [False, True, True, False, True]


class Observer:
    seen: queue.Queue[bool] = queue.Queue()

    @staticmethod
    @hookimpl
    def jobs_deferred(in_transaction: bool) -> None:
        Observer.seen.put(in_transaction)


@pytest.mark.parametrize("use_tz", [True, False])
def test_times_have_a_time_zone(dsn: str, use_tz: bool) -> None:
    at = datetime.datetime(2100, 1, 2, tzinfo=datetime.UTC)
    with override_settings(USE_TZ=use_tz):
        connection.close()
        job_id = app.configure_task("t", schedule_at=at).defer()
        (job,) = app.job_manager.list_jobs(id=job_id)
        connection.close()
    assert job.scheduled_at == at


def test_a_connector_for_workers_is_one_of_psycopgs(dsn: str, jobs: Any) -> None:
    assert isinstance(app.connector, DjangoConnector)
    connector = app.connector.get_worker_connector()
    assert isinstance(connector, PsycopgConnector)
    with app.replace_connector(connector), app.open(), transaction.atomic():
        app.configure_task("t").defer()
        assert jobs() == [("t", {}, "todo")]


def test_params_are_psycopgs(dsn: str) -> None:
    params = connector_params()
    assert params.items() >= {"dbname": connection.settings_dict["NAME"], "client_encoding": "UTF8"}.items()
    assert params.keys().isdisjoint({"context", "cursor_factory", "prepare_threshold"})


def test_params_heed_options(dsn: str, conn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conn.execute('create role "a role"')
    options = {"prepare_threshold": 3, "assume_role": "a role", "options": "-c work_mem=8MB"}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    try:
        assert connector_params()["prepare_threshold"] == 3
        with psycopg.connect(DjangoConnector().address()) as worker:
            found = worker.execute("select current_role, current_setting('work_mem')").fetchone()
        assert found == ("a role", "8MB")
    finally:
        conn.execute('drop role "a role"')


def test_another_database_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="the database other is SQLite, not PostgreSQL"):
        connector_params("other")
