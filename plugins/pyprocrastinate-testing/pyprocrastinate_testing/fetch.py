"""
Which jobs a worker gets: 20_fetch.sql, 21_settle.sql and 22_work.sql.

Among due jobs of its queues whose lock is free: priority descending, then id ascending.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from pyprocrastinate_testing import line
from pyprocrastinate_testing.finish import finish, sift
from pyprocrastinate_testing.functions import Id, Row, function
from pyprocrastinate_testing.tables import Job, Tables, Worker
from pyprocrastinate_testing.values import Json, json_text, refuse


@function
def fetch_v1(tables: Tables, worker_id: Id, capacity: int = 1) -> list[Row]:
    *claims, _ = work_v1(tables, worker_id, [], [], [], True, capacity, 0, None)
    return [claim[:13] for claim in claims]


@function
def work_v1(
    tables: Tables,
    worker_id: Id,
    succeeded: list[int],
    tokens: list[int],
    outcomes: Json,
    keep: bool,
    capacity: int,
    extra: int,
    scan_from: list[int] | None,
) -> list[Row]:
    """Finish, then fetch; the last row has no id, and carries the verdicts other than plain ok."""
    worker = registered(tables, worker_id)
    outcomes, verdicts = sift(succeeded, tokens, outcomes)
    if succeeded or outcomes:
        verdicts += finish(tables, succeeded, tokens, outcomes, keep)
    capacity, extra, now = max(capacity, 0), max(extra, 0), tables.now()
    jobs = choose(tables, worker, capacity, extra, now)
    claims = _claim(tables, worker, jobs, now)
    full = 0 < capacity + extra <= len(jobs)
    if full and worker.idle_at and worker.idle_at < now - timedelta(seconds=1):
        tables.change_worker(worker, idle_at=None)
    return [*((*claim, None, None) for claim in claims), (*[None] * 13, verdicts or None, scan_from)]


def registered(tables: Tables, worker_id: int) -> Worker:
    """Return a worker; JQ004 if it is none, or no longer."""
    worker = tables.worker.get(worker_id)
    if worker is None:
        refuse(
            "JQ004",
            f"worker {worker_id} is not registered",
            detail="It never was, has unregistered, or gave no heartbeat for too long and its jobs were given away.",
            hint="Call procrastinate.register_worker_v1 and go on under the new id.",
        )
    return worker


def choose(tables: Tables, worker: Worker, capacity: int, extra: int, at: datetime) -> list[Job]:
    """Return the jobs of the next claim, in order; those beyond capacity (extra) have no lock of either kind."""
    chosen: list[Job] = []
    # Locks under which one runs, or the next in line has been seen: nobody else may start under them.
    decided = {job.lock for job in tables.job.values() if job.status == "doing" and job.lock}
    waits = (job for job in tables.job.values() if line.in_line(job, at))
    for job in sorted(waits, key=lambda job: job.place):
        if len(chosen) >= capacity + extra:
            break
        if job.lock:
            if job.lock in decided:
                continue
            decided.add(job.lock)
        if not line.ready(job, at) or not worker.serves(job.queue):
            continue
        if len(chosen) < capacity or not (job.lock or job.queueing_lock):
            chosen.append(job)
    return chosen


def _claim(tables: Tables, worker: Worker, jobs: Iterable[Job], at: datetime) -> list[Row]:
    """Give these jobs to a worker, each under a new token."""
    run: dict[str, Any] = {"status": "doing", "worker_id": worker.id, "started_at": at, "until": None, "holds": False}
    jobs = list(jobs)
    tokens = {job.id: next(tables.tokens) for job in sorted(jobs, key=lambda job: job.id)}
    return [_claimed(tables.put(job, token=tokens[job.id], **run)) for job in jobs]


def _claimed(job: Job) -> Row:
    return (
        job.id,
        job.token,
        job.task,
        job.queue,
        json_text(job.args),
        None if job.headers is None else json_text(job.headers),
        job.attempts,
        job.priority,
        job.lock,
        job.queueing_lock,
        job.scheduled_at,
        job.deferred_at,
        job.abort_requested,
    )
