"""What is due by the clock: 41_tick.sql."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta

import psycopg

from pyprocrastinate_testing import line
from pyprocrastinate_testing.functions import Row, function
from pyprocrastinate_testing.outcomes import Decision, put_back
from pyprocrastinate_testing.purge import retain
from pyprocrastinate_testing.retry_policy import policy_of
from pyprocrastinate_testing.schedule import fire_schedules, next_schedule_at
from pyprocrastinate_testing.tables import Job, Tables
from pyprocrastinate_testing.values import Json, json_type

_SOON, _MINUTE = timedelta(milliseconds=100), timedelta(seconds=60)


@function
def tick_v1(tables: Tables) -> list[Row]:
    """Rescue, fire schedules, apply the retention; in a last row without kind, tell when to call it next."""
    now = tables.now()
    done: list[Row] = []
    if tick_due_at(tables, now) <= now:
        done = _part(tables, "rescue", lambda: _rescue(tables, now))
        failed = any(row[0] == "error" for row in done)
        done += _part(tables, "schedules", lambda: fire_schedules(tables, now))
        purged_at = tables.tick.purged_at
        if purged_at is None or not now - _MINUTE < purged_at <= now:
            done += _part(tables, "retention", lambda: retain(tables))
            purged_at = now
        deaths = [worker.heartbeat_at + worker.stalled_after for worker in tables.worker.values()]
        next_at = max(now + _SOON, min([now + _MINUTE, *deaths]))
        if failed:
            next_at = now + timedelta(seconds=1)
        tables.tick = dataclasses.replace(tables.tick, next_at=next_at, purged_at=purged_at)
    times = (max(tick_due_at(tables, now), now + _SOON), now)
    return [*((*row, *times) for row in done), (None, None, None, *times)]


def _part(tables: Tables, part: str, body: Callable[[], list[Row]]) -> list[Row]:
    """Do one part of a tick; where it fails, say so, and the other parts go on."""
    try:
        with tables.atomic():
            return body()
    except psycopg.Error as error:
        detail = {"part": part, "sqlstate": error.sqlstate, "message": error.diag.message_primary}
        return [("error", None, detail)]


def tick_due_at(tables: Tables, at: datetime) -> datetime:
    """Tell when tick_v1 is to be called next."""
    # One further ahead than any is planned is from before the clock was put back.
    planned = tables.tick.next_at if tables.tick.next_at <= at + _MINUTE else at
    return min(time for time in (planned, next_schedule_at(tables)) if time)


def _rescue(tables: Tables, at: datetime) -> list[Row]:
    """Take the jobs of workers that gave no heartbeat for too long away from them, and forget those workers."""
    for worker in tables.worker.values():
        if worker.heartbeat_at > at + _MINUTE:  # from before the clock was put back
            tables.change_worker(worker, heartbeat_at=at)
    alive = {worker.id: worker for worker in tables.worker.values() if worker.lives(at)}
    lost = [job for job in tables.job.values() if job.status == "doing" and job.worker_id not in alive]
    rescued = [_rescue_one(tables, job, at) for job in sorted(lost, key=lambda job: job.id)]
    # Only now: what they had registered says how often a job may be rescued.
    tables.worker = alive
    return rescued


def _rescue_one(tables: Tables, job: Job, at: datetime) -> Row:
    """Put one job of a dead worker back, whatever its retry policy, or end it once that has happened often enough."""
    error = {"class": "WorkerLost", "message": "the worker that ran the job is gone"}
    if job.rescues >= _allowed(tables, job) or job.abort_requested:
        # Ended, but not by its worker: what that one still says is stale.
        tables.end(job, "failed", at, error=error, token=None)
        kind = "failed"
    else:
        kind = put_back(tables, job, at, Decision(status="todo"), "rescued", error, rescued=1)
    line.call_up(tables, job.lock, at)
    tables.wake(job.queue)
    detail = {"task": job.task, "queue": job.queue, "worker_id": job.worker_id}
    return ("rescued" if kind == "todo" else kind, job.id, detail)


def _allowed(tables: Tables, job: Job) -> int:
    policy: Json = policy_of(tables, job.retry, job.task, job.worker_id)
    rescues: Json = policy.get("rescues") if isinstance(policy, dict) else None
    return int(rescues) if json_type(rescues) == "number" else tables.config.max_rescues
