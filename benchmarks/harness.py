"""How each thing is measured: what is put in, who works, which meters run, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg

from benchmarks import BenchmarkError
from benchmarks.children import Child, command_of
from benchmarks.load import Load, Tally
from benchmarks.servers import ME, SERVERS, Postgres, Server, cpu_of, pgbouncer
from benchmarks.systems import System

WARM_UP = 20  # pings that do not count
START = 60.0  # seconds that a child may take until its first job
SETTLED = 5.0  # seconds after which a worker with nothing to do has come to rest


@dataclass
class Result:
    """What one run of one system came to; per job where that makes sense."""

    jobs: int
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    # how it went on, for charts: dicts with `at`, seconds since the first job
    course: list[dict[str, float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds


@dataclass(frozen=True)
class Drain:
    """A drain to measure: what is put in first, and how a worker takes it out."""

    concurrency: int
    load: Load
    before: tuple[Load, ...] = ()  # what is there already
    occupied: str | None = None  # a lock that somebody holds all the time
    hold: bool = False  # an old snapshot is open all the time
    queues: tuple[str, ...] | None = None
    seconds: float = 10.0  # stop then, even if it is not done


@dataclass(frozen=True)
class Soak:
    """A steady load to measure; times in seconds."""

    rate: int  # jobs a second
    seconds: float
    hold: tuple[float, float]  # from when to when an old snapshot is open
    every: float  # how often to look


class Harness:
    """The servers, and what to do with them."""

    def __init__(self, interpreters: dict[tuple[str, ...], Path]) -> None:
        self.interpreters = interpreters
        self.children: list[Child] = []
        self.servers: dict[str, Server] = {}

    def __enter__(self) -> Self:
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.end()
        self.stack.close()

    def versions(self) -> dict[str, str]:
        """Return what was measured with what."""
        versions = {"Python": platform.python_version(), "psycopg": psycopg.__version__}
        for server in self.servers.values():
            versions |= server.version()
        return versions

    def server(self, system: System) -> Server:
        """Return what the system runs on."""
        if system.server not in self.servers:
            self.servers[system.server] = SERVERS[system.server](self.stack, self._install)
        return self.servers[system.server]

    def _install(self, system: System, dsn: str) -> Any:
        return self.run(system, "install", dsn=dsn)

    def start(self, system: System, part: str, **options: Any) -> Child:
        """Start a part of a system in a process of its own."""
        command = command_of(system, self.interpreters[system.requirements])
        log = self.folder / f"{len(self.children)}.log"
        child = Child(f"{system.name} {part}", [*command, part, json.dumps(options)], log, system.plugins)
        self.children.append(child)
        return child

    def run(self, system: System, part: str, **options: Any) -> Any:
        """Run a part of a system in a process of its own, and return what it says."""
        return self.start(system, part, **options).wait(600)["value"]

    def work(self, system: System, dsn: str, tally: Tally, concurrency: int = 10, **options: Any) -> Child:
        """Start a worker."""
        return self.start(system, "work", dsn=dsn, tally=str(tally.path), concurrency=concurrency, **options)

    def tally(self, name: str = "tally") -> Tally:
        """Return a new tally, and know where it is."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        return Tally(path, create=True)

    @contextlib.contextmanager
    def metered(self, system: System, dsn: str, conn: Any, figures: dict[str, float]) -> Iterator[None]:
        """Note what the server did meanwhile; whoever uses the database must have left by then."""
        server = self.server(system)
        server.before()
        cpu = server.cpu()
        before = server.counters(dsn, conn)
        yield
        server.settle(dsn)
        after = server.counters(dsn, conn)
        figures |= {name: after[name] - before[name] for name in before}
        figures["server_cpu"] = server.cpu() - cpu

    def bulk(self, system: System, count: int, size: int) -> Result:
        """Measure defers in batches, by one connection."""
        return self._deferred(system, count, "bulk", size=size)

    def defer(self, system: System, count: int, connections: int) -> Result:
        """Measure defers one by one."""
        return self._deferred(system, count, "defer", connections=connections)

    def _deferred(self, system: System, count: int, part: str, **options: int) -> Result:
        figures: dict[str, float] = {}
        with self.server(system).database(system) as (dsn, conn):
            system.employ(conn)
            with self.metered(system, dsn, conn, figures):
                said = self.start(system, part, dsn=dsn, count=count, **options).wait(600)
                figures["client_cpu"] = said["cpu"]
            if (pending := system.pending(conn)) != count:
                raise BenchmarkError(f"{system.label} deferred {count} jobs and has {pending}")
        return Result(count, said["value"], {name: value / count for name, value in figures.items()})

    def latency(self, system: System, count: int) -> Result:
        """Measure the time from a defer to the start of the job on a worker that waits."""
        with self.server(system).database(system) as (dsn, _):
            tally = self.tally()
            worker = self.work(system, dsn, tally)
            try:
                self.run(system, "ping", dsn=dsn, count=count + WARM_UP, tally=str(tally.path))
            finally:
                worker.stop()
        return _latency(system, count, tally.latencies(WARM_UP))

    def drain(self, system: System, drain: Drain) -> Result:
        """Measure how fast one worker process runs jobs that are there already."""
        figures: dict[str, float] = {}
        with self.server(system).database(system, drain.before) as (dsn, conn), contextlib.ExitStack() as stack:
            if drain.occupied:
                system.occupy(conn, drain.occupied)
            system.fill(conn, drain.load)
            if system.server == "postgres":
                conn.execute("vacuum analyze")
            if drain.hold:
                stack.enter_context(_held(dsn))
            pending = system.pending(conn)
            tally = self.tally()
            with self.metered(system, dsn, conn, figures):
                child = self.work(system, dsn, tally, drain.concurrency, target=drain.load.count, queues=drain.queues)
                course = _watch([child], [tally], drain.load.count, drain.seconds)
                figures["client_cpu"] = child.stop()["cpu"]
            jobs, (first, last) = tally.count, tally.span
            if (ended := pending - system.pending(conn)) != jobs:
                raise BenchmarkError(f"{system.label} ran {jobs} jobs and ended {ended}")
            _satisfied(system, conn, jobs)
        figures = {name: value / jobs for name, value in figures.items()}
        if len(course) > 20:
            quarter = len(course) // 4
            figures["first_quarter"] = _rate(course[0], course[quarter])
            figures["last_quarter"] = _rate(course[-quarter - 1], course[-1])
        return Result(jobs, max(last - first, 1e-3), figures, _rates(course))

    def fleet(self, system: System, workers: int, count: int, seconds: float, pooled: bool) -> Result:
        """Measure several worker processes that begin at once, from when all of them run jobs."""
        figures: dict[str, float] = {}
        with self._pooled(system, workers, pooled) as (dsn, address, conn, bouncer):
            system.fill(conn, Load(count))
            conn.execute("vacuum analyze")
            tallies, children = self._gated(system, workers, address, pooled=pooled, concurrency=100)
            with self.metered(system, dsn, conn, figures):
                pooler = cpu_of(bouncer) if bouncer else 0.0
                for child in children:
                    child.go()
                course = _watch(children, tallies, count, seconds, together=True)
                shares = [after - before for before, after in zip(course[0][2], course[-1][2], strict=True)]
                figures["client_cpu"] = sum(child.stop()["cpu"] for child in children)
                figures["pooler_cpu"] = cpu_of(bouncer) - pooler if bouncer else 0.0
            jobs = sum(tally.count for tally in tallies)
            if (left := system.pending(conn)) != count - jobs:
                raise BenchmarkError(f"{system.label} ran {jobs} jobs of {count} and left {left}")
        figures = {name: value / jobs for name, value in figures.items()}
        figures["fairness"] = min(shares) / max(shares)
        return Result(sum(shares), max(course[-1][0] - course[0][0], 1e-3), figures)

    def fleet_latency(self, system: System, workers: int, count: int, pooled: bool) -> Result:
        """Measure the time from a defer to the start of the job on one of several workers that wait."""
        with self._pooled(system, workers, pooled) as (dsn, address, _, _):
            tallies, children = self._gated(system, workers, address, pooled=pooled, concurrency=10)
            for child in children:
                child.go()
            paths = [str(tally.path) for tally in tallies]
            self.run(system, "ping", dsn=dsn, count=count + WARM_UP, tally=paths[0], others=paths[1:])
            for child in children:
                child.stop()
        return _latency(system, count, [each for tally in tallies for each in tally.latencies()])

    @contextlib.contextmanager
    def _pooled(self, system: System, size: int, pooled: bool) -> Iterator[tuple[str, str, Any, int | None]]:
        with self.server(system).database(system) as (dsn, conn), contextlib.ExitStack() as stack:
            if pooled:
                address, process = stack.enter_context(pgbouncer(dsn, size))
                yield dsn, address, conn, process.pid
            else:
                yield dsn, dsn, conn, None

    def _gated(self, system: System, workers: int, dsn: str, **options: Any) -> tuple[list[Tally], list[Child]]:
        tallies = [self.tally(f"tally-{number}") for number in range(workers)]
        children = [self.work(system, dsn, tally, gated=True, **options) for tally in tallies]
        for child in children:
            child.await_ready()
        return tallies, children

    def idle(self, system: System, workers: int, seconds: float) -> Result:
        """Measure what workers that have nothing to do cost a server beyond what it takes by itself."""
        figures: dict[str, float] = {}
        with self.server(system).database(system) as (dsn, conn):
            server = self.server(system)
            server.before()
            cpu, begin = server.cpu(), time.monotonic()
            time.sleep(seconds / 2)
            alone = (server.cpu() - cpu) / (time.monotonic() - begin)
            child = self.start(system, "rest", dsn=dsn, workers=workers)
            end = time.monotonic() + START
            while (resting := system.resting(conn)) != workers:
                if child.process.poll() is not None or time.monotonic() > end:
                    raise BenchmarkError(f"{resting} of {workers} workers came to rest: {child.last_words()}")
                time.sleep(0.1)
            time.sleep(SETTLED)
            cpu, before, begin = server.cpu(), server.counters(dsn, conn), time.monotonic()
            time.sleep(seconds)
            after, spent = server.counters(dsn, conn), time.monotonic() - begin
            figures["alone_cores"] = alone
            figures["server_cores"] = (server.cpu() - cpu) / spent - alone
            figures["statements"] = (after["statements"] - before["statements"]) / spent / workers
            figures["client_cores"] = child.stop()["cpu"] / (spent + SETTLED)
        return Result(workers, spent, figures)

    def soak(self, system: System, soak: Soak) -> Result:
        """Measure latency, buffers and sizes under a steady load, while an old snapshot comes and goes."""
        course: list[dict[str, float]] = []
        server = self.server(system)
        assert isinstance(server, Postgres)
        with server.database(system) as (dsn, conn), contextlib.ExitStack() as held:
            tally = self.tally()
            worker = self.work(system, dsn, tally, concurrency=100)
            load = self.start(system, "steady", dsn=dsn, rate=soak.rate, seconds=soak.seconds)
            _watch([worker], [tally], 1, 0.0)
            begin = last = time.monotonic()
            before, jobs, known = server.reads(dsn), tally.count, tally.started
            holding = False
            while load.process.poll() is None:
                time.sleep(max(0.0, last + soak.every - time.monotonic()))
                now, reads, count, started = time.monotonic(), server.reads(dsn), tally.count, tally.started
                samples = sorted(tally.latencies(known)[: started - known])
                if samples:
                    course.append(
                        {
                            "at": now - begin,
                            "rate": (count - jobs) / (now - last),
                            "p50": 1e3 * samples[len(samples) // 2],
                            "p99": 1e3 * samples[round(0.99 * (len(samples) - 1))],
                            "buffers": (reads[0] - before[0]) / max(1, reads[1] - before[1]),
                            "megabytes": system.size(conn) / 1e6,
                        }
                    )
                before, jobs, known, last = reads, count, started, now
                if not holding and soak.hold[0] <= now - begin < soak.hold[1]:
                    held.enter_context(_held(dsn))
                    holding = True
                elif holding and now - begin >= soak.hold[1]:
                    held.close()
                    holding = False
            seconds = time.monotonic() - begin
            load.wait(10)
            worker.stop()
            conn.execute("vacuum")
            figures = {"megabytes_after": system.size(conn) / 1e6, "pending": float(system.pending(conn))}
            if figures["pending"]:
                raise BenchmarkError(f"{system.label} left {figures['pending']:.0f} jobs")
            _satisfied(system, conn, tally.count)
        return Result(tally.count, seconds, figures, course)

    def forget(self) -> None:
        """Drop what was kept for a workload's next round."""
        for server in self.servers.values():
            server.forget()


def _satisfied(system: System, conn: Any, jobs: int) -> None:
    if complaints := system.complaints(conn, jobs):
        raise BenchmarkError(f"{system.label} after {jobs} jobs: {', '.join(complaints)}")


def _latency(system: System, count: int, seconds: list[float]) -> Result:
    samples = sorted(1e3 * each for each in seconds)
    if len(samples) < count:
        raise BenchmarkError(f"{system.label} started {len(samples)} of {count} jobs in time")
    points = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    figures = {name: samples[round(p * (len(samples) - 1))] for name, p in points.items()}
    return Result(count, sum(samples) / 1e3, figures)


# When it was, how many jobs had started, and how many on each worker.
Point = tuple[float, int, list[int]]


def _watch(
    children: list[Child], tallies: list[Tally], target: int, seconds: float, together: bool = False
) -> list[Point]:
    """Note how many jobs have started until all or the time is over; `together`: only once all workers run some."""
    course: list[Point] = []
    begin = time.monotonic()
    while True:
        now, counts = time.monotonic(), [tally.count for tally in tallies]
        started = all(counts) if together else any(counts)
        for child in children:
            if child.process.poll() is not None and sum(counts) < target:
                raise BenchmarkError(f"the worker died: {child.last_words()}")
        if started:
            course.append((now, sum(counts), counts))
            if now - course[0][0] > seconds:
                return course
        elif now - begin > START:
            raise BenchmarkError(f"no job ran: {children[0].last_words()}")
        if sum(counts) >= target:
            if not course:
                raise BenchmarkError("the jobs were done before all workers had begun")
            return course
        time.sleep(0.01)


def _rate(begin: Point, end: Point) -> float:
    return (end[1] - begin[1]) / max(end[0] - begin[0], 1e-3)


def _rates(course: list[Point], points: int = 60) -> list[dict[str, float]]:
    """Return the rate over time, at some points."""
    step = max(1, len(course) // points)
    return [{"at": b[0] - course[0][0], "rate": _rate(a, b)} for a, b in itertools.pairwise(course[::step])]


@contextlib.contextmanager
def _held(dsn: str) -> Iterator[None]:
    """Hold the horizon: an open transaction with a number and a snapshot."""
    with psycopg.connect(dsn, application_name=ME) as conn:
        conn.execute("set transaction isolation level repeatable read")
        conn.execute("select pg_current_xact_id(), (select count(*) from pg_class)")
        yield
