"""A worker of this release lives through the upgrade to one that speaks another protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyprocrastinate.exceptions import ProtocolInUse
from pyprocrastinate.migrate import migrate
from pyprocrastinate.protocol import PROTOCOL

APP = """
from pyprocrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector())

@app.task(name="say", retry=1)
def say(what):
    print(what, flush=True)
"""

Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a worker process."""
    (tmp_path / "rolling.py").write_text(APP)
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pyprocrastinate", "-a", "rolling.app", "worker", "-n", "old"]
        started.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env=os.environ | {"PROCRASTINATE_DSN": dsn},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.scenario(76)
@pytest.mark.skipif(sys.platform == "win32", reason="there, SIGTERM kills")
def test_a_worker_lives_until_it_is_replaced(
    dsn: str, conn: psycopg.Connection[Any], release: Any, start: Start
) -> None:
    worker = start()
    assert worker.stdout

    def runs(what: str) -> bool:
        conn.execute("select procrastinate.defer('say', jsonb_build_object('what', %s::text))", [what])
        assert worker.stdout
        return worker.stdout.readline() == f"{what}\n"

    assert runs("before")

    release.speaks_the_next_protocol()
    release.add("migrations/pre/9001_more.sql", "alter table procrastinate.job add column more int;")
    assert len(migrate(dsn, stage="pre")) == 2
    assert runs("between the stages")
    with pytest.raises(ProtocolInUse, match=r"old \(id \d+, protocol"):
        migrate(dsn, stage="post")
    assert runs("after the stage that was refused")

    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert len(migrate(dsn, stage="post")) == 1

    late = start()
    _, said = late.communicate(timeout=60)
    assert late.returncode == 1
    assert f"has retired protocol {PROTOCOL}" in said.splitlines()[-1]
    states = conn.execute("select distinct status, attempts from procrastinate.jobs").fetchall()
    assert states == [("succeeded", 1)]
