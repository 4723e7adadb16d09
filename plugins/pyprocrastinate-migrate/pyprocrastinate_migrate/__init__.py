"""
Bring a database's schema to this release, in steps that never stop the queue.

The pre stage adds (`sql/migrations/pre/`), then loads all of `sql/functions/` in one transaction;
the workers are upgraded; the post stage removes (`sql/migrations/post/`).
What was applied is recorded with a checksum in `procrastinate.migration`.
On request there are roles, too: for the owner, clients, workers, observers and admins.
Migrators take turns: each holds an advisory lock from its first look to its last step.
A step waits only a moment for a table, because everybody else queues up behind it; then it gives
way and tries again later.
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
from psycopg import errors

from pyprocrastinate import _sqlfiles, embedded
from pyprocrastinate.exceptions import REFUSALS, ProcrastinateException
from pyprocrastinate.protocol import check_protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Connection = psycopg.Connection[tuple[Any, ...]]
    Record = dict[tuple[int, str], tuple[str, str]]

Stage = Literal["pre", "post"]
logger = logging.getLogger(__name__)

TURN_TIMEOUT = 300.0  # seconds that a migrator waits for another one
LOCK_TIMEOUT = 2.0  # seconds that a step waits for a table
ATTEMPTS = 10  # how often it does, over about a minute

_LOCK = 0x70726F6372617374  # the advisory lock of all migrators
_TRY_TURN = f"select pg_try_advisory_xact_lock({_LOCK})"
_TURN = f"do $$ begin perform pg_advisory_xact_lock({_LOCK}); end $$;\n"
_SETTINGS = """\
set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
do $$ begin
  perform set_config(name, '0', true) from pg_settings where name in
    ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout');
end $$;
set local lock_timeout = '{:.0f}ms';
"""
# All that is made belongs to the owner of the schema, whichever of its members makes it.
_AS_OWNER = """\
do $$ begin
  perform set_config('role', pg_get_userbyid(nspowner), true) from pg_namespace where nspname = 'procrastinate';
end $$;
"""
_ROLE = re.compile("[a-z_][a-z0-9_]{0,53}")  # with its ending, PostgreSQL keeps 63 characters


class MigrationError(ProcrastinateException):
    """The schema cannot be brought to this release."""


@dataclass(frozen=True)
class Step:
    """One unit of work: a migration file, or all function files together."""

    number: int
    stage: str
    slug: str
    files: tuple[tuple[Path, str], ...] = ()

    @property
    def name(self) -> str:
        """Tell the step as people write it: `pre/0001_schema`, `functions of release 0.1.0`."""
        if self.stage == "functions":
            return f"functions of release {self.slug}"
        return f"{self.stage}/{self.number:04}_{self.slug}"

    @property
    def sql(self) -> str:
        """Return what the step runs."""
        return "\n".join(text for _, text in self.parts)

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Return what the step runs one after the other, and what an error calls it."""
        return [(f"{path.parent.name}/{path.name}", text) for path, text in self.files]

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
    def settings(self) -> str:
        """Return the statements that begin the step's transaction."""
        return _SETTINGS.format(LOCK_TIMEOUT * 1000) + _AS_OWNER

    @property
    def record(self) -> str:
        """Return the statement that records the step."""
        values = f"{self.number}, '{self.stage}', '{self.slug}', '{self.checksum}'"
        return f"insert into procrastinate.migration (number, stage, slug, checksum) values ({values});\n"  # noqa: S608


class Roles(Step):
    """The group roles whose names begin with the slug; that they are there is all their record."""

    record = ""

    @property
    def name(self) -> str:
        return f"roles {self.slug}_owner, _client, _worker, _observer, _admin"

    @property
    def parts(self) -> list[tuple[str, str]]:
        return [(self.name, f"do $$ begin perform procrastinate._create_roles('{self.slug}'); end $$;\n")]

    @property
    def settings(self) -> str:
        # who may make roles does so in that capacity, not as the owner of the schema
        return _SETTINGS.format(LOCK_TIMEOUT * 1000)


def migrate(conninfo: str = "", *, stage: Stage | None = None, roles: str = "") -> list[Step]:
    """
    Apply what is pending, and return it.

    Done twice, or by two at once, it is harmless: one waits for the other, and finds nothing to do.
    What was applied before an error stays applied and recorded.

    Args:
        conninfo: empty for $PROCRASTINATE_DSN, else libpq's PG* variables.
        stage: `pre` before the workers are upgraded, `post` after; by default both.
        roles: what the names of five group roles begin with, such as `procrastinate`; none by default. Those that
            are missing are created; the schema is given to the first, and the others are let in.

    Raises:
        MigrationError: a file was changed after it was applied, a table stays in use, …
        ProtocolInUse: a live worker speaks a protocol that the post stage retires.
        ProtocolNotSpoken: the schema is newer and has retired this release.
    """
    with embedded.resolve(conninfo) as server, _connect(server) as guard, guard.transaction():
        _take_turn(guard)
        with _connect(server) as connection:
            steps = _pending(connection, stage, roles)
            for step in steps:
                _apply_patiently(connection, step)
                logger.info("Applied %s", step.name)
    return steps


def plan(conninfo: str = "", *, stage: Stage | None = None, roles: str = "") -> list[Step]:
    """Return what `migrate` would apply, in order, and change nothing."""
    with embedded.resolve(conninfo) as server, _connect(server) as connection:
        return _pending(connection, stage, roles)


def script(steps: list[Step]) -> str:
    r"""Return what `migrate` does for these steps, records included, as a script for `psql -f`."""
    parts = [r"\set ON_ERROR_STOP on"]
    for step in steps:
        text = f"{step.sql}\n{step.record}"
        if step.in_transaction:
            text = f"begin isolation level read committed;\n{_TURN}{step.settings}\n{text}commit;\n"
        parts.append(f"-- {step.name}\n{text}")
    return "\n".join(parts)


def get_schema() -> str:
    """
    Return a script that gives an empty database the same schema and record as `migrate`.

    It has no `begin` and no `commit` and sets nothing: run it in a transaction of your own, with
    `psql --single-transaction`, for instance.
    """
    # In an empty database nothing is locked for long, and a transaction refuses `concurrently`.
    return "\n".join(
        (step.sql if step.in_transaction else step.sql.replace("concurrently", "")) + step.record
        for step in (*_steps("pre"), _functions(1), *_steps("post"))
    )


def _steps(stage: Stage) -> list[Step]:
    paths = _sqlfiles.migration_files(stage)  # NNNN_slug.sql
    return [Step(int(path.stem[:4]), stage, path.stem[5:], ((path, path.read_text("utf-8")),)) for path in paths]


def _functions(number: int) -> Step:
    files = tuple((path, path.read_text("utf-8")) for path in _sqlfiles.function_files())
    return Step(number, "functions", version("pyprocrastinate"), files)


def _pending(connection: Connection, stage: Stage | None, roles: str) -> list[Step]:
    record = _read_record(connection)
    pre, post = _steps("pre"), _steps("post")
    for step in (*pre, *post):
        key = (step.number, step.stage)
        if key in record and record[key][1] != step.checksum:
            raise MigrationError(
                f"{step.files[0][0]} was changed after it was applied to this database\n"
                "Restore it, and put the change into a new migration"
            )
    known = {(step.number, step.stage) for step in (*pre, *post)}
    first = [step for step in pre if (step.number, "pre") not in record]
    first += _pending_functions(connection, record, known)
    last = [step for step in post if (step.number, "post") not in record]
    if stage == "post" and first:
        raise MigrationError(
            f"the pre stage of this release is not applied: {first[0].name} is missing\n"
            "Run `pyprocrastinate migrate --stage pre` first"
        )
    steps = {"pre": first, "post": last}.get(stage or "", first + last)
    return [*steps, *_pending_roles(connection, roles)] if roles else steps


def _pending_roles(connection: Connection, prefix: str) -> Iterator[Step]:
    if not _ROLE.fullmatch(prefix):
        raise MigrationError(
            f"{prefix!r} is not what the name of a role begins with\nUse up to 54 of a to z, 0 to 9 and _"
        )
    # Five names that fit: all are made, and recorded, in one transaction.
    query = """
    select count(*) from (
      select pg_get_userbyid(nspowner), 'owner' from pg_namespace where nspname = 'procrastinate'
      union all select name, access from procrastinate.roles) as r (name, access)
     where name = %s || '_' || access
    """
    there = connection.execute(b"select to_regclass('procrastinate.roles')").fetchone()
    if there == (None,) or connection.execute(query.encode(), [prefix]).fetchone() != (5,):
        yield Roles(0, "roles", prefix)


def _pending_functions(connection: Connection, record: Record, known: set[tuple[int, str]]) -> Iterator[Step]:
    loads = sorted(key for key in record if key[1] == "functions")
    mine = _functions(len(loads) + 1)
    release, checksum = record[loads[-1]] if loads else ("", "")
    if checksum == mine.checksum:
        return
    if _digits(release) > _digits(mine.slug) or record.keys() - known - set(loads):
        # Our functions would not serve the workers of the newer release; its functions serve ours,
        # or it has said that they do not.
        check_protocol(*connection.execute("select * from procrastinate.protocol()").fetchall()[0])
        logger.warning("The functions are of release %s, newer than %s: kept", release, mine.slug)
    else:
        yield mine


def _digits(release: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", release)][:3]


def _read_record(connection: Connection) -> Record:
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise MigrationError(
            f'the encoding of database "{connection.info.dbname}" is {encoding}, not UTF8\n'
            "Use a database made with: create database … encoding 'UTF8' template template0"
        )
    query = "select pg_get_userbyid(nspowner), pg_has_role(nspowner, 'usage') from pg_namespace where nspname = %s"
    schema = connection.execute(query.encode(), ["procrastinate"]).fetchone()
    if schema and not schema[1]:
        raise MigrationError(
            f'the schema belongs to {schema[0]}, and "{connection.info.user}" is no member of that role\n'
            f"Connect as {schema[0]}, or as somebody to whom it was granted"
        )
    (table,), *_ = connection.execute(b"select to_regclass('procrastinate.migration')").fetchall()
    query = "select number, stage, slug, checksum from procrastinate.migration"
    rows = connection.execute(query).fetchall() if table else []
    if schema and not rows:
        raise MigrationError(
            "there is a schema procrastinate without a record of what was applied to it\n"
            "Drop it; to install by hand, run what `pyprocrastinate migrate --sql` prints"
        )
    return {(number, stage): (slug, checksum) for number, stage, slug, checksum in rows}


def _connect(server: embedded.Resolved) -> Connection:
    connection = psycopg.connect(server.conninfo, autocommit=True, client_encoding="utf8")
    # In any other, the guard would keep a snapshot, and a look at the workers would be an old one.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return connection


def _take_turn(guard: Connection) -> None:
    # A transaction holds the lock, not a session, so that it works through a pooler.
    # No statement here has parameters: it would leave a portal open, the portal a snapshot, and
    # `create index concurrently` would wait for that snapshot, and so for us.
    guard.execute(_SETTINGS.format(TURN_TIMEOUT * 1000).encode())
    if guard.execute(_TRY_TURN.encode()).fetchone() == (True,):
        return
    logger.warning("Another migration is running: waiting for its end")
    try:
        guard.execute(_TURN.encode())
    except errors.LockNotAvailable as error:
        raise MigrationError(
            f"another migration is running, and was not done after {TURN_TIMEOUT:g} seconds\n"
            "Try again when it is; pg_stat_activity shows what it waits for"
        ) from error


def _apply_patiently(connection: Connection, step: Step) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _apply(connection, step)
            break
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            if attempt == ATTEMPTS:
                raise MigrationError(
                    f"{step.name}: a table was in use at each of {ATTEMPTS} attempts\n"
                    "End the transactions that pg_stat_activity shows as open for long; try again"
                ) from error
        pause = min(0.25 * 2**attempt, 8)
        logger.warning("%s: a table is in use, trying again in %g s", step.name, pause)
        time.sleep(pause)


def _apply(connection: Connection, step: Step) -> None:
    if step.in_transaction:
        with connection.transaction():
            connection.execute(step.settings.encode())
            for where, text in step.parts:
                _run(connection, where, text)
            connection.execute(step.record.encode())
    else:
        # Several statements in one message would be one transaction.
        for statement in ("set statement_timeout = 0", *step.sql.split(";\n"), step.record):
            _run(connection, step.parts[0][0], statement)


def _run(connection: Connection, where: str, text: str) -> None:
    try:
        connection.execute(text.encode())
    except (errors.LockNotAvailable, errors.DeadlockDetected):
        raise
    except psycopg.Error as error:
        diag = error.diag
        if diag.statement_position:
            where += f", line {text.count(chr(10), 0, int(diag.statement_position)) + 1}"
        refusal = REFUSALS.get(diag.sqlstate or "")
        if refusal is None:
            said = (diag.message_primary or str(error), diag.message_detail, diag.message_hint)
            raise MigrationError(f"{where}: {'. '.join(part for part in said if part)}") from error
        raise refusal(f"{where}: {diag.message_primary}", detail=diag.message_detail, hint=diag.message_hint) from error
