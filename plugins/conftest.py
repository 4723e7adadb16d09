"""
What the tests of all plugins need: an app with nothing but the plugin under test, and a worker for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, PsycopgConnector

OpenApp = Callable[..., Awaitable[App]]


@pytest.fixture
async def open_app(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenApp]:
    """Return an async function that opens an app on the test's database, with these plugins and no others."""
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "none")
    async with AsyncExitStack() as stack:

        async def open_app(*plugins: object) -> App:
            app = App(connector=PsycopgConnector(conninfo=dsn), plugins=plugins)
            return await stack.enter_async_context(app.open_async())

        yield open_app


@pytest.fixture
def drain() -> Callable[..., Awaitable[None]]:
    """Return an async function that runs an app's jobs until none is ready, and its observers have seen them."""

    async def drain(app: App, **options: Any) -> None:
        await app.run_worker_async(wait=False, install_signal_handlers=False, **options)

    return drain


@pytest.fixture
def status(conn: psycopg.Connection[Any]) -> Callable[[int], str]:
    """Return a function that tells the status of a job."""

    def status(job_id: int) -> str:
        row = conn.execute("select status from procrastinate.jobs where id = %s", [job_id]).fetchone()
        assert row
        return str(row[0])

    return status
