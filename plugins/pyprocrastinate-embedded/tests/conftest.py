"""
Users of embedded servers, as processes of their own, and a way to see processes end.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import pytest

from pyprocrastinate import embedded
from pyprocrastinate_embedded import _supervisor

DEADLINE = 60
USER = """
import sys
from pyprocrastinate import embedded
with embedded.resolve(sys.argv[1]) as resolved:
    print(resolved.conninfo, flush=True)
    sys.stdin.read()
"""


def wait_for_end(pid: int) -> None:
    """Return when a process has ended, whoever its parent is; fail when it does not."""
    if hasattr(os, "pidfd_open"):
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                assert select.select([pidfd], [], [], DEADLINE)[0], f"process {pid} does not end"
            finally:
                os.close(pidfd)
        return
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} does not end")


def parent_of(pid: int) -> int:
    """Return the process id of a process's parent."""
    return psutil.Process(pid).ppid()


class User:
    """A process that uses a server until it is told to leave, or killed."""

    def __init__(self, dsn: str, code: str = USER, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, dsn],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def conninfo(self) -> str:
        """Return the DSN that the process was given, once it has it."""
        return self._stream(self.process.stdout).readline().strip()

    def leave(self) -> None:
        """Return when the process has ended in order."""
        self._stream(self.process.stdin).close()
        assert self.process.wait(DEADLINE) == 0

    def kill(self) -> None:
        """Return when the process has been killed, without a chance to leave."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)

    def _stream(self, stream: IO[str] | None) -> IO[str]:
        assert stream
        return stream


@pytest.fixture
def use() -> Iterator[Callable[..., User]]:
    """Return a function that starts a user; what is left of them is killed after the test."""
    users: list[User] = []

    def use(dsn: str, code: str = USER, **environment: str) -> User:
        users.append(User(dsn, code, **environment))
        return users[-1]

    yield use
    for user in users:
        if user.process.poll() is None:
            user.kill()
        for stream in (user.process.stdin, user.process.stdout):
            if stream:
                stream.close()


@contextmanager
def open_folder() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="embedded-test-", dir="/tmp"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """Return a folder where a server has run."""
    with open_folder() as home:
        embedded.resolve(f"embedded:{home}/db").close()
        yield home / "db"


@pytest.fixture
def folder(made: Path) -> Iterator[Path]:
    """
    Return the folder of a server that has been made, which takes longer than to start it.

    The next test gets the same one, with its data; after each, nothing of the server may be alive.
    """
    yield made
    _see_that_all_ended(made.parent)


@pytest.fixture
def home() -> Iterator[Path]:
    """
    Return a folder that every account may enter, unlike root's `tmp_path`.

    After the test nothing of a server in it may be alive, and what it left elsewhere is removed.
    """
    with open_folder() as home:
        yield home
        _see_that_all_ended(home)


def _see_that_all_ended(home: Path) -> None:
    elsewhere = [Path(file.read_text()) for file in home.rglob("location")]
    locks = list(home.rglob("server.lock"))
    for path in locks:
        with _supervisor.open_lock(path.with_name("supervisor.lock")) as supervisor:
            _supervisor.lock(supervisor)
        with _supervisor.open_lock(path) as life:
            assert _supervisor.lock(life, wait=False), f"a server in {path.parent} is still alive"
    for place in elsewhere:
        shutil.rmtree(place)
