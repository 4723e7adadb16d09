"""
A job as Python sees it, and its states.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyprocrastinate import payload


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

    id: int | None
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
