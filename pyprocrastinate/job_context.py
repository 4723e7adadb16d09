"""
What a task with `pass_context=True` gets to know about its job.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pyprocrastinate import operations, payload, removed
from pyprocrastinate.jobs import Job

if TYPE_CHECKING:
    from pyprocrastinate.app import App
    from pyprocrastinate.connector import BaseConnector
    from pyprocrastinate.tasks import Task


class AbortReason(enum.Enum):
    """Why a task was asked to stop."""

    USER_REQUEST = "user_request"
    SHUTDOWN = "shutdown"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobResult:
    """How long a run took, in seconds since 1970, and what it returned."""

    start_timestamp: float
    end_timestamp: float | None = None
    result: Any = None

    def duration(self, current_timestamp: float | None = None) -> float:
        """Return the seconds from the start to the end, or to this time while it runs."""
        return (self.end_timestamp or current_timestamp or time.time()) - self.start_timestamp

    def as_dict(self) -> dict[str, Any]:
        """Return what log records carry."""
        return dataclasses.asdict(self) | ({"duration": self.duration()} if self.end_timestamp else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobContext:
    """
    The job that runs, and the worker that runs it.

    `token` is the fencing token of this run: greater than that of any earlier claim, and of no use once the job was
    given to another worker. Pass it on with writes to other systems that can refuse an older one.
    """

    app: App
    worker_name: str | None = None
    worker_queues: Iterable[str] | None = None
    job: Job
    token: int = 0
    start_timestamp: float
    additional_context: dict[str, Any] = dataclasses.field(default_factory=dict)
    abort_reason: Callable[[], AbortReason | None]

    def evolve(self, **changes: Any) -> JobContext:
        """Return a copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def task(self) -> Task[..., Any, ...]:
        return self.app.tasks[self.job.task_name]

    @property
    def queues_display(self) -> str:
        return "all queues" if self.worker_queues is None else f"queues {', '.join(self.worker_queues)}"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(removed.sentence(name), name=name, obj=self)

    def should_abort(self) -> bool:
        """Tell whether the task is to stop; a sync task then raises `JobAborted`."""
        return self.abort_reason() is not None

    @property
    def connector(self) -> BaseConnector:
        return self.app.connector

    def _complete(self, connection: Any, result: Any = None) -> operations.Call[None]:
        """
        End the job as succeeded in the transaction of `connection`, which is whatever the app's connector takes as one.

        What else that transaction writes then commits exactly once, whatever happens to this worker.
        Raises TokenNotCurrent when the job was given to another worker: let the transaction roll back.
        """
        encoded = None if result is None else payload.encode_result(result, self.connector.json_dumps)
        return operations.complete(self.job.id or 0, self.token, encoded, connection)

    complete, complete_async = operations.both(_complete)
