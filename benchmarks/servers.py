"""
The servers that the systems run on: each the benchmark's own, started when it is first asked for, and gone with it.

A `Server` makes a database for one run of one system, and reads its meters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks import BenchmarkError
from pyprocrastinate.embedded import Server as EmbeddedServer

if TYPE_CHECKING:
    from benchmarks.load import Load
    from benchmarks.systems import System

SETTINGS: dict[str, object] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_connections": 500,
    "shared_preload_libraries": "pg_stat_statements",
}
ME = "harness"  # the application name of connections that must not count


class Postgres:
    """The embedded one, with durable commits; a system's schema is installed once, into a template."""

    def __init__(self, stack: contextlib.ExitStack, install: Callable[[System, str], Any]) -> None:
        self.install = install
        self.server = stack.enter_context(EmbeddedServer(durable=True, settings=SETTINGS))
        self.admin = stack.enter_context(psycopg.connect(self.server.conninfo(), autocommit=True, application_name=ME))
        self.admin.execute("create extension pg_stat_statements")
        self.templates: set[str] = set()

    def version(self) -> dict[str, str]:
        """Return what it is."""
        return {"PostgreSQL": self.admin.info.parameter_status("server_version") or ""}

    @contextlib.contextmanager
    def database(self, system: System, before: tuple[Load, ...] = ()) -> Iterator[tuple[str, Any]]:
        """Make a database with the system's schema and what is there before; drop it afterwards."""
        template, name = self._template(system, before), f"bench_{system.schema}"
        self._create(name, template)
        dsn = self.server.conninfo(name)
        try:
            with psycopg.connect(dsn, autocommit=True, application_name=ME) as conn:
                yield dsn, conn
        finally:
            self._drop(name)

    def forget(self) -> None:
        """Drop the templates with jobs in them, which are large."""
        for template in [each for each in self.templates if "-" in each]:
            self._drop(template)
            self.templates.remove(template)

    def _template(self, system: System, before: tuple[Load, ...]) -> str:
        """Return the name of a template; filled ones are kept, for a million jobs take longer to make than to copy."""
        empty = f"template_{system.schema}"
        template = f"{empty}-{abs(hash(before)):x}" if before else empty
        if template not in self.templates:
            if before:
                self._create(template, self._template(system, ()))
                with psycopg.connect(self.server.conninfo(template), autocommit=True, application_name=ME) as conn:
                    for load in before:
                        system.fill(conn, load)
                    conn.execute("vacuum analyze")
            else:
                self._create(template, "template0")
                self.install(system, self.server.conninfo(template))
            self.templates.add(template)
        return template

    def _create(self, name: str, template: str) -> None:
        # The log of a large copy would itself be a load, and set off checkpoints.
        strategy = "file_copy" if "-" in template else "wal_log"
        self.admin.execute(
            sql.SQL("create database {} template {} strategy {}").format(
                sql.Identifier(name), sql.Identifier(template), sql.SQL(strategy)
            )
        )

    def _drop(self, name: str) -> None:
        self.admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def before(self) -> None:
        """Come to rest before the meters are read."""
        self.admin.execute("checkpoint")

    def settle(self, dsn: str) -> None:
        """Wait until all others have left the database, for a backend hands in its counts when it goes."""
        name = conninfo_to_dict(dsn)["dbname"]
        end = time.monotonic() + 10
        while time.monotonic() < end:
            row = self.admin.execute(
                "select count(*) from pg_stat_activity where datname = %s and state is not null "
                "and application_name <> %s",
                [name, ME],
            ).fetchone()
            if row == (0,):
                return
            time.sleep(0.02)

    def counters(self, dsn: str, conn: psycopg.Connection[Any]) -> dict[str, float]:
        """Return what only grows: statements, transactions, bytes of WAL, versions of rows that have died."""
        row = self.admin.execute(
            """
            select coalesce((select sum(s.calls) from pg_stat_statements as s
                              where s.dbid = d.datid), 0)::bigint as statements,
                   d.xact_commit, (pg_current_wal_lsn() - '0/0')::bigint as wal
              from pg_stat_database as d where d.datname = %s
            """,
            [conninfo_to_dict(dsn)["dbname"]],
        ).fetchone()
        # an update leaves one as a delete does
        dead = conn.execute("select sum(n_tup_upd + n_tup_del)::bigint from pg_stat_user_tables").fetchone()
        assert row
        assert dead
        counts = (*row, dead[0] or 0)
        return dict(zip(("statements", "transactions", "wal", "dead"), map(float, counts), strict=True))

    def reads(self, dsn: str) -> tuple[int, int]:
        """Return how many buffers the workers' calls have looked at, and how many calls there were."""
        row = self.admin.execute(
            "select coalesce(sum(s.shared_blks_hit + s.shared_blks_read), 0)::bigint, "
            "coalesce(sum(s.calls), 0)::bigint from pg_stat_statements as s join pg_database as d on d.oid = s.dbid "
            "where d.datname = %s and s.query like '%%work_v1%%'",
            [conninfo_to_dict(dsn)["dbname"]],
        ).fetchone()
        assert row
        return row[0], row[1]

    def cpu(self) -> float:
        """Return the seconds of processor time of the server and all its processes."""
        return cpu_of(self.server.pid)


class Redis:
    """Debian's redis-server with its defaults, on a socket; a run's database is the whole of it, empty."""

    def __init__(self, stack: contextlib.ExitStack, install: Callable[[System, str], Any]) -> None:
        self.install = install
        self.installed: str | None = None  # what the system needs in its database
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.socket = folder / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder)]
        self.process = stack.enter_context(running([program("redis-server"), *options], self._ready))

    def _ready(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            return self("ping") == "PONG"
        return False

    def __call__(self, *command: str) -> str:
        """Run a command."""
        done = subprocess.run(
            [program("redis-cli"), "-s", str(self.socket), *command], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def version(self) -> dict[str, str]:
        """Return what it is."""
        lines = self("info", "server").splitlines()
        return {"Redis": next(line.partition(":")[2] for line in lines if line.startswith("redis_version:"))}

    @contextlib.contextmanager
    def database(self, system: System, before: tuple[Load, ...] = ()) -> Iterator[tuple[str, Any]]:
        """Empty it, and let the system put in what it needs."""
        url = f"redis+socket://{self.socket}"
        self.installed = self.installed or self.install(system, url)
        self("flushall")
        self("set", "installed", self.installed)
        assert not before, "nothing is measured beside other jobs here"
        yield url, self

    def forget(self) -> None:
        """Do nothing: nothing is kept."""

    def before(self) -> None:
        """Do nothing: there is no checkpoint."""

    def settle(self, dsn: str) -> None:
        """Do nothing: it counts as it goes."""

    def counters(self, dsn: str, conn: Any) -> dict[str, float]:
        """Return how many commands it was given."""
        lines = dict(line.partition(":")[::2] for line in self("info", "stats").splitlines())
        return {"statements": float(lines["total_commands_processed"])}

    def cpu(self) -> float:
        """Return the seconds of processor time of the server and of those who save its data."""
        return cpu_of(self.process.pid)


Server = Postgres | Redis
SERVERS: dict[str, type[Server]] = {"postgres": Postgres, "redis": Redis}


@contextlib.contextmanager
def pgbouncer(dsn: str, size: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a PgBouncer in transaction mode, with so many connections to the database; the address is its own."""
    address = conninfo_to_dict(dsn)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        target = make_conninfo("", **{key: value for key, value in address.items() if value})
        (folder / "pgbouncer.ini").write_text(f"""
            [databases]
            pooled = {target}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {port}
            unix_socket_dir =
            auth_type = any
            pool_mode = transaction
            default_pool_size = {size}
            max_client_conn = 500
            server_idle_timeout = 1
            """)
        folder.chmod(0o755)
        # It refuses to run as root; and only the server's own account may be allowed to reach its socket.
        home = Path(str(address["host"]))
        user = home.stat().st_uid if hasattr(os, "geteuid") and os.geteuid() == 0 and home.is_dir() else None
        argv = [program("pgbouncer"), str(folder / "pgbouncer.ini")]
        pooled = make_conninfo(host="127.0.0.1", port=port, dbname="pooled", user="anybody")

        def ready() -> bool:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(pooled).close()
                return True
            return False

        with running(argv, ready, user=user) as process:
            yield pooled, process


def program(name: str) -> str:
    """Return where a program is; Debian keeps some where only root looks."""
    if found := shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))):
        return found
    raise BenchmarkError(f"{name} is not installed")


@contextlib.contextmanager
def running(
    command: list[str], ready: Callable[[], bool], user: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while in here; it ends with this process, too, however that ends."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("guard.py")), "" if user is None else str(user), *command],
        stdin=subprocess.PIPE,
        stdout=quiet,
        stderr=quiet,
    )
    try:
        end = time.monotonic() + 20
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                raise BenchmarkError(f"{Path(command[0]).name} did not start")
            time.sleep(0.02)
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def cpu_of(root: int) -> float:
    """Return the seconds of processor time of a process and all that come from it; Linux only."""
    if not sys.platform.startswith("linux"):
        return 0.0
    stats: dict[int, list[str]] = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            stats[int(entry)] = Path(f"/proc/{int(entry)}/stat").read_text().rpartition(")")[2].split()
    family, more = set[int](), {root}
    while more:
        family |= more
        more = {pid for pid, stat in stats.items() if int(stat[1]) in more} - family
    # own time, and that of children which have ended
    ticks = sum(sum(map(int, stats[pid][11:15])) for pid in family if pid in stats)
    return ticks / os.sysconf("SC_CLK_TCK")
