"""
Bring a database's schema to this release, in steps that never stop the queue.

The pre stage adds (`sql/migrations/pre/`), then loads all of `sql/functions/` in one transaction;
the workers are upgraded; the post stage removes (`sql/migrations/post/`).
What was applied is recorded with a checksum in `procrastinate.migration`.
Migrators take turns: each holds an advisory lock from its first look to its last step.
Nothing is ever taken back: a schema from a later release stays as it is.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import errors, sql

from pyprocrastinate import _sqlfiles, embedded
from pyprocrastinate._explain import describe
from pyprocrastinate.exceptions import REFUSALS, ProcrastinateException
from pyprocrastinate.protocol import check_protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Connection = psycopg.Connection[tuple[Any, ...]]
    Record = dict[tuple[int, str], tuple[str, str]]

Stage = Literal["pre", "post"]
logger = logging.getLogger(__name__)

_LOCK = 0x70726F6372617374  # the advisory lock of all migrators
_TRY_TURN = f"select pg_try_advisory_xact_lock({_LOCK})"
_TURN = f"do $$ begin perform pg_advisory_xact_lock({_LOCK}); end $$;\n"
_SETTINGS = """\
set local lock_timeout = {lock_timeout};
set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
do $$ begin
  perform set_config(name, '0', true) from pg_settings where name in
    ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout');
end $$;
"""


class MigrationError(ProcrastinateException):
    """The schema cannot be brought to this release."""


@dataclass(frozen=True)
class Step:
    """One unit of work: a migration file, or all function files together."""

    number: int
    stage: str
    slug: str
    files: tuple[tuple[Path, str], ...]

    @property
    def name(self) -> str:
        """Tell the step as people write it: `pre/0001_schema`, `functions of release 0.1.0`."""
        if self.stage == "functions":
            return f"functions of release {self.slug}"
        return f"{self.stage}/{self.number:04}_{self.slug}"

    @property
    def sql(self) -> str:
        """Return what the step runs."""
        return "\n".join(text for _, text in self.files)

    @property
    def checksum(self) -> str:
        """Return the fingerprint of names and contents."""
        named = "\0".join(f"{path.name}\0{text}" for path, text in self.files)
        return hashlib.sha256(named.encode()).hexdigest()

    @property
    def in_transaction(self) -> bool:
        """Tell whether the first line is not `-- no-transaction`."""
        return not self.sql.startswith("-- no-transaction\n")

    @property
    def statements(self) -> list[str]:
        """Return what a step outside a transaction sends, one by one."""
        return [part for part in re.split(r";[ \t]*\n", self.sql + "\n") if part.strip()]

    @property
    def record(self) -> str:
        """Return the statement that records the step."""
        values = map(sql.Literal, (self.number, self.stage, self.slug, self.checksum))
        return (
            sql.SQL("insert into {} (number, stage, slug, checksum) values ({});\n")
            .format(sql.Identifier("procrastinate", "migration"), sql.SQL(", ").join(values))
            .as_string(None)
        )


def migrate(
    conninfo: str = "",
    *,
    stage: Stage | None = None,
    wait: float = 300,
    lock_timeout: float = 2,
    attempts: int = 10,
    notify: Callable[[str], None] = logger.info,
) -> list[Step]:
    """
    Apply what is pending, and return it.

    Done twice, or by two at once, it is harmless: one waits for the other, up to `wait` seconds.
    A step waits at most `lock_timeout` seconds for a table, because everybody else queues up behind
    it; then it gives way and tries again later, `attempts` times.
    What was applied before an error stays applied and recorded.

    Args:
        conninfo: empty for $PROCRASTINATE_DSN, else libpq's PG* variables.
        stage: `pre` before the workers are upgraded, `post` after; by default both.
        notify: is told, in words, what happens.

    Raises:
        MigrationError: a file was changed after it was applied, a table stays in use, …
        ProtocolInUse: a live worker speaks a protocol that the post stage retires.
        ProtocolNotSpoken: the schema is newer and has retired this release.
    """
    with (
        embedded.resolve(conninfo) as resolved,
        _connect(resolved.conninfo) as guard,
        guard.transaction(),
    ):
        _take_turn(guard, wait, notify)
        with _connect(resolved.conninfo) as connection:
            steps = _pending(connection, stage, notify)
            for step in steps:
                _apply_patiently(connection, step, lock_timeout, attempts, notify)
                notify(f"applied {step.name}")
    return steps


def plan(
    conninfo: str = "",
    *,
    stage: Stage | None = None,
    notify: Callable[[str], None] = logger.info,
) -> list[Step]:
    """Return what `migrate` would apply, in order, and change nothing."""
    with embedded.resolve(conninfo) as resolved, _connect(resolved.conninfo) as connection:
        return _pending(connection, stage, notify)


def script(steps: list[Step]) -> str:
    r"""Return what `migrate` does for these steps, records included, as a script for `psql -f`."""
    parts = [r"\set ON_ERROR_STOP on"]
    for step in steps:
        text = f"{step.sql}\n{step.record}"
        if step.in_transaction:
            text = f"begin;\n{_TURN}{_SETTINGS.format(lock_timeout=2000)}\n{text}commit;\n"
        parts.append(f"-- {step.name}\n{text}")
    return "\n".join(parts)


def get_schema() -> str:
    """
    Return a script that gives an empty database the same schema and record as `migrate`.

    It has no `begin` and no `commit` and sets nothing: run it in a transaction of your own, with
    `psql --single-transaction`, for instance.
    """
    return "\n".join(
        # nothing can be locked for long in there, and a transaction refuses the word
        f"{step.sql if step.in_transaction else re.sub('(?i)concurrently', '', step.sql)}\n"
        f"{step.record}"
        for step in (*_steps("pre"), _functions(1), *_steps("post"))
    )


def _steps(stage: Stage) -> list[Step]:
    steps = []
    for path in _sqlfiles.migration_files(stage):
        number, _, slug = path.stem.partition("_")
        steps.append(Step(int(number), stage, slug, ((path, path.read_text("utf-8")),)))
    return steps


def _functions(number: int) -> Step:
    files = tuple((path, path.read_text("utf-8")) for path in _sqlfiles.function_files())
    return Step(number, "functions", version("pyprocrastinate"), files)


def _pending(
    connection: Connection, stage: Stage | None, notify: Callable[[str], None]
) -> list[Step]:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise MigrationError(
            f'the encoding of database "{connection.info.dbname}" is {encoding}, not UTF8\n'
            "Use a database made with: create database … encoding 'UTF8' template template0"
        )
    record = _read_record(connection)
    pre, post = _steps("pre"), _steps("post")
    for step in (*pre, *post):
        _, checksum = record.get((step.number, step.stage), ("", step.checksum))
        if checksum != step.checksum:
            raise MigrationError(
                f"{step.files[0][0]} was changed after it was applied to this database\n"
                "Restore it, and put the change into a new migration"
            )
    first = [step for step in pre if (step.number, "pre") not in record]
    known = {(step.number, step.stage) for step in (*pre, *post)}
    first += _pending_functions(connection, record, known, notify)
    last = [step for step in post if (step.number, "post") not in record]
    if stage == "post" and first:
        raise MigrationError(
            f"the pre stage of this release is not applied: {first[0].name} is missing\n"
            "Run `pyprocrastinate migrate --stage pre` first"
        )
    return {"pre": first, "post": last}.get(stage or "", first + last)


def _pending_functions(
    connection: Connection,
    record: Record,
    known: set[tuple[int, str]],
    notify: Callable[[str], None],
) -> Iterator[Step]:
    loads = sorted(key for key in record if key[1] == "functions")
    mine = _functions(len(loads) + 1)
    release, checksum = record[loads[-1]] if loads else ("", "")
    if checksum == mine.checksum:
        return
    if _number(release) > _number(mine.slug) or record.keys() - known - set(loads):
        # Our functions would not serve the workers of the newer release; its functions serve ours,
        # or it has said that they do not.
        check_protocol(*connection.execute("select * from procrastinate.protocol()").fetchall()[0])
        notify(
            f"the functions in this database are of release {release}, newer than {mine.slug}, "
            "and serve both: they are left as they are"
        )
    else:
        yield mine


def _number(release: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", release)
    return tuple(map(int, match[0].split("."))) if match else ()


def _read_record(connection: Connection) -> Record:
    there = connection.execute(
        "select to_regnamespace('procrastinate') is not null, "
        "to_regclass('procrastinate.migration') is not null"
    ).fetchone()
    if there == (False, False):
        return {}
    rows = []
    if there == (True, True):
        rows = connection.execute(
            "select number, stage, slug, checksum from procrastinate.migration"
        ).fetchall()
    if not rows:
        raise MigrationError(
            "there is a schema procrastinate without a record of what was applied to it\n"
            "Drop it; to install by hand, run what `pyprocrastinate migrate --sql` prints"
        )
    return {(number, stage): (slug, checksum) for number, stage, slug, checksum in rows}


def _connect(conninfo: str) -> Connection:
    return psycopg.connect(
        conninfo, autocommit=True, client_encoding="utf8", prepare_threshold=None
    )


def _take_turn(guard: Connection, wait: float, notify: Callable[[str], None]) -> None:
    # A transaction holds the lock, not a session, so that it works through a pooler.
    # No statement here has parameters: it would leave a portal open, the portal a snapshot, and
    # `create index concurrently` would wait for that snapshot, and so for us.
    guard.execute("set local idle_in_transaction_session_timeout = 0")
    guard.execute("set local statement_timeout = 0")
    if guard.execute(_TRY_TURN.encode()).fetchone() == (True,):
        return
    notify("another migration is running: waiting for its end")
    guard.execute(sql.SQL("set local lock_timeout = {}").format(int(wait * 1000)))
    try:
        guard.execute(_TURN.encode())
    except errors.LockNotAvailable as error:
        raise MigrationError(
            f"another migration is running, and was not done after {wait:g} seconds\n"
            "Try again when it is; pg_stat_activity shows what it waits for"
        ) from error


def _apply_patiently(
    connection: Connection,
    step: Step,
    lock_timeout: float,
    attempts: int,
    notify: Callable[[str], None],
) -> None:
    for attempt in range(1, attempts + 1):
        try:
            _apply(connection, step, lock_timeout)
            break
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            if attempt == attempts:
                raise MigrationError(
                    f"{step.name}: a table was in use at each of {attempts} attempts\n"
                    "pg_stat_activity shows which transactions are open for long; end them, "
                    "and try again"
                ) from error
        pause = min(0.25 * 2**attempt, 8)
        notify(f"{step.name}: a table is in use, trying again in {pause:g} s")
        time.sleep(pause)


def _apply(connection: Connection, step: Step, lock_timeout: float) -> None:
    if step.in_transaction:
        with connection.transaction():
            connection.execute(_SETTINGS.format(lock_timeout=int(lock_timeout * 1000)).encode())
            for path, text in step.files:
                _run(connection, path, text)
            connection.execute(step.record.encode())
    else:
        connection.execute("set statement_timeout = 0")
        for statement in step.statements:
            _run(connection, step.files[0][0], statement)
        connection.execute(step.record.encode())


def _run(connection: Connection, path: Path, text: str) -> None:
    try:
        connection.execute(text.encode())
    except (errors.LockNotAvailable, errors.DeadlockDetected):
        raise
    except psycopg.Error as error:
        diag = error.diag
        where = f"{path.parent.name}/{path.name}"
        if diag.statement_position:
            where += f", line {text.count(chr(10), 0, int(diag.statement_position)) + 1}"
        refusal = REFUSALS.get(diag.sqlstate or "")
        if refusal is None:
            raise MigrationError(f"{where}: {describe(error)}") from error
        raise refusal(
            f"{where}: {diag.message_primary}", detail=diag.message_detail, hint=diag.message_hint
        ) from error
