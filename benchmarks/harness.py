"""
The server, the processes and the meters that all workloads share.

Nothing outlives the run: the server is this process's own, and every child ends with it, for its
standard input does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import psycopg
from psycopg import sql

from benchmarks.load import Load, Tally
from benchmarks.systems import Connection, System
from pyprocrastinate.embedded import Server

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, object] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_connections": 100,
    "shared_preload_libraries": "pg_stat_statements",
}
WARM_UP = 20  # pings that do not count
START = 60.0  # seconds that a child may take until its first job


class BenchmarkError(Exception):
    """A measurement that must not count; the message says why."""


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


@dataclass
class Drain:
    """A drain to measure: what is put in first, and how a worker takes it out."""

    concurrency: int
    load: Load
    before: tuple[Load, ...] = ()  # what is there already and stays
    occupied: str | None = None  # a lock that somebody holds all the time
    hold: bool = False  # an old snapshot is open all the time
    queues: list[str] | None = None
    seconds: float = 60.0  # stop then, even if it is not done


@dataclass
class Soak:
    """A steady load to measure; times in seconds."""

    rate: int  # jobs a second
    seconds: float
    hold: tuple[float, float]  # from when to when an old snapshot is open
    every: float  # how often to look


class Harness:
    """One server, and what to do with it."""

    def __init__(self, interpreters: dict[tuple[str, ...], Path]) -> None:
        self.interpreters = interpreters
        self.installed: set[str] = set()
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.server = self.stack.enter_context(Server(durable=True, settings=SETTINGS))
        self.admin = self.stack.enter_context(psycopg.connect(self.server.conninfo(), autocommit=True))
        self.admin.execute("create extension pg_stat_statements")
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.kill()
        self.stack.close()

    def versions(self) -> dict[str, str]:
        """Return what was measured with what."""
        return {
            "PostgreSQL": self.admin.info.parameter_status("server_version") or "",
            "Python": sys.version.split()[0],
            "psycopg": psycopg.__version__,
        }

    @contextlib.contextmanager
    def database(self, system: System) -> Iterator[tuple[str, Connection]]:
        """Make a new database with the system's schema, and drop it afterwards."""
        template, name = f"template_{system.module}", f"bench_{system.module}"
        if template not in self.installed:
            self._create(template, "template0")
            self.run(system, "install", dsn=self.server.conninfo(template))
            self.installed.add(template)
        self._create(name, template)
        dsn = self.server.conninfo(name)
        try:
            with psycopg.connect(dsn, autocommit=True) as conn:
                yield dsn, conn
        finally:
            self._drop(name)

    def _create(self, name: str, template: str) -> None:
        self.admin.execute(
            sql.SQL("create database {} template {} strategy wal_log").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )

    def _drop(self, name: str) -> None:
        self.admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def start(self, system: System, part: str, **options: Any) -> Child:
        """Start a part of a system in a process of its own."""
        command = command_of(system, self.interpreters[system.requirements])
        log = self.folder / f"{len(self.children)}.log"
        child = Child(f"{system.name} {part}", [*command, part, json.dumps(options)], log)
        self.children.append(child)
        return child

    def run(self, system: System, part: str, **options: Any) -> Any:
        """Run a part of a system in a process of its own, and return what it says."""
        return self.start(system, part, **options).wait(600)

    def tally(self) -> Tally:
        """Return a new tally, and know where it is."""
        path = self.folder / "tally"
        path.unlink(missing_ok=True)
        return Tally(path, create=True)

    @contextlib.contextmanager
    def metered(self, dsn: str, figures: dict[str, float]) -> Iterator[None]:
        """Note what the server did meanwhile; whoever uses the database must have left by then."""
        self.admin.execute("checkpoint")
        cpu = self._server_cpu()
        before = self._counters(dsn)
        yield
        self._await_leave(dsn)
        after = self._counters(dsn)
        figures |= {name: float(after[name] - before[name]) for name in before}
        figures["server_cpu"] = self._server_cpu() - cpu

    def bulk(self, system: System, count: int, size: int) -> Result:
        """Measure defers in batches, by one connection."""
        return self._deferred(system, count, "bulk", size=size)

    def defer(self, system: System, count: int, connections: int) -> Result:
        """Measure defers one by one."""
        return self._deferred(system, count, "defer", connections=connections)

    def _deferred(self, system: System, count: int, part: str, **options: int) -> Result:
        figures: dict[str, float] = {}
        with self.database(system) as (dsn, conn):
            conn.execute("set application_name = 'harness'")
            with self.metered(dsn, figures):
                seconds = self.run(system, part, dsn=dsn, count=count, **options)
            if (pending := system.pending(conn)) != count:
                raise BenchmarkError(f"{system.label} deferred {count} jobs and has {pending}")
        return Result(count, seconds, {name: value / count for name, value in figures.items()})

    def latency(self, system: System, count: int) -> Result:
        """Measure the time from a defer to the start of the job on a worker that waits."""
        with self.database(system) as (dsn, _):
            tally = self.tally()
            options = {"concurrency": 10, "target": sys.maxsize, "queues": None}
            worker = self.start(system, "work", dsn=dsn, tally=str(tally.path), **options)
            try:
                self.run(system, "ping", dsn=dsn, count=count + WARM_UP, tally=str(tally.path))
            finally:
                worker.stop()
        samples = sorted(1e3 * seconds for seconds in tally.latencies(WARM_UP))
        if len(samples) < count:
            raise BenchmarkError(f"{system.label} started {len(samples)} of {count} jobs in time")
        points = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        figures = {name: samples[round(p * (count - 1))] for name, p in points.items()}
        return Result(count, sum(samples) / 1e3, figures)

    def _counters(self, dsn: str) -> dict[str, int]:
        row = self.admin.execute(
            """
            select coalesce((select sum(s.calls) from pg_stat_statements as s
                              where s.dbid = d.datid), 0)::bigint as statements,
                   d.xact_commit, (pg_current_wal_lsn() - '0/0')::bigint as wal
              from pg_stat_database as d where d.datname = %s
            """,
            [psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]],
        ).fetchone()
        assert row
        return dict(zip(("statements", "transactions", "wal"), row, strict=True))

    def _await_leave(self, dsn: str) -> None:
        # A backend hands in its counts when it goes.
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        end = time.monotonic() + 10
        while time.monotonic() < end:
            row = self.admin.execute(
                "select count(*) from pg_stat_activity where datname = %s and state is not null "
                "and application_name <> 'harness'",
                [name],
            ).fetchone()
            if row == (0,):
                return
            time.sleep(0.02)

    def _server_cpu(self) -> float:
        """Return the seconds of processor time of the server and all its processes; Linux only."""
        if not sys.platform.startswith("linux"):
            return 0.0
        postmaster, ticks = self.server.pid, 0
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                stat = Path(f"/proc/{int(entry)}/stat").read_text().rpartition(")")[2].split()
                if int(entry) == postmaster:
                    ticks += sum(map(int, stat[11:15]))
                elif int(stat[1]) == postmaster:
                    ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def drain(self, system: System, drain: Drain) -> Result:
        """Measure how fast one worker process runs jobs that are there already."""
        figures: dict[str, float] = {}
        with self.database(system) as (dsn, conn), contextlib.ExitStack() as stack:
            if drain.occupied:
                system.occupy(conn, drain.occupied)
            for load in drain.before:
                system.fill(conn, load)
            system.fill(conn, drain.load)
            conn.execute("vacuum analyze")
            if drain.hold:
                stack.enter_context(_held(dsn))
            pending = system.pending(conn)
            conn.execute("set application_name = 'harness'")
            tally = self.tally()
            with self.metered(dsn, figures):
                child = self.start(
                    system,
                    "work",
                    dsn=dsn,
                    concurrency=drain.concurrency,
                    target=drain.load.count,
                    queues=drain.queues,
                    tally=str(tally.path),
                )
                course = _watch(child, tally, drain)
                figures["client_cpu"] = child.stop()["cpu"]
            ended = pending - system.pending(conn)
        jobs, (first, last) = tally.count, tally.span
        if ended != jobs:
            raise BenchmarkError(f"{system.label} ran {jobs} jobs and ended {ended}")
        figures = {name: value / jobs for name, value in figures.items()}
        if len(course) > 20:
            quarter = len(course) // 4
            figures["first_quarter"] = _rate(course[0], course[quarter])
            figures["last_quarter"] = _rate(course[-quarter - 1], course[-1])
        return Result(jobs, max(last - first, 1e-3), figures, _rates(course))

    def soak(self, system: System, soak: Soak) -> Result:
        """Measure latency, buffers and sizes under a steady load, while an old snapshot comes and goes."""
        course: list[dict[str, float]] = []
        with self.database(system) as (dsn, conn), contextlib.ExitStack() as held:
            conn.execute("set application_name = 'harness'")
            tally = self.tally()
            options = {"concurrency": 100, "target": sys.maxsize, "queues": None}
            worker = self.start(system, "work", dsn=dsn, tally=str(tally.path), **options)
            load = self.start(system, "steady", dsn=dsn, rate=soak.rate, seconds=soak.seconds)
            begin = last = time.monotonic()
            before, jobs, known = self._reads(dsn), 0, 0
            holding = False
            while load.process.poll() is None:
                time.sleep(max(0.0, last + soak.every - time.monotonic()))
                now, reads, count, started = time.monotonic(), self._reads(dsn), tally.count, tally.started
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
        return Result(tally.count, seconds, figures, course)

    def _reads(self, dsn: str) -> tuple[int, int]:
        """Return how many buffers the workers' calls have looked at, and how many calls there were."""
        row = self.admin.execute(
            "select coalesce(sum(s.shared_blks_hit + s.shared_blks_read), 0)::bigint, "
            "coalesce(sum(s.calls), 0)::bigint from pg_stat_statements as s join pg_database as d on d.oid = s.dbid "
            "where d.datname = %s and s.query like '%%work_v1%%'",
            [psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]],
        ).fetchone()
        assert row
        return row[0], row[1]


def _watch(child: Child, tally: Tally, drain: Drain) -> list[tuple[float, int]]:
    course: list[tuple[float, int]] = []
    begin = time.monotonic()
    while (count := tally.count) < drain.load.count:
        now = time.monotonic()
        if child.process.poll() is not None and tally.count < drain.load.count:
            raise BenchmarkError(f"the worker died: {child.last_words()}")
        if count:
            course.append((now, count))
            if now - tally.span[0] > drain.seconds:
                break
        elif now - begin > START:
            raise BenchmarkError(f"no job ran: {child.last_words()}")
        time.sleep(0.01)
    return course


def _rate(begin: tuple[float, int], end: tuple[float, int]) -> float:
    return (end[1] - begin[1]) / max(end[0] - begin[0], 1e-3)


def _rates(course: list[tuple[float, int]], points: int = 100) -> list[dict[str, float]]:
    """Return the rate over time, at some points."""
    step = max(1, len(course) // points)
    some = course[::step]
    return [{"at": b[0] - course[0][0], "rate": _rate(a, b)} for a, b in itertools.pairwise(some)]


@contextlib.contextmanager
def _held(dsn: str) -> Iterator[None]:
    """Hold the horizon: an open transaction with a number and a snapshot."""
    with psycopg.connect(dsn, application_name="harness") as conn:
        conn.execute("set transaction isolation level repeatable read")
        conn.execute("select pg_current_xact_id(), (select count(*) from pg_class)")
        yield


def command_of(system: System, interpreter: Path) -> list[str | Path]:
    """Return what runs a part of a system, but for the part."""
    if system.script is None:
        return [interpreter, "-m", "benchmarks.child", system.name]
    # For programs in JavaScript, the interpreter is where their packages are.
    return ["env", f"NODE_PATH={interpreter}", "node", system.script, system.variant]


class Child:
    """A process of the benchmark."""

    def __init__(self, name: str, command: list[str | Path], log: Path) -> None:
        self.name = name
        self.log: IO[bytes] = log.open("w+b")
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PROCRASTINATE_PLUGINS": "none"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def wait(self, seconds: float) -> Any:
        """Return what it says at its end."""
        assert self.process.stdout
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{self.name} does not end: {self.last_words()}") from None
        finally:
            self.kill()
        if self.process.returncode:
            raise BenchmarkError(f"{self.name} failed: {self.last_words()}")
        with self.process.stdout as said:
            return json.loads(said.read().splitlines()[-1])

    def stop(self) -> Any:
        """Ask it to end, and return what it says."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.wait(30)

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """Return the end of what it wrote to standard error."""
        self.kill()
        self.log.seek(0)
        return self.log.read().decode(errors="replace").strip()[-2000:] or "it said nothing"
