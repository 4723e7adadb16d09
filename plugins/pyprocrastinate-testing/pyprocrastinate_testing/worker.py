"""Workers come, live and go: 01_protocol.sql and 40_worker.sql."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

from pyprocrastinate_testing import line
from pyprocrastinate_testing.fetch import registered
from pyprocrastinate_testing.functions import Id, Row, function
from pyprocrastinate_testing.limits import check_job, check_name
from pyprocrastinate_testing.outcomes import Decision, put_back
from pyprocrastinate_testing.retry_policy import check_policy
from pyprocrastinate_testing.schedule import declare_schedules
from pyprocrastinate_testing.tables import Tables, Task, Worker
from pyprocrastinate_testing.tick import tick_due_at
from pyprocrastinate_testing.values import Json, field_text, json_type, keys, refuse, to_int

OLDEST, NEWEST = 1, 1


@function
def protocol(tables: Tables) -> list[Row]:
    """Tell the oldest and the newest protocol that workers may speak."""
    return [(OLDEST, NEWEST)]


@function
def register_worker_v1(
    tables: Tables,
    name: str,
    queues: list[str] | None = None,
    tasks: Json = "{}",
    schedules: Json = "[]",
    protocol: int = 1,
    stalled_after: timedelta | None = None,
    info: Json = None,
) -> int:
    """Register a worker under an id that nobody had before."""
    now = tables.now()
    _check_protocol(protocol)
    _check_worker(name, queues, tasks)
    schedules = [] if schedules is None else schedules
    stalled_after = tables.config.stalled_after if stalled_after is None else stalled_after
    if not timedelta(seconds=1) <= stalled_after <= timedelta(days=3652.5):
        refuse("22023", "stalled_after is out of range", hint="Give it 1 second to 10 years.")
    worker = Worker(
        id=next(tables.worker_ids),
        name=name,
        queues=queues,
        tasks=tasks,
        schedules=schedules,
        protocol=protocol,
        stalled_after=stalled_after,
        info=info or {},
        started_at=now,
        heartbeat_at=now,
    )
    tables.worker[worker.id] = worker
    for task in keys(tasks):
        _register(tables, "worker", task, tasks[task], now)
    if schedules != []:
        declare_schedules(tables, worker.id, schedules, now)
    if tables.tick.next_at > now + stalled_after:
        tables.tick = dataclasses.replace(tables.tick, next_at=now + stalled_after)
        tables.notify("a")
    return worker.id


def _check_protocol(protocol: int | None) -> None:
    if protocol is None or not OLDEST <= protocol <= NEWEST:
        hint = 'Run "pyprocrastinate migrate --stage pre" with the release of the worker.'
        if protocol is not None and protocol < OLDEST:
            hint = "Upgrade the worker to a later release of pyprocrastinate."
        said = "null" if protocol is None else protocol
        refuse(
            "JQ005", f"the schema does not speak protocol {said}", detail=f"It speaks {OLDEST} to {NEWEST}.", hint=hint
        )


def _check_worker(name: str | None, queues: list[str] | None, tasks: Json) -> None:
    check_name("worker name", name or "", 512)
    for queue in queues or []:
        check_name("queue", queue or "", 128)
    if json_type(tasks) != "object" or not all(isinstance(options, dict) for options in tasks.values()):
        refuse("22023", "tasks must be a JSON object of objects", hint='Pass {"task name": {}}.')
    for task in keys(tasks):
        check_job(task=task, **_defaults(tasks[task]))
        check_policy(tasks[task].get("retry"))


def _defaults(options: Json) -> Json:
    names = ("queue", "lock", "queueing_lock")
    priority = field_text(options, "priority")
    return {name: field_text(options, name) for name in names} | {"priority": priority and to_int(priority)}


def _register(tables: Tables, source: str, name: str, options: Json, at: datetime) -> None:
    """Write what a defer of a task falls back to; what SQL set, a worker does not change."""
    new = Task(name=name, source=source, retry=options.get("retry"), updated_at=at, **_defaults(options))
    old = tables.task.get(name)
    if source == "worker" and old and (old.source == "sql" or dataclasses.replace(old, updated_at=at) == new):
        return
    tables.task[name] = new


@function
def register_task(
    tables: Tables,
    name: str,
    queue: str | None = None,
    priority: int | None = None,
    lock: str | None = None,
    queueing_lock: str | None = None,
    retry: Json = None,
) -> None:
    """Set what a defer of this task falls back to where it says nothing."""
    options: Json = {"queue": queue, "priority": priority, "lock": lock, "queueing_lock": queueing_lock}
    check_job(task=name, **options)
    check_policy(retry)
    _register(tables, "sql", name, options | {"retry": retry}, tables.now())


@function
def heartbeat_v1(tables: Tables, worker_id: Id) -> list[Row]:
    """Return whether the worker is registered, jobs to abort, when the next tick is due, and the time."""
    now = tables.now()
    worker = tables.worker.get(worker_id)
    if worker:
        tables.change_worker(worker, heartbeat_at=now)
    abort = sorted(job.id for job in tables.held(worker_id) if job.abort_requested)
    return [(worker is not None, abort, tick_due_at(tables, now), now)]


@function
def held_v1(tables: Tables, worker_id: Id) -> list[Row]:
    return [(job.id, job.token) for job in tables.held(worker_id)]


@function
def idle_v1(tables: Tables, worker_id: Id, scan_from: list[int] | None = None) -> list[Row]:
    """Declare that a worker waits; return whether a job is ready, when the next scheduled one will be, and the time."""
    worker = registered(tables, worker_id)
    now = tables.now()
    if worker.idle_at is None:
        tables.change_worker(worker, idle_at=now)
    todo = [job for job in tables.job.values() if job.status == "todo"]
    ready = any(
        line.ready(job, now) and worker.serves(job.queue) and not line.blocked(tables, job, now) for job in todo
    )
    return [(ready, min((job.until for job in todo if job.until and job.until > now), default=None), now)]


@function
def unregister_worker_v1(tables: Tables, worker_id: Id) -> int:
    """Take leave: what the worker still held goes back, at no attempt; return how many jobs that were."""
    now = tables.now()
    jobs = tables.held(worker_id)
    for job in jobs:
        if job.abort_requested:
            tables.end(job, "aborted", now)
        else:
            put_back(tables, job, now, Decision(status="todo", counts=0), None, None)
        line.call_up(tables, job.lock, now)
    tables.worker.pop(worker_id, None)
    return len(jobs)
