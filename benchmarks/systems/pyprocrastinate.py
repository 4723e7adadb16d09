"""This project, as Python uses it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from benchmarks.systems.api import Api
from benchmarks.systems.core import Core

if TYPE_CHECKING:
    from benchmarks.load import Work


class Pyprocrastinate(Api, Core):
    """Its worker; history kept, or `delete`: with delete_jobs="always"; `prometheus`: with that plugin at work."""

    title = "pyprocrastinate"
    variants = ("", "prometheus", "delete")
    drained = {1: 100_000, 10: 100_000, 100: 100_000}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if self.variant == "prometheus":
            self.plugins = self.variant

    async def rest(self, work: Work) -> None:
        """Run many workers, each with connections of its own, in one event loop."""
        async with contextlib.AsyncExitStack() as stack:
            apps = [self.app(work.dsn)[0] for _ in range(work.workers)]
            for app in apps:
                await stack.enter_async_context(app.open_async())
            workers = [asyncio.create_task(app.run_worker_async(install_signal_handlers=False)) for app in apps]
            stop = asyncio.create_task(work.stop.wait())
            await asyncio.wait({*workers, stop}, return_when=asyncio.FIRST_COMPLETED)
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def system(name: str) -> Pyprocrastinate:
    """Return it."""
    return Pyprocrastinate(name)
