"""The server, the network and the processes of a soak; all of it is gone when the stage closes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.conninfo import make_conninfo

from pyprocrastinate.embedded import Server
from pyprocrastinate.migrate import migrate
from tests.faults import hooks
from tests.faults.history import History
from tests.faults.proxy import Proxy
from tests.faults.standby import Standby
from tests.faults.tasks import HEARTBEAT, LEASE, POLL, QUEUES, SCHEDULE, SHORT_POLL, WAKE, WAKES
from tests.faults_support.gates import rewrite
from tests.pooler import tool

ROOT = Path(__file__).parents[2]
MAX_CONNECTIONS = 60
# In memory, but only as much as is used: a soak of half an hour takes one of them.
DISK_BYTES = 4 << 30
SETTINGS: dict[str, object] = {
    "max_connections": MAX_CONNECTIONS,
    "max_prepared_transactions": 4,
    "shared_buffers": "64MB",
    "deadlock_timeout": "300ms",
}
# The worker with a plugin of its own, and the one behind PgBouncer.
PLUGGED = "w1"
_POOLED = "w3"
_COMMON = {
    "stalled_worker_timeout": LEASE,
    "update_heartbeat_interval": HEARTBEAT,
    "abort_job_polling_interval": HEARTBEAT,
    "shutdown_graceful_timeout": 2.0,
}
# Clients defer no more while as many jobs wait: how fast jobs end is up to the machine, and no promise.
BACKLOG = 1000
# In seconds; what else others do on the machine may keep it from going on with the soak.
STALL = 1.0
_LISTENING = {"fetch_job_polling_interval": POLL, **_COMMON}
_POLLING = {"queues": QUEUES, "fetch_job_polling_interval": SHORT_POLL, "listen_notify": False, **_COMMON}
WORKERS: dict[str, dict[str, Any]] = {
    "w0": {"concurrency": 20, "queues": [*QUEUES, WAKE, WAKES["w0"]], **_LISTENING},
    PLUGGED: {"concurrency": 10, "queues": [*QUEUES, WAKE, WAKES[PLUGGED]], **_LISTENING},
    "w2": {"concurrency": 20, **_POLLING},
    _POOLED: {"concurrency": 10, **_POLLING},
}
_ROLE = """
create role app login;
grant usage on schema procrastinate, audit to app;
grant execute on all functions in schema procrastinate to app;
grant insert, select on audit.effect to app;
do $$
declare v text;
begin
  for v in select viewname from pg_views where schemaname = 'procrastinate' loop
    execute format('grant select on procrastinate.%I to app', v);
  end loop;
end $$;
"""


# A function of the schema, a piece of it, and what takes its place.
Flaw = tuple[str, str, str]


class SoakError(Exception):
    """The soak itself could not go on; it says nothing about the queue."""


@dataclass
class Slot:
    """A worker that is started again whenever it has ended, unless a fault holds it."""

    name: str
    process: subprocess.Popen[bytes]
    held: bool = False
    env: dict[str, str] = field(default_factory=dict)


class Stage(contextlib.ExitStack):
    """
    Everything that runs during a soak.

    `flaws` change the schema once it is installed, to see whether the checker notices.
    """

    def __init__(self, *, small_disk: bool = False, standby: bool = False, flaws: tuple[Flaw, ...] = ()) -> None:
        super().__init__()
        self.slots: dict[str, Slot] = {}
        self.clients: list[subprocess.Popen[bytes]] = []
        self.bouncer: Bouncer | None = None
        self.disk: Path | None = None
        self.standby: Standby | None = None
        self.failed_over = False
        self._small_disk = small_disk
        self._wants_standby = standby
        self._flaws = flaws
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._gauge = threading.Thread(target=self._watch_backlog, name="gauge", daemon=True)
        self._watch = threading.Thread(target=self._watch_machine, name="watch", daemon=True)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def _open(self) -> None:
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        self.histories = self.folder / "history"
        self.histories.mkdir()
        self._hold = self.folder / "hold"
        self.history = History(self.histories, "stage")
        self.callback(self.history.close)
        # Neither has a place beside the standby: what the first server alone has.
        if self._small_disk and not self._wants_standby:
            self.disk = self._mount()
        self.server = self.enter_context(Server(durable=True, settings=SETTINGS))
        self._install()
        self.proxy = self.enter_context(Proxy(f"{self.server.host}/.s.PGSQL.{self.server.port}"))
        if self._wants_standby:
            self.standby = Standby(self.server)
            self.callback(self.standby.stop)
            self.standby.start(self.pause)
        elif program := tool("pgbouncer"):
            self.bouncer = Bouncer(self, program)
            self.callback(self.bouncer.stop)
            self.bouncer.start()
            self.proxy.routes[_POOLED] = ("127.0.0.1", self.bouncer.port)
        self.callback(self._end_processes)

    def _install(self) -> None:
        with psycopg.connect(self.server.conninfo(), autocommit=True) as conn:
            conn.execute("create database soak")
            if self.disk:
                place, owner = self.disk / "pg", os.stat(self.server.host)
                place.mkdir()
                os.chown(place, owner.st_uid, owner.st_gid)
                conn.execute(f"create tablespace small location '{place}'".encode())
                conn.execute("alter database soak set tablespace small")
        migrate(self.direct)
        with self.admin() as conn:
            conn.execute((Path(__file__).parent / "audit.sql").read_bytes())
            conn.execute(_ROLE)
            with contextlib.suppress(psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
                conn.execute("create extension amcheck")
            for flaw in self._flaws:
                rewrite(conn, *flaw)
            # Only a job that kills whoever runs it is to run out of rescues.
            conn.execute("select procrastinate.set_setting('max_rescues', '1000')")
            conn.execute(SCHEDULE)

    def _mount(self) -> Path | None:
        """Mount a small file system for the database, where this process may do that."""
        if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("mount"):
            return None
        disk = self.folder / "disk"
        disk.mkdir()
        # The server's account has to get there.
        self.folder.chmod(0o711)
        if not _mounted(disk, f"size={DISK_BYTES},mode=711"):
            return None
        self.callback(lambda: subprocess.run(["umount", "-l", str(disk)], check=False, capture_output=True))
        return disk

    def fill_disk(self) -> None:
        """Leave the database's disk no room at all."""
        assert self.disk
        # What is used goes on growing until the moment that this succeeds.
        while not _mounted(self.disk, f"remount,size={shutil.disk_usage(self.disk).used}"):
            self.pause(0.01)

    def empty_disk(self) -> None:
        """Let the database's disk have room again."""
        assert self.disk
        if not _mounted(self.disk, f"remount,size={DISK_BYTES}"):
            raise SoakError("the disk stays full")

    @property
    def direct(self) -> str:
        """The DSN past the proxy, as the owner."""
        if self.standby and self.failed_over:
            return self.standby.conninfo("soak")
        return str(self.server.conninfo("soak"))

    def dsn(self, name: str) -> str:
        """Return the DSN through the proxy, as the role of the application."""
        return make_conninfo(
            host="127.0.0.1",
            port=self.proxy.port,
            user="app",
            dbname="soak",
            application_name=name,
            sslmode="disable",
            gssencmode="disable",
        )

    @contextlib.contextmanager
    def admin(self, patience: float = 30.0) -> Iterator[psycopg.Connection[Any]]:
        """Connect past the proxy, as soon as the server takes connections."""
        deadline = time.monotonic() + patience
        while True:
            try:
                conn = psycopg.connect(self.direct, autocommit=True, connect_timeout=5)
                break
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise SoakError(f"the server is not there: {error}") from error
                self.pause(0.05)
        with conn:
            # Nothing that a fault does may take for ever, whatever another one halts.
            conn.execute("set statement_timeout = '60s'")
            yield conn

    def fail_over(self) -> None:
        """Lose the first server for good, and have the second take its place."""
        assert self.standby
        self.server.stop()
        self.standby.promote()
        self.proxy.upstream = self.standby.socket
        self.failed_over = True

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than the stage stands."""
        if self._closing.wait(seconds):
            raise SoakError("the soak was stopped")

    # Processes

    def start_workers(self, names: list[str] | None = None) -> None:
        for name in names or WORKERS:
            self.slots[name] = Slot(name, self._spawn_worker(name))
        self._keeper.start()
        self._watch.start()

    def start_clients(self, seed: int, seconds: float, rate: float) -> None:
        for name, share in {"python": 0.4, "sql": 0.6, "operator": 0.0}.items():
            options = {"name": name, "seed": seed, "seconds": seconds, "rate": rate * share, "hold": str(self._hold)}
            self.clients.append(self._spawn("clients", options, {}))
        self._gauge.start()

    def join_clients(self, patience: float) -> None:
        """Wait until those who defer have ended, which they do by themselves."""
        deadline = time.monotonic() + patience
        for process in self.clients:
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise SoakError("a client does not end") from None
            if code:
                raise SoakError(f"a client failed ({code}): {self.said()}")

    def said(self) -> str:
        """Return the end of what processes wrote to their standard error."""
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.err"))

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Keep a worker from being started again; afterwards it is, if it has ended."""
        slot = self.slots[name]
        slot.held = True
        try:
            yield slot.process
        finally:
            slot.held = False

    def stop_workers(self, patience: float) -> list[str]:
        """Ask all to stop; return the names of those that did not end in time."""
        for slot in self.slots.values():
            slot.held = True
            slot.process.send_signal(signal.SIGTERM)
        self.history.write("stop")
        deadline = time.monotonic() + patience
        late = []
        for slot in self.slots.values():
            try:
                slot.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(slot.name)
        return late

    def _spawn_worker(self, name: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {"name": name, "worker": WORKERS[name]}
        if name == PLUGGED:
            options["hooks"] = str(hooks.command(self.folder, name))
        return self._spawn("worker", options, env or {})

    def _spawn(self, module: str, options: dict[str, Any], env: dict[str, str]) -> subprocess.Popen[bytes]:
        name = options["name"]
        options |= {"dsn": self.dsn(name), "folder": str(self.histories)}
        with (self.folder / f"{name}.err").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", f"tests.faults.{module}", json.dumps(options)],
                cwd=ROOT,
                # Without the plugins that happen to be installed.
                env=os.environ | {"PROCRASTINATE_PLUGINS": "none"} | env,
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def _keep(self) -> None:
        while not self._closing.wait(0.1):
            for slot in self.slots.values():
                if slot.held or slot.process.poll() is None:
                    continue
                self.history.write("exit", name=slot.name, pid=slot.process.pid, code=slot.process.returncode)
                _end(slot.process)
                slot.process = self._spawn_worker(slot.name, slot.env)

    def _watch_backlog(self) -> None:
        query = "select count(*) > %s from procrastinate.job"
        while not self._closing.wait(0.5):
            with contextlib.suppress(psycopg.Error, SoakError), self.admin(patience=0) as conn:
                if conn.execute(query, [BACKLOG]).fetchone() == (True,):
                    self._hold.touch()
                else:
                    self._hold.unlink(missing_ok=True)

    def _watch_machine(self) -> None:
        """Write down when the machine stands still: who only sleeps and writes one byte to the disk is late, too."""
        with (self.folder / "stall").open("wb") as file:
            while not self._closing.is_set():
                began = time.monotonic()
                self._closing.wait(0.1)
                os.pwrite(file.fileno(), b"x", 0)
                os.fsync(file.fileno())
                if (ended := time.monotonic()) - began > STALL:
                    self.history.write("stall", began=began, ended=ended, touches=None)

    def _end_processes(self) -> None:
        self._closing.set()
        for thread in self._keeper, self._gauge, self._watch:
            if thread.is_alive():
                thread.join()
        for process in [*(slot.process for slot in self.slots.values()), *self.clients]:
            _end(process)

    def log(self) -> str:
        """Return what the server wrote to its log."""
        if self.standby and self.failed_over:
            return self.standby.log()
        return Path(self.server.folder, "server.log").read_text(errors="replace")


def _mounted(disk: Path, options: str) -> bool:
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    return not subprocess.run(mount, check=False, capture_output=True).returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()


class Bouncer:
    """A PgBouncer in transaction mode with two connections, for one of the workers."""

    def __init__(self, stage: Stage, program: str) -> None:
        self._program = program
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.stat(stage.server.host)
        self._folder = Path(stage.enter_context(tempfile.TemporaryDirectory(prefix="bouncer-")))
        self._config = self._folder / "bouncer.ini"
        self._config.write_text(f"""
            [databases]
            soak = host={stage.server.host} port={stage.server.port} dbname=soak user=app
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = any
            admin_users = app
            pool_mode = transaction
            default_pool_size = 2
            max_client_conn = 50
            server_login_retry = 1
            ignore_startup_parameters = extra_float_digits
            """)
        self._folder.chmod(0o755)

    def start(self) -> None:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": self._owner.st_uid, "group": self._owner.st_gid, "extra_groups": []}
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [self._program, self._config],
            cwd="/",
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
            **user,
        )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SoakError("PgBouncer did not start")
            time.sleep(0.02)

    def command(self, command: str) -> None:
        """Give a command on its console."""
        console = make_conninfo(host="127.0.0.1", port=self.port, user="app", dbname="pgbouncer", sslmode="disable")
        with psycopg.connect(console, autocommit=True, prepare_threshold=None) as conn:
            result = conn.pgconn.exec_(command.encode())
            if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
                raise psycopg.OperationalError(f"PgBouncer refuses {command}: {result.get_error_message()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
