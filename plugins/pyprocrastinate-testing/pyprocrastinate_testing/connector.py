"""
The connector: carries the calls that others send to PostgreSQL to the functions of this package.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import psycopg

from pyprocrastinate import exceptions, operations, payload
from pyprocrastinate.connector import BaseConnector
from pyprocrastinate.operations import Call
from pyprocrastinate_testing import functions
from pyprocrastinate_testing.tables import Job, Tables
from pyprocrastinate_testing.values import json_text, microseconds
from pyprocrastinate_testing.views import VIEWS, events
from pyprocrastinate_testing.wires import MemoryPulseWire, MemoryWire

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Row = tuple[Any, ...]

_AS_TEXT = "::text"


class Live(Mapping[K, V]):
    """A dict to look at, read anew at each look: who holds it sees what became of it."""

    def __init__(self, read: Callable[[], dict[K, V]]) -> None:
        self._read = read

    def __getitem__(self, key: K) -> V:
        return self._read()[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())


class InMemoryConnector(BaseConnector):
    """
    A queue in memory, for tests: the same calls, rules and errors as PostgreSQL's, and workers run on it.

    There are no transactions: `connection=` is ignored, and each call takes effect at once.
    It may be used from any thread, sync and async.
    """

    def __init__(
        self, *, json_dumps: payload.JsonDumps | None = None, json_loads: payload.JsonLoads | None = None
    ) -> None:
        super().__init__(json_dumps=json_dumps, json_loads=json_loads)
        self._guard = threading.RLock()
        self._tables = Tables()
        self.queries: list[tuple[str, dict[str, Any]]] = []
        self.states: list[str] = []
        self.table_exists = True

    def reset(self) -> None:
        """Forget all jobs, workers, schedules and settings, and go back to the real time."""
        with self._guard:
            listeners, self._tables = self._tables.listeners, Tables()
            self._tables.listeners = listeners
            self.queries.clear()
            self.states.clear()

    def advance(self, seconds: float | timedelta) -> datetime:
        """Move the time of the queue on, for retries, schedules, heartbeats and all else, and return it."""
        with self._guard:
            tables = self._tables
            tables.offset += seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
            tables.notify("a")
            tables.wake(*{job.queue for job in tables.job.values()})
            tables.deliver()
            return tables.now()

    # What was done, in the words of Procrastinate's test double

    @property
    def jobs(self) -> Mapping[int, Mapping[str, Any]]:
        """All jobs, by id."""

        def read() -> dict[int, Mapping[str, Any]]:
            with self._guard:
                return {job.id: self._row(job) for job in sorted(self._all(), key=lambda job: job.id)}

        return Live(read)

    @property
    def finished_jobs(self) -> list[Mapping[str, Any]]:
        """The jobs that were run and have ended, in this order."""
        with self._guard:
            return [self._row(job) for job in self._tables.done.values() if job.status != "cancelled"]

    @property
    def events(self) -> Mapping[int, list[dict[str, Any]]]:
        """The story of each job: type and time of its events."""
        return Live(self._story)

    @property
    def workers(self) -> Mapping[int, datetime]:
        """The registered workers, by id, with their last heartbeats."""

        def read() -> dict[int, datetime]:
            with self._guard:
                return {worker.id: worker.heartbeat_at for worker in self._tables.worker.values()}

        return Live(read)

    @property
    def periodic_defers(self) -> Mapping[tuple[str, str], int]:
        """For each periodic task and periodic_id, the last time for which it was deferred, in seconds since 1970."""

        def read() -> dict[tuple[str, str], int]:
            with self._guard:
                fired = [(one, one.last_tick) for one in self._tables.schedule.values() if one.last_tick]
                return {
                    (one.task, one.name.removeprefix(one.task).removeprefix(":")): int(tick.timestamp())
                    for one, tick in fired
                }

        return Live(read)

    @property
    def current_locks(self) -> set[str]:
        """The locks of the jobs that run."""
        with self._guard:
            return {job.lock for job in self._tables.job.values() if job.lock and job.status == "doing"}

    def _all(self) -> list[Job]:
        return [*self._tables.job.values(), *self._tables.done.values()]

    def _row(self, job: Job) -> Mapping[str, Any]:
        """Return a job as a row, which is the last one seen once the job was deleted."""
        tables = self._tables

        def read() -> dict[str, Any]:
            nonlocal job
            with self._guard:
                job = tables.job.get(job.id) or tables.done.get(job.id) or job
                return _row(job)

        return Live(read)

    def _story(self) -> dict[int, list[dict[str, Any]]]:
        with self._guard:
            deferred = {job.id: job.deferred_at for job in self._all()}
            story: dict[int, list[dict[str, Any]]] = {job_id: [] for job_id in sorted(deferred)}

            def moment(event: dict[str, Any]) -> tuple[datetime, int]:
                # scheduled carries the time that the job waits for
                return (deferred[event["job_id"]] if event["type"] == "scheduled" else event["at"], event["id"])

            for event in sorted(events(self._tables), key=moment):
                story[event["job_id"]].append({"type": event["type"], "at": event["at"]})
            return story

    # What an app needs of a connector

    def address(self) -> str:
        raise exceptions.ConnectorException("a queue in memory has no address: there is no schema to migrate")

    def open(self, pool: Any = None) -> None:
        self.states.append("open")

    def close(self) -> None:
        self.states.append("closed")

    async def open_async(self, pool: Any = None) -> None:
        self.states.append("open_async")

    async def close_async(self) -> None:
        self.states.append("closed_async")

    def run(self, call: Call[T], connection: Any = None) -> T:
        with operations.translated():
            return call.read(self._rows(call))

    async def run_async(self, call: Call[T], connection: Any = None) -> T:
        return self.run(call)

    def in_transaction(self, connection: Any) -> bool:
        return False

    def run_for_worker(self, call: Call[T]) -> T:
        """Carry out a call as a worker's connection does: times are microseconds since 2000; raises psycopg.Error."""
        return call.read([tuple(map(_raw, row)) for row in self._rows(call)])

    async def open_wire(self) -> MemoryWire:
        """Connect a worker's event loop."""
        return MemoryWire(self)

    def open_pulse_wire(self) -> MemoryPulseWire:
        """Connect a worker's thread."""
        return MemoryPulseWire(self, self._tables.listeners)

    def _rows(self, call: Call[Any]) -> Sequence[Row]:
        with self._guard:
            self.queries.append((call.source, dict(call.args)))
            if call.view:
                return _look(self._tables, call)
            with self._tables.atomic():
                rows = functions.call(self._tables, call.source, call.args)
            self._tables.deliver()
        return [tuple(map(_given, row)) for row in rows]


def _look(tables: Tables, call: Call[Any]) -> list[Row]:
    """Return the columns of a view for the rows that match all arguments."""
    if call.source not in VIEWS:
        raise psycopg.errors.UndefinedTable(f'relation "procrastinate.{call.source}" does not exist')
    rows = VIEWS[call.source](tables)
    found = [row for row in rows if all(row[name] == value for name, value in call.args.items())]
    if "id" in call.view:
        found.sort(key=lambda row: row["id"])
    return [tuple(_column(row, name) for name in call.view) for row in found]


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name.endswith(_AS_TEXT):
        value = row[name.removesuffix(_AS_TEXT)]
        return None if value is None else json_text(value)
    return _given(row[name])


def _given(value: Any) -> Any:
    """Return a value as psycopg gives it: JSON with floats."""
    return json.loads(json_text(value)) if isinstance(value, dict | list | Decimal) else value


def _raw(value: Any) -> Any:
    return microseconds(value) if isinstance(value, datetime) else value


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "queue_name": job.queue,
        "task_name": job.task,
        "priority": job.priority,
        "lock": job.lock,
        "queueing_lock": job.queueing_lock,
        "args": _given(job.args),
        "status": job.status,
        "scheduled_at": job.scheduled_at,
        "attempts": job.attempts,
        "abort_requested": job.abort_requested,
        "worker_id": job.worker_id if job.status == "doing" else None,
    }
