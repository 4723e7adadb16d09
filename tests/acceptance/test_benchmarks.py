"""The benchmarks measure what is there, and leave no process behind however they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from benchmarks.harness import Drain, Harness, Result
from benchmarks.load import Load
from benchmarks.peers import Peers
from benchmarks.report import fill
from benchmarks.systems import find
from benchmarks.targets import Target, beside
from benchmarks.workloads import Measured, times

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "benchmarks", "--quick", "--peers", ""]

pytestmark = pytest.mark.not_pooled("they start servers of their own")
in_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness({(): Path(sys.executable)}) as harness:
        yield harness


@pytest.mark.parametrize("name", ["pyprocrastinate", "pyprocrastinate:prometheus", "core", "core:hookless"])
def test_a_drain_is_measured(harness: Harness, name: str) -> None:
    result = harness.drain(find(name), Drain(10, Load(300)))
    assert result.jobs == 300
    assert result.rate > 0
    assert 0 < result.figures["statements"] <= 2
    assert 2 <= result.figures["dead"] < 2.1  # a claim, an end; and what the worker says of itself
    assert result.figures["wal"] > 100


def test_a_drain_beside_other_jobs_leaves_them(harness: Harness) -> None:
    waiting = Load(200, queue="'other'")
    drain = Drain(10, Load(100, lock="'lock ' || g % 3"), (waiting,), hold=True, queues=("default",))
    assert harness.drain(find("pyprocrastinate"), drain).jobs == 100


def test_what_is_not_true_of_a_run_is_told(conn: psycopg.Connection[Any]) -> None:
    core = find("core")
    worker = one(conn, "select procrastinate.register_worker_v1('w')")
    jobs = [one(conn, "select procrastinate.defer('noop', lock => %s)", lock) for lock in (None, None, "l", "l")]
    for number, job in enumerate(jobs):
        token = one(conn, "select token from procrastinate.fetch_v1(%s)", worker)
        conn.execute("select procrastinate.complete_v1(%s, %s)", [job, token])
        assert core.complaints(conn, number + 1) == []
    assert core.complaints(conn, 5) == ["not true: all that ran are listed"]
    earlier = "update procrastinate.done as d set started_at = o.started_at - interval '1 ms'"
    conn.execute(f"{earlier} from procrastinate.done as o where d.id = %s and o.id = %s", [jobs[1], jobs[0]])
    later = "update procrastinate.done as d set finished_at = o.started_at + interval '1 ms'"
    conn.execute(f"{later} from procrastinate.done as o where d.id = %s and o.id = %s", [jobs[2], jobs[3]])
    assert core.complaints(conn, 4) == [
        "not true: jobs without a lock have started in order",
        "not true: jobs of one lock have run one after the other, in order",
    ]
    assert find("core:delete").complaints(conn, 4) == ["not true: nothing is kept"]


def test_a_target_is_met_or_not_or_was_not_measured() -> None:
    measured = Measured()
    for rate in 90, 100, 110:
        measured.add("ours", Result(rate, 1.0))
        measured.add("theirs", Result(50, 1.0))
    row = Target("drain", "beside theirs", 2.0, beside("ours", "theirs"), times).row(measured)
    assert row == ["beside theirs", "at least 2.00x", "2.00 [1.80 to 2.20]x", "yes"]
    assert Target("drain", "", 2.1, beside("ours", "theirs")).row(measured)[-1] == "**no**"
    assert Target("drain", "", 1.9, beside("ours", "theirs"), at_most=True).row(measured)[-1] == "**no**"
    assert Target("drain", "", 2.0, beside("ours", "nobody's")).row(measured)[-2:] == ["-", "not measured"]


def test_tables_replace_those_of_the_run_before_in_a_page() -> None:
    def run(cell: str) -> dict[str, Any]:
        table = {"title": "Drain", "columns": ["jobs/s"], "rows": [[cell]], "sentences": []}
        rest = {
            "versions": {"Python": "3"},
            "at": "now",
            "command": ["--quick", "--json", "/a/file", "--peers", ""],
            "seconds": 1,
            "load": 0.5,
        }
        return {"tables": {"drain": [table]}, "targets": {**table, "title": "Targets"}, **rest}

    begin, end = "<!-- figures: drain -->", "<!-- end -->"
    page = f"# Page\n\n{begin}\n{end}\n\nMore.\n\n<!-- figures: soak -->\n{end}\n"
    once = fill(page, [run("1")])
    rows = "| jobs/s |\n|--------|\n| 1      |"
    assert f"{begin}\n\n### Drain\n\n{rows}\n\n`python -m benchmarks --quick --peers ''` in 1 s; Python 3; " in once
    assert once.endswith("More.\n\n<!-- figures: soak -->\n<!-- end -->\n")
    assert fill(once, [run("2")]) == fill(page, [run("2")])
    assert ".](charts/drain.svg)\n\n### Drain" in fill(page, [run("1")], ["drain"])


def test_a_peer_that_cannot_be_installed_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    peers = Peers(["celery"])
    assert peers.present == []
    assert peers.missing == ["missing: Celery: redis-server is not installed"]


def one(conn: psycopg.Connection[Any], query: LiteralString, *parameters: object) -> Any:
    row = conn.execute(query, parameters).fetchone()
    assert row
    return row[0]


@pytest.fixture
def marked() -> dict[str, str]:
    """Return an environment that all processes of a run inherit."""
    return os.environ | {"BENCHMARKS_TEST": uuid.uuid4().hex}


def processes(environ: dict[str, str]) -> set[tuple[int, str]]:
    """Return the processes with the mark of this environment and their children, with their age."""
    mark = f"BENCHMARKS_TEST={environ['BENCHMARKS_TEST']}".encode()
    parents, ages, found = {}, {}, set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if stat[0] == "Z":
                    continue
                parents[int(entry.name)], ages[int(entry.name)] = int(stat[1]), stat[19]
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
        except OSError:
            continue  # it has gone
    # PostgreSQL writes its title over its environment.
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {(pid, ages[pid]) for pid in found}


def still_there(pid: int, age: str) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return stat[0] != "Z" and stat[19] == age


@pytest.mark.long
@in_proc
def test_each_workload_prints_a_table(tmp_path: Path, marked: dict[str, str]) -> None:
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [*COMMAND, "--only", "defer,latency", "--json", str(file)],
        cwd=ROOT,
        env=marked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    tables = [*figures["tables"]["defer"], *figures["tables"]["latency"], figures["targets"]]
    for table in tables:
        assert table["title"] in done.stdout
        for row in table["rows"]:
            assert len(row) == len(table["columns"])
    assert len(tables) == 4
    assert not processes(marked)


@pytest.mark.long
@in_proc
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_is_stopped(marked: dict[str, str], how: signal.Signals) -> None:
    with subprocess.Popen(
        [*COMMAND, "--only", "latency,drain"],
        cwd=ROOT,
        env=marked,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr
        assert "latency: round 1 of 1 done" in run.stderr.readline()
        before = processes(marked)
        assert len(before) > 5  # the harness, its server with its processes, …
        run.send_signal(how)
        run.wait(60)
    deadline = time.monotonic() + 60
    while left := {(pid, age) for pid, age in before if still_there(pid, age)} | processes(marked):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
