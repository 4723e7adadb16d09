"""
What this project and Procrastinate have in common: the API, and so the benchmark's code, too.

Each is used as its documentation says, with the defaults of its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.systems import System

if TYPE_CHECKING:
    from benchmarks.load import Tally, Work


class Api(System):
    """A queue that is used as `procrastinate.App`."""

    def load(self) -> None:
        """Import it."""
        import_module(self.module)

    def app(self, dsn: str, tally: Tally | None = None, connections: int = 1, **options: Any) -> tuple[Any, Any]:
        """Return an app and its only task, which does nothing but count."""
        library: Any = import_module(self.module)
        pool = {"min_size": connections, "max_size": connections} if tally is None else {}
        app = library.App(connector=library.PsycopgConnector(conninfo=dsn, **pool, **options))

        @app.task(name="noop", queue="default")  # type: ignore[untyped-decorator]
        async def noop(t: float = 0.0) -> None:
            assert tally
            tally.tick(1, t)

        return app, noop

    async def work(self, work: Work) -> None:
        """Run a worker until the harness says stop."""
        options: dict[str, Any] = {"delete_jobs": "always"} if self.variant == "delete" else {}
        connector: dict[str, Any] = {}
        if work.pooled:  # as the documentation asks for
            connector["kwargs"] = {"prepare_threshold": None}
            options |= {"listen_notify": False, "fetch_job_polling_interval": 0.1}
        app, _ = self.app(work.dsn, work.tally, **connector)
        async with app.open_async():
            worker = asyncio.create_task(
                app.run_worker_async(
                    concurrency=work.concurrency, queues=work.queues, install_signal_handlers=False, **options
                )
            )
            stop = asyncio.create_task(work.stop.wait())
            await asyncio.wait({worker, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.done():
                await worker
                raise RuntimeError("the worker has stopped by itself")
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker

    async def defer(self, dsn: str, count: int, connections: int) -> float:
        """Call defer_async."""
        app, noop = self.app(dsn, connections=connections)
        numbers = iter(range(count))

        async def some() -> None:
            for _ in numbers:
                await noop.defer_async()

        async with app.open_async():
            begin = time.monotonic()
            await asyncio.gather(*(some() for _ in range(connections)))
            return time.monotonic() - begin

    async def bulk(self, dsn: str, count: int, size: int) -> float:
        """Call batch_defer_async."""
        app, noop = self.app(dsn)
        rows: list[dict[str, Any]] = [{} for _ in range(size)]
        async with app.open_async():
            begin = time.monotonic()
            for _ in range(count // size):
                await noop.batch_defer_async(*rows)
            return time.monotonic() - begin

    async def steady(self, dsn: str, rate: int, seconds: float) -> None:
        """Call batch_defer_async a hundred times a second."""
        app, noop = self.app(dsn)
        rest: list[dict[str, Any]] = [{} for _ in range(rate // 100 - 1)]
        async with app.open_async():
            begin = time.monotonic()
            for number in range(round(seconds * 100)):
                await asyncio.sleep(max(0.0, begin + number / 100 - time.monotonic()))
                await noop.batch_defer_async({"t": time.monotonic()}, *rest)

    async def ping(self, dsn: str, count: int, tally: Tally, others: Sequence[Tally] = ()) -> None:
        """Call defer_async now and then."""
        app, noop = self.app(dsn)

        async def defer() -> None:
            await noop.defer_async(t=time.monotonic())

        async with app.open_async():
            await pings(defer, count, tally, *others)


async def pings(defer: Any, count: int, *tallies: Tally) -> None:
    """Call `defer` again and again, a moment after the job before has started."""

    def started() -> int:
        return sum(tally.started for tally in tallies)

    for _ in range(count):
        seen, begin = started(), time.monotonic()
        await defer()
        while started() == seen and time.monotonic() - begin < 30:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(random.uniform(0.01, 0.03))
