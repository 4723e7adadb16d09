"""
Who waits, and who is next under a lock: 05_line.sql.

Where the schema keeps candidates for the next in line, lest it search, this looks at all that wait.
"""

from __future__ import annotations

from datetime import datetime
from typing import NoReturn

from pyprocrastinate_testing.tables import Job, Tables
from pyprocrastinate_testing.values import refuse


def ready(job: Job, at: datetime) -> bool:
    """Tell whether a job waits and may start by the clock."""
    return job.status == "todo" and (job.until is None or job.until <= at)


def in_line(job: Job, at: datetime) -> bool:
    """Tell whether a job waits for its lock: a first run that is not due yet does not, a retry does."""
    return ready(job, at) or (job.status == "todo" and job.holds)


def line(tables: Tables, lock: str, at: datetime) -> list[Job]:
    """Return the jobs that wait for a lock, the best first."""
    return sorted((j for j in tables.job.values() if j.lock == lock and in_line(j, at)), key=lambda job: job.place)


def running(tables: Tables, lock: str) -> Job | None:
    """Return the job that runs under a lock."""
    return next((job for job in tables.job.values() if job.lock == lock and job.status == "doing"), None)


def blocked(tables: Tables, job: Job, at: datetime) -> bool:
    """Tell whether a job that is ready has to wait for its lock."""
    if job.lock is None:
        return False
    return running(tables, job.lock) is not None or line(tables, job.lock, at)[0] is not job


def waiting(tables: Tables, queueing_lock: str | None) -> Job | None:
    """Return the waiting job that has a queueing lock."""
    if queueing_lock is None:
        return None
    found = (job for job in tables.job.values() if job.status == "todo" and job.queueing_lock == queueing_lock)
    return next(found, None)


def raise_waiting(job: Job, hint: str = "Wait until that job has started, or cancel it.") -> NoReturn:
    """Raise 23505 (jobs_queueing_lock), naming the job that waits."""
    message = f"job {job.id} with the same queueing lock is waiting"
    refuse("23505", message, hint=hint, constraint="jobs_queueing_lock")


def call_up(tables: Tables, lock: str | None, at: datetime) -> None:
    """Wake who serves the next in line under a lock, which has just become free, or may have."""
    if lock is not None and (waits := line(tables, lock, at)):
        tables.wake(waits[0].queue)
