"""Workers that are killed or halted, and a server that is: every job ends, and each loss counts."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crash_app
import psycopg
import pytest

from pyprocrastinate.migrate import migrate

PATIENCE = 120.0
QUICK = {"stalled_worker_timeout": 1.5, "update_heartbeat_interval": 0.3}


@dataclass
class Line:
    what: str
    job: int
    token: int
    pid: int
    at: float


class Program:
    """A worker process."""

    def __init__(self, dsn: str, history: Path, log: Path, options: dict[str, Any]) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, crash_app.__file__, dsn, str(history), json.dumps(options)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid
        self.died_at = float("inf")

    def kill(self) -> None:
        self.died_at = time.monotonic()
        self.process.kill()
        self.process.wait()

    def said(self) -> list[list[Any]]:
        """Return what it logged: action, id of the job, message."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("[")]


class Stage:
    """Worker processes, their history, and the database they work on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = folder / "history"
        self.history.touch()
        self.programs: dict[int, Program] = {}

    def worker(self, dsn: str, **options: Any) -> Program:
        log = self.folder / f"worker{len(self.programs)}.log"
        program = Program(dsn, self.history, log, {**QUICK, **options})
        self.programs[program.pid] = program
        return program

    def lines(self) -> list[Line]:
        return [Line(*json.loads(line)) for line in self.history.read_text().splitlines()]

    def running(self, program: Program) -> int:
        """Return how many tasks of this worker have begun and not ended."""
        mine = [line for line in self.lines() if line.pid == program.pid]
        return sum(1 if line.what == "start" else -1 for line in mine)

    def until(self, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
        deadline = time.monotonic() + patience
        while True:
            if value := condition():
                return value
            if time.monotonic() > deadline:
                logs = "\n".join(p.log.read_text()[-2000:] for p in self.programs.values())
                raise AssertionError(f"it did not happen\n{logs}")
            time.sleep(0.01)

    def close(self) -> None:
        for program in self.programs.values():
            with suppress(ProcessLookupError):
                program.kill()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def value(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query, params).fetchone()
    return row[0] if row else None


def defer_many(conn: psycopg.Connection[Any], count: int, task: str, **more: Any) -> list[int]:
    jobs = json.dumps([{"task": task, **more}] * count)
    rows = conn.execute("select id from procrastinate.defer_many(%s) order by ord", [jobs])
    return [row[0] for row in rows.fetchall()]


def all_ended(conn: psycopg.Connection[Any]) -> bool:
    return not value(conn, "select exists (select from procrastinate.job)")


@pytest.mark.scenario("R8")
@pytest.mark.parametrize(
    ("jobs", "kills", "concurrency"), [(300, 3, 20), pytest.param(2000, 20, 50, marks=pytest.mark.long)]
)
def test_workers_killed_in_the_middle_of_their_jobs(
    conn: psycopg.Connection[Any], dsn: str, stage: Stage, jobs: int, kills: int, concurrency: int
) -> None:
    value(conn, "select procrastinate.set_setting('max_rescues', '1000')")
    ids = defer_many(conn, jobs, "work", args={"seconds": 0.15})
    exposed = 0
    for _ in range(kills):
        worker = stage.worker(dsn, concurrency=concurrency)
        stage.until(lambda w=worker: stage.running(w) >= concurrency or all_ended(conn))
        worker.kill()
        exposed += stage.running(worker)
    stage.worker(dsn, concurrency=concurrency)
    stage.until(lambda: all_ended(conn))

    rows = conn.execute("select id, status, attempts from procrastinate.jobs").fetchall()
    assert {row[0] for row in rows} == set(ids)
    assert {row[1] for row in rows} == {"succeeded"}
    attempts = {row[0]: row[2] for row in rows}
    lost = Counter(
        row[0] for row in conn.execute("select job_id from procrastinate.events where type = 'rescued'").fetchall()
    )
    assert attempts == {i: 1 + lost[i] for i in ids}
    starts: dict[int, list[Line]] = defaultdict(list)
    ends: dict[int, list[Line]] = defaultdict(list)
    for line in stage.lines():
        (starts if line.what == "start" else ends)[line.job].append(line)
    assert all(len(ends[i]) >= 1 for i in ids)
    assert all(len(starts[i]) <= attempts[i] for i in ids)
    for i in ids:
        runs = sorted(starts[i], key=lambda line: line.at)
        assert len({run.token for run in runs}) == len(runs)
        for run, following in itertools.pairwise(runs):
            # never again while whoever had it could still end it
            assert stage.programs[run.pid].died_at < following.at
    print(f"\n{jobs} jobs, {kills} kills, {exposed} tasks running then, {sum(lost.values())} rescues")
    assert exposed >= concurrency
    assert sum(lost.values()) >= exposed - concurrency


@pytest.mark.scenario("R8")
def test_a_job_that_kills_its_worker_ends_as_failed_while_others_go_on(
    conn: psycopg.Connection[Any], dsn: str, stage: Stage
) -> None:
    value(conn, "select procrastinate.set_setting('max_rescues', '2')")
    (deadly,) = defer_many(conn, 1, "die", queue="deadly")
    stage.worker(dsn, queues=["default"], concurrency=2)
    for run in range(3):
        victim = stage.worker(dsn, queues=["deadly"])
        innocent = defer_many(conn, 20, "work")
        stage.until(lambda v=victim: v.process.poll() is not None)
        stage.until(
            lambda ids=innocent: (
                value(conn, "select count(*) from procrastinate.jobs where status = 'succeeded' and id = any (%s)", ids)
                == 20
            )
        )
        stage.until(lambda n=run + 1: value(conn, "select attempts from procrastinate.jobs where id = %s", deadly) == n)
    row = conn.execute(
        "select status, attempts, error_class from procrastinate.jobs where id = %s", [deadly]
    ).fetchone()
    assert row == ("failed", 3, "WorkerLost")
    assert sum(line.job == deadly for line in stage.lines()) == 3
    # nobody is left to be killed by it
    survivor = stage.worker(dsn, queues=["deadly"], wait=False)
    assert survivor.process.wait(PATIENCE) == 0


def test_a_worker_halted_for_too_long_changes_nothing_when_it_goes_on(
    conn: psycopg.Connection[Any], dsn: str, stage: Stage
) -> None:
    gate = stage.folder / "gate"
    ids = defer_many(conn, 10, "hold", args={"gate": str(gate)})
    # one of them under a lock, which the new run holds in the meantime
    locked = value(
        conn, "select procrastinate.defer('hold', jsonb_build_object('gate', %s::text), lock => 'L')", str(gate)
    )
    ids.append(locked)
    halted = stage.worker(dsn, concurrency=11)
    stage.until(lambda: stage.running(halted) == 11)
    halted.process.send_signal(signal.SIGSTOP)
    heir = stage.worker(dsn, concurrency=11)
    stage.until(lambda: stage.running(heir) == 11)
    gate.touch()
    stage.until(lambda: all_ended(conn))
    halted.process.send_signal(signal.SIGCONT)
    stage.until(lambda: sum(line[0] == "job_stale" for line in halted.said()) == 11)
    rows = conn.execute("select id, status, attempts, result from procrastinate.jobs").fetchall()
    assert sorted(rows) == [(i, "succeeded", 2, heir.pid) for i in ids]
    # it has registered anew and works
    (again,) = defer_many(conn, 1, "work")
    heir.kill()
    stage.until(lambda: value(conn, "select status from procrastinate.jobs where id = %s", again) == "succeeded")


@pytest.mark.scenario("R14")
@pytest.mark.parametrize("restarts", [2, pytest.param(5, marks=pytest.mark.long)])
def test_a_server_that_crashes_under_load(tmp_path: Path, stage: Stage, restarts: int) -> None:
    embedded = pytest.importorskip("pyprocrastinate_embedded")
    with embedded.Server(durable=True) as server:
        dsn = server.conninfo()
        migrate(dsn)
        # heartbeats are lost, too, but the worker must not be taken for dead
        worker = stage.worker(dsn, concurrency=20, stalled_worker_timeout=60)
        acknowledged: list[int] = []
        attempted = threading.Event()
        enough = threading.Event()

        def defer() -> None:
            while not enough.is_set():
                with suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as conn:
                    while not enough.is_set():
                        acknowledged.extend(defer_many(conn, 5, "work", args={"seconds": 0.01}))
                        attempted.set()

        deferrer = threading.Thread(target=defer)
        deferrer.start()
        try:
            for _ in range(restarts):
                ended = sum(line.what == "end" for line in stage.lines())
                stage.until(lambda n=ended: sum(line.what == "end" for line in stage.lines()) > n + 100)
                assert worker.process.poll() is None
                attempted.clear()
                server.restart(immediate=True)
                stage.until(attempted.is_set)
        finally:
            enough.set()
            deferrer.join()
        with psycopg.connect(dsn, autocommit=True) as conn:
            stage.until(lambda: all_ended(conn))
            rows = conn.execute("select id, status, attempts from procrastinate.jobs").fetchall()
            workers = value(conn, "select count(*) from procrastinate.workers")
        assert worker.process.poll() is None
        worker.process.terminate()
        assert worker.process.wait(PATIENCE) == 0
    assert workers == 1
    assert set(acknowledged) <= {row[0] for row in rows}
    assert {row[1:] for row in rows} == {("succeeded", 1)}
    started = Counter(line.job for line in stage.lines() if line.what == "start")
    assert started == Counter(row[0] for row in rows)
    print(f"\n{restarts} crashes, {len(rows)} jobs, {len(acknowledged)} acknowledged, none lost or run twice")
