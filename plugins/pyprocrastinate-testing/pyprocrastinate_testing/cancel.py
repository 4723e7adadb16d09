"""Cancelling: 33_cancel.sql."""

from __future__ import annotations

from pyprocrastinate_testing import line
from pyprocrastinate_testing.functions import Id, function
from pyprocrastinate_testing.limits import check_keys
from pyprocrastinate_testing.tables import Tables
from pyprocrastinate_testing.values import Json


@function
def cancel(tables: Tables, job_id: Id, abort: bool = False, delete: bool = False, options: Json = None) -> str | None:
    """Cancel a waiting job, or delete it; with abort, ask a running one to stop."""
    now = tables.now()
    check_keys("options", options, ())
    job = tables.job.get(job_id)
    if job is None or (job.status == "doing" and not abort):
        return None
    if job.status == "doing":
        if not job.abort_requested:
            tables.put(job, abort_requested=True)
            tables.note(job, "abort_requested", now, worker_id=job.worker_id)
        tables.notify("a")
        return "abort_requested"
    tables.end(job, "cancelled", now, counts=0, keep=not delete, error=job.error)
    line.call_up(tables, job.lock, now)
    return "deleted" if delete else "cancelled"
