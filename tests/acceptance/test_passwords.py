"""No command prints the password of an address, whatever is wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pyprocrastinate import App, PsycopgConnector, SyncPsycopgConnector
from pyprocrastinate.exceptions import ConnectorException
from pyprocrastinate_cli import cli

CALLS: dict[str, list[list[str]]] = {
    "defer": [["--unknown", "x"]],
    "healthchecks": [[]],
    "jobs": [[], ["--details"]],
    "migrate": [[], ["--plan"], ["--sql"], ["--roles"], ["--stage", "post"]],
    "plugins": [[]],
    "queues": [[]],
    "schema": [[], ["--read"]],
    "shell": [["list_jobs"]],
    "worker": [["--one-shot"]],
}
DSNS = [
    "postgresql://ada:S3CR3T@127.0.0.1:1/x",
    "postgresql//ada:S3CR3T@127.0.0.1:1/x",
    "postgresql://ada:S3CR3T%zz@127.0.0.1:1/x",
    "postgresql://ada:S3C@R3T@127.0.0.1:1/x",
    "postgresql://127.0.0.1:1/x?user=ada&password=S3CR3T&nonsense=1",
    "host=127.0.0.1 port=1 user=ada password=S3CR3T",
    "host=127.0.0.1 port=x user=ada password='S3CR3T",
    "host=127.0.0.1 port=1 password=S3C R3T",
]
# Of these, libpq quotes a part or takes one for something else.
MALFORMED = [
    "postgresql://ada:S3C R3T@127.0.0.1:1/x",
    "postgresql://ada:S3C%00R3T@127.0.0.1:1/x",
    "postgresql://ada:123@S3CR3T@127.0.0.1:1/x",
    "postgresql://ada:S3C@R3T:9@127.0.0.1:1/x",
    "postgresql://ada:S3CR3T@[127.0.0.1:1/x",
    "postgresql://127.0.0.1:1/x?user=ada&password=S3CR3T%zz",
    "postgresql://127.0.0.1:1/x?user=ada&passwordS3CR3T",
    "postgresqll://ada:S3CR3T@127.0.0.1:1/x",
    "postgres:ada:S3CR3T@127.0.0.1:1/x",
    "mysql://ada:S3C R3T@127.0.0.1:1/x",
    "ada:S3CR3T@127.0.0.1",
    "host=127.0.0.1 port=1 password='S3C' R3T",
    "host=127.0.0.1 port=1 password=S3C R3T more=1",
]
SECRET = re.compile("S3C|R3T")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the path of an app that takes its address from the environment."""
    (tmp_path / "addressless.py").write_text(
        "from pyprocrastinate import App, PsycopgConnector\napp = App(connector=PsycopgConnector())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "addressless.app"


@pytest.fixture
def quiet() -> Iterator[None]:
    """Leave the loggers as they were: the command sets them up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_every_command_is_called() -> None:
    assert cli.commands.keys() == CALLS.keys()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dsn", DSNS)
@pytest.mark.parametrize("command", CALLS)
@pytest.mark.parametrize("by", ["option", "environment"])
def test_no_command_prints_it(
    app: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, command: str, dsn: str, by: str
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("PROCRASTINATE_DSN", dsn)
    given = ["--dsn", dsn] if by == "option" else []
    for arguments in CALLS[command]:
        for verbose in ([], ["-v"]):
            result = CliRunner().invoke(cli, [*verbose, "-a", app, *given, command, *arguments])
            assert result.exit_code == (1 if command != "plugins" and "--read" not in arguments else 0), result.output
            assert not SECRET.search(result.output), (arguments, verbose)
            assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    assert not SECRET.search(caplog.text)


@pytest.mark.parametrize("dsn", DSNS)
@pytest.mark.parametrize("connector", [PsycopgConnector, SyncPsycopgConnector])
def test_no_log_of_a_program_holds_it(caplog: pytest.LogCaptureFixture, dsn: str, connector: type) -> None:
    caplog.set_level("DEBUG", logger="pyprocrastinate")
    app = App(connector=connector(conninfo=dsn))
    assert "S3C" not in repr(app) + repr(app.connector)
    with contextlib.suppress(Exception), app.open():
        app.configure_task("t").defer()
    assert not SECRET.search(caplog.text)


DOORS: dict[str, Callable[[App], Any]] = {
    "open": lambda app: app.open(),
    "open_async": lambda app: asyncio.run(app.open_async().__aenter__()),
    "run_worker": lambda app: app.run_worker(wait=False, install_signal_handlers=False),
    "wire": lambda app: asyncio.run(app.connector.open_wire()),  # type: ignore[attr-defined]
    "pulse wire": lambda app: app.connector.open_pulse_wire(),  # type: ignore[attr-defined]
    "address": lambda app: psycopg.connect(app.connector.address()),
}


@pytest.mark.parametrize("dsn", [*DSNS, *MALFORMED])
@pytest.mark.parametrize("door", DOORS)
def test_no_exception_of_a_program_holds_it(dsn: str, door: str) -> None:
    with pytest.raises(ConnectorException if dsn in MALFORMED else Exception) as raised:
        DOORS[door](App(connector=PsycopgConnector(conninfo=dsn)))
    assert not SECRET.search("".join(traceback.format_exception(raised.value)))


@pytest.mark.parametrize("dsn", MALFORMED)
def test_nor_where_a_program_is_sync(dsn: str) -> None:
    with pytest.raises(ConnectorException, match="is malformed, or lacks escapes") as raised:
        App(connector=SyncPsycopgConnector(conninfo=dsn)).open()
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)


@pytest.mark.parametrize("host", ["@abstract", "/folder,@abstract", "127.0.0.1,db.example.com"])
def test_a_socket_may_begin_with_an_at_sign(host: str) -> None:
    conninfo = f"host={host} port=1"
    assert PsycopgConnector(conninfo=conninfo).address() == conninfo
