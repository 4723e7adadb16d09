"""
A database, and an app that has this plugin and no other.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyprocrastinate import App, PsycopgConnector, embedded
from pyprocrastinate.migrate import migrate


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """Return the DSN of a private PostgreSQL, gone after the tests."""
    with embedded.Server() as server:
        migrate(server.conninfo())
        yield server.conninfo()


@pytest.fixture
def app(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setenv("PROCRASTINATE_DSN", database)
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "template")
    app = App(connector=PsycopgConnector())
    with app.open():
        yield app
