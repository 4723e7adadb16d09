"""What programs written for Procrastinate 3 import, and what those for Procrastinate 2 are told."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import signal
import sys
from typing import Any

import psycopg
import pytest

import pyprocrastinate as procrastinate
from pyprocrastinate import App, JobContext, PsycopgConnector, SyncPsycopgConnector, builtin_tasks, signals
from pyprocrastinate.exceptions import MovedElsewhere
from pyprocrastinate.job_context import JobResult
from pyprocrastinate.testing import InMemoryConnector

REMOVE = "procrastinate.builtin_tasks.remove_old_jobs"

NAMES = {
    "": "App BaseConnector BaseRetryStrategy Blueprint JobContext PsycopgConnector RetryDecision RetryStrategy"
    " SyncPsycopgConnector",
    ".app": "App",
    ".blueprints": "Blueprint",
    ".builtin_tasks": "remove_old_jobs",
    ".contrib.django": "app",
    ".contrib.sqlalchemy": "SQLAlchemyConnector",
    ".exceptions": "ProcrastinateException TaskNotFound UnboundTaskError TaskAlreadyRegistered MiddlewareKindMismatch"
    " LoadFromPathError JobRetry JobAborted AppNotOpen ConnectorException UniqueViolation NoResult AlreadyEnqueued"
    " MissingApp SyncConnectorConfigurationError CallerModuleUnknown RunTaskError InvalidTimestamp FunctionPathError"
    " MovedElsewhere",
    ".job_context": "AbortReason JobContext JobResult",
    ".jobs": "DeleteJobCondition Job JobDeferrer Status",
    ".manager": "JobManager",
    ".periodic": "PeriodicRegistry PeriodicTask",
    ".retry": "BaseRetryStrategy RetryDecision RetryStrategy",
    ".schema": "SchemaManager",
    ".tasks": "Task",
    ".testing": "InMemoryConnector",
    ".types": "ConfigureTaskOptions JSONDict JSONValue TimeDeltaParams WorkerOptions",
    ".worker": "Worker",
}


@pytest.mark.parametrize("module", [module for module in NAMES if module != ".contrib.django"])
def test_the_names_are_there(module: str) -> None:
    found = importlib.import_module(f"pyprocrastinate{module}")
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


def test_exceptions_have_the_same_base() -> None:
    for name in NAMES[".exceptions"].split():
        assert issubclass(getattr(procrastinate.exceptions, name), procrastinate.exceptions.ProcrastinateException)


@pytest.mark.parametrize("name", ["AiopgConnector", "Psycopg2Connector"])
def test_a_connector_that_is_gone_names_its_successor(name: str) -> None:
    with pytest.raises(MovedElsewhere, match=rf"{name} was removed in Procrastinate 3: use \w*PsycopgConnector"):
        getattr(procrastinate, name)
    with pytest.raises(AttributeError):
        procrastinate.nothing_like_it  # noqa: B018


@pytest.mark.parametrize("driver", ["aiopg", "psycopg2"])
def test_a_driver_that_is_gone_names_its_successor(driver: str) -> None:
    with pytest.raises(MovedElsewhere, match=r"use pyprocrastinate\.\w*PsycopgConnector, over psycopg 3"):
        importlib.import_module(f"pyprocrastinate.contrib.{driver}")


@pytest.fixture
def app() -> App:
    return App(connector=PsycopgConnector("dbname=none"))


def context(app: App) -> JobContext:
    job = procrastinate.jobs.Job(queue="q", lock=None, queueing_lock=None, task_name=REMOVE)  # type: ignore[attr-defined]
    return JobContext(app=app, job=job, start_timestamp=0.0, abort_reason=lambda: None)


def test_what_is_gone_names_its_successor(app: App) -> None:
    with pytest.raises(AttributeError, match="should_abort_async was removed in Procrastinate 3: use should_abort"):
        context(app).should_abort_async  # noqa: B018
    with pytest.raises(AttributeError, match="job_result was removed"):
        context(app).job_result  # noqa: B018
    with pytest.raises(AttributeError, match="there is no colour"):
        context(app).colour  # noqa: B018
    with pytest.raises(TypeError, match="timeout was removed in Procrastinate 3: use fetch_job_polling_interval"):
        app.make_worker(timeout=3.0)  # type: ignore[call-arg]


async def test_arguments_that_are_gone_name_their_successors(app: App) -> None:
    with pytest.raises(TypeError, match="remove_error was removed in Procrastinate 3: use remove_failed"):
        await builtin_tasks.remove_old_jobs(context(app), max_hours=1, remove_error=True)
    with pytest.raises(TypeError, match="use include_failed"):
        await app.job_manager.delete_old_jobs(1, include_error=True)
    with pytest.raises(TypeError, match="there is no colour"):
        await app.job_manager.delete_old_jobs(1, colour=True)
    with pytest.raises(TypeError, match="positional"):  # the first one was nb_seconds
        await app.job_manager.get_stalled_jobs(300)  # type: ignore[misc]


def test_the_result_of_a_run() -> None:
    running = JobResult(start_timestamp=10.0)
    assert (running.duration(12.5), running.as_dict()) == (
        2.5,
        {"start_timestamp": 10.0, "end_timestamp": None, "result": None},
    )
    done = JobResult(start_timestamp=10.0, end_timestamp=11.5, result="r")
    assert done.as_dict() == {"start_timestamp": 10.0, "end_timestamp": 11.5, "result": "r", "duration": 1.5}


def test_an_app_with_another_connector_shares_its_tasks(app: App) -> None:
    @app.task(name="before")
    def before() -> None: ...

    connector = SyncPsycopgConnector("dbname=other")
    with pytest.warns(DeprecationWarning, match="use replace_connector"):
        other = app.with_connector(connector)
    assert (other.connector, app.connector) == (connector, app.connector)
    assert app.connector is not connector

    @app.task(name="after")
    def after() -> None: ...

    assert {"before", "after"} <= other.tasks.keys()
    assert other.periodic_registry is app.periodic_registry


def test_an_app_applies_its_schema(dsn: str, conn: psycopg.Connection[Any]) -> None:
    app = App(connector=PsycopgConnector(dsn))
    conn.execute("drop schema procrastinate cascade")
    app.schema_manager.apply_schema()
    app.schema_manager.apply_schema()
    with app.open():
        assert app.check_connection()
    assert "create schema procrastinate" in app.schema_manager.get_schema()
    assert app.schema_manager.get_migrations_path().endswith("migrations")


@pytest.mark.parametrize("name", [f"builtin:{REMOVE}", REMOVE])
async def test_old_jobs_are_removed(dsn: str, conn: psycopg.Connection[Any], name: str) -> None:
    conn.execute("select procrastinate.enable_test_clock()")
    async with App(connector=PsycopgConnector(dsn)).open_async() as app:
        worker = {"wait": False, "install_signal_handlers": False, "queues": ["builtin", "default"]}

        @app.task(name="fails")
        async def fails() -> None:
            raise ValueError

        @app.task(name="works")
        async def works() -> None: ...

        for task in (fails, works):
            await task.defer_async()
        await app.run_worker_async(**worker)  # type: ignore[arg-type]
        conn.execute("select procrastinate.advance('3 hours')")
        remover = app.configure_task(name, queue="builtin")
        await remover.defer_async(max_hours=2)
        await app.run_worker_async(**worker)  # type: ignore[arg-type]
        assert [job.task_name for job in app.job_manager.list_jobs()] == ["fails", f"builtin:{REMOVE}"]
        await remover.defer_async(max_hours=2, remove_failed=True)
        await app.run_worker_async(**worker)  # type: ignore[arg-type]
        removed = [(f"builtin:{REMOVE}", "succeeded")] * 2
        assert [(job.task_name, job.status) for job in app.job_manager.list_jobs()] == removed


def test_the_builtin_task_is_one_of_the_app(app: App) -> None:
    other = App(connector=InMemoryConnector())
    app.connector = InMemoryConnector()
    builtin_tasks.remove_old_jobs.configure(queueing_lock="one").defer(max_hours=72)
    assert [job["task_name"] for job in other.connector.jobs.values()] == [f"builtin:{REMOVE}"]
    assert [job["queue_name"] for job in other.connector.jobs.values()] == ["builtin"]
    app.tasks[f"builtin:{REMOVE}"].defer(max_hours=72)
    assert (len(app.connector.jobs), len(other.connector.jobs)) == (1, 1)


def test_on_windows_the_loop_suits_psycopg_and_no_signal_is_handled(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type] = []

    class Connector(PsycopgConnector):
        async def open_async(self, pool: Any = None) -> None:
            seen.append(type(asyncio.get_running_loop()))
            raise KeyError("enough")

    app.connector = Connector()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(KeyError):
        app.run_worker()
    assert seen == [asyncio.SelectorEventLoop]
    before = signal.getsignal(signal.SIGTERM)
    with signals.stop_on_signals(lambda: None, logging.getLogger()):
        assert signal.getsignal(signal.SIGTERM) is before


def test_none_is_the_default_of_every_option_that_may_be_none_there(app: App) -> None:
    none = ("queues", "name", "shutdown_graceful_timeout", "delete_jobs", "additional_context")
    worker = app.make_worker(**dict.fromkeys((*none, "task_middleware", "worker_middleware")))  # type: ignore[arg-type]
    assert worker.delete_jobs is procrastinate.jobs.DeleteJobCondition.NEVER  # type: ignore[attr-defined]


def test_the_parameters_of_the_manager_are_the_same() -> None:
    manager = procrastinate.manager.JobManager  # type: ignore[attr-defined]
    listed = list(inspect.signature(manager.list_jobs).parameters)
    assert listed == ["self", "id", "queue", "task", "status", "lock", "queueing_lock", "worker_id"]
    retried = list(inspect.signature(manager.retry_job_by_id).parameters)
    assert retried[:3] == ["self", "job_id", "retry_at"]
