"""
An app on a queue in memory, and workers that stop with the test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pyprocrastinate import App
from pyprocrastinate.testing import InMemoryConnector
from pyprocrastinate.worker import Worker

PATIENCE = 20.0


@pytest.fixture
def queue() -> InMemoryConnector:
    return InMemoryConnector()


@pytest.fixture
def app(queue: InMemoryConnector) -> Iterator[App]:
    with App(connector=queue).open() as app:
        yield app


@pytest.fixture
def drain(app: App) -> Callable[[], None]:
    """Return a function that works until nothing is ready."""
    return lambda: app.run_worker(wait=False, install_signal_handlers=False)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    """Return an async function that waits until a condition holds."""

    async def until(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            if condition():
                return
            assert time.monotonic() < deadline, "it did not happen"
            await asyncio.sleep(0.001)

    return until


@pytest.fixture
def working(app: App) -> Any:
    """Return an async context manager that runs a worker which only notifications wake."""

    @asynccontextmanager
    async def working(**options: Any) -> AsyncIterator[Worker]:
        worker = app.make_worker(
            install_signal_handlers=False, fetch_job_polling_interval=60, abort_job_polling_interval=60, **options
        )
        run = asyncio.create_task(worker.run())
        yield worker
        worker.stop()
        await asyncio.wait_for(run, PATIENCE)

    return working
