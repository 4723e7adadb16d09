"""
Procrastinate itself, as its release on PyPI installs and runs it, in the database of the test.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.rows import namedtuple_row

from pyprocrastinate_import import import_procrastinate

Run = Callable[..., Result]


class Old:
    """Procrastinate, with its tables in one schema of the test's database."""

    def __init__(self, dsn: str, schema: str) -> None:
        quoted = sql.Identifier(schema).as_string()
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"create schema if not exists {quoted}")
        kwargs = {"options": f"-c search_path={quoted}", "autocommit": True}
        self.conn = psycopg.connect(dsn, row_factory=namedtuple_row, **kwargs)
        self.connector = procrastinate.SyncPsycopgConnector(conninfo=dsn, kwargs=kwargs)
        self.app = procrastinate.App(connector=self.connector).open()
        self.app.schema_manager.apply_schema()

    def close(self) -> None:
        self.app.close()
        self.conn.close()

    def defer(self, task: str = "task", args: dict[str, Any] | None = None, **options: Any) -> int:
        """Defer a job, as programs do."""
        return self.app.configure_task(task, **options).defer(**(args or {}))

    def worker(self, seconds_ago: float = 60) -> int:
        """Register a worker that gave its last heartbeat so long ago."""
        ((worker_id,),) = self.conn.execute("select * from procrastinate_register_worker_v1()").fetchall()
        self.conn.execute(
            "update procrastinate_workers set last_heartbeat = now() - make_interval(secs => %s) where id = %s",
            [seconds_ago, worker_id],
        )
        return worker_id

    def fetch(self, worker_id: int) -> int:
        """Start the next job; return its id."""
        (job,) = self.conn.execute("select * from procrastinate_fetch_job_v2(null, %s)", [worker_id]).fetchall()
        return job.id

    def finish(self, job_id: int, status: str) -> None:
        self.conn.execute("select procrastinate_finish_job_v1(%s, %s, false)", [job_id, status])

    def retry(self, job_id: int, at: datetime.datetime | None = None) -> None:
        self.conn.execute("select procrastinate_retry_job_v2(%s, coalesce(%s, now()), null, null, null)", [job_id, at])

    def periodic(self, task: str, timestamp: int, periodic_id: str = "") -> int | None:
        """Defer the job of one tick."""
        query = "select procrastinate_defer_periodic_job_v2('default', null, null, %s, 0, %s, %s, '{}')"
        ((job_id,),) = self.conn.execute(query, [task, periodic_id, timestamp]).fetchall()
        return job_id

    def statuses(self) -> dict[int, str]:
        return dict(self.conn.execute("select id, status::text from procrastinate_jobs order by id").fetchall())


@pytest.fixture
def old_in(dsn: str) -> Iterator[Callable[[str], Old]]:
    """Return a function that installs Procrastinate in a schema."""
    with contextlib.ExitStack() as stack:
        yield lambda schema: stack.enter_context(contextlib.closing(Old(dsn, schema)))


@pytest.fixture
def old(old_in: Callable[[str], Old]) -> Old:
    """Return Procrastinate in the schema public."""
    return old_in("public")


@pytest.fixture
def run(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command with these options, in this process."""
    monkeypatch.setenv("PROCRASTINATE_DSN", dsn)

    def run(*options: str) -> Result:
        return CliRunner().invoke(import_procrastinate, options)

    return run


@pytest.fixture
def jobs(conn: psycopg.Connection[Any]) -> Callable[[], list[Any]]:
    """Return a function that lists the jobs that are here."""

    def jobs() -> list[Any]:
        cursor = conn.cursor(row_factory=namedtuple_row)
        return cursor.execute("select * from procrastinate.jobs order by id").fetchall()

    return jobs
