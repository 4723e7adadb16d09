"""
A job as Python sees it, its states, and how it is deferred: checked and encoded before `procrastinate.defer` is called.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from pyprocrastinate import exceptions, operations, payload, removed
from pyprocrastinate.types import ConfigureTaskOptions, JSONDict, JSONValue, TimeDeltaParams

if TYPE_CHECKING:
    from pyprocrastinate.app import App

logger = logging.getLogger(__name__)


class Status(enum.Enum):
    """The state of a job."""

    TODO = "todo"
    DOING = "doing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABORTED = "aborted"


class DeleteJobCondition(enum.Enum):
    """Which finished jobs a worker deletes, instead of keeping them as history."""

    NEVER = "never"
    SUCCESSFUL = "successful"
    ALWAYS = "always"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    One job, as it was when it was read.

    `attempts` counts the runs that ended or were lost: it is 0 during the first.
    """

    id: int | None = None
    status: str | None = None
    queue: str
    priority: int = 0
    lock: str | None
    queueing_lock: str | None
    task_name: str
    task_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    scheduled_at: datetime.datetime | None = None
    attempts: int = 0
    abort_requested: bool = False
    worker_id: int | None = None
    headers: dict[str, Any] = dataclasses.field(default_factory=dict)
    deferred_at: datetime.datetime | None = None

    @classmethod
    def from_row(cls, row: Sequence[Any], loads: payload.JsonLoads) -> Job:
        """Make a job of a row of the view `procrastinate.jobs`, read as VIEW_COLUMNS."""
        values = dict(zip(VIEW_COLUMNS.values(), row, strict=True))
        values["task_kwargs"] = payload.show_object(values["task_kwargs"], loads)
        values["headers"] = payload.show_object(values["headers"], payload.loads)
        return cls(**values)

    def asdict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def options(self) -> dict[str, Any]:
        """Return how a job like this one is deferred, but for its args."""
        options = {name: getattr(self, name) for name in ("queue", "priority", "lock", "queueing_lock")}
        options |= {"task": self.task_name, "schedule_at": self.scheduled_at and self.scheduled_at.isoformat()}
        return {name: value for name, value in options.items() if value is not None}

    def evolve(self, **changes: Any) -> Job:
        """Return a copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def log_context(self, *, log_args: bool = True) -> dict[str, Any]:
        """Return what log records carry as `job`."""
        context = self.asdict() | ({} if log_args else {"task_kwargs": {}})
        for name in ("scheduled_at", "deferred_at"):
            context[name] = context[name] and context[name].isoformat()
        context["call_string"] = call_string(self.task_name, self.id, self.task_kwargs if log_args else None)
        return context

    @property
    def call_string(self) -> str:
        """The job as a call, for people: `name[id](key=value)`."""
        return call_string(self.task_name, self.id, self.task_kwargs)


# What the view calls each field of a job. JSON is read as text, lest one odd row hide the others.
VIEW_COLUMNS = {
    "id": "id",
    "status": "status",
    "queue": "queue",
    "priority": "priority",
    "lock": "lock",
    "queueing_lock": "queueing_lock",
    "task": "task_name",
    "args::text": "task_kwargs",
    "scheduled_at": "scheduled_at",
    "attempts": "attempts",
    "abort_requested": "abort_requested",
    "worker_id": "worker_id",
    "headers::text": "headers",
    "deferred_at": "deferred_at",
}


def printed(value: Any, how: Callable[[Any], str] = repr) -> str:
    """Return the value as text; one that cannot be printed must not hurt who wants to log it."""
    try:
        return how(value)
    except Exception as error:  # noqa: BLE001  # it may come from a user's codec or task
        return f"<{type(value).__name__} that cannot be printed: {type(error).__name__}>"


def plain(text: str) -> str:
    """Return the text with an escape for each character that is not printable: a name must forge no line of a log."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def call_string(task_name: str, job_id: int | None, kwargs: Mapping[str, Any] | None) -> str:
    """Write a job as a call; without kwargs, three dots stand for them."""
    shown = "..." if kwargs is None else ", ".join(f"{key}={printed(value)}" for key, value in kwargs.items())
    return plain(f"{task_name}{'' if job_id is None else f'[{job_id}]'}({shown})")


class JobDeferrer:
    """
    A pattern for jobs, which can be deferred any number of times.

    With `connection=`, a psycopg connection of the caller's, jobs are deferred in its transaction:
    there with its commit,
    gone with its rollback.
    Methods raise AlreadyEnqueued where a waiting job holds the queueing lock, and a subclass of InvalidValue for what
    is wrong with arguments or options.
    """

    def __init__(self, app: App, task_name: str, options: ConfigureTaskOptions) -> None:
        removed.refuse(options.keys() - ConfigureTaskOptions.__optional_keys__)
        self.app = app
        self.connector = app.connector
        self.connection = options.get("connection")
        self.task_kwargs: JSONDict = options.get("task_kwargs") or {}
        self.schedule_at, schedule_in = _when(options.get("schedule_at"), options.get("schedule_in"))
        described: dict[str, Any] = {key: options.get(key) for key in ("queue", "priority", "lock", "queueing_lock")}
        described |= {"schedule_at": self.schedule_at and self.schedule_at.isoformat(), "schedule_in": schedule_in}
        self.options = {"task": task_name} | {key: value for key, value in described.items() if value is not None}

    def defer(self, **task_kwargs: JSONValue) -> int:
        """Defer a job and return its id."""
        with self._deferral([task_kwargs]) as deferral:
            deferral.ids = self.connector.run(deferral.one(), self.connection)
        return deferral.ids[0]

    async def defer_async(self, **task_kwargs: JSONValue) -> int:
        """Do as `defer`."""
        with self._deferral([task_kwargs]) as deferral:
            deferral.ids = await self.connector.run_async(deferral.one(), self.connection)
        return deferral.ids[0]

    def batch_defer(self, *task_kwargs: JSONDict) -> list[int]:
        """Defer a job for each dict, all or none, and return their ids in this order."""
        with self._deferral(task_kwargs) as deferral:
            deferral.ids = self.connector.run(deferral.many(), self.connection)
        return deferral.ids

    async def batch_defer_async(self, *task_kwargs: JSONDict) -> list[int]:
        """Do as `batch_defer`."""
        with self._deferral(task_kwargs) as deferral:
            deferral.ids = await self.connector.run_async(deferral.many(), self.connection)
        return deferral.ids

    @contextmanager
    def _deferral(self, many_kwargs: Sequence[JSONDict]) -> Iterator[_Deferral]:
        deferral = _Deferral(self, [{**self.task_kwargs, **kwargs} for kwargs in many_kwargs])
        deferral.log(logging.DEBUG, "about_to_defer_jobs", "About to defer jobs")
        hooks = self.app.hooks
        none: AbstractContextManager[dict[str, Any]] = nullcontext({})
        with hooks.wrap_defer(self.app, deferral.jobs) if hooks.has("wrap_defer") else none as deferral.headers:
            try:
                yield deferral
            except exceptions.UniqueViolation as error:
                if error.constraint_name != "jobs_queueing_lock":
                    raise
                error.queueing_lock = self.options.get("queueing_lock") or ""
                raise exceptions.AlreadyEnqueued(f"Job cannot be enqueued: {error}") from error
        deferral.log(logging.INFO, "jobs_deferred", "Deferred jobs")
        if hooks.has("jobs_deferred"):
            within = self.connector.in_transaction(self.connection)
            hooks.observe("jobs_deferred", app=self.app, jobs=deferral.jobs(), in_transaction=within)


class _Deferral:
    """One act of deferring."""

    def __init__(self, deferrer: JobDeferrer, many_kwargs: list[JSONDict]) -> None:
        self.deferrer = deferrer
        self.many_kwargs = many_kwargs
        self.ids: list[int] = []
        self.headers: dict[str, Any] = {}

    def one(self) -> operations.Call[list[int]]:
        headers = {"headers": payload.encode(self.headers)} if self.headers else {}
        return operations.defer({**self.deferrer.options, **headers}, self._encode(self.many_kwargs[0]))

    def many(self) -> operations.Call[list[int]]:
        options = {**self.deferrer.options, **({"headers": self.headers} if self.headers else {})}
        return operations.defer_many((options, self._encode(kwargs)) for kwargs in self.many_kwargs)

    def _encode(self, kwargs: JSONDict) -> str:
        return payload.encode(kwargs, self.deferrer.connector.json_dumps)

    def log(self, level: int, action: str, message: str) -> None:
        if not logger.isEnabledFor(level):
            return
        jobs = [job.log_context(log_args=self.deferrer.app.log_args) for job in self.jobs()]
        calls = ", ".join(job["call_string"] for job in jobs)
        logger.log(level, "%s: %s", message, calls, extra={"action": action, "jobs": jobs})

    def jobs(self) -> list[Job]:
        ids: Sequence[int | None] = self.ids or [None] * len(self.many_kwargs)
        return [self._job(job_id, kwargs) for job_id, kwargs in zip(ids, self.many_kwargs, strict=True)]

    def _job(self, job_id: int | None, kwargs: JSONDict) -> Job:
        options: dict[str, Any] = {"queue": "default", "lock": None, "queueing_lock": None, **self.deferrer.options}
        options = {key: value for key, value in options.items() if not key.startswith("schedule_")}
        options |= {"task_name": options.pop("task"), "task_kwargs": kwargs, "headers": self.headers}
        return Job(id=job_id, status="todo", scheduled_at=self.deferrer.schedule_at, **options)


def _when(
    schedule_at: datetime.datetime | None, schedule_in: TimeDeltaParams | None
) -> tuple[datetime.datetime | None, str | None]:
    if schedule_at is not None and schedule_in is not None:
        raise ValueError("schedule_at and schedule_in exclude each other")
    if schedule_at is not None and schedule_at.utcoffset() is None:
        raise ValueError("schedule_at needs a time zone")
    if schedule_in is None:
        return schedule_at, None
    try:
        delay = datetime.timedelta(**schedule_in)
    except OverflowError:
        raise exceptions.TimeOutOfRange("schedule_in is out of range") from None
    # Not days: those follow the session's time zone through a change of the clocks.
    return None, f"{delay // datetime.timedelta(microseconds=1)} microseconds"
