"""
An app on a database of its own, workers that stop with the test, and ways to wait for what happens.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.worker import Worker

PATIENCE = 20.0

Until = Callable[..., Awaitable[Any]]


class Working(Protocol):
    """A worker that runs in the background for as long as the `async with` block."""

    def __call__(self, app: App | None = None, **options: Any) -> Any: ...


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[App]:
    """Return an open app on the test's database."""
    app = App(connector=PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        yield app


@pytest.fixture
def working(app: App) -> Working:
    """
    Return an async context manager that runs a worker; by default one that only notifications wake.
    """
    default = app

    @asynccontextmanager
    async def working(app: App | None = None, **options: Any) -> AsyncIterator[Worker]:
        quiet: dict[str, Any] = {
            "install_signal_handlers": False,
            "fetch_job_polling_interval": 30.0,
            "abort_job_polling_interval": 30.0,
        }
        worker = (app or default).make_worker(**{**quiet, **options})
        run = asyncio.create_task(worker.run())
        try:
            yield worker
            worker.stop()
            await asyncio.wait({run}, timeout=PATIENCE)
            assert run.done(), "it did not stop"
        finally:
            while not run.done():
                run.cancel()
                await asyncio.wait({run}, timeout=0.1)
        await run

    return working


@pytest.fixture
def until() -> Until:
    """Return an async function that waits until a condition holds, and returns its value."""

    async def until(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
        deadline = time.monotonic() + patience
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            assert time.monotonic() < deadline, "it did not happen"
            await asyncio.sleep(0.01)

    return until


@pytest.fixture
def status(conn: psycopg.Connection[Any]) -> Callable[[int], str | None]:
    """Return a function that tells the status of a job."""

    def status(job_id: int) -> str | None:
        row = conn.execute("select status from procrastinate.jobs where id = %s", [job_id]).fetchone()
        return row[0] if row else None

    return status


@pytest.fixture
def job(conn: psycopg.Connection[Any]) -> Callable[[int], dict[str, Any]]:
    """Return a function that reads a job's row of the view."""

    def job(job_id: int) -> dict[str, Any]:
        with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            row = cursor.execute("select * from procrastinate.jobs where id = %s", [job_id]).fetchone()
        assert row
        return row

    return job


@pytest.fixture
def events(conn: psycopg.Connection[Any]) -> Callable[[int], list[str]]:
    """Return a function that tells a job's story."""

    def events(job_id: int) -> list[str]:
        rows = conn.execute("select type from procrastinate.events where job_id = %s order by at, id desc", [job_id])
        return [row[0] for row in rows]

    return events


class Program:
    """A worker in a process of its own, that tells on its standard output what it does."""

    def __init__(self, script: Path, dsn: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DSN": dsn, "PYTHONUNBUFFERED": "1"},
        )

    def expect(self, line: str) -> None:
        """Wait for a line of output."""
        assert self.process.stdout
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            for said in self.process.stdout:
                if said.strip() == line:
                    return
        finally:
            timer.cancel()
        raise AssertionError(f"it never said {line!r}: {self.finish()}")

    def catches(self, number: int) -> bool:
        """Tell whether it has a handler for a signal."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        mask = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(mask >> (number - 1) & 1)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self, patience: float = PATIENCE) -> tuple[int, str]:
        """Wait for the end; return the exit code and what went to standard error."""
        _, errors = self.process.communicate(timeout=patience)
        return self.process.returncode, errors


@pytest.fixture
def program(dsn: str, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """
    Return a function that starts a program; `app` and `say` are there, the worker is up to its code.
    """
    started: list[Program] = []
    head = """
        import asyncio, logging, os, sys, time
        from pyprocrastinate import App, PsycopgConnector
        say = lambda text: print(text, flush=True)
        app = App(connector=PsycopgConnector(conninfo=os.environ["DSN"]))
    """

    def program(body: str, dsn: str = dsn) -> Program:
        script = tmp_path / f"program{len(started)}.py"
        script.write_text(textwrap.dedent(head) + textwrap.dedent(body))
        started.append(Program(script, dsn))
        return started[-1]

    yield program
    for each in started:
        each.process.kill()
        each.process.communicate()
