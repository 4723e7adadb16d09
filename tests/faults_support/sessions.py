"""Sessions that run statements side by side, so that a test can be written as an isolation spec."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg

Row = tuple[Any, ...]
Connect = Callable[..., psycopg.Connection[Any]]

# What cannot happen while the machine lives: only reached where a test has failed.
DEADLINE = 30.0


class Step:
    """A statement under way in another session."""

    def __init__(self, session: Session, future: Future[list[Row]]) -> None:
        self._session = session
        self._future = future

    def blocked(self) -> Step:
        """Return once the statement waits for another session; fail if it ends instead."""
        until = time.monotonic() + DEADLINE
        while not self.waits():
            if self._future.done():
                raise AssertionError(f"did not block, but returned {self._future.result()}")
            if time.monotonic() > until:
                raise AssertionError("neither blocked nor returned")
        return self

    def waits(self) -> bool:
        """Tell whether the statement waits for another session."""
        return self._session.waits() and not self._future.done()

    def done(self) -> bool:
        """Tell whether the statement has ended."""
        return self._future.done()

    def rows(self) -> list[Row]:
        """Return what the statement returned, or raise what it raised."""
        return self._future.result(DEADLINE)

    def one(self) -> Any:
        """Return the first column of the first row, None where there is no row."""
        rows = self.rows()
        return rows[0][0] if rows else None


class Session:
    """A connection with a thread of its own."""

    def __init__(self, connect: Connect, watcher: psycopg.Connection[Any]) -> None:
        self.conn = connect()
        self.pid = self.conn.info.backend_pid
        self._watcher = watcher
        self._thread = ThreadPoolExecutor(1)

    def start(self, query: str, *params: Any) -> Step:
        """Send a statement and return at once."""
        return Step(self, self._thread.submit(self._execute, query, params))

    def run(self, query: str, *params: Any) -> list[Row]:
        """Run a statement that nothing may block, and return its rows."""
        return self.start(query, *params).rows()

    def one(self, query: str, *params: Any) -> Any:
        """Run a statement that nothing may block, and return its first value."""
        return self.start(query, *params).one()

    def waits(self) -> bool:
        """Tell whether this session waits for another one."""
        row = self._watcher.execute("select pg_blocking_pids(%s) <> '{}'", [self.pid]).fetchone()
        return row == (True,)

    def close(self) -> None:
        """Give up whatever the session does."""
        if self.conn.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            self._watcher.execute("select pg_terminate_backend(%s)", [self.pid])
        self._thread.shutdown()
        self.conn.close()

    def _execute(self, query: str, params: tuple[Any, ...]) -> list[Row]:
        cursor = self.conn.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []


def fetch(worker: int, capacity: int = 10) -> str:
    """Return the statement by which a worker fetches; its rows are (id, token)."""
    return f"select id, token from procrastinate.fetch_v1({worker}, {capacity})"


def finish(worker: int, *claims: Row) -> str:
    """Return the statement by which plain successes are told; its rows are (id, verdict)."""
    ids, tokens = [c[0] for c in claims], [c[1] for c in claims]
    return f"select id, verdict from procrastinate.finish_v1({worker}, array{ids}::bigint[], array{tokens}::bigint[])"


def end(worker: int, claim: Row, outcome: str, **more: Any) -> tuple[str, str]:
    """Return statement and parameter that tell any other outcome; the row is (verdict, status)."""
    what = {"id": claim[0], "token": claim[1], "outcome": outcome, **more}
    query = (
        "select verdict, status, sqlstate from procrastinate.finish_v1("
        f"{worker}, outcomes => jsonb_build_array(%s::jsonb))"
    )
    return query, json.dumps(what)
