"""
What goes wrong during a soak: each fault a small class, drawn by seed.

A fault draws all that is left to chance when it is made, so that the plan of a seed is always the same; what it meets
when its time comes is up to the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from tests.faults import hooks
from tests.faults.stage import MAX_CONNECTIONS, PLUGGED, WORKERS, SoakError, Stage
from tests.faults.tasks import LEASE, POISON_RANK, QUEUES, UNKNOWN

# Backends of a worker's loop, and of its thread for heartbeats and notifications.
_BACKENDS = """
select pid from pg_stat_activity
 where backend_type = 'client backend' and application_name = %s
   and (%s = 'all' or (query ~* 'heartbeat_v1|tick_v1|listen') = (%s = 'pulse'))
"""
_HELPERS = "select pid from pg_stat_activity where backend_type = any (%s)"
_APPS_BACKENDS = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'"
_POISON = [
    '{"deep": %s}' % ("[" * 1500 + "]" * 1500),
    '{"long": %s}' % ("9" * 5000),
    '"not an object"',
    '{"unexpected": "argument"}',
]
# PostgreSQL has the last one since 17.
_TIMEOUTS = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
]
_FORGED = ["", "a", "q", "q00000000", "a1", "not json", '{"job_id": [1]}', "\N{SNOWMAN}" * 100, "x" * 7999]


class Missed(Exception):
    """A fault found nothing to befall."""


class Fault:
    """Something that goes wrong, to some processes (`touches`; None: all), until `inject` returns."""

    name: ClassVar[str]
    lane: ClassVar[str]
    # A soak that is not `long` draws none of these.
    long: ClassVar[bool] = False

    def __init__(self, rnd: random.Random) -> None:
        self.touches: list[str] | None = None
        self.detail: dict[str, Any] = {}

    @classmethod
    def possible(cls, stage: Stage) -> bool:
        """Tell whether this machine can have it."""
        return True

    def inject(self, stage: Stage) -> None:
        """Do it, and undo it where it does not pass by itself."""
        raise NotImplementedError


class OfWorker(Fault):
    """A fault that befalls one worker."""

    lane = "worker"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.worker = rnd.choice(list(WORKERS))
        self.touches = [self.worker]


class OfServer(Fault):
    """A fault that befalls everybody."""

    lane = "server"


class Kill(OfWorker):
    """A worker is killed in the middle of its jobs, and comes back after a while."""

    name = "F1 worker killed"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.away = rnd.uniform(0, 2)

    def inject(self, stage: Stage) -> None:
        with stage.holding(self.worker) as process:
            process.kill()
            process.wait()
            stage.history.write("killed", name=self.worker, pid=process.pid)
            stage.pause(self.away)


class KillBackend(OfServer):
    """One backend is killed, and the server throws all out and recovers."""

    name = "F2 backend killed"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.worker = rnd.choice(list(WORKERS))

    def inject(self, stage: Stage) -> None:
        with stage.admin() as conn:
            rows = conn.execute(_BACKENDS, [self.worker, "all", "all"]).fetchall()
            pid = rows[0][0] if rows else conn.info.backend_pid
            os.kill(pid, signal.SIGKILL)
        stage.pause(0.2)
        with stage.admin():
            pass


class KillServer(OfServer):
    """The server stops as in a crash, or is killed outright."""

    name = "F3 server killed"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.signal = rnd.choice([signal.SIGQUIT, signal.SIGKILL])
        self.detail = {"signal": self.signal.name}

    def inject(self, stage: Stage) -> None:
        old = stage.server.pid
        if not old:
            raise Missed("the server is not there")
        os.kill(old, self.signal)
        deadline = time.monotonic() + 30
        while stage.server.pid in (0, old):
            if time.monotonic() > deadline:
                raise SoakError("the server did not start again")
            stage.pause(0.02)
        with stage.admin():
            pass


class Sever(OfWorker):
    """Sessions of a worker are terminated: all, or only that of its heartbeats, or only that of its loop."""

    name = "F4 sessions severed"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.which = rnd.choice(["all", "pulse", "loop"])
        self.detail = {"which": self.which}

    def inject(self, stage: Stage) -> None:
        query = f"select pg_terminate_backend(b.pid) from ({_BACKENDS}) as b"
        with stage.admin() as conn:
            if not conn.execute(query, [self.worker, self.which, self.which]).rowcount:
                raise Missed("it has no session")


class Halt(OfWorker):
    """A worker stands still for longer than its lease, and goes on as if nothing had been."""

    name = "F5 worker halted"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.seconds = LEASE * rnd.uniform(1.2, 2)

    def inject(self, stage: Stage) -> None:
        with stage.holding(self.worker) as process:
            process.send_signal(signal.SIGSTOP)
            try:
                stage.pause(self.seconds)
            finally:
                process.send_signal(signal.SIGCONT)


class HaltBackend(OfWorker):
    """A backend of a worker stands still in the middle of what it does."""

    name = "F5 backend halted"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.seconds = rnd.uniform(0.5, 2)
        # What it holds, others wait for.
        self.touches = None

    def inject(self, stage: Stage) -> None:
        with stage.admin() as conn:
            row = conn.execute(_BACKENDS, [self.worker, "loop", "loop"]).fetchone()
        if not row:
            raise Missed("it has no session")
        _halted(stage, [row[0]], self.seconds)


class Ghost(Fault):
    """A worker of another make claims jobs, falls silent, and reports each just as somebody else has got it."""

    name = "F5 zombie"
    lane = "aside"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.touches = ["ghost"]
        self.number = rnd.randrange(10**9)
        self.outcomes = [rnd.choice(["succeeded", "failed", "released", "complete"]) for _ in range(10)]

    def inject(self, stage: Stage) -> None:
        jobs = [
            {
                "task": "work",
                "queue": QUEUES[0],
                "priority": 9,
                "args": {"key": f"ghost {self.number} {n}", "seconds": 1},
            }
            for n in range(len(self.outcomes))
        ]
        stage.history.write("invoke", jobs=jobs)
        register = "select procrastinate.register_worker_v1('ghost', %s, stalled_after => '1 second')"
        with stage.admin() as conn:
            worker = _value(conn, register, QUEUES[:1])
            stage.history.write("registered", by="ghost", worker=worker)
            # In one transaction, so that nobody else gets them first.
            with conn.transaction():
                conn.execute("select procrastinate.defer_many(%s)", [json.dumps(jobs)])
                fetch = "select id, token from procrastinate.fetch_v1(%s, %s) order by id"
                rows = conn.execute(fetch, [worker, len(jobs)]).fetchall()
        waiting = dict(zip(rows, self.outcomes, strict=False))
        deadline = time.monotonic() + 30
        while waiting and time.monotonic() < deadline:
            stage.pause(0.02)
            with stage.admin() as conn:
                held = set(conn.execute("select * from procrastinate.held_v1(%s)", [worker]).fetchall())
                for job, token in waiting.keys() - held:
                    outcome = waiting.pop((job, token))
                    verdict = _report(conn, worker, job, token, outcome)
                    stage.history.write("zombie", by="ghost", job=job, token=token, outcome=outcome, verdict=verdict)


class Network(OfWorker):
    """The connections of a client break, fall silent, slow down, or lose the answer to a commit."""

    name = "F6 network"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.client = rnd.choice([*WORKERS, "python", "sql"])
        self.touches = [self.client]
        self.how = rnd.choice(["reset", "silence", "delay", "cut"])
        self.seconds = rnd.uniform(0.5, 1.5 * LEASE)
        self.amount = rnd.choice([1, 100, 5000])
        self.detail = {"how": self.how}

    def inject(self, stage: Stage) -> None:
        proxy = stage.proxy
        if self.how == "reset":
            if not proxy.reset(self.client):
                raise Missed("it has no connection")
            return
        weather: dict[str, dict[str, Any]] = {
            "silence": {"frozen": True},
            "delay": {"delay": self.seconds / 5},
            "cut": {"budget": self.amount},
        }
        proxy.change(self.client, **weather[self.how])
        try:
            stage.pause(self.seconds)
        finally:
            proxy.calm(self.client)


class LoseReply(OfWorker):
    """A statement is committed, and its answer never comes."""

    name = "F6 answer to a commit lost"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.client = rnd.choice([*WORKERS, "python", "sql"])
        self.touches = [self.client]
        self.times = rnd.choice([1, 2, 3])

    def inject(self, stage: Stage) -> None:
        proxy = stage.proxy
        first = proxy.lost_replies
        for _ in range(self.times):
            before = proxy.lost_replies
            proxy.change(self.client, lose_reply=True)
            deadline = time.monotonic() + 3
            while proxy.lost_replies == before and time.monotonic() < deadline:
                stage.pause(0.01)
            proxy.calm(self.client)
            stage.history.write("lost replies", count=proxy.lost_replies - before)
        if proxy.lost_replies == first:
            raise Missed("it committed nothing")


class DiskFull(OfServer):
    """The disk that the tables are on is full for a while."""

    name = "F7 disk full"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.seconds = rnd.uniform(1, 4)

    @classmethod
    def possible(cls, stage: Stage) -> bool:
        return stage.disk is not None

    def inject(self, stage: Stage) -> None:
        stage.fill_disk()
        try:
            stage.pause(self.seconds)
        finally:
            stage.empty_disk()


class Timeouts(OfServer):
    """Statements time out, while somebody locks a table for two seconds."""

    name = "F8 timeouts"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.setting = rnd.choice(_TIMEOUTS)
        self.detail = {"setting": self.setting}

    def inject(self, stage: Stage) -> None:
        try:
            with stage.admin() as conn:
                conn.execute(f"alter role app set {self.setting} = '50ms'".encode())
                # Sessions take the settings of their role when they begin.
                conn.execute(_APPS_BACKENDS)
                with conn.transaction():
                    conn.execute("lock table procrastinate.job in exclusive mode")
                    stage.pause(2)
        finally:
            with stage.admin() as conn:
                conn.execute("alter role app reset all")
                conn.execute(_APPS_BACKENDS)


class Slow(OfServer):
    """The server is slow: its helpers stand still, some transitions take long, somebody burns the processor."""

    name = "F9 slow server"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.how = rnd.choice(["helpers", "transitions", "processor"])
        self.seconds = rnd.uniform(1, 3)
        self.detail = {"how": self.how}

    def inject(self, stage: Stage) -> None:
        if self.how == "helpers":
            with stage.admin() as conn:
                rows = conn.execute(_HELPERS, [["checkpointer", "walwriter"]]).fetchall()
            _halted(stage, [row[0] for row in rows], self.seconds)
        elif self.how == "transitions":
            try:
                with stage.admin() as conn:
                    conn.execute("update audit.slow set per_mille = 10")
                stage.pause(self.seconds)
            finally:
                with stage.admin() as conn:
                    conn.execute("update audit.slow set per_mille = 0")
        else:
            argv = [sys.executable, "-c", "while True: pass"]
            hog = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                stage.pause(self.seconds)
            finally:
                hog.kill()
                hog.wait()


class OutOfConnections(OfServer):
    """All connections are taken, just as workers have lost theirs."""

    name = "F11 out of connections"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.seconds = rnd.uniform(1, 3)

    def inject(self, stage: Stage) -> None:
        with contextlib.ExitStack() as stack, stage.admin() as conn:
            conn.execute(_APPS_BACKENDS)
            with contextlib.suppress(psycopg.OperationalError):
                for _ in range(MAX_CONNECTIONS):
                    stack.enter_context(psycopg.connect(stage.direct, user="app", connect_timeout=5))
            stage.pause(self.seconds)


class BreakBouncer(OfServer):
    """PgBouncer pauses, throws everybody out, or dies."""

    name = "F12 PgBouncer"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.how = rnd.choice(["pause", "kill clients", "restart"])
        self.seconds = rnd.uniform(0.5, 2)
        self.touches = ["w3"]
        self.detail = {"how": self.how}

    @classmethod
    def possible(cls, stage: Stage) -> bool:
        return stage.bouncer is not None

    def inject(self, stage: Stage) -> None:
        assert stage.bouncer
        if self.how == "restart":
            stage.bouncer.stop()
            stage.pause(self.seconds)
            stage.bouncer.start()
            return
        stage.bouncer.command("KILL soak" if self.how == "kill clients" else "PAUSE soak")
        try:
            stage.pause(self.seconds)
        finally:
            stage.bouncer.command("RESUME soak")


class Horizon(Fault):
    """An old snapshot, or a prepared transaction that nobody ends, keeps dead rows from being removed."""

    name = "F13 horizon held"
    lane = "aside"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.prepared = rnd.random() < 0.5
        self.seconds = rnd.uniform(5, 20)
        self.touches = []

    def inject(self, stage: Stage) -> None:
        with stage.admin() as conn:
            conn.execute("begin isolation level repeatable read")
            conn.execute("select count(*) from procrastinate.jobs")
            if self.prepared:
                conn.execute("select pg_current_xact_id()")
                conn.execute("prepare transaction 'abandoned'")
            try:
                stage.pause(self.seconds)
            finally:
                with stage.admin() as other:
                    if self.prepared:
                        other.execute("rollback prepared 'abandoned'")


class Hostile(Fault):
    """Forged notifications, and jobs that no client could have deferred."""

    name = "F16 hostile input"
    lane = "aside"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.touches = []
        self.payloads = [rnd.choice(_FORGED) for _ in range(200)]
        self.args = [rnd.choice(_POISON) for _ in range(3)]
        self.queue = rnd.choice(QUEUES)

    def inject(self, stage: Stage) -> None:
        with stage.admin() as conn:
            for payload in self.payloads:
                conn.execute("select pg_notify('procrastinate_v1', %s)", [payload])
            ids = [
                _value(
                    conn,
                    "insert into procrastinate.job (task, queue, rank, args) values ('quick', %s, %s, %s) returning id",
                    self.queue,
                    POISON_RANK,
                    args,
                )
                for args in self.args
            ]
            ids.append(_value(conn, "select procrastinate.defer(%s, queue => %s)", UNKNOWN, self.queue))
            stage.history.write("poison", ids=ids)


class HostileHooks(Fault):
    """The plugin of a worker raises, hangs, or returns junk, wherever it is called."""

    name = "F16 hostile hooks"
    lane = "aside"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        # It explains nothing.
        self.touches = []
        self.how = rnd.choice(hooks.WAYS)
        self.seconds = rnd.uniform(1, 4)
        self.detail = {"how": self.how}

    def inject(self, stage: Stage) -> None:
        file = hooks.command(stage.folder, PLUGGED)
        file.write_text(self.how)
        try:
            stage.pause(self.seconds)
        finally:
            file.unlink()


class Terminate(OfWorker):
    """A worker is asked to stop, once or twice."""

    name = "F17 worker stopped"

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.twice = rnd.random() < 0.3
        self.detail = {"twice": self.twice}

    def inject(self, stage: Stage) -> None:
        with stage.holding(self.worker) as process:
            _stop(stage, self.worker, process, twice=self.twice)


class TerminateInOutage(OfWorker):
    """A worker is asked to stop while no byte comes from the database."""

    name = "F17 worker stopped in an outage"

    def inject(self, stage: Stage) -> None:
        with stage.holding(self.worker) as process:
            stage.proxy.change(self.worker, frozen=True)
            try:
                stage.pause(0.5)
                _stop(stage, self.worker, process, twice=False)
            finally:
                stage.proxy.calm(self.worker)


class WrongClock(OfWorker):
    """A worker whose own clock is hours off."""

    name = "F10 wrong clock"
    long = True

    def __init__(self, rnd: random.Random) -> None:
        super().__init__(rnd)
        self.offset = rnd.choice(["+2h", "-2h", "+1d"])
        self.detail = {"offset": self.offset}

    @classmethod
    def possible(cls, stage: Stage) -> bool:
        return _libfaketime() is not None

    def inject(self, stage: Stage) -> None:
        slot = stage.slots[self.worker]
        # The history's clock is the monotonic one, which stays as it is.
        slot.env = {"LD_PRELOAD": str(_libfaketime()), "FAKETIME": self.offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        with stage.holding(self.worker) as process:
            _stop(stage, self.worker, process, twice=False)
        stage.pause(10)
        slot.env = {}
        with stage.holding(self.worker) as process:
            _stop(stage, self.worker, process, twice=False)


class FailOver(OfServer):
    """The server is lost for good, and its synchronous standby takes its place; once a soak."""

    name = "F15 failover"
    long = True

    @classmethod
    def possible(cls, stage: Stage) -> bool:
        return stage.standby is not None

    def inject(self, stage: Stage) -> None:
        if stage.failed_over:
            raise Missed("there is no other server any more")
        stage.fail_over()


FAULTS: tuple[type[Fault], ...] = (
    Kill,
    KillBackend,
    KillServer,
    Sever,
    Halt,
    HaltBackend,
    Ghost,
    Network,
    LoseReply,
    DiskFull,
    Timeouts,
    Slow,
    OutOfConnections,
    BreakBouncer,
    Horizon,
    Hostile,
    HostileHooks,
    Terminate,
    TerminateInOutage,
    WrongClock,
    FailOver,
)
# How many seconds apart the faults of a lane begin, on average.
SPACING = {"worker": 2.5, "server": 5.0, "aside": 4.0}


@dataclass
class Planned:
    """A fault, and how many seconds into the soak it comes."""

    at: float
    fault: Fault


def plan(seed: int, seconds: float, kinds: list[type[Fault]]) -> dict[str, list[Planned]]:
    """Return what a seed has in store, by lane; every kind comes once before any comes twice."""
    lanes: dict[str, list[Planned]] = {}
    for lane, spacing in SPACING.items():
        rnd = random.Random(f"{seed} {lane}")
        mine = [kind for kind in kinds if kind.lane == lane]
        lanes[lane] = []
        at, deck = 1 + rnd.uniform(0, spacing), list[type[Fault]]()
        while mine and at < seconds:
            if not deck:
                deck = rnd.sample(mine, len(mine))
            lanes[lane].append(Planned(at, deck.pop()(rnd)))
            at += rnd.uniform(0.5, 1.5) * spacing
    return lanes


class Nemesis:
    """Carries a plan out, each lane in a thread, each fault when its time has come and the one before it is over."""

    def __init__(self, stage: Stage, lanes: dict[str, list[Planned]], seconds: float) -> None:
        self._stage = stage
        self._seconds = seconds
        self._began = time.monotonic()
        self._failed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(faults,), name=f"nemesis {lane}", daemon=True)
            for lane, faults in lanes.items()
        ]

    def run(self) -> None:
        """Do all that is planned; raise SoakError where that was not possible."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            # So that a signal is heeded.
            while thread.is_alive():
                thread.join(0.2)
        if self._failed:
            raise self._failed[0]

    def _run(self, faults: list[Planned]) -> None:
        try:
            for planned in faults:
                late = time.monotonic() - self._began
                if late > self._seconds:
                    break
                self._stage.pause(max(0.0, planned.at - late))
                self._inject(planned.fault)
        except BaseException as error:  # noqa: BLE001  # for `run` to raise
            self._failed.append(error)

    def _inject(self, fault: Fault) -> None:
        began, missed = time.monotonic(), None
        try:
            fault.inject(self._stage)
        except (psycopg.Error, Missed) as error:
            # Another fault was faster: the server is just away.
            missed = f"{type(error).__name__}: {error}"
        self._stage.history.write(
            "fault",
            name=fault.name,
            touches=fault.touches,
            began=began,
            ended=time.monotonic(),
            missed=missed,
            **fault.detail,
        )


def _value(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params).fetchone()
    assert row is not None
    return row[0]


def _halted(stage: Stage, pids: list[int], seconds: float) -> None:
    stopped = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        stage.pause(seconds)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _stop(stage: Stage, name: str, process: subprocess.Popen[bytes], *, twice: bool) -> None:
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    if twice:
        stage.pause(0.1)
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    seconds = time.monotonic() - began
    stage.history.write("stopped", name=name, pid=process.pid, code=process.returncode, seconds=seconds)


def _report(conn: psycopg.Connection[Any], worker: int, job: int, token: int, outcome: str) -> str:
    """Report the end of a run that is no longer the reporter's; return what came of it."""
    if outcome == "complete":
        try:
            conn.execute("select procrastinate.complete_v1(%s, %s)", [job, token])
        except psycopg.Error as error:
            if error.sqlstate == "JQ002":
                return "stale"
            raise
        return "ok"
    if outcome == "succeeded":
        return str(
            _value(
                conn,
                "select verdict from procrastinate.finish_v1(%s, array[%s::bigint], array[%s::bigint])",
                worker,
                job,
                token,
            )
        )
    told = json.dumps([{"id": job, "token": token, "outcome": outcome, "error": {"class": "Late"}}])
    return str(_value(conn, "select verdict from procrastinate.finish_v1(%s, outcomes => %s)", worker, told))


def _libfaketime() -> Path | None:
    if given := os.environ.get("LIBFAKETIME"):
        return Path(given)
    return next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
