"""
Looking at jobs and managing them, from sync and async code.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from pyprocrastinate import exceptions, operations
from pyprocrastinate.jobs import Job, Status

if TYPE_CHECKING:
    from pyprocrastinate.connector import BaseConnector


class JobFilters(TypedDict, total=False):
    """What `list_jobs` may be limited to."""

    id: int | None
    queue: str | None
    task: str | None
    status: str | None
    lock: str | None
    queueing_lock: str | None
    worker_id: int | None


class RetryOptions(TypedDict, total=False):
    """What a retried job may get; None leaves it as it was."""

    priority: int | None
    queue: str | None
    lock: str | None


class JobManager:
    """`connection=` takes a psycopg connection of the caller's, and the call joins its transaction."""

    def __init__(self, connector: BaseConnector) -> None:
        self.connector = connector

    def cancel_job_by_id(
        self, job_id: int, abort: bool = False, delete_job: bool = False, connection: Any = None
    ) -> bool:
        """
        Cancel a waiting job, or delete it; with `abort`, ask a running one to stop.

        Returns False where there is nothing to do: no such job, one that has ended, or a running one without `abort`.
        """
        call = operations.cancel(job_id, abort=abort, delete=delete_job)
        return self.connector.run(call, connection)

    async def cancel_job_by_id_async(
        self, job_id: int, abort: bool = False, delete_job: bool = False, connection: Any = None
    ) -> bool:
        """Do as `cancel_job_by_id`."""
        call = operations.cancel(job_id, abort=abort, delete=delete_job)
        return await self.connector.run_async(call, connection)

    def retry_job_by_id(
        self, job_id: int, retry_at: datetime.datetime | None = None, **options: Unpack[RetryOptions]
    ) -> None:
        """
        Run a job again that has ended; a running one is taken from its worker.

        Raises JobNotFound, WrongJobState for a waiting job, and UniqueViolation where its queueing lock is taken.
        """
        _found(self.connector.run(operations.retry(job_id, schedule_at=retry_at, **options)), job_id)

    async def retry_job_by_id_async(
        self, job_id: int, retry_at: datetime.datetime | None = None, **options: Unpack[RetryOptions]
    ) -> None:
        """Do as `retry_job_by_id`."""
        call = operations.retry(job_id, schedule_at=retry_at, **options)
        _found(await self.connector.run_async(call), job_id)

    def get_job_status(self, job_id: int, connection: Any = None) -> Status:
        """Return the job's status; raises JobNotFound."""
        return self.connector.run(operations.job_status(job_id), connection)

    async def get_job_status_async(self, job_id: int, connection: Any = None) -> Status:
        """Do as `get_job_status`."""
        return await self.connector.run_async(operations.job_status(job_id), connection)

    def list_jobs(self, **filters: Unpack[JobFilters]) -> Iterable[Job]:
        """Return the jobs that match all filters, by id."""
        return self.connector.run(operations.list_jobs(self.connector.json_loads, **filters))

    async def list_jobs_async(self, **filters: Unpack[JobFilters]) -> Iterable[Job]:
        """Do as `list_jobs`."""
        return await self.connector.run_async(operations.list_jobs(self.connector.json_loads, **filters))


def _found(found: bool, job_id: int) -> None:
    if not found:
        raise exceptions.JobNotFound(f"there is no job {job_id}")
