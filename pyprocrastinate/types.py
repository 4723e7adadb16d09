"""
Types of options and of JSON, for annotations.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

if TYPE_CHECKING:
    from pyprocrastinate.jobs import DeleteJobCondition
    from pyprocrastinate.middleware import Middleware
    from pyprocrastinate.retry import RetryValue

JSONValue: TypeAlias = "str | int | float | bool | list[JSONValue] | tuple[JSONValue, ...] | JSONDict | None"
JSONDict: TypeAlias = "dict[str, JSONValue]"


class TimeDeltaParams(TypedDict, total=False):
    """What `datetime.timedelta` takes."""

    weeks: float
    days: float
    hours: float
    minutes: float
    seconds: float
    milliseconds: float
    microseconds: float


class ConfigureTaskOptions(TypedDict, total=False):
    """How a job is deferred; None, or nothing, means what the task says."""

    lock: str | None
    queueing_lock: str | None
    task_kwargs: JSONDict | None
    schedule_at: datetime.datetime | None
    schedule_in: TimeDeltaParams | None
    queue: str | None
    priority: int | None
    connection: Any


class TaskOptions(TypedDict, total=False):
    """Options of `@app.task`, less `pass_context`."""

    name: str | None
    aliases: list[str] | None
    retry: RetryValue
    queue: str
    priority: int
    lock: str | None
    queueing_lock: str | None
    store_result: bool
    task_middleware: Iterable[Middleware] | None


class WorkerOptions(TypedDict, total=False):
    """Options of `App.run_worker` and of `App(worker_defaults=)`; see `pyprocrastinate.worker.Worker`."""

    queues: Iterable[str] | None
    name: str | None
    concurrency: int
    wait: bool
    fetch_job_polling_interval: float
    abort_job_polling_interval: float
    shutdown_graceful_timeout: float | None
    listen_notify: bool
    delete_jobs: str | DeleteJobCondition | None
    additional_context: dict[str, Any] | None
    install_signal_handlers: bool
    update_heartbeat_interval: float
    stalled_worker_timeout: float
    prefetch: bool
    task_middleware: Iterable[Middleware] | None
    worker_middleware: Iterable[Middleware] | None
    log_args: bool
