"""
Looking at jobs and managing them, from sync and async code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from pyprocrastinate import exceptions, operations, payload, removed
from pyprocrastinate.jobs import VIEW_COLUMNS, Job, Status
from pyprocrastinate.operations import Call, Row, both, given
from pyprocrastinate.protocol import PROTOCOL

if TYPE_CHECKING:
    from pyprocrastinate.connector import BaseConnector


def _found(job_id: int) -> Callable[[Sequence[Row]], None]:
    def check(rows: Sequence[Row]) -> None:
        if not rows or not rows[0][0]:
            raise exceptions.JobNotFound(f"there is no job {job_id}")

    return check


def _counting(by: str) -> Callable[..., Call[list[dict[str, Any]]]]:
    def count(
        _: JobManager,
        queue: str | None = None,
        task: str | None = None,
        status: str | None = None,
        lock: str | None = None,
    ) -> Call[list[dict[str, Any]]]:
        """Return of each name how many of the jobs that match all filters there are, in all and by status."""
        names = ("name", "jobs_count", *(status.value for status in Status))
        args = given(by=by, queue=queue, task=task, status=status, lock=lock)
        return Call("count_jobs_v1", args, lambda rows: [dict(zip(names, row, strict=True)) for row in rows])

    return count


def _no_schema(error: exceptions.ConnectorException) -> bool:
    if isinstance(error.__cause__, psycopg.errors.InvalidSchemaName | psycopg.errors.UndefinedFunction):
        return False
    raise error


class JobManager:
    """`connection=` takes a psycopg connection of the caller's, and the call joins its transaction."""

    def __init__(self, connector: BaseConnector) -> None:
        self.connector = connector

    def check_connection(self) -> bool:
        """Tell whether the database has the schema; raises ConnectorException if it cannot be asked."""
        try:
            return self.connector.run(operations.protocol()) is not None
        except exceptions.ConnectorException as error:
            return _no_schema(error)

    async def check_connection_async(self) -> bool:
        """Do as `check_connection`."""
        try:
            return await self.connector.run_async(operations.protocol()) is not None
        except exceptions.ConnectorException as error:
            return _no_schema(error)

    def _defer(self, job: Job, connection: Any = None) -> Call[Job]:
        """Defer a job like this one, and return it with its id; raises UniqueViolation where a lock is taken."""
        call = operations.defer(job.options(), payload.encode(job.task_kwargs, self.connector.json_dumps))
        return call.then(lambda ids: job.evolve(id=ids[0], status="todo"), connection)

    defer_job, defer_job_async = both(_defer)

    def _batch_defer(self, jobs: Sequence[Job], connection: Any = None) -> Call[list[Job]]:
        """Defer jobs like these, all or none, and return them with their ids."""
        described = [(job.options(), payload.encode(job.task_kwargs, self.connector.json_dumps)) for job in jobs]

        def deferred(ids: Sequence[int]) -> list[Job]:
            return [job.evolve(id=job_id, status="todo") for job, job_id in zip(jobs, ids, strict=True)]

        return operations.defer_many(described).then(deferred, connection)

    batch_defer_jobs, batch_defer_jobs_async = both(_batch_defer)

    def _cancel(self, job_id: int, abort: bool = False, delete_job: bool = False, connection: Any = None) -> Call[bool]:
        """
        Cancel a waiting job, or delete it; with `abort`, ask a running one to stop.

        Returns False where there is nothing to do: no such job, one that has ended, or a running one without `abort`.
        """
        args = {"job_id": job_id, "abort": abort, "delete": delete_job}
        return Call("cancel", args, lambda rows: rows[0][0] is not None, connection=connection)

    cancel_job_by_id, cancel_job_by_id_async = both(_cancel)

    def _retry(
        self,
        job_id: int,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> Call[None]:
        """
        Run a job again that has ended; a running one is taken from its worker.

        Raises JobNotFound, WrongJobState for a waiting job, and UniqueViolation where its queueing lock is taken.
        """
        return Call(
            "retry",
            given(job_id=job_id, schedule_at=retry_at, priority=priority, queue=queue, lock=lock),
            _found(job_id),
        )

    retry_job_by_id, retry_job_by_id_async = both(_retry)

    def _finish(self, job_id: int, status: Status, delete_job: bool) -> Call[None]:
        """
        End a running job without its worker, whose outcome then does not count.

        Raises JobNotFound, and WrongJobState for one that does not run.
        """
        args = {"job_id": job_id, "status": status.value, "delete": delete_job}
        return Call("finish_job_v1", args, _found(job_id))

    finish_job_by_id, finish_job_by_id_async = both(_finish)

    def _status(self, job_id: int, connection: Any = None) -> Call[Status]:
        """Return the job's status; raises JobNotFound."""

        def status(rows: Sequence[Row]) -> Status:
            _found(job_id)(rows)
            return Status(rows[0][0])

        return Call("jobs", {"id": job_id}, status, view=["status"], connection=connection)

    get_job_status, get_job_status_async = both(_status)

    def _list(
        self,
        id: int | None = None,
        queue: str | None = None,
        task: str | None = None,
        status: str | None = None,
        lock: str | None = None,
        queueing_lock: str | None = None,
        worker_id: int | None = None,
    ) -> Call[list[Job]]:
        """Return the jobs that match all filters, by id."""
        filters = given(id=id, queue=queue, task=task, status=status, lock=lock)
        filters |= given(queueing_lock=queueing_lock, worker_id=worker_id)
        loads = self.connector.json_loads
        return Call("jobs", filters, lambda rows: [Job.from_row(row, loads) for row in rows], view=tuple(VIEW_COLUMNS))

    list_jobs, list_jobs_async = both(_list)

    list_queues, list_queues_async = both(_counting("queue"))
    list_tasks, list_tasks_async = both(_counting("task"))
    list_locks, list_locks_async = both(_counting("lock"))

    def _to_abort(self, queue: str | None = None) -> Call[list[int]]:
        """Return the ids of the running jobs that are asked to stop."""
        args = given(abort_requested=True, status="doing", queue=queue)
        return Call("jobs", args, lambda rows: [row[0] for row in rows], view=["id"])

    list_jobs_to_abort, list_jobs_to_abort_async = both(_to_abort)

    # What Procrastinate has for async code only keeps its name.

    async def retry_job(
        self,
        job: Job,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        """Do as `retry_job_by_id_async`."""
        await self.retry_job_by_id_async(job.id or 0, retry_at, priority, queue, lock)

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        """Do as `finish_job_by_id_async`."""
        await self.finish_job_by_id_async(job.id or 0, status, delete_job)

    async def get_stalled_jobs(
        self, *, queue: str | None = None, task_name: str | None = None, seconds_since_heartbeat: float = 30
    ) -> list[Job]:
        """Return the running jobs whose worker has been silent for this long, and which the next tick may rescue."""
        silence = timedelta(seconds=seconds_since_heartbeat)
        args = given(silent_for=silence, queue=queue, task=task_name)
        stalled = await self.connector.run_async(Call("stalled_jobs_v1", args, lambda rows: {row[0] for row in rows}))
        jobs = await self.list_jobs_async(status="doing", queue=queue, task=task_name)
        return [job for job in jobs if job.id in stalled]

    async def delete_old_jobs(
        self,
        nb_hours: float,
        queue: str | None = None,
        include_failed: bool = False,
        include_cancelled: bool = False,
        include_aborted: bool = False,
        **unknown: Any,
    ) -> int:
        """Delete jobs that ended longer ago than this, those that succeeded and those asked for; return how many."""
        removed.refuse(unknown)
        chosen = {"failed": include_failed, "cancelled": include_cancelled, "aborted": include_aborted}
        statuses = ["succeeded", *(status for status, included in chosen.items() if included)]
        args = given(older_than=timedelta(hours=nb_hours), statuses=statuses, queue=queue)
        call: Call[int] = Call("purge", args, lambda rows: rows[0][0])
        deleted = batch = await self.connector.run_async(call)
        while batch:
            batch = await self.connector.run_async(call)
            deleted += batch
        return deleted

    async def register_worker(self) -> int:
        """Register a worker that runs nothing, and return its id."""
        call = operations.register("manager", [], PROTOCOL, 30.0, tasks="{}", schedules="[]", info="{}")
        return await self.connector.run_async(call)

    async def unregister_worker(self, worker_id: int) -> None:
        """Take leave for a worker; what it held goes back to its queue."""
        await self.connector.run_async(operations.unregister(worker_id))

    async def update_heartbeat(self, worker_id: int) -> None:
        """Tell that a worker lives."""
        await self.connector.run_async(Call("heartbeat_v1", {"worker_id": worker_id}, lambda rows: None))

    async def prune_stalled_workers(self, seconds_since_heartbeat: float = 30) -> list[int]:
        """Do what is due by the clock; return the ids of workers, silent past a limit of their own, that lost jobs."""

        def losers(rows: Sequence[Row]) -> set[Any]:
            return {detail.get("worker_id") for kind, _, detail, *_ in rows if kind in ("rescued", "failed")}

        found = await self.connector.run_async(Call("tick_v1", {}, losers))
        return sorted(worker_id for worker_id in found if worker_id)
