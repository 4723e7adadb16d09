"""
The SQL core beside a model of it in Python, under random calls.

Three workers, and people who defer, cancel, retry and purge, take random steps.
After each the answer, every job and every lock must be what the model says.
The model knows the contract and nothing of how it is kept: no candidate, no index, no token's sign.
A walk is told by its seed; one that goes wrong prints its steps.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

HOUR = 3600
STALLED_AFTER = 5400
MAX_RESCUES = 1
QUEUES: dict[str, list[str] | None] = {"any": None, "a": ["a"], "ba": ["b", "a"]}
KNOWS = {"any": ["t1"], "a": ["t1", "t2"], "ba": []}


@dataclass
class Job:
    id: int
    task: str
    queue: str
    priority: int
    lock: str | None
    queueing_lock: str | None
    policy: Any
    until: int | None = None  # not ready before that
    holds: bool = False  # has run, waits for its retry, and holds its lock meanwhile
    status: str = "todo"
    attempts: int = 0
    budget_from: int = 0
    rescues: int = 0
    worker: int | None = None
    token: int | None = None  # of the run that goes on
    ended: int | None = None  # of the last run that told its end
    abort: bool = False

    @property
    def place(self) -> tuple[int, int]:
        return (-self.priority, self.id)

    def seen(self) -> tuple[Any, ...]:
        """Return what the view jobs shows of it."""
        return (
            self.status,
            self.task,
            self.queue,
            self.priority,
            self.lock,
            self.queueing_lock,
            self.attempts,
            self.worker,
            self.abort,
        )


SEEN = "status, task, queue, priority, lock, queueing_lock, attempts, worker_id, abort_requested"


@dataclass
class Model:
    now: int = 0
    jobs: dict[int, Job] = field(default_factory=dict)
    workers: dict[int, tuple[str, int]] = field(default_factory=dict)  # id: name, heartbeat

    # Who waits, and who is next

    def waits_for(self, queueing_lock: str | None) -> Job | None:
        """Return the waiting job that holds this queueing lock."""
        found = [
            job
            for job in self.jobs.values()
            if queueing_lock and job.status == "todo" and job.queueing_lock == queueing_lock
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def ready(self, job: Job) -> bool:
        return job.status == "todo" and (job.until is None or job.until <= self.now)

    def line(self, lock: str) -> list[Job]:
        """Return the jobs that wait for this lock, the best first."""
        waiting = [
            job
            for job in self.jobs.values()
            if job.lock == lock and job.status == "todo" and (self.ready(job) or job.holds)
        ]
        return sorted(waiting, key=lambda job: job.place)

    def running(self, lock: str) -> Job | None:
        found = [job for job in self.jobs.values() if job.lock == lock and job.status == "doing"]
        assert len(found) <= 1, "two run under one lock"
        return found[0] if found else None

    def fetch(self, worker: int, capacity: int) -> list[Job]:
        """Return the jobs that a fetch must claim, in order."""
        queues = QUEUES[self.workers[worker][0]]
        chosen: list[Job] = []
        for job in sorted(self.jobs.values(), key=lambda job: job.place):
            if len(chosen) == capacity:
                break
            if not self.ready(job) or (queues is not None and job.queue not in queues):
                continue
            if job.lock and (self.running(job.lock) or self.line(job.lock)[0] is not job):
                continue
            if job.lock and any(other.lock == job.lock for other in chosen):
                continue
            chosen.append(job)
        return chosen

    def claim(self, job: Job, worker: int, token: int) -> None:
        job.status, job.worker, job.token, job.ended = "doing", worker, token, None

    # How runs end

    def decide(self, job: Job, outcome: dict[str, Any]) -> tuple[str, Any, int]:
        """Return what an outcome makes of a job: status, retry decision, attempts that count."""
        kind = outcome["outcome"]
        if kind == "succeeded":
            return "succeeded", None, 1
        if kind in ("released", "unknown_task"):
            if job.abort:
                return "aborted", None, 1
            if kind == "released":
                return "todo", {}, 0
            return ("todo", {"in": 1}, 0) if self.known(job) else ("failed", None, 1)
        if job.abort or (kind == "aborted" and outcome.get("reason") != "shutdown"):
            return kind, None, 1
        decision = outcome["retry"] if "retry" in outcome else self.by_policy(job)
        return (kind, None, 1) if decision is None else ("todo", decision, 1)

    def known(self, job: Job) -> bool:
        return any(
            worker != job.worker
            and job.task in KNOWS[name]
            and (QUEUES[name] is None or job.queue in (QUEUES[name] or []))
            and self.now - heartbeat < STALLED_AFTER
            for worker, (name, heartbeat) in self.workers.items()
        )

    def by_policy(self, job: Job) -> dict[str, Any] | None:
        runs = job.attempts - job.budget_from
        if isinstance(job.policy, int):
            return {"in": 0} if runs < job.policy else None
        if job.policy and "wait" in job.policy:
            return {"in": job.policy["wait"]} if runs < job.policy["max_attempts"] else None
        return None

    def end(self, job: Job, status: str, counts: int) -> None:
        job.status, job.token, job.abort = status, None, False
        job.attempts += counts

    def put_back(self, job: Job, decision: dict[str, Any], counts: int) -> str:
        """Let a running job wait again, or end it as superseded."""
        if self.waits_for(job.queueing_lock):
            self.end(job, "failed" if job.attempts + counts else "cancelled", counts)
            return job.status
        self.end(job, "todo", counts)
        job.worker = None
        job.priority = decision.get("priority", job.priority)
        job.queue = decision.get("queue", job.queue)
        job.lock = decision.get("lock", job.lock)
        self.wait(job, decision.get("in", 0))
        return "todo"

    def wait(self, job: Job, seconds: int) -> None:
        job.until = self.now + seconds if seconds > 0 else None
        job.holds = bool(job.until and job.lock and job.attempts)

    def finish(
        self, plain: list[tuple[int, int]], keep: bool, outcomes: list[dict[str, Any]]
    ) -> dict[tuple[int, int], tuple[str, str | None]]:
        """Return the verdict and the status for each run."""
        verdicts: dict[tuple[int, int], tuple[str, str | None]] = {}
        late = []
        for run in plain:
            job = self.jobs.get(run[0])
            if job and job.token == run[1]:
                job.ended = run[1]
                self.end(job, "succeeded", 1)
                verdicts[run] = ("ok", "succeeded")
                if not keep:
                    del self.jobs[job.id]
            else:
                late.append((run, keep))
        for run, kept in late:
            verdicts[run] = self.late(run, kept)
        late, back = [], []
        decided = []
        for outcome in outcomes:
            run = (outcome["id"], outcome["token"])
            job = self.jobs.get(run[0])
            if job and job.token == run[1]:
                decided.append((job, outcome, *self.decide(job, outcome)))
            else:
                late.append((run, outcome.get("keep", True)))
        for job, outcome, status, decision, counts in decided:
            run = (job.id, job.token or 0)
            job.ended = job.token
            if status == "todo" and job.queueing_lock:
                back.append((job, run, decision, counts))
            elif status == "todo":
                verdicts[run] = ("ok", self.put_back(job, decision, counts))
            else:
                self.end(job, status, counts)
                verdicts[run] = ("ok", status)
                if not outcome.get("keep", True):
                    del self.jobs[job.id]
        # one by one, by id, because the first may take the queueing lock of the second
        for job, run, decision, counts in sorted(back, key=lambda entry: entry[0].id):
            verdicts[run] = ("ok", self.put_back(job, decision, counts))
        for run, kept in late:
            verdicts[run] = self.late(run, kept)
        return verdicts

    def late(self, run: tuple[int, int], keep: bool) -> tuple[str, str | None]:
        job = self.jobs.get(run[0])
        if job is None or job.ended != run[1]:
            return ("stale", None)
        if job.status != "todo" and not keep:
            del self.jobs[job.id]
            return ("already", None)
        return ("already", job.status)

    def rescue(self) -> list[tuple[str, int]]:
        """Return what a tick does, and forget the dead."""
        dead = {worker for worker, (_, heartbeat) in self.workers.items() if self.now - heartbeat >= STALLED_AFTER}
        done = []
        for job in sorted(self.jobs.values(), key=lambda job: job.id):
            if job.status == "doing" and job.worker in dead:
                allowed = MAX_RESCUES
                if isinstance(job.policy, dict):
                    allowed = job.policy.get("rescues", MAX_RESCUES)
                if job.rescues >= allowed or job.abort:
                    self.end(job, "failed", 1)
                else:
                    job.rescues += self.put_back(job, {}, 1) == "todo"
                done.append(("rescued" if job.status == "todo" else job.status, job.id))
        for worker in dead:
            del self.workers[worker]
        return done

    def leave(self, worker: int) -> int:
        held = [j for j in self.jobs.values() if j.status == "doing" and j.worker == worker]
        for job in sorted(held, key=lambda job: job.id):
            job.ended = job.token
            if job.abort:
                self.end(job, "aborted", 1)
            else:
                self.put_back(job, {}, 0)
        del self.workers[worker]
        return len(held)


POLICIES = [None, None, 1, 3, {"wait": HOUR, "max_attempts": 2}, {"rescues": 0}, {"rescues": 3}]
KINDS: list[dict[str, Any]] = [
    {"outcome": "succeeded"},
    {"outcome": "succeeded", "keep": False},
    {"outcome": "failed"},
    {"outcome": "failed"},
    {"outcome": "failed", "keep": False},
    {"outcome": "failed", "retry": None},
    {"outcome": "aborted"},
    {"outcome": "aborted", "reason": "user"},
    {"outcome": "aborted", "reason": "shutdown"},
    {"outcome": "released"},
    {"outcome": "released"},
    {"outcome": "unknown_task"},
]


class Walk:
    """Random steps, each taken by the database and by the model."""

    def __init__(self, db: Any, worker: Any, seed: int) -> None:
        self.db = db
        self.like = worker
        self.random = random.Random(seed)
        self.model = Model()
        self.runs: list[tuple[int, int]] = []
        self.ids: dict[str, int] = {}
        self.steps: list[str] = []
        self.seen: Counter[str] = Counter()
        db.set("max_rescues", MAX_RESCUES)
        db.conn.execute("select procrastinate.enable_test_clock()")
        # serves no queue, so that its fetch does nothing but look at what has become due
        self.looker = db.worker("looker", queues=[], stalled_after="1000 days")
        for name in QUEUES:
            self.register(name)

    def take(self, steps: int) -> None:
        """Take so many steps, and tell which they were if one goes wrong."""
        weights: dict[Callable[[], Any], int] = {
            self.defer: 6,
            self.defer_many: 3,
            self.fetch: 6,
            self.finish: 6,
            self.work: 8,
            self.cancel: 3,
            self.retry: 2,
            self.purge: 1,
            self.an_hour_passes: 3,
            self.a_night_passes: 1,
            self.tick: 1,
            self.worker: 1,
            self.leave: 1,
        }
        for step in self.random.choices(list(weights), list(weights.values()), k=steps):
            try:
                step()
                self.check()
            except BaseException as exc:
                exc.add_note("\n".join(["The steps were:", *self.steps]))
                raise

    def check(self) -> None:
        """Compare every job and every lock."""
        rows = self.db.rows(f"select id, {SEEN} from procrastinate.jobs")
        assert len(rows) == len(self.model.jobs)
        assert {row[0]: tuple(row[1:]) for row in rows} == {job.id: job.seen() for job in self.model.jobs.values()}
        rows = self.db.rows("select lock, running_job_id, next_job_id, waiting from procrastinate.locks")
        expected = set()
        for lock in ("x", "y"):
            running, line = self.model.running(lock), self.model.line(lock)
            if running or line:
                head = line[0].id if line else None
                expected.add((lock, running and running.id, head, len(line)))
        assert {tuple(row) for row in rows} == expected
        # where a job waits for its lock, another holds it, or comes before it
        forgotten = self.db.rows("""
            select lock from procrastinate.job where lock is not null group by lock
            having bool_or(state in ('w', 'b')) and not bool_or(state in ('r', 'h', 'x'))
        """)
        assert forgotten == []

    def told(self, function: str, **arguments: Any) -> None:
        self.steps.append(f"{function} {arguments}")

    def advance(self, seconds: int) -> None:
        self.told("advance", seconds=seconds)
        self.db.conn.execute(f"select procrastinate.advance('{seconds} seconds')")
        self.model.now += seconds
        assert self.looker.fetch() == []

    def register(self, name: str) -> None:
        worker = self.db.worker(
            name,
            queues=QUEUES[name],
            tasks={task: {} for task in KNOWS[name]},
            stalled_after=f"{STALLED_AFTER} seconds",
        )
        self.told("register", name=name, id=worker.id)
        self.ids[name] = worker.id
        self.model.workers[worker.id] = (name, self.model.now)

    def worker(self) -> Any:
        """Return a worker; one that was found dead learns it and registers anew."""
        name = self.random.choice(list(QUEUES))
        worker = self.like(self.db, self.ids[name])
        self.told("heartbeat", worker=worker.id)
        told = worker.heartbeat()
        assert told.registered == (worker.id in self.model.workers)
        aborted = [j.id for j in self.model.jobs.values() if j.abort and j.worker == worker.id]
        assert told.abort == sorted(aborted)
        self.seen["told to abort"] += len(aborted)
        if worker.id not in self.model.workers:
            with self.db.refused("JQ004"):
                worker.fetch()
            self.seen["registered anew"] += 1
            self.register(name)
            worker = self.like(self.db, self.ids[name])
        self.model.workers[worker.id] = (name, self.model.now)
        return worker

    def expect(self, error: str | None, function: Any, *jobs: Any, **arguments: Any) -> Any:
        """Return what the call returns, or None where it is refused with this SQLSTATE."""
        self.told(function.__name__, jobs=jobs, **arguments)
        if error is None:
            return function(*jobs, **arguments)
        self.seen[f"{function.__name__} refused with {error}"] += 1
        with self.db.refused(error):
            function(*jobs, **arguments)
        return None

    # Deferring

    def job(self) -> dict[str, Any]:
        choose = self.random.choice
        return {
            "task": choose(["t1", "t2", "t3"]),
            "queue": choose("ab"),
            "priority": choose([0, 0, 1, 2]),
            "lock": choose([None, "x", "x", "y"]),
            "queueing_lock": choose([None, None, "p", "q"]),
            "retry": choose(POLICIES),
            "schedule_in": choose([None, None, None, "1 hours", "2 hours"]),
        }

    def deferred(self, job_id: int, options: dict[str, Any]) -> None:
        names = ("task", "queue", "priority", "lock", "queueing_lock", "retry")
        job = Job(job_id, *(options[name] for name in names))
        wait = options["schedule_in"]
        job.until = self.model.now + int(wait[0]) * HOUR if wait else None
        self.model.jobs[job_id] = job

    def met(self, waiting: Job, options: dict[str, Any], on_conflict: str) -> None:
        self.seen[f"defer would {on_conflict}"] += 1
        if on_conflict == "replace":
            self.deferred(waiting.id, options)
            new = self.model.jobs[waiting.id]
            new.attempts = new.budget_from = waiting.attempts
            new.ended = waiting.ended

    def defer(self) -> None:
        options, on_conflict = self.job(), self.random.choice(["raise", "ignore", "replace"])
        waiting = self.model.waits_for(options["queueing_lock"])
        error = "23505" if waiting and on_conflict == "raise" else None
        job_id = self.expect(error, self.db.defer, on_conflict=on_conflict, **options)
        if waiting is None:
            assert job_id not in self.model.jobs
            self.deferred(job_id, options)
        elif error is None:
            assert job_id == waiting.id
            self.met(waiting, options, on_conflict)

    def defer_many(self) -> None:
        batch = [self.job() for _ in range(self.random.randrange(6))]
        on_conflict = self.random.choice(["raise", "ignore", "replace"])
        wanted = [options["queueing_lock"] for options in batch if options["queueing_lock"]]
        taken = [name for name in wanted if wanted.count(name) > 1 or self.model.waits_for(name)]
        error = "23505" if taken and on_conflict == "raise" else None
        rows = self.expect(error, self.db.defer_many, *batch, on_conflict=on_conflict)
        if error:
            return
        assert [row.ord for row in rows] == list(range(1, len(batch) + 1))
        created = [row.id for row in rows if row.created]
        assert created == sorted(created)
        for row, options in zip(rows, batch, strict=True):
            waiting = self.model.waits_for(options["queueing_lock"])
            assert row.created == (waiting is None)
            if waiting is None:
                self.deferred(row.id, options)
            else:
                assert row.id == waiting.id
                self.met(waiting, options, on_conflict)

    # Working

    def claimed(self, worker: int, fetched: list[Any]) -> None:
        expected = self.model.fetch(worker, len(self.model.jobs))[: self.capacity]
        assert [job.id for job in fetched] == [job.id for job in expected]
        for row, job in zip(fetched, expected, strict=True):
            assert all(row.token > token for _, token in self.runs)
            assert (row.task, row.queue, row.priority) == (job.task, job.queue, job.priority)
            assert (row.attempts, row.abort_requested) == (job.attempts, False)
            self.seen["fetched under a lock" if job.lock else "fetched"] += 1
            self.seen["fetched with others behind"] += bool(job.lock and len(self.model.line(job.lock)) > 1)
            self.seen["fetched again"] += job.attempts > 0
            self.model.claim(job, worker, row.token)
        self.runs += [(row.id, row.token) for row in fetched]

    def fetch(self) -> None:
        worker, self.capacity = self.worker(), self.random.randrange(5)
        self.told("fetch", worker=worker.id, capacity=self.capacity)
        self.claimed(worker.id, worker.fetch(self.capacity))

    def ends(self) -> dict[str, Any]:
        """Return ends of some runs: mostly of those that go on, of any worker."""
        now = [run for run in self.runs if (j := self.model.jobs.get(run[0])) and j.token == run[1]]
        pool = now * 3 + self.runs[-4:]
        chosen = {self.random.choice(pool) for _ in range(self.random.randrange(6)) if pool}
        plain, outcomes = [], []
        for run in sorted(chosen):
            if self.random.random() < 0.3:
                plain.append(run)
                continue
            kind = self.random.choice(KINDS)
            if kind["outcome"] in ("failed", "aborted") and self.random.random() < 0.2:
                decision = {"in": self.random.choice([0, HOUR]), **self.changes()}
                kind = kind | {"retry": decision}
            outcomes.append({"id": run[0], "token": run[1]} | kind)
        return {
            "succeeded": [run[0] for run in plain],
            "tokens": [run[1] for run in plain],
            "outcomes": outcomes,
            "keep": self.random.random() < 0.7,
        }

    def changes(self) -> dict[str, Any]:
        choose = self.random.choice
        changes = {
            "queue": choose([None, "a", "b"]),
            "lock": choose([None, "x", "y"]),
            "priority": choose([None, 0, 1, 2]),
        }
        return {name: value for name, value in changes.items() if value is not None}

    def judged(self, ends: dict[str, Any], got: dict[Any, Any]) -> None:
        plain = list(zip(ends["succeeded"], ends["tokens"], strict=True))
        expected = self.model.finish(plain, ends["keep"], ends["outcomes"])
        assert dict.fromkeys(plain, ("ok", "succeeded")) | got == expected
        for verdict, status in expected.values():
            self.seen[f"{verdict} {status}"] += 1

    def let_a_second_pass(self, ends: dict[str, Any]) -> None:
        # that is what an unknown task waits; else real time would decide whether it is over
        if any(outcome["outcome"] == "unknown_task" for outcome in ends["outcomes"]):
            self.advance(1)

    def finish(self) -> None:
        worker, ends = self.worker(), self.ends()
        self.told("finish", worker=worker.id, **ends)
        rows = self.db.call("finish_v1", worker_id=worker.id, **ends)
        self.judged(ends, {(row.id, row.token): (row.verdict, row.status) for row in rows})
        self.let_a_second_pass(ends)

    def work(self) -> None:
        worker, ends, self.capacity = self.worker(), self.ends(), self.random.randrange(4)
        self.told("work", worker=worker.id, capacity=self.capacity, **ends)
        *fetched, last = self.db.call(
            "work_v1", worker_id=worker.id, capacity=self.capacity, extra=0, scan_from=None, **ends
        )
        verdicts = last.verdicts or []
        self.judged(ends, {(v["id"], v["token"]): (v["verdict"], v.get("status")) for v in verdicts})
        self.claimed(worker.id, fetched)
        self.let_a_second_pass(ends)

    # People

    def some_id(self) -> int:
        doing = [job.id for job in self.model.jobs.values() if job.status == "doing"]
        return self.random.choice([*self.model.jobs, *doing * 3, 10**6])

    def cancel(self) -> None:
        job_id, abort, delete = self.some_id(), *self.random.choices([True, False], k=2)
        job = self.model.jobs.get(job_id)
        expected = None
        if job and job.status == "todo":
            expected = "deleted" if delete else "cancelled"
            job.status = "cancelled"
            if delete:
                del self.model.jobs[job_id]
        elif job and job.status == "doing" and abort:
            expected = "abort_requested"
            job.abort = True
        assert self.expect(None, self.db.cancel, job_id, abort=abort, delete=delete) == expected
        self.seen[f"cancel: {expected}"] += 1

    def retry(self) -> None:
        job_id, wait, changes = self.some_id(), self.random.randrange(3), self.changes()
        job = self.model.jobs.get(job_id)
        error = None
        if job and job.status == "todo":
            error = "JQ003"
        elif job and self.model.waits_for(job.queueing_lock):
            error = "23505"
        schedule_in = f"{wait} hours" if wait else None
        done = self.expect(error, self.db.retry, job_id, schedule_in=schedule_in, **changes)
        if error:
            return
        assert done == (job is not None)
        if job is None:
            return
        self.seen[f"retry of {job.status}"] += 1
        if job.status != "doing":
            job.rescues = 0
        self.model.put_back(job, changes | {"in": wait * HOUR}, counts=job.status == "doing")
        job.budget_from = job.attempts

    def purge(self) -> None:
        kinds = ["succeeded", "failed", "aborted", "cancelled"]
        statuses = self.random.sample(kinds, self.random.randrange(3))
        gone = [job.id for job in self.model.jobs.values() if job.status in statuses]
        self.told("purge", statuses=statuses)
        assert self.db.value("purge", older_than="0", statuses=statuses) == len(gone)
        self.seen["purged"] += len(gone)
        for job_id in gone:
            del self.model.jobs[job_id]

    # Time

    def an_hour_passes(self) -> None:
        self.advance(HOUR)

    def a_night_passes(self) -> None:
        """So long that all workers are dead but the one that gives a heartbeat, if it does."""
        self.advance(8 * HOUR)
        if self.random.random() < 0.5:
            self.worker()
        self.tick()

    def tick(self) -> None:
        self.told("tick")
        expected = self.model.rescue()
        assert self.db.tick() == expected
        self.seen.update(f"tick: {kind}" for kind, _ in expected)

    def leave(self) -> None:
        worker = self.worker()
        name, _ = self.model.workers[worker.id]
        self.told("leave", worker=worker.id)
        assert worker.unregister() == self.model.leave(worker.id)
        self.register(name)


def walk(db: Any, worker: Any, shared: Any, seed: int, steps: int = 100) -> Counter[str]:
    shared.empty()
    found = Walk(db, type(worker), seed)
    found.take(steps)
    return found.seen


# what a walk can come across: each must happen, else the walks test less than they seem to
EVERYTHING = """
    already aborted, already failed, already succeeded, already todo, cancel: None,
    cancel: abort_requested, cancel: cancelled, cancel: deleted, defer would ignore,
    defer would replace, defer refused with 23505, defer_many refused with 23505, fetched,
    fetched again, fetched under a lock, fetched with others behind, ok aborted, ok cancelled,
    ok failed, ok succeeded, ok todo, purged, registered anew, retry of aborted,
    retry of cancelled, retry of doing, retry of failed, retry of succeeded,
    retry refused with 23505, retry refused with JQ003, stale None, tick: failed, tick: rescued,
    told to abort
"""


def test_whatever_is_called_jobs_and_locks_are_as_the_model_says(db, worker, shared):
    seen: Counter[str] = Counter()
    for seed in range(20):
        seen += walk(db, worker, shared, seed)
    missing = {what.strip() for what in EVERYTHING.split(",")} - seen.keys()
    assert missing == set()


@pytest.mark.long
@pytest.mark.parametrize("hundred", range(1, 6))
def test_on_longer_walks_they_are_too(db, worker, shared, hundred):
    for seed in range(hundred * 100, hundred * 100 + 100):
        walk(db, worker, shared, seed, steps=200)


def forgets_locks(self: Model, lock: str) -> Job | None:
    return None


def takes_any(self: Model, worker: int, capacity: int) -> list[Job]:
    return [job for job in self.jobs.values() if self.ready(job)][:capacity]


def retries_no_failure(self: Model, job: Job) -> dict[str, Any] | None:
    return None


def keeps_no_late_run(self: Model, run: tuple[int, int], keep: bool) -> tuple[str, str | None]:
    return ("stale", None)


@pytest.mark.parametrize(
    ("method", "wrong"),
    [("running", forgets_locks), ("fetch", takes_any), ("by_policy", retries_no_failure), ("late", keeps_no_late_run)],
)
def test_a_model_that_is_wrong_is_noticed(db, worker, shared, monkeypatch, method, wrong):
    """Else the test above would prove little."""
    monkeypatch.setattr(Model, method, wrong)

    def walks():
        for seed in range(20):
            walk(db, worker, shared, seed)

    with pytest.raises(AssertionError) as raised:
        walks()
    assert "The steps were" in raised.value.__notes__[0]
