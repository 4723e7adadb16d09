"""
A load of everything at once, by bare clients of the worker protocol, each a process of its own.

Deferrers commit late and roll back; workers of mixed capacities and queue lists fail, release,
complete in transactions of their own and present old tokens; an operator cancels and aborts; some
workers are killed. Every client appends what it sees to a file, one write an event, so that
nothing is lost with it; `judge` reads the files.

The times in the history are of the clock that all processes of a machine share.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

QUEUES = ["a", "b", "c"]
LOCKS = 30
QUEUEING_LOCKS = 40
STALLED_AFTER = 3.0
WORK = (
    "select id, token, attempts, priority, lock, queueing_lock, queue, verdicts, scan_next"
    " from procrastinate.work_v1(%s::bigint, %s::bigint[], %s::bigint[], %s::jsonb, true,"
    " %s::int, %s::int, %s::bigint[])"
)


@dataclass(frozen=True)
class Load:
    """How much of what."""

    dsn: str
    folder: str
    seed: int
    jobs: int = 4000
    deferrers: int = 3
    # the queues that each worker serves, null for all
    workers: tuple[tuple[str, ...] | None, ...] = (None, None, None, None)
    operator: bool = True
    kills: int = 2
    deadline: float = 600


class History:
    """A file that survives the death of whoever writes it."""

    def __init__(self, folder: str, name: str) -> None:
        path = Path(folder) / f"{name}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: str, **what: Any) -> None:
        """Append an event."""
        os.write(self._file, json.dumps({"kind": kind, **what}).encode() + b"\n")


def run(load: Load) -> float:
    """Run a load to its end and return the seconds it took; raise what it raised in a client."""
    context = multiprocessing.get_context("spawn")
    # a file, for who is killed may hold what a semaphore is made of
    stop = Path(load.folder) / "stop"
    rnd = random.Random(load.seed)
    names = iter(f"worker{n}" for n in range(1000))
    processes: dict[str, Any] = {}

    def start(target: str, name: str, *args: Any) -> Any:
        process = context.Process(
            target=_client, name=name, args=(target, asdict(load), name, stop, *args), daemon=True
        )
        process.start()
        processes[name] = process
        return process

    started = time.monotonic()
    share = load.jobs // load.deferrers
    deferring = [start("defer", f"deferrer{n}", share) for n in range(load.deferrers)]
    lists = [list(queues) if queues is not None else None for queues in load.workers]
    working = [start("work", next(names), queues) for queues in lists]
    if load.operator:
        start("operate", "operator")
    own = History(load.folder, "run")
    kill_at = sorted(rnd.uniform(0.2, 0.9) * load.jobs for _ in range(load.kills))
    try:
        with psycopg.connect(load.dsn, autocommit=True) as conn:
            while True:
                row = conn.execute(
                    "select (select count(*) from procrastinate.done), exists (select from procrastinate.job)"
                ).fetchone()
                assert row is not None
                while kill_at and row[0] > kill_at[0]:
                    kill_at.pop(0)
                    n = rnd.randrange(len(working))
                    at = time.monotonic()
                    os.kill(working[n].pid, signal.SIGKILL)
                    working[n].join()
                    _await_end(conn, working[n].name)
                    own.write("killed", name=working[n].name, at=at, gone=time.monotonic())
                    working[n] = start("work", next(names), lists[n])
                if not row[1] and not any(p.is_alive() for p in deferring):
                    break
                failed = [n for n, p in processes.items() if p.exitcode and p.exitcode > 0]
                if failed or time.monotonic() - started > load.deadline:
                    raise AssertionError(f"failed: {failed}; jobs left: {row[1]}")
                time.sleep(0.1)
        stop.touch()
        for process in processes.values():
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL)
    finally:
        for process in processes.values():
            process.kill()
            process.join()
    return time.monotonic() - started


def _await_end(conn: psycopg.Connection[Any], name: str) -> None:
    """Wait until the server, too, has noticed that a client is no more."""
    query = "select exists (select from pg_stat_activity where application_name = %s)"
    while conn.execute(query, [name]).fetchone() == (True,):
        time.sleep(0.01)


def _client(target: str, load: dict[str, Any], name: str, stop: Path, *args: Any) -> None:
    targets: dict[str, Any] = {"defer": _defer, "work": _work, "operate": _operate}
    options = Load(**load)
    options = replace(options, dsn=make_conninfo(options.dsn, application_name=name))
    rnd = random.Random(f"{options.seed} {name}")
    targets[target](options, rnd, History(options.folder, name), stop, *args)


def _job(rnd: random.Random) -> dict[str, Any]:
    job: dict[str, Any] = {
        "task": "t",
        "queue": rnd.choice(QUEUES),
        "priority": rnd.choice([0, 0, 0, 0, 1, 2, 5, -1, -3]),
        "retry": {"max_attempts": 3, "wait": rnd.choice([0, 0, 0.05])},
    }
    if rnd.random() < 1 / 3:
        job["lock"] = f"L{rnd.randrange(LOCKS)}"
    if rnd.random() < 0.03:
        job["schedule_in"] = round(rnd.uniform(0.05, 0.5), 3)
    if rnd.random() < 0.05:
        # one place for each, so that a replaced job does not move
        n = rnd.randrange(QUEUEING_LOCKS)
        job |= {"queueing_lock": f"Q{n}", "queue": QUEUES[n % 3], "priority": 0}
        job["lock"] = f"L{n % LOCKS}" if n % 2 else None
    return job


def _defer(load: Load, rnd: random.Random, history: History, stop: Path, count: int) -> None:
    with psycopg.connect(load.dsn) as conn:
        while count > 0:
            jobs = [_job(rnd) for _ in range(min(count, rnd.choice([1, 1, 3, 50])))]
            # locks in one order, for an open transaction that has one keeps others waiting
            jobs.sort(key=lambda job: job.get("queueing_lock") or "")
            rows = conn.execute(
                "select id, created from procrastinate.defer_many(%s, %s) order by ord",
                [json.dumps(jobs), rnd.choice(["ignore", "replace"])],
            ).fetchall()
            if rnd.random() < 0.05:
                time.sleep(rnd.random() * 0.1)
            if rnd.random() < 0.02:
                conn.rollback()
                history.write("rolled back", ids=[i for i, created in rows if created])
                continue
            conn.commit()
            made = [dict(job, id=row[0]) for job, row in zip(jobs, rows, strict=True) if row[1]]
            history.write("deferred", at=time.monotonic(), jobs=made)
            count -= len(jobs)
            if rnd.random() < 0.3:
                time.sleep(0.002)


def _work(load: Load, rnd: random.Random, history: History, stop: Path, queues: list[str] | None) -> None:
    conn = psycopg.connect(load.dsn, autocommit=True, prepare_threshold=0)
    user = psycopg.connect(load.dsn)
    worker = _register(conn, history, queues)
    ended: list[dict[str, Any]] = []
    long: list[tuple[float, dict[str, Any]]] = []
    before: deque[tuple[int, int]] = deque(maxlen=50)
    aborted: set[int] = set()
    scan: list[int] | None = None
    beat = 0.0
    idle = 0
    while not stop.exists():
        if time.monotonic() > beat:
            beat = time.monotonic() + 0.3
            row = conn.execute("select * from procrastinate.heartbeat_v1(%s)", [worker]).fetchone()
            assert row is not None
            aborted = set(row[1])
            conn.execute("select * from procrastinate.tick_v1()")
        now = time.monotonic()
        due = [job for at, job in long if at <= now]
        long = [(at, job) for at, job in long if at > now]
        ended += [_end(rnd, job, aborted) for job in due]
        plain = [e for e in ended if e["outcome"] == "succeeded" and "result" not in e]
        others = [e for e in ended if e not in plain]
        capacity, extra = rnd.choice([1, 5, 30]), rnd.choice([0, 0, 0, 3, 40])
        sent = time.monotonic()
        told = [[e["id"], e["token"], e["outcome"]] for e in ended]
        history.write("send", at=sent, told=told)
        try:
            rows = conn.execute(
                WORK,
                [
                    worker,
                    [e["id"] for e in plain],
                    [e["token"] for e in plain],
                    json.dumps(others),
                    capacity,
                    extra,
                    scan,
                ],
            ).fetchall()
        except psycopg.Error as error:
            if error.sqlstate != "JQ004":
                raise
            # silent for too long, which a busy machine may bring about
            worker = _register(conn, history, queues)
            continue
        got = time.monotonic()
        *rows, last = rows
        lanes = scan is not None and scan[0] > 0
        scan = last[8]
        verdicts = {v["token"]: v for v in last[7] or []}
        history.write(
            "call",
            sent=sent,
            got=got,
            capacity=capacity,
            extra=extra,
            queues=queues,
            lanes=lanes,
            rows=[row[:7] for row in rows],
            told=told,
            verdicts=list(verdicts.values()),
        )
        refused = [e for e in ended if verdicts.get(e["token"], {}).get("verdict") == "refused"]
        before += [(e["id"], e["token"]) for e in ended if e not in refused]
        ended = refused
        if rows:
            idle = 0
            if rnd.random() < 0.5:
                time.sleep(rnd.random() * 0.004)
        else:
            idle += 1
            time.sleep(0.005)
            if idle > 5:
                conn.execute("select * from procrastinate.idle_v1(%s)", [worker])
                scan = None
        for row in rows:
            job = {"id": row[0], "token": row[1]}
            chance = rnd.random()
            if chance < 0.03:
                long.append((time.monotonic() + rnd.uniform(0.02, 0.3), job))
            elif chance < 0.04:
                _complete(user, rnd, history, job)
                ended.append(dict(job, outcome="succeeded"))
            else:
                ended.append(_end(rnd, job, aborted))
        if before and rnd.random() < 0.05:
            # a run that has ended, and one of another time for a job that runs now
            presented = [rnd.choice(before)] + [(job["id"], before[0][1]) for job in ended[:1]]
            _present_again(conn, history, worker, presented)
    # what is still held goes back, as a worker that stops would do
    conn.execute("select procrastinate.unregister_worker_v1(%s)", [worker])


def _register(conn: psycopg.Connection[Any], history: History, queues: list[str] | None) -> int:
    row = conn.execute(
        "select procrastinate.register_worker_v1('load', %s, '{\"t\": {}}',"
        " stalled_after => make_interval(secs => %s))",
        [queues, STALLED_AFTER],
    ).fetchone()
    assert row is not None
    history.write("registered", at=time.monotonic(), worker=row[0])
    return int(row[0])


def _end(rnd: random.Random, job: dict[str, Any], aborted: set[int]) -> dict[str, Any]:
    if job["id"] in aborted:
        return dict(job, outcome="aborted", reason="user")
    chance = rnd.random()
    if chance < 0.05:
        return dict(job, outcome="failed", error={"class": "ValueError", "message": "no"})
    if chance < 0.07:
        return dict(job, outcome="released")
    if chance < 0.09:
        return dict(job, outcome="succeeded", result={"n": 1})
    return dict(job, outcome="succeeded")


def _complete(conn: psycopg.Connection[Any], rnd: random.Random, history: History, job: dict[str, Any]) -> None:
    try:
        conn.execute("insert into effect values (%s)", [job["id"]])
        conn.execute("select procrastinate.complete_v1(%s, %s)", [job["id"], job["token"]])
        time.sleep(rnd.random() * 0.05)
        if rnd.random() < 0.1:
            conn.rollback()
            return
        history.write("completing", at=time.monotonic(), **job)
        conn.commit()
        history.write("completed", at=time.monotonic(), **job)
    except psycopg.Error as error:
        conn.rollback()
        if error.sqlstate != "JQ002":
            raise


def _present_again(
    conn: psycopg.Connection[Any], history: History, worker: int, presented: list[tuple[int, int]]
) -> None:
    for id_, token in presented:
        row = conn.execute(
            "select verdict from procrastinate.finish_v1(%s, array[%s::bigint], array[%s::bigint])",
            [worker, id_, token],
        ).fetchone()
        assert row is not None
        history.write("again", id=id_, token=token, verdict=row[0])


def _operate(load: Load, rnd: random.Random, history: History, stop: Path) -> None:
    conn = psycopg.connect(load.dsn)
    while not stop.exists():
        abort = rnd.random() < 0.5
        ids = [
            row[0]
            for row in conn.execute(
                "select id from procrastinate.jobs where status = %s order by random() limit %s",
                ["doing" if abort else "todo", rnd.choice([1, 1, 3])],
            ).fetchall()
        ]
        conn.rollback()
        began = time.monotonic()
        answers = []
        for id_ in sorted(ids):
            row = conn.execute("select procrastinate.cancel(%s, abort => %s)", [id_, abort]).fetchone()
            assert row is not None
            answers.append([id_, row[0]])
        if not abort:
            time.sleep(rnd.random() * 0.02)
        kept = rnd.random() < 0.5
        conn.commit() if kept else conn.rollback()
        history.write("cancel", began=began, ended=time.monotonic(), answers=answers, committed=kept)
        time.sleep(rnd.random() * 0.05)
