"""
The connection over which a worker's loop talks to the database, made again as often as it breaks.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from time import monotonic
from typing import TypeVar

import psycopg

from pyprocrastinate.operations import Call
from pyprocrastinate.wires import Wire, WorkerConnector

T = TypeVar("T")

# What the server may answer a statement that will do as it is a little later. 54000 is what a commit gets while the
# queue of notifications is full.
_PASSING = ("08", "25006", "40", "53", "54000", "55P03", "57", "58")
_LONGEST_PAUSE = 5.0


def is_passing(sqlstate: str | None) -> bool:
    """Tell whether what failed like this may be tried again as it is."""
    return (sqlstate or "").startswith(_PASSING)


def backoff(attempt: int) -> float:
    """Return how long to wait before this attempt, with jitter, so that workers do not come back all at once."""
    return min(_LONGEST_PAUSE, 0.1 * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311


class Unreachable(Exception):
    """The worker is to stop and the database does not answer."""


class Link:
    """
    Carries calls, one at a time.

    What fails because of the connection, or of a state of the server that will pass, is tried again until it works, or
    until `limit` seconds have passed since that was set: then it is `expired`.
    So a call may have taken effect more than once, or without its answer having been seen:
    `interrupted` is set then.
    """

    def __init__(self, connector: WorkerConnector, logger: logging.Logger, patience: float) -> None:
        self.interrupted = self.expired = False
        self.round_trip = float("inf")
        self._connector = connector
        self._logger = logger
        self._patience = patience
        self._wire: Wire | None = None
        self._opening: asyncio.Timeout | None = None
        self._limited = asyncio.Event()

    async def open(self) -> None:
        """Connect, or raise."""
        async with asyncio.timeout(0 if self.expired else None) as self._opening:
            self._wire = await self._connector.open_wire()

    async def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire:
            await wire.close()

    def limit(self, seconds: float) -> None:
        """Give up on the database after this long, even in the middle of a call; what was set first holds."""
        self._limited.set()
        asyncio.get_running_loop().call_later(seconds, self._cut)

    async def call(self, call: Call[T]) -> T:
        """
        Carry out a call.

        Raises:
            Unreachable: The limit has passed.
            psycopg.Error: The server refuses the call, and would do so again.
        """
        attempt = 0
        while True:
            try:
                if self._wire is None:
                    await self.open()
                    self._logger.info("Connected to the database again", extra={"action": "reconnected"})
                return await self._attempt(call)
            except (psycopg.Error, TimeoutError) as error:
                if not await self._recover(error):
                    raise
                if self.expired:
                    raise Unreachable(str(error)) from error
                extra = {"action": "database_error", "attempt": attempt}
                self._logger.warning("The database does not answer: %s", error, extra=extra)
            await self._pause(backoff(attempt))
            attempt += 1

    def _cut(self) -> None:
        self.expired = True
        if self._wire:
            self._wire.sever()
        elif self._opening:
            # It may be over already.
            with suppress(RuntimeError):
                self._opening.reschedule(0)

    async def _attempt(self, call: Call[T]) -> T:
        assert self._wire
        # A link that is dead behind a proxy is never reported by the kernel.
        timer = asyncio.get_running_loop().call_later(self._patience, self._wire.sever)
        began = monotonic()
        try:
            result = await self._wire.call(call)
        finally:
            timer.cancel()
        # The loop may have been busy when the answer came, so only the shortest trips tell the truth.
        self.round_trip = min(monotonic() - began, self.round_trip * 1.05)
        return result

    async def _recover(self, error: Exception) -> bool:
        """Make the connection usable again; tell whether the call is worth another attempt."""
        if self._wire is None or self._wire.closed:
            self.interrupted = True
            await self.close()
            return True
        return is_passing(getattr(error, "sqlstate", None))

    async def _pause(self, seconds: float) -> None:
        if self._limited.is_set():
            await asyncio.sleep(min(seconds, 0.25))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._limited.wait(), seconds)
