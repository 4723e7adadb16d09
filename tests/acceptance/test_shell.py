"""`pyprocrastinate shell`, `jobs` and `queues`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(dsn: str) -> Run:
    clean = {k: v for k, v in os.environ.items() if not re.match("PG|PROCRASTINATE_", k)}

    def run(*args: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "pyprocrastinate", "--dsn", dsn, *args]
        done = subprocess.run(argv, input=stdin, env=clean, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture(autouse=True)
def jobs(conn: psycopg.Connection[Any]) -> None:
    """Defer jobs 1 to 3; the last one has failed."""
    conn.execute("select procrastinate.defer('mail', '{\"to\": \"Ada\"}', queue => 'q', lock => 'l', priority => 5)")
    conn.execute("select procrastinate.defer('clean')")
    conn.execute("select procrastinate.defer('broken', queue => 'other')")
    conn.execute("select procrastinate.fetch_v1(procrastinate.register_worker_v1('w', '{other}'))")
    conn.execute("select procrastinate.finish_job_v1(3, 'failed')")


@pytest.mark.not_pooled("a role is set as it connects")
def test_who_may_read_no_job_is_still_told_what_was_done(run: Run, dsn: str, conn: psycopg.Connection[Any]) -> None:
    conn.execute("create role shell_client login; select procrastinate.grant_access('shell_client', 'client')")
    try:
        client = ("--dsn", make_conninfo(dsn, user="shell_client"), "shell")
        assert run(*client, "cancel", "1").stdout == "#1 is cancelled\n"
        assert run(*client, "retry", "3").stdout == "#3 is put back\n"
        assert "permission denied" in run(*client, "list_jobs", status=1).stderr
    finally:
        conn.execute("select procrastinate.revoke_access('shell_client'); drop role shell_client")
    rows = conn.execute("select id, status from procrastinate.jobs order by id").fetchall()
    assert rows == [(1, "cancelled"), (2, "todo"), (3, "todo")]


@pytest.mark.scenario(74)
def test_one_command(run: Run) -> None:
    assert run("shell", "list_jobs").stdout.splitlines() == [
        "#1 mail on q - [todo]",
        "#2 clean on default - [todo]",
        "#3 broken on other - [failed]",
    ]
    assert run("shell", "list_jobs", "status=todo", "queue=q", "details").stdout == (
        "#1 mail on q - [todo] (attempts=0, priority=5, scheduled_at=None, args={'to': 'Ada'}, lock=l)\n"
    )
    assert run("shell", "list_jobs", "id=2").stdout == "#2 clean on default - [todo]\n"
    zeros = "doing: 0, succeeded: 0, failed: 0, cancelled: 0, aborted: 0"
    assert run("shell", "list_queues", "task=mail").stdout == f"q: 1 jobs (todo: 1, {zeros})\n"
    assert run("shell", "list_tasks", "queue=q").stdout == f"mail: 1 jobs (todo: 1, {zeros})\n"
    assert run("shell", "list_locks").stdout == f"l: 1 jobs (todo: 1, {zeros})\n"
    assert run("shell", "retry", "3").stdout == "#3 broken on other - [todo]\n"
    assert run("shell", "cancel", "3").stdout == "#3 broken on other - [cancelled]\n"


@pytest.mark.scenario(74)
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["cancel", "3"], "it is failed"),
        (["cancel", "99"], "there is no job 99"),
        (["retry", "1"], "job 1 is waiting"),
        (["retry", "99"], "there is no job 99"),
        (["dance"], "there is no command dance"),
        (["list_jobs", "mail"], "write name=value"),
        (["list_jobs", "colour=red"], "colour"),
    ],
)
def test_one_command_that_fails(run: Run, command: list[str], said: str) -> None:
    failed = run("shell", *command, status=1)
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.scenario(74)
def test_the_prompt_survives_what_goes_wrong(run: Run) -> None:
    said = run("shell", stdin="help\n\ndance\nretry 99\nretry x\nlist_jobs id=2\nexit\nlist_jobs id=1\n").stdout
    assert "list_jobs" in said
    assert "Unknown syntax: dance" in said
    assert "JobNotFound: there is no job 99" in said
    assert "ValueError" in said
    assert "#2 clean on default - [todo]" in said
    assert "#1" not in said


def test_the_end_of_the_input_ends_the_prompt(run: Run) -> None:
    assert "#2 clean" in run("shell", stdin="list_jobs id=2\n").stdout


def test_jobs_and_queues(run: Run) -> None:
    assert run("jobs", "--status", "todo", "--queue", "q").stdout == "#1 mail on q - [todo]\n"
    assert run("jobs", "--id", "3", "--details").stdout.startswith("#3 broken on other - [failed] (attempts=1, ")
    assert [line.partition(" (")[0] for line in run("queues").stdout.splitlines()] == [
        "default: 1 jobs",
        "other: 1 jobs",
        "q: 1 jobs",
    ]
