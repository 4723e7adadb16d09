"""
The SQL core beside the queue in memory of pyprocrastinate-testing, under random calls.

Three workers, and people who defer, cancel, retry, schedule and purge, take random steps.
Each call is made on both sides.
The answers must be the same, and so must the refusals; after each step all jobs, events, locks, tasks, schedules and
workers must be.

The other side knows the contract and nothing of how it is kept here: no candidate, no index, no token's sign.
"""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyprocrastinate import operations
from pyprocrastinate.operations import Call
from pyprocrastinate_testing import InMemoryConnector, fetch, finish, line, outcomes

HOUR = 3600
# Five past, in the night before clocks are put forward: however long the test takes, no full or half hour comes near,
# which is when all schedules fire.
BEGIN = datetime.datetime(2030, 3, 30, 22, 5, tzinfo=datetime.UTC)
STALLED_AFTER = datetime.timedelta(minutes=90)
QUEUES: dict[str, list[str] | None] = {"any": None, "a": ["a"], "ba": ["b", "a"]}
KNOWS = {"any": ["t1"], "a": ["t1", "t2"], "ba": []}
DECLARED = [
    {"name": "hourly", "task": "t1", "cron": "0 * * * *"},
    {"name": "nightly", "task": "t2", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "max_delay": 4 * HOUR},
    {"name": "single", "task": "t2", "cron": "*/30 * * * *", "queueing_lock": "p", "args": {"n": 1}, "max_delay": 0},
]
VIEWS = {
    "jobs": "id, status, task, queue, args, headers, priority, lock, queueing_lock, attempts, deferred_at, "
    "scheduled_at, started_at, finished_at, worker_id, abort_requested, error_class, error_message, result",
    "events": "job_id, type, at, worker_id, detail",
    "tasks": "name, source, queue, priority, lock, queueing_lock, retry, updated_at",
    "workers": "id, name, queues, protocol, started_at, heartbeat_at, stalled_after, idle, live, running, info",
    "locks": "lock, running_job_id, worker_id, running_since, next_job_id, next_queue, state, next_due_at, waiting",
    "schedules": "name, kind, task, cron, timezone, args, catch_up, max_delay, queue, priority, lock, queueing_lock, "
    "enabled, last_tick, next_tick, live, options, retry_at",
}
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+\d\d:\d\d")


def seen(value: Any) -> Any:
    """Return a value with its times rounded to the half hour, because the two sides are called one after the other."""
    if value == b"":
        return None  # what a function gives that returns nothing
    if isinstance(value, str) and ISO.fullmatch(value):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        value = int((value - datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)).total_seconds() * 1_000_000)
    if isinstance(value, int) and value > 10**13:
        return ("half hours", round(value / 1e6 / 1800))
    if isinstance(value, dict):
        return {key: seen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [seen(item) for item in value]
    return value


def attempt(call: Callable[[], Any]) -> Any:
    """Return what a call gives, or how it is refused."""
    try:
        return list(call())
    except psycopg.Error as error:
        diag = error.diag
        return (error.sqlstate, diag.message_primary, diag.message_detail, diag.message_hint, diag.constraint_name)


def mostly(usual: Any, *others: Any) -> Any:
    """Draw the usual value half of the time."""
    return st.one_of(st.just(usual), st.sampled_from(others))


# What is drawn

NUMBERS = st.integers(0, 40)
WORKERS = st.sampled_from(list(QUEUES))
POLICIES = [1, 3, True, {"wait": HOUR, "max_attempts": 2}, {"rescues": 0}, {"rescues": 3}]
POLICIES += [{"linear_wait": HOUR, "retry_exceptions": ["ValueError"]}, {"exponential_wait": 60, "max_wait": HOUR}]
ODD = [{"wait": "x"}, {"hurry": 1}, -1, 1.5, [], "often"]
JOBS = st.fixed_dictionaries(
    {"task": st.sampled_from(["t1", "t2", "t3"])},
    optional={
        "queue": st.sampled_from("ab"),
        "priority": st.sampled_from([0, 1, 2]),
        "lock": mostly("x", "y"),
        "queueing_lock": st.sampled_from("pq"),
        "retry": st.sampled_from(POLICIES),
        "schedule_in": st.sampled_from(["1 hours", "2 hours"]),
        "args": st.sampled_from([{}, {"b": 1.50, "aa": [None, "é"], "c": {}}]),
        "headers": st.just({"h": 1}),
    },
)
REFUSED = st.sampled_from(
    [
        {"task": ""},
        {"task": "t" * 129},
        {"lock": ""},
        {"queueing_lock": "q" * 513},
        {"args": [1]},
        {"args": "HUGE"},
        {"headers": "text"},
        {"priority": -(2**31)},
        {"schedule_at": "1999-12-31T00:00:00+00:00"},
        {"schedule_at": "infinity"},
        {"schedule_at": "2030-01-01T00:00:00+00:00", "schedule_in": "1 hours"},
        *({"retry": policy} for policy in ODD),
    ]
)
CONFLICTS = st.sampled_from(["raise", "ignore", "replace"])
PLACES = st.fixed_dictionaries(
    {}, optional={"queue": st.sampled_from("ab"), "lock": st.sampled_from("xy"), "priority": st.sampled_from([0, 1, 2])}
)
ERRORS = st.sampled_from(
    [
        {"class": "ValueError", "message": "no", "traceback": "line 1"},
        {"class": "shop.Closed", "ancestors": ["ValueError"], "message": None},
        {"class": "KeyError", "ancestors": []},
    ]
)
KINDS = st.sampled_from(
    [
        {"outcome": "succeeded"},
        {"outcome": "succeeded", "result": {"n": 1.0}},
        {"outcome": "succeeded", "result": "HUGE"},
        *[{"outcome": "failed"}] * 5,
        {"outcome": "failed", "retry": None},
        {"outcome": "failed", "retry": {"hurry": 1}},
        {"outcome": "failed", "retry": {"queue": ""}},
        {"outcome": "aborted"},
        {"outcome": "aborted", "reason": "user"},
        {"outcome": "aborted", "reason": "shutdown"},
        {"outcome": "released"},
        {"outcome": "unknown_task"},
        {"outcome": "lost"},
    ]
)
ENDS = st.lists(
    st.one_of(
        st.tuples(NUMBERS, st.none()),
        st.tuples(NUMBERS, KINDS),
        st.tuples(NUMBERS, st.builds(lambda kind, error: {**kind, "error": error}, KINDS, ERRORS)),
        st.tuples(
            NUMBERS,
            st.builds(
                lambda wait, place: {"outcome": "failed", "retry": {"in": wait, **place}},
                st.sampled_from([0, HOUR]),
                PLACES,
            ),
        ),
    ),
    min_size=1,
    max_size=5,
)
NONSENSE = st.sampled_from([3, {"id": "1"}, {"id": None}, {"token": 1.5}, {"keep": 1}, {"keep": None}, {"outcome": 1}])
SCHEDULES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["hourly", "mine", "yours"]),
        "task": st.just("t3"),
        "cron": st.sampled_from(["0 * * * *", "30 1-3 * * *", "@daily", "0 0 30 2 *", "soon"]),
    },
    optional={
        "timezone": st.sampled_from(["Europe/Berlin", "Mars/Olympus"]),
        "catch_up": st.sampled_from(["all", "none", "some"]),
        "max_delay": st.sampled_from(["0", "2 hours"]),
        "queueing_lock": st.just("q"),
        "enabled": st.just(False),
        "options": st.sampled_from([{"timestamp": True}, {"timestamp": 1}]),
    },
)


DEFAULTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["t1", "t3"])},
    optional={
        "queue": st.just("b"),
        "priority": st.just(2),
        "lock": st.just("y"),
        "queueing_lock": st.just("q"),
        "retry": st.sampled_from(['{"wait": 3600}', "2", '"x"']),
    },
)
SETTINGS = st.sampled_from(
    [
        {"name": "store_errors", "value": "false"},
        {"name": "store_errors", "value": "true"},
        {"name": "max_args_bytes", "value": "100"},
        {"name": "max_rescues", "value": "3"},
        {"name": "retention", "value": '{"succeeded": 3600, "failed": "2 hours", "aborted": null}'},
    ]
)
ADMINISTRATION = st.one_of(
    st.tuples(st.just("schedule"), SCHEDULES),
    st.tuples(st.just("schedule"), SCHEDULES),
    st.tuples(st.just("unschedule"), st.fixed_dictionaries({"name": st.sampled_from(["hourly", "mine", "single"])})),
    st.tuples(st.just("register_task"), DEFAULTS),
    st.tuples(st.just("set_setting"), SETTINGS),
)


def verdicts(rows: list[Any]) -> list[Any]:
    """Return the verdicts in an answer of work_v1, by the ids of their jobs."""
    return sorted(rows[-1][13] or [], key=lambda verdict: (verdict["id"], verdict["token"])) if rows else []


class SideBySide(RuleBasedStateMachine):
    """Random steps, each taken on both sides."""

    shared: Any
    counts: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.shared.empty()
        self.there = self.shared.conn
        self.there.adapters.register_loader("timestamptz", operations.MicrosecondsLoader)
        self.here = InMemoryConnector()
        self.tables = self.here._tables
        self.runs: list[tuple[int, int]] = []
        self.ids: dict[str, int] = {}
        self.there.execute("select procrastinate.enable_test_clock()")
        self.there.execute("select procrastinate.advance(%s - procrastinate.now_())", [BEGIN])
        self.here.advance(BEGIN - self.here.advance(0))

    @initialize(jobs=st.lists(JOBS, min_size=4, max_size=12))
    def begin(self, jobs: list[dict[str, Any]]) -> None:
        self.both("set_setting", name="max_rescues", value="1")
        # serves no queue, so that its fetch does nothing but look at what has become due
        ((self.looker,),) = self.both("register_worker_v1", name="looker", queues=[], stalled_after="1000 days")
        for name in QUEUES:
            self.register(name)
        self.both("defer_many", jobs=json.dumps(jobs), on_conflict="ignore")

    # Calling

    def both(self, source: str, **args: Any) -> list[Any]:
        """Return the rows that a call gives on both sides; none if both refuse it."""
        args = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in args.items()}
        call: Call[list[Any]] = Call(source, args, list)
        there = attempt(lambda: operations.run(self.there, call, binary=True))
        here = attempt(lambda: self.here.run_for_worker(call))
        if isinstance(there, list) and isinstance(here, list):
            compared = [self.compared(source, rows) for rows in (here, there)]
        else:
            compared = [here, there]
        assert seen(compared[0]) == seen(compared[1]), f"{source}: in memory {here}, in PostgreSQL {there}"
        if isinstance(there, tuple):
            self.counts[f"{source} refused with {there[0]}"] += 1
            return []
        return there

    def compared(self, source: str, rows: list[Any]) -> list[Any]:
        """Return that of an answer in which both sides must agree."""
        match source:
            case "idle_v1":
                # "may be ready" there
                return [rows[0][1]]
            case "fetch_v1":
                # those of one call get their tokens in any order
                return [sorted(row[1] for row in rows), *((row[0], *row[2:]) for row in rows)]
            case "work_v1":
                # where the next scan begins is no concern of the other side
                return [*self.compared("fetch_v1", rows[:-1]), verdicts(rows)]
            case _:
                return rows

    @invariant()
    def same(self) -> None:
        self.compare("jobs", "events", "locks")

    def same_elsewhere(self) -> None:
        """Compare what most steps do not change."""
        self.compare("tasks", "workers", "schedules")

    def compare(self, *views: str) -> None:
        for view in views:
            columns = VIEWS[view]
            there = operations.run(self.there, Call(view, {}, list, columns.split(", ")), binary=True)
            here = self.here.run(Call(view, {}, list, columns.split(", ")))
            shown = [sorted(repr(seen(row)) for row in rows) for rows in (here, there)]
            only = [[row for row in shown[n] if row not in shown[1 - n]] for n in (0, 1)]
            assert shown[0] == shown[1], f"{view}: only in memory {only[0]}, only in PostgreSQL {only[1]}"

    @invariant()
    def no_lock_is_forgotten(self) -> None:
        """Where a job waits for its lock, another holds it, or comes before it."""
        query = """
            select lock from procrastinate.job where lock is not null group by lock
            having bool_or(state in ('w', 'b')) and not bool_or(state in ('r', 'h', 'x'))
        """
        assert self.there.execute(query).fetchall() == []

    def some_id(self, number: int) -> int:
        jobs = self.here.jobs
        begun = [job_id for job_id, job in jobs.items() if job["status"] != "todo"]
        pool = [*jobs, *begun * 2, 10**6]
        return pool[number % len(pool)]

    # Time

    def pass_time(self, seconds: int) -> None:
        self.there.execute("select procrastinate.advance(make_interval(secs => %s))", [seconds])
        self.here.advance(seconds)
        assert self.both("fetch_v1", worker_id=self.looker, capacity=1) == []

    @rule(hours=mostly(1, 2, 8), alive=st.lists(WORKERS, max_size=2), ticks=st.booleans())
    def advance(self, hours: int, alive: list[str], ticks: bool) -> None:
        self.pass_time(hours * HOUR)
        for name in alive:
            self.worker(name)
        if ticks:
            self.tick()

    @rule()
    def tick(self) -> None:
        for kind, *_ in self.both("tick_v1")[:-1]:
            self.counts[f"tick: {kind}"] += 1
        self.same_elsewhere()

    # Coming and going

    def register(self, name: str, declares: int = 0) -> None:
        tasks = {task: {"retry": 1} if task == "t2" else {} for task in KNOWS[name]}
        rows = self.both(
            "register_worker_v1",
            name=name,
            queues=QUEUES[name],
            tasks=tasks,
            stalled_after=STALLED_AFTER,
            schedules=json.dumps(DECLARED[:declares]),
        )
        self.ids[name] = rows[0][0] if rows else 0

    def worker(self, name: str) -> int:
        """Return a worker; one that was found dead learns it and registers anew."""
        ((registered, abort, *_),) = self.both("heartbeat_v1", worker_id=self.ids[name])
        self.counts["told to abort"] += len(abort)
        if not registered:
            assert self.both("fetch_v1", worker_id=self.ids[name]) == []
            self.counts["registered anew"] += 1
            self.register(name)
        return self.ids[name]

    @rule(name=WORKERS)
    def heartbeat(self, name: str) -> None:
        self.worker(name)

    @rule(name=WORKERS)
    def idle(self, name: str) -> None:
        worker_id = self.worker(name)
        ((may_be_ready, *_),) = self.both("idle_v1", worker_id=worker_id)
        ((ready, *_),) = self.here.run_for_worker(Call("idle_v1", {"worker_id": worker_id}, list))
        rows = self.both("fetch_v1", worker_id=worker_id, capacity=1)
        assert bool(rows) == ready <= may_be_ready
        self.claimed(rows)

    @rule(name=WORKERS, declares=st.integers(0, 3))
    def leave(self, name: str, declares: int) -> None:
        worker_id = self.worker(name)
        self.both("held_v1", worker_id=worker_id)
        self.both("unregister_worker_v1", worker_id=worker_id)
        self.register(name, declares)
        self.same_elsewhere()

    # Deferring

    @rule(job=JOBS, on_conflict=CONFLICTS)
    def defer(self, job: dict[str, Any], on_conflict: str) -> None:
        job = {key: json.dumps(job[key]) if key in ("retry", "args", "headers") else job[key] for key in job}
        self.both("defer", **job, on_conflict=on_conflict)

    @rule(jobs=st.lists(JOBS, max_size=6), on_conflict=CONFLICTS)
    def defer_several(self, jobs: list[dict[str, Any]], on_conflict: str) -> None:
        rows = self.both("defer_many", jobs=json.dumps(jobs), on_conflict=on_conflict)
        self.counts[f"defer would {on_conflict}"] += sum(not created for _, _, created in rows)

    # Said twice, for these are drawn more often than others.
    @rule(jobs=st.lists(JOBS, min_size=1, max_size=6))
    def defer_many(self, jobs: list[dict[str, Any]]) -> None:
        self.defer_several(jobs, "ignore")

    @rule(name=WORKERS)
    def fetch_some(self, name: str) -> None:
        self.fetch(name, 3)

    @rule(name=WORKERS, drawn=ENDS)
    def work_on(self, name: str, drawn: list[tuple[int, Any]]) -> None:
        self.work(name, drawn, True, 3, 0)

    @rule(name=WORKERS, drawn=ENDS)
    def work_on_too(self, name: str, drawn: list[tuple[int, Any]]) -> None:
        self.work(name, drawn, True, 2, 1)

    @rule(number=NUMBERS, outcome=st.sampled_from(["released", "failed", None]))
    def defer_once_more(self, number: int, outcome: str | None) -> None:
        """Take the queueing lock of a job that runs, which finds it taken if it comes back."""
        held = [job for job in self.tables.job.values() if job.status == "doing" and job.queueing_lock]
        if not held:
            return
        job = held[number % len(held)]
        self.both("defer", task="t3", queueing_lock=job.queueing_lock, on_conflict="ignore")
        if outcome:
            told = {"id": job.id, "token": job.token, "outcome": outcome, "retry": {"in": 0}}
            rows = self.both("finish_v1", worker_id=job.worker_id, outcomes=json.dumps([told]))
            self.judged([(row[2], row[5]) for row in rows])

    @rule(number=NUMBERS, places=st.tuples(*[st.sampled_from([-1, 0, 1])] * 2), capacity=st.sampled_from([1, 2]))
    def change_places(self, number: int, places: tuple[int, int], capacity: int) -> None:
        """Let a job under a lock come back with another priority, while one waits for it, to whoever asks for more."""
        held = [job for job in self.tables.job.values() if job.status == "doing" and job.lock]
        if not held:
            return
        job = held[number % len(held)]
        self.both("defer", task="t3", lock=job.lock, queue=job.queue, priority=places[0])
        told = {"id": job.id, "token": job.token, "outcome": "failed", "retry": {"in": 0, "priority": places[1]}}
        nothing = {"succeeded": "{}", "tokens": "{}", "keep": True}
        room = {"capacity": capacity, "extra": 0, "scan_from": None}
        rows = self.both("work_v1", worker_id=job.worker_id, outcomes=json.dumps([told]), **nothing, **room)
        self.claimed([row[:13] for row in rows[:-1]])
        self.judged([(verdict["verdict"], verdict.get("status")) for verdict in verdicts(rows)])
        kept = any(row[0] == job.id for row in rows[:-1])
        self.counts["came back at once" if kept else "gave way"] += 1

    @rule(bad=REFUSED, many=st.booleans())
    def defer_badly(self, bad: dict[str, Any], many: bool) -> None:
        job: dict[str, Any] = {"task": "t1"} | bad | ({"args": {"a": "x" * 2**20}} if bad.get("args") == "HUGE" else {})
        if many:
            self.both("defer_many", jobs=json.dumps([{"task": "t1"}, job]))
        else:
            self.both("defer", **{k: json.dumps(v) if k in ("args", "headers", "retry") else v for k, v in job.items()})

    # Working

    def claimed(self, rows: list[Any]) -> None:
        last = max((token for _, token in self.runs), default=0)
        for job_id, token, _, _, _, _, attempts, _, lock, *_ in rows:
            assert token > last
            self.tables.put(self.tables.job[job_id], token=token)
            self.counts["fetched under a lock" if lock else "fetched"] += 1
            self.counts["fetched again"] += attempts > 0
            self.runs.append((job_id, token))

    @rule(name=WORKERS, capacity=NUMBERS.map(lambda number: number % 5))
    def fetch(self, name: str, capacity: int) -> None:
        self.claimed(self.both("fetch_v1", worker_id=self.worker(name), capacity=capacity))

    def ends(self, drawn: list[tuple[int, Any]], keep: bool) -> dict[str, Any]:
        """Return ends of some runs: mostly of those that go on, of any worker."""
        jobs = self.here.jobs
        now = [run for run in self.runs if run[0] in jobs and jobs[run[0]]["status"] == "doing"]
        pool = now * 3 + self.runs[-4:]
        chosen = {pool[number % len(pool)]: kind for number, kind in drawn if pool}
        plain = [run for run, kind in chosen.items() if kind is None]
        others = [{"id": run[0], "token": run[1], **kind} for run, kind in chosen.items() if kind is not None]
        others = [outcome | ({} if n % 3 else {"keep": keep}) for n, outcome in enumerate(others)]
        numbers = [f"{{{','.join(str(run[n]) for run in plain)}}}" for n in (0, 1)]
        return {
            "succeeded": numbers[0],
            "tokens": numbers[1],
            "outcomes": json.dumps(others).replace("HUGE", "x" * 65535),
            "keep": keep,
        }

    def judged(self, verdicts: list[tuple[str, str | None]]) -> None:
        for verdict, status in verdicts:
            self.counts[f"{verdict} {status}"] += 1
        # that is what an unknown task waits; else real time would decide whether it is over
        self.pass_time(1)

    @rule(name=WORKERS, drawn=ENDS, keep=st.booleans())
    def finish(self, name: str, drawn: list[tuple[int, Any]], keep: bool) -> None:
        rows = self.both("finish_v1", worker_id=self.worker(name), **self.ends(drawn, keep))
        self.judged([(row[2], row[5]) for row in rows])

    @rule(
        name=WORKERS,
        drawn=ENDS,
        keep=st.booleans(),
        capacity=NUMBERS.map(lambda number: number % 4),
        extra=mostly(0, 1, 3),
    )
    def work(self, name: str, drawn: list[tuple[int, Any]], keep: bool, capacity: int, extra: int) -> None:
        room = {"capacity": capacity, "extra": extra, "scan_from": None}
        rows = self.both("work_v1", worker_id=self.worker(name), **self.ends(drawn, keep), **room)
        self.claimed([row[:13] for row in rows[:-1]])
        self.judged([(verdict["verdict"], verdict.get("status")) for verdict in verdicts(rows)])

    @rule(name=WORKERS, nonsense=NONSENSE, number=NUMBERS)
    def finish_badly(self, name: str, nonsense: Any, number: int) -> None:
        job_id, token = self.runs[number % len(self.runs)] if self.runs else (1, 1)
        told = {"id": job_id, "token": token, "outcome": "failed"}
        told = {**told, **nonsense} if isinstance(nonsense, dict) else nonsense
        outcomes = [told, {"id": job_id, "token": token, "outcome": "released"}, told]
        self.both("finish_v1", worker_id=self.worker(name), outcomes=json.dumps(outcomes))
        self.pass_time(1)

    @precondition(lambda self: self.runs)
    @rule(number=NUMBERS, result=st.sampled_from([None, '{"a": 1}']))
    def complete(self, number: int, result: str | None) -> None:
        job_id, token = self.runs[-1 - number % len(self.runs)]
        self.both("complete_v1", job_id=job_id, token=token, result=result)

    # People

    @rule(number=NUMBERS, abort=st.booleans(), delete=st.booleans())
    def cancel(self, number: int, abort: bool, delete: bool) -> None:
        ((answer,),) = self.both("cancel", job_id=self.some_id(number), abort=abort, delete=delete)
        self.counts[f"cancel: {answer}"] += 1

    @rule(number=NUMBERS, wait=st.sampled_from([None, "1 hours", "2 hours"]), place=PLACES)
    def retry(self, number: int, wait: str | None, place: dict[str, Any]) -> None:
        job_id = self.some_id(number)
        before = self.here.jobs.get(job_id, {"status": None})["status"]
        if self.both("retry", job_id=job_id, schedule_in=wait, **place):
            self.counts[f"retry of {before}"] += 1

    @rule(number=NUMBERS, status=st.sampled_from(["failed", "aborted", "todo"]), delete=st.booleans())
    def finish_for_it(self, number: int, status: str, delete: bool) -> None:
        self.both("finish_job_v1", job_id=self.some_id(number), status=status, delete=delete)

    @rule(
        by=st.sampled_from(["queue", "task", "lock", "name"]),
        place=PLACES,
        silent_for=st.sampled_from(["0", "2 hours"]),
    )
    def look(self, by: str, place: dict[str, Any], silent_for: str) -> None:
        place = {key: place[key] for key in place if key != "priority"}
        self.both("count_jobs_v1", by=by, **place)
        self.both("stalled_jobs_v1", silent_for=silent_for, queue=place.get("queue"))

    @rule(
        statuses=st.lists(st.sampled_from(["succeeded", "failed", "aborted", "cancelled", "todo"]), max_size=2),
        older_than=st.sampled_from(["0", "1 hours"]),
        queue=mostly(None, "a"),
    )
    def purge(self, statuses: list[str], older_than: str, queue: str | None) -> None:
        for (count,) in self.both("purge", older_than=older_than, statuses=statuses, queue=queue):
            self.counts["purged"] += count

    @rule(act=ADMINISTRATION)
    def administer(self, act: tuple[str, dict[str, Any]]) -> None:
        self.both(act[0], **act[1])
        self.same_elsewhere()


def drive(shared: Any, examples: int, steps: int = 50, **more: Any) -> Counter[str]:
    """Let both sides take as many walks of as many steps; return what happened."""
    machine = type("Walk", (SideBySide,), {"shared": shared, "counts": Counter()})
    options: dict[str, Any] = {"derandomize": True, "database": None, "deadline": None, "max_examples": examples}
    checks = list(HealthCheck)
    run_state_machine_as_test(
        machine, settings=settings(stateful_step_count=steps, suppress_health_check=checks, **(options | more))
    )
    return machine.counts


# what walks come across: each must happen, else they test less than they seem to
OFTEN = """
    already todo, defer would ignore, fetched, fetched again, fetched under a lock, ok failed, ok succeeded, ok todo,
    came back at once, gave way, registered anew, stale None
"""
IN_TIME = """
    already aborted, already cancelled, already failed, already succeeded, cancel: None, cancel: abort_requested,
    cancel: cancelled, cancel: deleted, complete_v1 refused with JQ002, defer refused with 23505, defer would replace,
    defer_many refused with 23505, finish_job_v1 refused with JQ003, ok aborted, ok cancelled, purged, refused None,
    retry of aborted, retry of cancelled, retry of doing, retry of failed, retry of succeeded,
    retry refused with 23505, retry refused with JQ003, schedule refused with JQ022, tick: failed, tick: rescued,
    tick: scheduled, tick: skipped, told to abort, unschedule refused with JQ022
"""


def missing(happened: Counter[str], *lists: str) -> set[str]:
    return {" ".join(what.split()) for listed in lists for what in listed.split(",")} - happened.keys()


def test_whatever_is_called_both_sides_answer_alike(shared):
    assert missing(drive(shared, 40), OFTEN) == set()


@pytest.mark.long
def test_on_many_longer_walks_they_do_too(shared):
    assert missing(drive(shared, 300, steps=80, derandomize=False, print_blob=True), OFTEN, IN_TIME) == set()


@pytest.mark.parametrize(
    ("module", "rule", "wrong"),
    [
        (line, "in_line", lambda job, at: line.ready(job, at)),
        (fetch, "choose", lambda tables, worker, capacity, extra, at: list(tables.job.values())[:capacity]),
        (outcomes, "retry_at", lambda *_: None),
        (finish, "_late", lambda tables, job_id, token, keep: {"id": job_id, "token": token, "verdict": "stale"}),
    ],
    ids=["forgets who waits for a retry", "takes any", "retries no failure", "keeps no late run"],
)
def test_a_rule_that_is_wrong_is_noticed(shared, monkeypatch, module, rule, wrong):
    """Else the test above would prove little."""
    monkeypatch.setattr(module, rule, wrong)
    with pytest.raises(AssertionError):
        drive(shared, 300, phases=[Phase.generate])
