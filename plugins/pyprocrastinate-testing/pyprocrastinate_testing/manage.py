"""Looking and an operator's acts: 35_manage.sql."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from pyprocrastinate_testing import line
from pyprocrastinate_testing.functions import Id, Row, function
from pyprocrastinate_testing.tables import Tables
from pyprocrastinate_testing.values import refuse

_STATUSES = ("todo", "doing", "succeeded", "failed", "cancelled", "aborted")


@function
def finish_job_v1(tables: Tables, job_id: Id, status: str | None, delete: bool = False) -> bool:
    """End a running job without its worker; what that says later is stale."""
    if status not in ("succeeded", "failed", "aborted"):
        refuse("22023", "a run does not end like this", hint="Use succeeded, failed or aborted.")
    job = tables.job.get(job_id)
    if job is None and job_id in tables.done:
        refuse(
            "JQ003",
            f"job {job_id} has ended",
            detail="Its status is that of a finished job.",
            hint="Retry it to run it again.",
        )
    if job is None:
        return False
    if job.status != "doing":
        hint = "Cancel it, or wait until it runs."
        refuse("JQ003", f"job {job_id} is waiting", detail="Its status is todo.", hint=hint)
    now = tables.now()
    tables.end(job, status, now, keep=not delete, token=None)
    line.call_up(tables, job.lock, now)
    return True


@function
def count_jobs_v1(
    tables: Tables,
    by: str | None,
    queue: str | None = None,
    task: str | None = None,
    status: str | None = None,
    lock: str | None = None,
) -> list[Row]:
    """Count jobs by queue, task or lock, in all and by status."""
    if by not in ("queue", "task", "lock"):
        refuse("22023", "jobs are not counted by this", hint="Use queue, task or lock.")
    wanted = {"queue": queue, "task": task, "status": status, "lock": lock}
    counts: dict[str, Counter[str]] = {}
    for job in (*tables.job.values(), *tables.done.values()):
        name = getattr(job, by)
        if name is not None and all(value in (None, getattr(job, key)) for key, value in wanted.items()):
            counts.setdefault(name, Counter())[job.status] += 1
    return [(name, count.total(), *(count[status] for status in _STATUSES)) for name, count in sorted(counts.items())]


@function
def stalled_jobs_v1(
    tables: Tables, silent_for: timedelta, queue: str | None = None, task: str | None = None
) -> list[Row]:
    """List the running jobs whose worker has given no heartbeat for this long."""
    since = tables.now() - silent_for
    alive = {worker.id for worker in tables.worker.values() if worker.heartbeat_at >= since}
    return [
        (job.id,)
        for job in sorted(tables.job.values(), key=lambda job: job.id)
        if job.status == "doing"
        and job.worker_id not in alive
        and queue in (None, job.queue)
        and task in (None, job.task)
    ]
