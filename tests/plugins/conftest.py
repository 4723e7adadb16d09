"""
An app with plugins on a database of its own, and a worker that runs until nothing is ready.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pyprocrastinate_hooks
from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.cli import cli
from tests.worker.conftest import status, until

__all__ = ["status", "until"]

OpenApp = Callable[..., Awaitable[App]]
Drain = Callable[..., Awaitable[None]]


@pytest.fixture
async def open_app(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenApp]:
    """Return an async function that opens an app with these plugins and no others."""
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "none")
    async with AsyncExitStack() as stack:

        async def open_app(*plugins: object) -> App:
            app = App(connector=PsycopgConnector(conninfo=dsn), plugins=plugins)
            return await stack.enter_async_context(app.open_async())

        yield open_app


@pytest.fixture
def drain() -> Drain:
    """Return an async function that runs an app's jobs until none is ready, and its observers have seen them."""

    async def drain(app: App, **options: Any) -> None:
        await app.run_worker_async(wait=False, install_signal_handlers=False, **options)

    return drain


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the budgets."""
    monkeypatch.setattr(pyprocrastinate_hooks, "PATIENCE", 0.2)
    monkeypatch.setattr(pyprocrastinate_hooks, "BUDGET", 0.2)


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """Return an event that happens only after the test, so that nothing hangs for ever."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str, int]]]:
    """Return a function that tells which plugins were complained about: plugin, hook and level."""

    def complaints() -> list[tuple[str, str, int]]:
        return [
            (vars(record)["plugin"], vars(record)["hook"], record.levelno)
            for record in caplog.records
            if record.name == "pyprocrastinate.hooks" and record.levelno > logging.INFO
        ]

    return complaints


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that installs a plugin of this name; only those installed like this are found."""
    names: list[str] = []

    def install(name: str, source: str) -> None:
        (tmp_path / f"{name}_plugin.py").write_text(source)
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[pyprocrastinate]\n{name} = {name}_plugin\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, f"{name}_plugin", raising=False)
        names.append(name)
        monkeypatch.setenv("PROCRASTINATE_PLUGINS", ",".join(names))

    return install


@pytest.fixture
def command() -> Iterator[Callable[..., Result]]:
    """Return a function that runs the command line."""
    before = dict(cli.commands)
    yield lambda *args: CliRunner().invoke(cli, args)
    cli.commands.clear()
    cli.commands.update(before)
