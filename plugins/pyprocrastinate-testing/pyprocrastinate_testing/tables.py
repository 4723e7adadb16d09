"""
The tables, the clock and the channel.

Rows are never changed in place, so that a call which is refused leaves nothing behind: `atomic` puts back the tables as
they were.
Numbers that were given out are not given again, as with PostgreSQL's sequences.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from pyprocrastinate_testing.values import MICROSECOND, Json


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    A job that waits or runs (table job), or has ended (table done).

    A waiting one may not start before `until`; one that `holds` has run, waits for its retry, and holds back what is
    worse under the same lock.
    `token` is that of the run that goes on, or of the last that told its end; None when the job was taken from it.
    """

    id: int
    task: str
    queue: str
    priority: int
    lock: str | None
    queueing_lock: str | None
    args: Json
    headers: Json
    retry: Json
    deferred_at: datetime
    scheduled_at: datetime | None
    until: datetime | None = None
    holds: bool = False
    status: str = "todo"
    token: int | None = None
    worker_id: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    budget_from: int = 0
    rescues: int = 0
    abort_requested: bool = False
    error: Json = None
    result: Json = None

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in the order of all jobs."""
        return (-self.priority, self.id)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    id: int
    job_id: int
    type: str
    at: datetime
    worker_id: int | None = None
    started_at: datetime | None = None
    detail: Json = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    id: int
    name: str
    queues: list[str] | None
    tasks: Json
    schedules: Json
    protocol: int
    stalled_after: timedelta
    info: Json
    started_at: datetime
    heartbeat_at: datetime
    idle_at: datetime | None = None

    def serves(self, queue: str) -> bool:
        return self.queues is None or queue in self.queues

    def declares(self, schedule: str) -> bool:
        return any(declaration.get("name") == schedule for declaration in self.schedules)

    def lives(self, at: datetime) -> bool:
        return self.heartbeat_at > at - self.stalled_after


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a defer falls back to, and a retry."""

    name: str
    source: str
    queue: str | None = None
    priority: int | None = None
    lock: str | None = None
    queueing_lock: str | None = None
    retry: Json = None
    updated_at: datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    name: str
    kind: str
    task: str = ""
    cron: str = ""
    timezone: str = ""
    args: Json = dataclasses.field(default_factory=dict)
    catch_up: str = "all"
    max_delay: timedelta | None = None
    queue: str | None = None
    priority: int | None = None
    lock: str | None = None
    queueing_lock: str | None = None
    enabled: bool = True
    options: Json = dataclasses.field(default_factory=dict)
    declaration: Json = None
    last_tick: datetime | None = None
    next_tick: datetime | None = None
    retry_at: datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    max_args_bytes: int = 1048576
    max_rescues: int = 3
    stalled_after: timedelta = timedelta(seconds=30)
    notify: bool = True
    store_errors: bool = True
    retention: Json = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """When somebody should call tick_v1 next, and when it last applied the retention."""

    next_at: datetime
    purged_at: datetime | None = None


class Tables:
    """All of them, empty."""

    def __init__(self) -> None:
        self.offset = timedelta()
        self._read = datetime.min.replace(tzinfo=UTC)
        self.job: dict[int, Job] = {}
        self.done: dict[int, Job] = {}
        self.event: dict[int, Event] = {}
        self.worker: dict[int, Worker] = {}
        self.task: dict[str, Task] = {}
        self.schedule: dict[str, Schedule] = {}
        self.config = Config()
        self.tick = Tick(next_at=self.now())
        self.job_ids = itertools.count(1)
        self.tokens = itertools.count(1)
        self.event_ids = itertools.count(1)
        self.worker_ids = itertools.count(1)
        self.listeners: list[Callable[[str], None]] = []
        self._said: dict[str, None] = {}

    def now(self) -> datetime:
        """Return the time of the queue, each time a later one."""
        self._read = max(datetime.now(UTC) + self.offset, self._read + MICROSECOND)
        return self._read

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Undo what is done inside if it raises; else tell the listeners what it notified."""
        tables = ("job", "done", "event", "worker", "task", "schedule", "config", "tick", "_said")
        saved = {name: copy.copy(getattr(self, name)) for name in tables}
        try:
            yield
        except BaseException:
            vars(self).update(saved)
            raise

    def deliver(self) -> None:
        """Tell the listeners what was notified."""
        said, self._said = self._said, {}
        for payload in said:
            for listener in list(self.listeners):
                listener(payload)

    def held(self, worker_id: int) -> list[Job]:
        """Return the jobs that a worker holds, by id."""
        jobs = (job for job in self.job.values() if job.status == "doing" and job.worker_id == worker_id)
        return sorted(jobs, key=lambda job: job.id)

    # Writing

    def put(self, job: Job, **changes: Any) -> Job:
        """Write a job that waits or runs, as it is after these changes."""
        job = dataclasses.replace(job, **changes)
        self.job[job.id] = job
        return job

    def end(self, job: Job, status: str, at: datetime, *, counts: int = 1, keep: bool = True, **changes: Any) -> None:
        """Move a job to the finished ones, or forget it; counts: what this adds to its attempts."""
        del self.job[job.id]
        if not keep:
            self.forget_events([job.id])
            return
        ended: dict[str, Any] = {"status": status, "finished_at": at, "until": None, "holds": False}
        ended |= {"abort_requested": False, "error": None, "attempts": job.attempts + counts}
        self.done[job.id] = dataclasses.replace(job, **(ended | changes))

    def change_worker(self, worker: Worker, **changes: Any) -> None:
        self.worker[worker.id] = dataclasses.replace(worker, **changes)

    def note(self, job: Job, event: str, at: datetime, **more: Any) -> None:
        """Write an event of a job."""
        number = next(self.event_ids)
        self.event[number] = Event(id=number, job_id=job.id, type=event, at=at, **more)

    def forget_events(self, job_ids: Iterable[int]) -> None:
        gone = set(job_ids)
        self.event = {number: event for number, event in self.event.items() if event.job_id not in gone}

    # Waking up

    def notify(self, payload: str) -> None:
        if self.config.notify:
            self._said[payload] = None

    def wake(self, *queues: str) -> None:
        """Tell workers that jobs of these queues may be ready, if one of them waits."""
        for queue in queues:
            if any(worker.idle_at and worker.serves(queue) for worker in self.worker.values()):
                self.notify("q" + hashlib.sha256(queue.encode()).hexdigest()[:8])
