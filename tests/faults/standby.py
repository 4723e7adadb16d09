"""A second server that follows the first, synchronously, and takes its place once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pyprocrastinate.embedded import Server


class Standby:
    """Follows `server` from `start` on: what that one acknowledges is on both."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None
        owner = os.stat(server.host)
        self._folder = Path(tempfile.mkdtemp(prefix="standby-"))
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:
            # PostgreSQL does not run as root.
            os.chown(self._folder, owner.st_uid, owner.st_gid)
            self._account = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}

    @property
    def socket(self) -> str:
        """Where clients reach it."""
        return f"{self._folder}/.s.PGSQL.{self._server.port}"

    def conninfo(self, dbname: str) -> str:
        return make_conninfo(host=str(self._folder), port=self._server.port, user=self._server.user, dbname=dbname)

    def start(self, pause: Callable[[float], None]) -> None:
        """Copy the data, follow, and let the first server acknowledge nothing that is not here, too."""
        # The server's own account has to reach the programs: those that the server itself runs from.
        with psycopg.connect(self._server.conninfo(), autocommit=True) as conn:
            (bindir,) = conn.execute("select setting from pg_config where name = 'BINDIR'").fetchone() or ("",)
            data, log = self._folder / "data", (self._folder / "log").open("wb")
            how: dict[str, Any] = {
                "cwd": "/",
                "stdin": subprocess.DEVNULL,
                "stdout": log,
                "stderr": log,
                **self._account,
            }
            copy = ["-h", self._server.host, "-p", str(self._server.port), "-U", self._server.user, "-D", str(data)]
            with log:
                subprocess.run([f"{bindir}/pg_basebackup", *copy, "-R", "-c", "fast"], check=True, **how)
                own = {"unix_socket_directories": self._folder, "listen_addresses": "", "port": self._server.port}
                settings = own | self._server.settings
                argv = [f"{bindir}/postgres", "-D", str(data), *(f"--{k}={v}" for k, v in settings.items())]
                self._process = subprocess.Popen(argv, start_new_session=True, **how)
            conn.execute("alter system set synchronous_standby_names = '*'")
            conn.execute("select pg_reload_conf()")
            deadline = time.monotonic() + 30
            while conn.execute("select from pg_stat_replication where sync_state = 'sync'").fetchone() is None:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the standby does not follow: {self.log()}")
                pause(0.05)

    def promote(self) -> None:
        """Become the server that writes are for."""
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as conn:
            conn.execute("select pg_promote()")

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop, and leave nothing."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
