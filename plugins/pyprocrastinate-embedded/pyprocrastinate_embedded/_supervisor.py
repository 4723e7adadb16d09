"""
Run the server of an `embedded:` folder: a program of its own, PostgreSQL's parent.

It needs nothing but the standard library, so that it starts at once; the package starts it.
It stops when nobody holds `users.lock` any more, and PostgreSQL with it, however it ends: on Linux
at once, elsewhere when the next one starts in the folder.

PostgreSQL refuses to run as root, so root starts it as the account `postgres`, else `nobody`; no
account is made.
Where that account cannot reach FOLDER, the data live under /var/lib/pyprocrastinate instead, and
FOLDER/location says where.
Where it cannot reach the binaries, they are copied to /var/cache/pyprocrastinate once.
No mode of a folder that was there before is ever changed.

Clients come in through a socket in a folder that only the server's account, and root, may enter;
so there is no password and no port.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl
    import pwd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PORT = 5432
USER = "postgres"
Account = tuple[int, int]


class Refusal(Exception):
    """What keeps the server from running; the message says what to do."""


def open_lock(path: Path) -> IO[bytes]:
    """Open a file for `lock`; the kernel unlocks it when all who have it open are dead."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)


def lock(file: IO[bytes], *, shared: bool = False, wait: bool = True) -> bool:
    """Lock a file; without `wait`, return False where somebody else's lock is in the way."""
    while True:
        with contextlib.suppress(BlockingIOError, PermissionError):
            if sys.platform == "win32":
                # It shares no locks: here one who shares takes one byte of many, at random.
                file.seek(secrets.randbelow(2**30) if shared else 0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1 if shared else 2**30)
            else:
                fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
            return True
        if not wait:
            return False
        time.sleep(0.01)


def own_folder(folder: Path, mode: int) -> Path:
    """Make a folder, or refuse one that somebody else could have prepared."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True, mode=0o700)
        folder.chmod(mode)
    found = folder.lstat()
    safe = stat.S_ISDIR(found.st_mode)
    if sys.platform != "win32":
        mask = stat.S_IWOTH | (stat.S_IWGRP if is_root() else 0)
        safe = safe and found.st_uid == os.geteuid() and not found.st_mode & mask
    if not safe:
        raise Refusal(f"{folder} is no folder, or others own it or may write to it: name another folder")
    return folder


def data_of(folder: Path) -> Path:
    """Return where the data of a folder are."""
    with contextlib.suppress(FileNotFoundError):
        folder = Path((folder / "location").read_text())
    return folder / "pgdata"


def ready_pid(data: Path) -> int:
    """Return the process id of the server that runs on some data, 0 if none takes connections."""
    with contextlib.suppress(OSError, IndexError):
        lines = (data / "postmaster.pid").read_text().split("\n")
        if lines[7].strip() == "ready":
            return int(lines[0])
    return 0


def supervise(folder: Path, bindir: Path, temporary: Mapping[str, object] | None) -> None:
    """Run the server of a folder until nobody uses it; `temporary` ones, with settings, vanish."""
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with open_lock(folder / "supervisor.lock") as present, open_lock(folder / "users.lock") as users:
        lock(present)
        cluster = None
        try:
            cluster = Cluster(folder, bindir, temporary)
            cluster.start()
            (folder / "socket").write_text(cluster.host)
            print("ready", flush=True)
            os.dup2(cluster.log, 1)
            os.dup2(cluster.log, 2)
            while not lock(users, wait=False):
                if cluster.process and cluster.process.poll() is not None:
                    cluster.start()
                time.sleep(0.05)
        except (Refusal, OSError) as error:
            print(error, flush=True)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (folder / "socket").unlink(missing_ok=True)
            if cluster:
                cluster.stop()
        os._exit(0)  # so that who finds the locks free finds no process either


class Cluster:
    """The data of a folder, and the PostgreSQL that runs on them."""

    def __init__(self, folder: Path, bindir: Path, temporary: Mapping[str, object] | None) -> None:
        self.folder = folder
        self.temporary = temporary
        self.process: subprocess.Popen[bytes] | None = None
        self.account = _account(data_of(folder))
        if not data_of(folder).exists() and not _reachable(folder, self.account):
            place = Path(tempfile.mkdtemp(dir=own_folder(Path("/var/lib/pyprocrastinate"), 0o711)))
            place.chmod(0o711)
            (folder / "location").write_text(str(place))
        self.data = data_of(folder)
        can_run = _reachable(bindir / "postgres", self.account)
        self.bindir = bindir if can_run else _reachable_copy(bindir)
        (folder / "server.log").unlink(missing_ok=True)
        self.log = os.open(folder / "server.log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.host = self._socket_folder()

    def start(self) -> None:
        """Start PostgreSQL, once nothing of an earlier one lives; return when it can be used."""
        with open_lock(self.folder / "server.lock") as life:
            pidfile = self.data / "postmaster.pid"
            if not lock(life, wait=False):
                # An orphan, on a system that does not end it with its parent.
                # It lives, so its number is not somebody else's by now.
                with contextlib.suppress(OSError, ValueError):
                    os.kill(int(pidfile.read_text().split()[0]), signal.SIGINT)
                lock(life)
            if sys.platform != "win32":  # where a lock is not inherited
                pidfile.unlink(missing_ok=True)
            if not self.data.exists():
                self._initialise(life)
            settings = {"listen_addresses": "", "unix_socket_directories": self.host, "port": PORT}
            options = {**settings, "timezone": "UTC", **(self.temporary or {})}
            argv: list[str | Path] = [self.bindir / "postgres", "-D", self.data]
            self.process = self._spawn([*argv, *(f"--{k}={v}" for k, v in options.items())], life)
        while ready_pid(self.data) != self.process.pid:
            if self.process.poll() is not None:
                raise Refusal(f"PostgreSQL did not start: {self._last_words()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop PostgreSQL, at once where its data are gone anyhow, and clean up."""
        if self.process and self.process.poll() is None:
            orderly = "SIGTERM" if sys.platform == "win32" else "SIGINT"
            name = orderly if self.temporary is None else "SIGQUIT"
            self.process.send_signal(getattr(signal, name, signal.SIGTERM))
            self.process.wait()
        for place in [self.host] + [self.data.parent, self.folder] * (self.temporary is not None):
            shutil.rmtree(place, ignore_errors=True)

    def _initialise(self, life: IO[bytes]) -> None:
        unfinished = self.data.with_name("pgdata.new")  # so that data that are there are whole
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self.account:
            os.chown(unfinished, *self.account)
        argv: list[str | Path] = [self.bindir / "initdb", "-D", unfinished, "-U", USER]
        argv += ["--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject"]
        argv += [] if self.temporary is None else ["--no-sync"]
        if self._spawn(argv, life).wait():
            raise Refusal(f"initdb failed: {self._last_words()}")
        unfinished.rename(self.data)

    def _spawn(self, argv: Sequence[str | Path], life: IO[bytes]) -> subprocess.Popen[bytes]:
        how = _identity(self.account) | {"stdout": self.log, "stderr": self.log}
        if sys.platform != "win32":
            how |= {"pass_fds": [life.fileno()], "preexec_fn": _last_will()}
        return subprocess.Popen(argv, **how)

    def _last_words(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace").strip()[-2000:]

    def _socket_folder(self) -> str:
        """Return a folder that only the server may enter: that of one who was killed, or a new."""
        socket = self.folder / "socket"
        with contextlib.suppress(OSError):
            host = socket.read_text()
            socket.unlink()
            found = os.lstat(host)
            owner = self.account[0] if self.account else self.folder.stat().st_uid
            if found.st_uid == owner and found.st_mode == stat.S_IFDIR | 0o700:
                return host
        for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108
            host = tempfile.mkdtemp(prefix="pg-", dir=parent)
            if self.account:
                os.chown(host, *self.account)
            # With the socket's name it has to fit into 107 bytes, 103 on macOS.
            if len(os.fsencode(host)) < 80 and _reachable(Path(host), self.account):
                return host
            os.rmdir(host)
        raise Refusal("no folder for the socket: set TMPDIR to one with a short path")


def _last_will() -> Callable[[], None] | None:
    """Return what makes a new child end with this process, on the systems that can do that."""
    if sys.platform != "linux":
        return None
    from ctypes import CDLL

    parent, prctl, pr_set_pdeathsig = os.getpid(), CDLL(None).prctl, 1

    def preexec() -> None:
        prctl(pr_set_pdeathsig, signal.SIGINT)
        if os.getppid() != parent:
            os._exit(1)

    return preexec


def is_root() -> bool:
    """Tell whether PostgreSQL would refuse to run as this process's account."""
    return sys.platform != "win32" and os.geteuid() == 0


def _account(data: Path) -> Account | None:
    """Return the account that the server needs, where it is not the own one."""
    if sys.platform == "win32" or not is_root():
        return None
    if data.exists():
        return data.stat().st_uid, data.stat().st_gid
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid
    raise Refusal(
        "PostgreSQL does not run as root, and there is no account postgres or nobody: run this as an ordinary user"
    )


def _identity(account: Account | None) -> dict[str, Any]:
    """Return how to start a program of the server's; what it sees, its account sees, too."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {"LC_ALL": "C", "TZ": "UTC"}
    user = {"user": account[0], "group": account[1], "extra_groups": []} if account else {}
    return {"cwd": "/", "env": env, "stdin": subprocess.DEVNULL, **user}


def _reachable(place: Path, account: Account | None) -> bool:
    argv = ["/bin/sh", "-c", 'test -x "$0"', str(place)]
    return not account or subprocess.run(argv, check=False, **_identity(account)).returncode == 0


def _reachable_copy(bindir: Path) -> Path:
    """Copy the installation around `bindir` to where every account can run it, once."""
    root, package, found = bindir.parent, bindir.parents[1], (bindir / "postgres").stat()
    cache = own_folder(Path("/var/cache/pyprocrastinate"), 0o711)
    copy = cache / f"postgres-{found.st_dev}-{found.st_ino}-{found.st_mtime_ns}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=cache))
        for source in (root, package.with_name(f"{package.name}.libs")):  # a wheel's libraries
            if source.is_dir():
                target = unfinished / source.relative_to(package.parent)
                shutil.copytree(source, target, symlinks=True)
        subprocess.run(["/bin/chmod", "-R", "go+rX,go-w", unfinished], check=True)
        try:
            unfinished.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
    return copy / bindir.relative_to(package.parent)


def main() -> None:
    """Go to the background and supervise; the standard output tells when the server is there."""
    if sys.platform != "win32":
        if os.fork():
            os._exit(0)
        os.setsid()
    elif len(sys.argv) == 2:
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        argv = [sys.executable, "-I", *sys.argv, "detached"]
        subprocess.Popen(argv, stdout=sys.stdout, stderr=sys.stderr, creationflags=flags)
        return
    plan = json.loads(sys.argv[1])
    supervise(Path(plan["folder"]), Path(plan["bindir"]), plan["temporary"])


if __name__ == "__main__":
    main()
