"""
What a task logs with structlog says of which job it is.

`merge_contextvars`, which structlog's default configuration has, brings the names into each record.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import structlog

from pyprocrastinate import hookimpl
from pyprocrastinate.jobs import Job


@hookimpl
def wrap_job(job: Job) -> AbstractContextManager[None]:
    """Bind `job_id`, `task`, `queue` and `attempt`, which is 1 at first, while the task runs."""
    return structlog.contextvars.bound_contextvars(
        job_id=job.id, task=job.task_name, queue=job.queue, attempt=job.attempts + 1
    )
