"""The programs in examples/, run as their first lines say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

# PgBouncer before 1.21 does not track what programs prepare, unless they say prepare_threshold=None.
pytestmark = pytest.mark.not_pooled("they prepare statements")

EXAMPLES = Path(__file__).parents[2] / "examples"
TESTED = {
    "demo",  # in test_demo.py
    "graceful_abort.py",
    "journal.py",
    "plain_sql",
    "quickstart.py",
    "request_id.py",
    "retries_and_locks.py",
    "shell_worker.sh",
}


@pytest.fixture
def run(folder, dsn):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = os.environ | {"PROCRASTINATE_DSN": dsn, "PATH": path, "PYTHONWARNINGS": "error"}
    environ["PROCRASTINATE_PLUGINS"] = "embedded"  # which brings psql

    def run(*argv, cwd=folder):
        done = subprocess.run([*map(str, argv)], cwd=cwd, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        # The command line logs there; a program has nothing to complain about.
        assert done.stderr == "" if argv[0] == sys.executable else "WARN" not in done.stderr
        return done.stdout.splitlines()

    return run


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.iterdir() if path.name != "__pycache__"} == TESTED


def test_quickstart(run):
    assert run(sys.executable, EXAMPLES / "quickstart.py") == ["Hello Grace!", "Hello Ada!"]


def test_retries_and_locks(run):
    printed = run(sys.executable, EXAMPLES / "retries_and_locks.py")
    assert [line for line in printed if line.startswith("Ada")] == [
        "Ada pays 5000: the bank is busy",
        "Ada pays 5000: the bank is busy",
        "Ada pays 5000: done",
        "Ada pays 20: done",
        "Ada pays 30: done",
    ]
    assert [line for line in printed if line.startswith("Bob")] == ["Bob pays 7: done"]


def test_graceful_abort(run):
    printed = run(sys.executable, EXAMPLES / "graceful_abort.py")
    assert sorted(printed[:2]) == ["dig: fills the hole in", "listen: hangs up"]
    assert [re.sub(r"\d+", "N", line) for line in printed[2:]] == ["job N: aborted"] * 2


def test_journal(folder, dsn):
    path = folder / "journal.txt"
    program = [sys.executable, EXAMPLES / "journal.py", path]
    worker = subprocess.Popen(program, cwd=folder, env=os.environ | {"PROCRASTINATE_DSN": dsn})
    try:
        deadline = time.monotonic() + 60
        while not path.exists() or path.read_text().count("start") < 2:
            assert worker.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
    lines = [line[20:] for line in path.read_text().splitlines()]
    assert lines == [
        "start wait[1](seconds=0)",
        "start wait[2](seconds=3600)",
        "shutdown of worker; running: wait[2](seconds=3600)",
        "abort wait[2](seconds=3600): shutdown",
    ]


def test_request_id(folder, dsn):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "request_id.py"],
        cwd=folder,
        env=os.environ | {"PROCRASTINATE_DSN": dsn},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(line for line in done.stdout.splitlines() if "request" in line) == [
        "cake is sent: request r1",
        "order of cake: request r1",
        "order of tea: request r0",
        "tea is sent: request r0",
    ]


def test_plain_sql(run, pg_server, dsn):
    pg_server.tool("psql")
    shop = EXAMPLES / "plain_sql"
    waiting = run("pyprocrastinate", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-f", shop / "shop.sql")
    assert [line.split("|")[1:3] for line in waiting if "|" in line] == [["todo", "confirm_order"]] * 3
    worker = run("pyprocrastinate", "-a", "shop.app", "worker", "--one-shot", cwd=shop)
    assert worker == ["order 1: thank you, Ada", "order 3: thank you, Grace", "order 4: thank you, Edsger"]
    with psycopg.connect(dsn) as conn:
        planned = "select procrastinate.unschedule('report'), procrastinate.unschedule('other')"
        assert conn.execute(planned).fetchone() == (True, False)


@pytest.mark.needs_tool("sh")
def test_shell_worker(run, pg_server, conn, dsn, monkeypatch):
    psql = pg_server.tool("psql")
    for args in ('{"text": "a | b"}', '{"text": "it\'s"}'):
        conn.execute("select procrastinate.defer('echo', %s)", [args])
    conn.execute("select procrastinate.defer('unheard_of')")
    printed = run("env", f"PATH={psql.parent}:/usr/bin:/bin", EXAMPLES / "shell_worker.sh", dsn)
    assert printed == ['job 1: {"text": "a | b"}', 'job 2: {"text": "it\'s"}']
    statuses = conn.execute("select id, status from procrastinate.jobs order by id").fetchall()
    assert statuses == [(1, "succeeded"), (2, "succeeded"), (3, "failed")]
    assert conn.execute("select count(*) from procrastinate.workers").fetchone() == (0,)
