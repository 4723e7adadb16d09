"""One soak: everything is started, broken, left in peace, stopped, and judged."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.account import Report
from tests.faults.checker import check
from tests.faults.nemesis import FAULTS, DiskFull, FailOver, Fault, Nemesis, plan
from tests.faults.record import Record, collect
from tests.faults.stage import Flaw, SoakError, Stage
from tests.faults.tasks import EVERY_SECONDS, WAKES

_DRAIN = 60.0
_PROBES = 4
_ABORTS = 4
# Longer than an idle worker looks again without being told.
_BETWEEN_PROBES = 1.2
_PATIENCE = 10.0


@dataclass(frozen=True)
class Soak:
    """How long, with which faults, and under how much load (jobs a second)."""

    seed: int
    seconds: float = 180.0
    rate: float = 200.0
    kinds: tuple[type[Fault], ...] = tuple(fault for fault in FAULTS if not fault.long)
    # Changes of the schema, for the tests of the checker.
    flaws: tuple[Flaw, ...] = ()
    # Where to keep the record, for `load`.
    keep: Path | None = None
    quiet: bool = True


def run(soak: Soak) -> Report:
    """Run a soak and judge it; nothing of it is left afterwards."""
    return check(record(soak))


def record(soak: Soak) -> Record:
    """Run a soak and return what is known of it."""
    facts: dict[str, Any] = {}
    with Stage(small_disk=DiskFull in soak.kinds, standby=FailOver in soak.kinds, flaws=soak.flaws) as stage:
        kinds = [kind for kind in soak.kinds if kind.possible(stage)]
        facts["impossible"] = [kind.name for kind in soak.kinds if kind not in kinds]
        _say(soak, "the server is there")
        stage.start_workers()
        if absent := _await_workers(stage):
            raise SoakError(f"{', '.join(absent)} did not start: {stage.said()}")
        stage.start_clients(soak.seed, soak.seconds, soak.rate)
        _say(soak, f"{soak.seconds:.0f} s of faults")
        began = int(time.time())
        Nemesis(stage, plan(soak.seed, soak.seconds, kinds), soak.seconds).run()
        stage.join_clients(soak.seconds + 30)
        _say(soak, "the faults are over; waiting until all jobs have ended")
        with stage.admin() as conn:
            facts["schedules"] = (began, _caught_up(conn, stage))
            conn.execute("select procrastinate.unschedule('in sql')")
            facts["drained"] = _drain(conn, stage)
            if facts["drained"] <= _DRAIN:
                facts["absent"] = _await_workers(stage)
                _say(soak, "looking at what holds in peace")
                facts |= {"probes": _PROBES, "aborts": _ABORTS}
                _calm(conn, stage)
                facts |= _left_open(conn, stage)
                _say(soak, "stopping")
            facts["processes"] = _processes(stage)
            facts["late to stop"] = stage.stop_workers(20)
            conn.execute("set statement_timeout = 0")
            facts |= _leftovers(conn, stage)
            found = collect(conn, stage.histories, facts)
        if soak.keep:
            found.save(soak.keep)
            (soak.keep / "errors").write_text(stage.said())
            (soak.keep / "server.log").write_text(stage.log())
        return found


def _say(soak: Soak, sentence: str) -> None:
    if not soak.quiet:
        print(time.strftime("%H:%M:%S"), sentence, file=sys.stderr, flush=True)


def _await_workers(stage: Stage) -> list[str]:
    """Wait until every worker is registered; return those that do not come."""
    deadline = time.monotonic() + 30
    with stage.admin() as conn:
        while True:
            live = {row[0] for row in conn.execute("select name from procrastinate.workers where live")}
            absent = sorted(stage.slots.keys() - live)
            if not absent or time.monotonic() > deadline:
                return absent
            stage.pause(0.05)


def _drain(conn: psycopg.Connection[Any], stage: Stage) -> float:
    """Wait until nothing is left but what schedules go on deferring; return the seconds it took."""
    began = time.monotonic()
    while (took := time.monotonic() - began) <= _DRAIN:
        row = conn.execute("select exists (select from procrastinate.job where task <> 'tick')").fetchone()
        if row == (False,):
            break
        stage.pause(0.1)
    return took


def _calm(conn: psycopg.Connection[Any], stage: Stage) -> None:
    """Look at what can be promised to the second only in peace: waking up, heeding an abort, rescuing."""
    for n in range(_PROBES):
        stage.pause(_BETWEEN_PROBES)
        key = f"probe {n}"
        # To each of those who listen in turn: one that does not hear is found, even if the other one does.
        job = _defer(conn, stage, key, "quick", [*WAKES.values()][n % len(WAKES)])
        stage.history.write("probe", key=key, job=job)
        _until(conn, stage, "status <> 'todo'", [job])
    jobs = [_defer(conn, stage, f"endless {n}", ["work", "patient"][n % 2], "a", seconds=60) for n in range(_ABORTS)]
    _until(conn, stage, "status = 'doing'", jobs)
    for job in jobs:
        answer = _value(conn, "select procrastinate.cancel(%s, abort => true)", job)
        stage.history.write("cancelled", job=job, answer=answer, calm=True)
    _until(conn, stage, "finished_at is not null", jobs)
    jobs = [_defer(conn, stage, f"exposed {n}", "work", "b", seconds=1) for n in range(8)]
    _until(conn, stage, "status <> 'todo'", jobs)
    row = conn.execute("select name from procrastinate.workers order by running desc limit 1").fetchone()
    assert row is not None
    with stage.holding(row[0]) as process:
        process.kill()
        process.wait()
        stage.history.write("killed", name=row[0], pid=process.pid)
        _until(conn, stage, "finished_at is not null", jobs)
    _await_workers(stage)


def _defer(conn: psycopg.Connection[Any], stage: Stage, key: str, task: str, queue: str, **args: Any) -> int:
    args["key"] = key
    stage.history.write("invoke", jobs=[{"args": args}])
    return int(_value(conn, "select procrastinate.defer(%s, %s, %s)", task, json.dumps(args), queue))


def _until(conn: psycopg.Connection[Any], stage: Stage, condition: str, jobs: list[int]) -> None:
    """Wait until a condition holds for all of these jobs, or for longer than any promise allows."""
    query = f"select coalesce(bool_and({condition}), true) from procrastinate.jobs where id = any (%s)"
    deadline = time.monotonic() + _PATIENCE
    while not _value(conn, query, jobs) and time.monotonic() < deadline:
        stage.pause(0.02)


def _caught_up(conn: psycopg.Connection[Any], stage: Stage) -> int:
    """Wait until every tick of the schedule has fired up to now, and return when that was, in seconds of the epoch."""
    now = int(time.time())
    query = "select extract(epoch from last_tick) > %s from procrastinate.schedules where name = 'in sql'"
    deadline = time.monotonic() + _PATIENCE
    while _value(conn, query, now - EVERY_SECONDS) is not True and time.monotonic() < deadline:
        stage.pause(0.05)
    return now


def _left_open(conn: psycopg.Connection[Any], stage: Stage) -> dict[str, int]:
    """Count what the sessions of workers that live and have nothing to do still hold, a moment later, too."""
    others = "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
    queries = {
        "session locks": "select count(*) from pg_locks where locktype = 'advisory'",
        "idle in transaction": f"select count(*) {others} and state like 'idle in transaction%%'",
    }
    deadline = time.monotonic() + _PATIENCE
    while True:
        found = {what: int(_value(conn, query)) for what, query in queries.items()}
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        stage.pause(0.05)


def _leftovers(conn: psycopg.Connection[Any], stage: Stage) -> dict[str, Any]:
    log = stage.log()
    return {
        "prepared transactions": _value(conn, "select count(*) from pg_prepared_xacts"),
        "notifications": _value(conn, "select (pg_notification_queue_usage() > 0.01)::int"),
        "deadlocks": log.count("deadlock detected"),
        "corrupt": _corrupt(conn) + re.findall(r".*(?:PANIC|invalid page|could not read block).*", log),
    }


def _corrupt(conn: psycopg.Connection[Any]) -> list[str]:
    """Return what is wrong with tables and indexes, where amcheck is there to tell."""
    found = []
    relations = conn.execute("""
        select c.oid::regclass::text, c.relkind from pg_class as c
         where c.relnamespace = 'procrastinate'::regnamespace
           and (c.relkind = 'r' or c.relam = (select a.oid from pg_am as a where a.amname = 'btree'))
        """).fetchall()
    for name, kind in relations:
        try:
            if kind == "r":
                found += [f"{name}: {row}" for row in conn.execute("select * from verify_heapam(%s)", [name])]
            else:
                conn.execute("select bt_index_check(%s::regclass, true)", [name])
        except psycopg.errors.UndefinedFunction:
            break
        except psycopg.Error as error:
            found.append(f"{name}: {error}")
    return found


def _processes(stage: Stage) -> dict[str, tuple[int, int]]:
    """Return how many threads and open files each worker has, where that can be seen."""
    found = {}
    for name, slot in stage.slots.items():
        proc = Path(f"/proc/{slot.process.pid}")
        with contextlib.suppress(OSError):
            found[name] = (len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir())))
    return found


def _value(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params).fetchone()
    assert row is not None
    return row[0]
