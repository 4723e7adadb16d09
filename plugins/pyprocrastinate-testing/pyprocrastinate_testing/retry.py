"""An operator's retry: 34_retry.sql."""

from __future__ import annotations

from datetime import datetime, timedelta

from pyprocrastinate_testing import line
from pyprocrastinate_testing.defer import one_time
from pyprocrastinate_testing.functions import Id, function
from pyprocrastinate_testing.limits import check_keys, check_name, check_priority, check_time
from pyprocrastinate_testing.outcomes import Decision, put_back, waits, without_traceback
from pyprocrastinate_testing.tables import Job, Tables
from pyprocrastinate_testing.values import Json, iso, present, refuse


@function
def retry(
    tables: Tables,
    job_id: Id,
    schedule_at: datetime | None = None,
    schedule_in: timedelta | None = None,
    priority: int | None = None,
    queue: str | None = None,
    lock: str | None = None,
    options: Json = None,
) -> bool:
    """Put a finished job back in the queue, with a fresh budget of retries; take a running one from its worker."""
    now = tables.now()
    due = one_time(schedule_at, now, schedule_in)
    check_keys("options", options, ())
    check_time(due)
    check_name("queue", queue, 128)
    check_name("lock", lock, 512)
    check_priority(priority)
    place = present(priority=priority, queue=queue, lock=lock)
    if job := tables.job.get(job_id):
        _retry_running(tables, job, Decision(status="todo", retry_at=due, place=place), now)
        return True
    done = tables.done.get(job_id)
    if done is None:
        return False
    if taken := line.waiting(tables, done.queueing_lock):
        line.raise_waiting(taken)
    del tables.done[job_id]
    back = tables.put(
        done,
        status="todo",
        worker_id=None,
        started_at=None,
        finished_at=None,
        result=None,
        scheduled_at=due or done.scheduled_at,
        budget_from=done.attempts,
        rescues=0,
        error=without_traceback(done.error),
        **(place | waits(due, now, lock or done.lock, done.attempts)),
    )
    detail = present(status=done.status, finished_at=iso(done.finished_at), error=done.error)
    tables.note(done, "retried", now, worker_id=done.worker_id, started_at=done.started_at, detail=detail)
    tables.wake(back.queue)
    return True


def _retry_running(tables: Tables, job: Job, decision: Decision, at: datetime) -> None:
    if job.status != "doing":
        refuse(
            "JQ003",
            f"job {job.id} is waiting",
            detail="Its status is todo.",
            hint="Only a job that has ended, or runs, can be retried.",
        )
    if taken := line.waiting(tables, job.queueing_lock):
        line.raise_waiting(taken)
    put_back(tables, job, at, decision, "retried", None)
    # Taken away, not ended by its worker: what that worker still says is stale.
    back = tables.job[job.id]
    tables.put(back, token=None, budget_from=back.attempts)
    line.call_up(tables, job.lock, at)
