"""Deferring jobs: 10_defer.sql."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pyprocrastinate_testing import line
from pyprocrastinate_testing.functions import Row, function
from pyprocrastinate_testing.limits import check_job, check_keys
from pyprocrastinate_testing.retry_policy import check_policy
from pyprocrastinate_testing.tables import Job, Tables
from pyprocrastinate_testing.values import Json, field_text, json_type, refuse, to_int, to_interval, to_time

_KEYS: tuple[str, ...] = ("task", "args", "queue", "priority", "lock", "queueing_lock")
_KEYS += ("schedule_at", "schedule_in", "retry", "headers")


@function
def defer(
    tables: Tables,
    task: str,
    args: Json = None,
    queue: str | None = None,
    priority: int | None = None,
    lock: str | None = None,
    queueing_lock: str | None = None,
    on_conflict: str | None = "raise",
    schedule_at: datetime | None = None,
    schedule_in: timedelta | None = None,
    retry: Json = None,
    headers: Json = None,
    options: Json = None,
) -> int:
    """Defer a job and return its id."""
    now = tables.now()
    given = {"task": task, "queue": queue, "priority": priority, "lock": lock, "queueing_lock": queueing_lock}
    given |= {"args": args, "headers": headers, "retry": retry}
    new = _filled(tables, given | {"scheduled_at": one_time(schedule_at, now, schedule_in)})
    check_keys("options", options, ())
    check_conflict(on_conflict)
    job_id, _ = _enter(tables, next(tables.job_ids), new, now, on_conflict)
    tables.wake(new["queue"])
    return job_id


@function
def defer_many(tables: Tables, jobs: Json, on_conflict: str | None = "raise") -> list[Row]:
    """Defer jobs, all or none; return place, id and whether it is new for each."""
    now = tables.now()
    check_conflict(on_conflict)
    _check_jobs(jobs)
    parsed = [_filled(tables, _parsed(job, now)) for job in jobs]
    numbered = [(ord, next(tables.job_ids), new) for ord, new in enumerate(parsed, 1)]
    # ids in the order given, but queueing locks in one order for all
    numbered.sort(key=lambda entry: (entry[2]["queueing_lock"] is None, (entry[2]["queueing_lock"] or "").encode()))
    entered = [(ord, *_enter(tables, job_id, new, now, on_conflict)) for ord, job_id, new in numbered]
    tables.wake(*(new["queue"] for new in parsed))
    return sorted(entered)


def _check_jobs(jobs: Json) -> None:
    if json_type(jobs) != "array":
        refuse("22023", "jobs must be a JSON array", hint='Pass [{"task": "name", "args": {}}, …].')
    for job in jobs:
        # JSON null would pass as SQL's
        check_keys("a job", [] if job is None else job, _KEYS)


def _parsed(job: Json, at: datetime) -> dict[str, Any]:
    read: dict[str, Any] = {name: field_text(job, name) for name in ("task", "queue", "lock", "queueing_lock")}
    read |= {name: job.get(name) for name in ("args", "headers", "retry")}
    priority, schedule_at = field_text(job, "priority"), field_text(job, "schedule_at")
    read["priority"] = None if priority is None else to_int(priority)
    read["scheduled_at"] = None if schedule_at is None else to_time(schedule_at)
    if (schedule_in := field_text(job, "schedule_in")) is not None:
        read["scheduled_at"] = one_time(read["scheduled_at"], at, to_interval(schedule_in))
    return read


def _filled(tables: Tables, given: dict[str, Any]) -> dict[str, Any]:
    """Return a new job with the defaults of its task filled in, checked."""
    task = tables.task.get(given["task"])
    new = dict(given)
    for name, default in (("queue", "default"), ("priority", 0), ("lock", None), ("queueing_lock", None)):
        if new[name] is None:
            registered = getattr(task, name, None)
            new[name] = default if registered is None else registered
    new["args"] = {} if new["args"] is None else new["args"]
    checked = {name: value for name, value in new.items() if name != "retry"}
    check_job(**checked, max_bytes=tables.config.max_args_bytes)
    check_policy(new["retry"])
    return new


def one_time(schedule_at: datetime | None, at: datetime, schedule_in: timedelta | None) -> datetime | None:
    """Turn schedule_at or schedule_in into a time; 22023 when both are given."""
    if schedule_at is not None and schedule_in is not None:
        refuse("22023", "both schedule_at and schedule_in are given", hint="Give one of them.")
    return schedule_at if schedule_in is None else add(at, schedule_in)


def add(at: datetime, duration: timedelta) -> datetime:
    """Add an interval to a time, with JQ013 in place of an overflow."""
    try:
        return at + duration
    except OverflowError:
        refuse(
            "JQ013",
            "time is out of range",
            detail="The interval leads before the year 2000 or after 9000.",
            hint="Leave the time out to run the job as soon as possible.",
        )


def check_conflict(on_conflict: str | None) -> None:
    """Raise 22023 unless it is raise, ignore or replace."""
    if on_conflict not in ("raise", "ignore", "replace"):
        refuse("22023", "unknown on_conflict", hint="Use raise, ignore or replace.")


def _enter(tables: Tables, job_id: int, new: dict[str, Any], at: datetime, on_conflict: str | None) -> tuple[int, bool]:
    """Write a job, or heed the one that has its queueing lock; return the id, and whether it is a new one."""
    until = new["scheduled_at"] if new["scheduled_at"] and new["scheduled_at"] > at else None
    old = line.waiting(tables, new["queueing_lock"])
    if old is None:
        tables.put(Job(id=job_id, deferred_at=at, until=until, **new))
        return job_id, True
    if on_conflict == "raise":
        line.raise_waiting(old, "Defer it later, or pass on_conflict => ignore or replace.")
    if on_conflict == "replace":
        fresh = {"until": until, "holds": False, "budget_from": old.attempts, "rescues": 0, "error": None}
        tables.put(old, **new, **fresh)
        tables.note(old, "replaced", at, detail={"task": old.task, "queue": old.queue})
        line.call_up(tables, old.lock, at)
    return old.id, False
