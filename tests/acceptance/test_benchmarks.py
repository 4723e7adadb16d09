"""The benchmarks run, and leave no process behind however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "benchmarks", "--quick", "--peers", ""]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]


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


def test_each_workload_prints_a_table(tmp_path: Path, marked: dict[str, str]) -> None:
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [*COMMAND, "--only", "defer,bulk,latency", "--json", str(file)],
        cwd=ROOT,
        env=marked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tables = json.loads(file.read_text())["tables"]
    for table in tables:
        assert table["title"] in done.stdout
        for row in table["rows"]:
            assert len(row) == len(table["columns"])
    assert len(tables) == 3
    assert not processes(marked)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_is_stopped(marked: dict[str, str], how: signal.Signals) -> None:
    with subprocess.Popen(
        [*COMMAND, "--only", "bulk,drain"],
        cwd=ROOT,
        env=marked,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr
        assert "bulk: round 1 of 1 done" in run.stderr.readline()
        before = processes(marked)
        assert len(before) > 5  # the harness, its server with its processes, …
        run.send_signal(how)
        run.wait(60)
    deadline = time.monotonic() + 60
    while left := {(pid, age) for pid, age in before if still_there(pid, age)} | processes(marked):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
