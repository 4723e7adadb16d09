"""The views: 90_views.sql."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from pyprocrastinate_testing import line
from pyprocrastinate_testing.tables import Event, Job, Tables
from pyprocrastinate_testing.values import field_text, to_time

Shown = dict[str, Any]


def jobs(tables: Tables) -> list[Shown]:
    """Every job: waiting and running ones, and those that have ended and were kept."""
    return [_job(job) for job in (*tables.job.values(), *tables.done.values())]


def _job(job: Job) -> Shown:
    names: tuple[str, ...] = (
        "id",
        "status",
        "task",
        "queue",
        "args",
        "headers",
        "priority",
        "lock",
        "queueing_lock",
        "attempts",
    )
    names += ("deferred_at", "scheduled_at", "started_at", "finished_at", "worker_id", "abort_requested")
    shown = {name: getattr(job, name) for name in names}
    error = {"error_class": field_text(job.error, "class"), "error_message": field_text(job.error, "message")}
    return shown | error | {"result": job.result}


def events(tables: Tables) -> list[Shown]:
    """The story of each job; ordinary events are derived from the job's own times and have negative ids."""
    written = [found for event in tables.event.values() for found in _of_event(event)]
    return written + [found for job in (*tables.job.values(), *tables.done.values()) for found in _of_job(job)]


def _event(number: int, job_id: int, kind: str, at: Any, worker_id: int | None = None, detail: Any = None) -> Shown:
    return {"id": number, "job_id": job_id, "type": kind, "at": at, "worker_id": worker_id, "detail": detail}


def _of_event(event: Event) -> Iterator[Shown]:
    number = -event.id * 16
    yield _event(event.id, event.job_id, event.type, event.at, event.worker_id, event.detail)
    if event.started_at:
        yield _event(number - 1, event.job_id, "started", event.started_at, event.worker_id)
    if event.type == "retried" and "finished_at" in event.detail:
        status, finished_at = event.detail["status"], to_time(event.detail["finished_at"])
        yield _event(number - 3, event.job_id, status, finished_at, event.worker_id)


def _of_job(job: Job) -> Iterator[Shown]:
    number = -job.id * 16
    yield _event(number - 4, job.id, "deferred", job.deferred_at)
    # Of a job that never ran, or has run once: else it is the time of a retry.
    runs = 1 if job.finished_at and job.started_at else 0
    if job.scheduled_at and job.attempts <= runs:
        yield _event(number - 5, job.id, "scheduled", job.scheduled_at)
    if job.started_at:
        yield _event(number - 6, job.id, "started", job.started_at, job.worker_id)
    if job.finished_at:
        yield _event(number - 7, job.id, job.status, job.finished_at, job.worker_id, job.error)


def queues(tables: Tables) -> list[Shown]:
    """Queues in which something waits or runs."""
    now = tables.now()
    found: dict[str, Shown] = {}
    counts: Shown = {"ready": 0, "blocked": 0, "scheduled": 0, "doing": 0, "oldest_ready_at": None}
    for job in tables.job.values():
        shown = found.setdefault(job.queue, {"name": job.queue} | counts)
        kind = "doing" if job.status == "doing" else "scheduled"
        if line.ready(job, now):
            kind = "blocked" if line.blocked(tables, job, now) else "ready"
        shown[kind] += 1
        if kind == "ready":
            since = job.scheduled_at or job.deferred_at
            shown["oldest_ready_at"] = min(shown["oldest_ready_at"] or since, since)
    return list(found.values())


def tasks(tables: Tables) -> list[Shown]:
    """What a defer falls back to, by task."""
    return [dataclasses.asdict(task) for task in tables.task.values()]


def workers(tables: Tables) -> list[Shown]:
    """Workers that are registered."""
    now = tables.now()
    names: tuple[str, ...] = ("id", "name", "queues", "protocol", "started_at", "heartbeat_at", "stalled_after")
    return [
        {name: getattr(worker, name) for name in names}
        | {
            "idle": worker.idle_at is not None,
            "live": worker.lives(now),
            "running": len(tables.held(worker.id)),
            "info": worker.info,
        }
        for worker in tables.worker.values()
    ]


def locks(tables: Tables) -> list[Shown]:
    """Who waits for whom: the job that runs under a lock, the one that is next, and how many wait."""
    now = tables.now()
    names = {job.lock for job in tables.job.values() if job.lock and (job.status == "doing" or line.in_line(job, now))}
    return [_lock(tables, name, now) for name in sorted(names)]


def _lock(tables: Tables, lock: str, now: Any) -> Shown:
    runs, waits = line.running(tables, lock), line.line(tables, lock, now)
    head = waits[0] if waits else None
    retries = head is not None and not line.ready(head, now)
    state = "running" if runs else "waits for its retry" if retries else "ready"
    if state == "ready" and head and head.scheduled_at and head.scheduled_at > now:
        state = "scheduled"
    return {
        "lock": lock,
        "running_job_id": runs and runs.id,
        "worker_id": runs and runs.worker_id,
        "running_since": runs and runs.started_at,
        "next_job_id": head and head.id,
        "next_queue": head and head.queue,
        "state": state,
        "next_due_at": head.until if head and retries and not runs else None,
        "waiting": len(waits),
    }


def settings(tables: Tables) -> list[Shown]:
    """Settings and their values."""
    values = dataclasses.asdict(tables.config) | {"stalled_after": f"{tables.config.stalled_after!s:0>8}"}
    return [{"name": name, "value": value} for name, value in values.items()]


def schedules(tables: Tables) -> list[Shown]:
    """What shall run when."""
    now = tables.now()
    names: tuple[str, ...] = (
        "name",
        "kind",
        "task",
        "cron",
        "timezone",
        "args",
        "catch_up",
        "max_delay",
        "queue",
        "priority",
        "lock",
    )
    names += ("queueing_lock", "enabled", "last_tick", "next_tick")
    return [
        {name: getattr(schedule, name) for name in names}
        | {
            "live": schedule.kind == "sql"
            or any(worker.lives(now) and worker.declares(schedule.name) for worker in tables.worker.values()),
            "options": schedule.options,
            "retry_at": schedule.retry_at,
        }
        for schedule in tables.schedule.values()
    ]


VIEWS: dict[str, Callable[[Tables], list[Shown]]] = {
    view.__name__: view for view in (jobs, events, queues, tasks, workers, locks, settings, schedules)
}
