"""
What shall run when: 51_schedule.sql.

A tick fires by moving its schedule's `next_tick` on, which only ever grows: so it fires at most once.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import Any, NoReturn

import psycopg

from pyprocrastinate_testing import cron as cron_
from pyprocrastinate_testing.cron import last_until, next_after
from pyprocrastinate_testing.defer import defer_many
from pyprocrastinate_testing.functions import Row, function
from pyprocrastinate_testing.limits import check_job, check_keys, check_name, check_object
from pyprocrastinate_testing.tables import Schedule, Tables
from pyprocrastinate_testing.values import MICROSECOND, Json, field_text, iso, json_type, present, refuse, to_int

_DECLARED_KEYS: tuple[str, ...] = ("name", "task", "cron", "timezone", "args")
_DECLARED_KEYS += ("queue", "priority", "lock", "queueing_lock", "max_delay")
_LATE = 600  # seconds


@function
def schedule(
    tables: Tables,
    name: str,
    task: str,
    cron: str,
    timezone: str | None = "UTC",
    args: Json = None,
    catch_up: str | None = "last",
    max_delay: timedelta | None = None,
    queue: str | None = None,
    priority: int | None = None,
    lock: str | None = None,
    queueing_lock: str | None = None,
    enabled: bool | None = True,
    options: Json = None,
) -> None:
    """Defer a job of this task at each time of a cron expression; replaces the schedule of this name."""
    now = tables.now()
    placed = {"queue": queue, "priority": priority, "lock": lock, "queueing_lock": queueing_lock}
    new: dict[str, Any] = {"name": name, "task": task, "cron": cron, "timezone": timezone or "UTC", "args": args or {}}
    new |= {"max_delay": max_delay, **placed}
    catch_up, options = catch_up or "last", options or {}
    _check_schedule(tables, new, now)
    _check_options(catch_up, options)
    old = tables.schedule.get(name) or Schedule(name=name, kind="sql", cron=cron, timezone=new["timezone"])
    if old.kind == "declared" and name in _declared(tables, now):
        _name_taken(name, "Live workers declare it.")
    next_tick = None
    if enabled is not False:
        # At the same times as before: what is due stays due, so that a program may say this at each start.
        same = (old.kind, old.cron, old.timezone) == ("sql", cron, new["timezone"])
        next_tick = (old.next_tick if same else None) or next_after(cron, _latest(now, old.last_tick), new["timezone"])
    new |= {"catch_up": catch_up, "options": options, "enabled": enabled is not False, "next_tick": next_tick}
    tables.schedule[name] = Schedule(kind="sql", last_tick=old.last_tick, **new)
    tables.notify("a")


@function
def unschedule(tables: Tables, name: str) -> bool:
    """Remove a schedule; JQ022 while workers declare it."""
    found = tables.schedule.get(name)
    if found and found.kind == "declared" and any(worker.declares(name) for worker in tables.worker.values()):
        refuse(
            "JQ022",
            f'schedule "{name}" is declared by workers',
            detail="It belongs to their code.",
            hint="Remove it there and restart them.",
        )
    return tables.schedule.pop(name, None) is not None


def _check_schedule(tables: Tables, new: dict[str, Any], at: datetime) -> None:
    check_name("schedule", new["name"] or "", 512)
    limit = tables.config.max_args_bytes
    check_job(
        **{key: new[key] for key in ("task", "queue", "priority", "lock", "queueing_lock", "args")}, max_bytes=limit
    )
    check_object("args", new["args"] | {"timestamp": 10000000000}, limit)
    if new["max_delay"] is not None and not timedelta() <= new["max_delay"] <= timedelta(days=36525):
        refuse("22023", "max_delay is out of range", hint="Use 0 to 100 years.")
    if next_after(new["cron"] or "", at, new["timezone"]) is None:
        cron_.bad(f'"{new["cron"][:100]}" never fires.')


def _check_options(catch_up: str, options: Json) -> None:
    if catch_up not in ("all", "last", "none"):
        refuse("22023", "unknown catch_up", hint="Use all, last or none.")
    check_keys("options", options, ("timestamp",))
    if "timestamp" in options and not isinstance(options["timestamp"], bool):
        refuse("22023", "the option timestamp must be true or false", hint='Use {"timestamp": true}.')


def _name_taken(name: str, detail: str) -> NoReturn:
    hint = "Choose another name, or remove the other schedule first."
    refuse("JQ022", f'schedule name "{name}" is taken', detail=detail, hint=hint)


def _latest(*times: datetime | None) -> datetime:
    return max(time for time in times if time is not None)


# Declared by workers


def _declared(tables: Tables, at: datetime) -> dict[str, Json]:
    """Return the schedules that live workers declare; where they differ, as the newest of them does."""
    live = (worker for worker in sorted(tables.worker.values(), key=lambda worker: worker.id) if worker.lives(at))
    found = {declaration["name"]: declaration for worker in live for declaration in worker.schedules}
    return dict(sorted(found.items()))


def declare_schedules(tables: Tables, worker_id: int, schedules: Json, at: datetime) -> None:
    """Take in the schedules of a worker that has just been registered."""
    names = _check_declarations(tables, schedules, at)
    for name in names:
        found = tables.schedule.setdefault(name, Schedule(name=name, kind="declared"))
        if found.kind == "sql":
            _name_taken(name, "It was made by procrastinate.schedule().")
    others = [worker for worker in tables.worker.values() if worker.id != worker_id and worker.lives(at)]
    for name, declaration in _declared(tables, at).items():
        if name in names:
            resumed = not any(worker.declares(name) for worker in others)
            _declare(tables, declaration, at, resumed)


def _check_declarations(tables: Tables, schedules: Json, at: datetime) -> list[str]:
    if json_type(schedules) != "array" or not all(isinstance(one, dict) for one in schedules):
        hint = 'Pass [{"name": "n", "task": "t", "cron": "0 * * * *"}].'
        refuse("22023", "schedules must be a JSON array of objects", hint=hint)
    for declaration in schedules:
        name = field_text(declaration, "name")
        try:
            check_keys("a schedule", declaration, _DECLARED_KEYS)
            _check_schedule(tables, {"name": name} | _as_declared(declaration), at)
        except psycopg.Error as error:
            diag = error.diag
            named = "<NULL>" if name is None else name[:100]
            message = f'schedule "{named}": {diag.message_primary}'
            refuse(error.sqlstate or "", message, detail=diag.message_detail, hint=diag.message_hint)
    return sorted({one["name"] for one in schedules})


def _as_declared(declaration: Json) -> dict[str, Any]:
    names: tuple[str, ...] = ("task", "cron", "queue", "lock", "queueing_lock")
    found: dict[str, Any] = {name: field_text(declaration, name) for name in names}
    priority, delay = field_text(declaration, "priority"), field_text(declaration, "max_delay")
    found["priority"] = None if priority is None else to_int(priority)
    found["timezone"] = field_text(declaration, "timezone") or "UTC"
    args = declaration.get("args")
    found["args"] = {} if args is None else args
    return found | {"max_delay": timedelta(seconds=_LATE if delay is None else float(delay))}


def _declare(tables: Tables, declaration: Json, at: datetime, resumed: bool) -> None:
    """Let a declared schedule be as a worker declares it; resumed: no live worker declared it before."""
    old = tables.schedule[declaration["name"]]
    new = _as_declared(declaration)
    cron, timezone = new["cron"], new["timezone"]
    next_tick = None
    if resumed or old.next_tick is None:
        # Nobody was there to fire what was missed: only the last one still counts, unless that is too old as well.
        since = _latest(old.last_tick, at - new["max_delay"] - MICROSECOND)
        next_tick = last_until(cron, since, at, timezone)
    elif (old.cron, old.timezone) == (cron, timezone):
        next_tick = old.next_tick
    next_tick = next_tick or next_after(cron, _latest(at, old.last_tick), timezone)
    told = {"declaration": declaration, "catch_up": "all", "enabled": True, "options": {"timestamp": True}}
    change(tables, old, **new, **told, next_tick=next_tick, retry_at=None)


def change(tables: Tables, schedule: Schedule, **changes: Any) -> None:
    tables.schedule[schedule.name] = dataclasses.replace(schedule, **changes)


# Firing


def fire_schedules(tables: Tables, at: datetime) -> list[Row]:
    """Fire the ticks that are due; return a row for each, scheduled, skipped or error."""
    live = _declared(tables, at)
    rows: list[Row] = []
    for name, found in sorted(tables.schedule.items()):
        # The newest that declared it may be gone, and another one left; or one that seemed dead lives again.
        stale = found.declaration != live.get(name) or found.next_tick is None
        if found.kind == "declared" and name in live and stale and _may_be_tried(found, at):
            try:
                _declare(tables, live[name], at, False)
            except psycopg.Error as error:
                rows.append(_failed(tables, found, at, error))
    due = [s for s in tables.schedule.values() if s.enabled and s.next_tick and s.next_tick <= at]
    due = [s for s in due if _may_be_tried(s, at)]
    for found in sorted(due, key=lambda schedule: (schedule.next_tick, schedule.name)):
        if found.kind == "declared" and found.name not in live:
            # It sleeps until a worker declares it.
            change(tables, found, next_tick=None)
            continue
        try:
            with tables.atomic():
                rows += _fire(tables, found, at)
        except psycopg.Error as error:
            rows.append(_failed(tables, found, at, error))
    return rows


def _may_be_tried(schedule: Schedule, at: datetime) -> bool:
    return schedule.retry_at is None or schedule.retry_at <= at


def _failed(tables: Tables, schedule: Schedule, at: datetime, error: psycopg.Error) -> Row:
    """Let a schedule that failed be tried again in 10 seconds, and return the row that says so."""
    change(tables, schedule, retry_at=at + timedelta(seconds=10))
    why = {"sqlstate": error.sqlstate, "message": error.diag.message_primary}
    return ("error", None, present(schedule=schedule.name, tick=iso(schedule.next_tick), **why))


def _fire(tables: Tables, schedule: Schedule, at: datetime) -> list[Row]:
    """Defer the due jobs of one schedule, and move it on."""
    assert schedule.next_tick
    ticks = _due(schedule, at)
    if ticks:
        last: datetime | None = ticks[-1]
        entered = defer_many(tables, [_job(schedule, tick) for tick in ticks], "ignore")
        rows = [_fired(schedule, tick, *row[1:]) for tick, row in zip(ticks, entered, strict=True)]
    else:
        last = last_until(schedule.cron, schedule.next_tick - MICROSECOND, at, schedule.timezone)
        rows = [("skipped", None, {"schedule": schedule.name, "tick": iso(last), "reason": "late"})]
    assert last
    next_tick = next_after(schedule.cron, last, schedule.timezone)
    change(tables, schedule, last_tick=last, next_tick=next_tick, retry_at=None)
    return rows


def _fired(schedule: Schedule, tick: datetime, job_id: int, created: bool) -> Row:
    detail = {"schedule": schedule.name, "tick": iso(tick)}
    if created:
        return ("scheduled", job_id, detail)
    return ("skipped", job_id, detail | {"reason": "queueing lock"})


def _job(schedule: Schedule, tick: datetime) -> Json:
    stamp = {"timestamp": int(tick.timestamp())} if schedule.options.get("timestamp") else {}
    placed = {name: getattr(schedule, name) for name in ("task", "queue", "priority", "lock", "queueing_lock")}
    return placed | {"headers": {"schedule": schedule.name}, "args": schedule.args | stamp}


def _due(schedule: Schedule, at: datetime) -> list[datetime]:
    """Return the ticks that are due and neither too late nor passed over by catch_up; at most 1000."""
    oldest = None
    if schedule.kind != "declared":
        delay = schedule.max_delay
        if schedule.catch_up == "none" and delay is None:
            delay = timedelta(seconds=60)
        oldest = None if delay is None else at - delay
    tick = schedule.next_tick
    if tick and oldest and tick < oldest:
        tick = next_after(schedule.cron, oldest - MICROSECOND, schedule.timezone)
    if tick and schedule.catch_up == "last":
        last = last_until(schedule.cron, tick - MICROSECOND, at, schedule.timezone)
        return [last] if last else []
    ticks: list[datetime] = []
    while tick and tick <= at and len(ticks) < 1000:
        ticks.append(tick)
        tick = next_after(schedule.cron, tick, schedule.timezone)
    return ticks


def next_schedule_at(tables: Tables) -> datetime | None:
    """Tell when a schedule is next to be looked at."""
    times = [max(s.next_tick, s.retry_at or s.next_tick) for s in tables.schedule.values() if s.enabled and s.next_tick]
    return min(times, default=None)
