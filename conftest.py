"""
Give each test a PostgreSQL database of its own.

The server is an embedded one, private to the run and gone with it; $PROCRASTINATE_DSN or libpq's
PG* variables put another in its place.
The schema is installed once, into a template, and each test that asks for `dsn` gets a clone of it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor

from pyprocrastinate import embedded
from pyprocrastinate.migrate import migrate
from tests.pooler import pgbouncer, tool

# A shell starts what runs in its background with SIGINT ignored, and so would every program of a test that is sent one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# All plugins of this checkout are installed; a test says which of them it wants.
os.environ["PROCRASTINATE_PLUGINS"] = "none"

Connect = Callable[..., psycopg.Connection[Any]]
AsyncConnect = Callable[..., Awaitable[psycopg.AsyncConnection[Any]]]

_numbers = count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long, too")
    parser.addoption(
        "--through-pgbouncer",
        action="store_true",
        help="let all that asks for `dsn` connect through PgBouncer in transaction mode, and only poll",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long: run with --long"))
        if config.getoption("--through-pgbouncer") and (marker := item.get_closest_marker("not_pooled")):
            item.add_marker(pytest.mark.skip(reason=f"not through a pooler: {marker.args[0]}"))
        for marker in item.iter_markers("needs_tool"):
            if not tool(marker.args[0]):
                item.add_marker(pytest.mark.skip(reason=f"needs {marker.args[0]}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # From the reports and not from the items, which are elsewhere under pytest-xdist.
    skipped = [report.longrepr[2] for report in terminalreporter.getreports("skipped")]
    prefix = "Skipped: needs "
    missing = Counter(why.removeprefix(prefix) for why in skipped if why.startswith(prefix))
    if missing:
        terminalreporter.section("not tested on this machine")
        for tool, tests in sorted(missing.items()):
            terminalreporter.line(f"{tool} is missing: {tests} test(s) skipped")


@dataclass
class PgServer:
    """
    The server under test.

    `server` can restart it and is None where the server is not ours; `bindir` holds `psql`,
    `pg_dump` and the like, and is None where they are not to be found.
    The rest is what pytest-postgresql asks of a server.
    """

    host: str
    port: int
    user: str
    password: str | None
    bindir: Path | None
    server: embedded.Server | None
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: str | None = None

    def dsn(self, dbname: str) -> str:
        """Return the DSN of one of the server's databases."""
        return make_conninfo("", host=self.host, port=self.port, user=self.user, password=self.password, dbname=dbname)

    def tool(self, name: str) -> Path:
        """Return the path of one of PostgreSQL's programs, or skip the test."""
        found = (self.bindir and shutil.which(name, path=self.bindir)) or shutil.which(name)
        if not found:
            pytest.skip(f"needs {name}")
        return Path(found)


@pytest.fixture(scope="session")
def pg_server() -> Iterator[PgServer]:
    """Return the server that the tests run on."""
    given = embedded.from_environment()
    if given is None:
        with embedded.Server() as server:
            yield PgServer(server.host, server.port, server.user, None, server.bindir, server)
    else:
        psql = shutil.which("psql")
        with embedded.resolve(given) as resolved:
            with psycopg.connect(resolved.conninfo) as conn:
                info = conn.info
                found = PgServer(
                    info.host,
                    info.port,
                    info.user,
                    info.password or None,
                    Path(psql).parent if psql else None,
                    None,
                    maintenance_dbname=info.dbname,
                )
            yield found


def _install_schema(**connection: Any) -> None:
    connection.pop("autocommit", None)
    migrate(make_conninfo("", **connection))


# The process id, so that runs side by side on one given server keep out of each other's way.
pg_template = factories.postgresql_noproc(
    depends_on="pg_server", dbname=f"pyprocrastinate_{os.getpid()}", load=[_install_schema]
)


@pytest.fixture
def direct_dsn(pg_server: PgServer, pg_template: NoopExecutor) -> Iterator[str]:
    """Return the DSN of a new database with the whole schema, which is dropped after the test."""
    yield from _database(pg_server, pg_template.template_dbname)


@pytest.fixture
def dsn(direct_dsn: str, pooler: Callable[[str], str]) -> str:
    """Return the same, through a pooler with --through-pgbouncer."""
    return pooler(direct_dsn)


@pytest.fixture
def empty_dsn(pg_server: PgServer, pooler: Callable[[str], str]) -> Iterator[str]:
    """Return the DSN of a new database with nothing in it, which is dropped after the test."""
    for direct in _database(pg_server, "template0"):
        yield pooler(direct)


@pytest.fixture(scope="session")
def pooler(pytestconfig: pytest.Config, pg_server: PgServer) -> Iterator[Callable[[str], str]]:
    """Return a function that turns a DSN into that of the pooler, if there is one."""
    if not pytestconfig.getoption("--through-pgbouncer"):
        yield lambda dsn: dsn
        return
    with pgbouncer(pg_server.dsn(pg_server.maintenance_dbname), size=10) as pooled:
        yield lambda dsn: make_conninfo(pooled, dbname=conninfo_to_dict(dsn)["dbname"])


def _database(pg_server: PgServer, template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    # Copying files is the faster way only where they need no flush.
    strategy = "file_copy" if pg_server.server else "wal_log"
    create = sql.SQL("create database {} template {} strategy {}").format(
        sql.Identifier(name), sql.Identifier(template), sql.SQL(strategy)
    )
    with psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True) as admin:
        admin.execute(create)
    yield pg_server.dsn(name)
    with psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True) as admin:
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def connect(direct_dsn: str) -> Iterator[Connect]:
    """Return a function that opens connections to the test's database; they are closed after it."""
    opened: list[psycopg.Connection[Any]] = []

    def connect(**parameters: Any) -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(direct_dsn, **{"autocommit": True} | parameters))
        return opened[-1]

    yield connect
    for conn in opened:
        conn.close()


@pytest.fixture
def conn(connect: Connect) -> psycopg.Connection[Any]:
    """Return a connection to the test's database in autocommit mode."""
    return connect()


@pytest.fixture
async def aconnect(direct_dsn: str) -> AsyncIterator[AsyncConnect]:
    """Return an async function that opens connections as `connect` does."""
    opened: list[psycopg.AsyncConnection[Any]] = []

    async def connect(**parameters: Any) -> psycopg.AsyncConnection[Any]:
        opened.append(await psycopg.AsyncConnection.connect(direct_dsn, **{"autocommit": True} | parameters))
        return opened[-1]

    yield connect
    for conn in opened:
        await conn.close()
