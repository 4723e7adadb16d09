"""
Loads the SQL files of this package and calls what they define, until there is nothing left to move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import class_row

from pyprocrastinate import embedded

Connection = psycopg.Connection[Any]

CHUNK = 10_000  # jobs that one call moves, where nothing is said

_MOVE = """
    select * from procrastinate_import.move(
      source => %(source)s, after => %(after)s, max_jobs => %(size)s, finished => %(finished)s, force => %(force)s,
      dry_run => %(dry_run)s)
"""


class Finding(NamedTuple):
    """
    One row of `procrastinate_import.move`.

    Attributes:
        kind: `waiting`, `finished`, `schedules`: how many were moved, in `jobs`.
            `left`: the job `old_id` stays, because of `note`.
            `alive`: in a dry run, the worker `old_id`, whose `note` says when it was last heard of.
            `next`: there may be more jobs after `old_id`.
    """

    kind: str
    old_id: int | None
    task: str | None
    note: str | None
    jobs: int | None


def findings(
    conninfo: str,
    *,
    source: str = "public",
    batch: int | None = None,
    finished: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Iterator[Finding]:
    """
    Move the jobs, and yield what happens to them; with `batch` each yielded one is committed.

    A dry run changes nothing. Done twice, or after a crash, it moves what is not yet moved.

    Args:
        conninfo: empty for $PROCRASTINATE_DSN, else libpq's PG* variables.
        source: the schema of Procrastinate's tables.
        batch: how many jobs a transaction moves; None: one transaction moves all.
        finished: move jobs that have ended, too.
        force: although an old worker is alive; and run again what dead ones left running.
        dry_run: only tell what would be done.

    Raises:
        psycopg.errors.ObjectInUse: an old worker is alive.
        psycopg.errors.InvalidParameterValue: there are no tables of Procrastinate 3.
        psycopg.errors.LockNotAvailable: a transaction that writes to the old tables is open for too long.
    """
    options = {"source": source, "size": batch or CHUNK, "finished": finished, "force": force, "dry_run": dry_run}
    with embedded.resolve(conninfo) as server, _connect(server.conninfo) as connection:
        after: int | None = 0
        with ExitStack() as first:
            first.enter_context(connection.transaction(force_rollback=dry_run))
            _load(connection)
            while after is not None:
                found = _move(connection, after=after, **options)
                after = next((each.old_id for each in found if each.kind == "next"), None)
                if batch and not dry_run:
                    first.close()  # what follows commits by itself
                yield from (each for each in found if each.kind != "next")


def _connect(conninfo: str) -> Connection:
    connection = psycopg.connect(conninfo, autocommit=True, client_encoding="utf8", prepare_threshold=None)
    # In any other, what was committed while it waited for the tables would stay unseen.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return connection


def _load(connection: Connection) -> None:
    for path in sorted(Path(__file__).with_name("sql").glob("*.sql")):
        connection.execute(path.read_text("utf-8").encode())


def _move(connection: Connection, **options: Any) -> list[Finding]:
    with connection.cursor(row_factory=class_row(Finding)) as cursor:
        return cursor.execute(_MOVE, options).fetchall()
