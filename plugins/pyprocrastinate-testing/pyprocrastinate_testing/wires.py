"""
The two lines of a worker, as `pyprocrastinate.wires` describes them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import psycopg

from pyprocrastinate.operations import Call

if TYPE_CHECKING:
    from pyprocrastinate_testing.connector import InMemoryConnector

T = TypeVar("T")


class MemoryWire:
    """The line of the event loop."""

    def __init__(self, connector: InMemoryConnector) -> None:
        self._connector = connector
        self.closed = False

    async def call(self, call: Call[T]) -> T:
        # As with a real connection, others get to run meanwhile.
        await asyncio.sleep(0)
        return _carried(self._connector, call, self.closed)

    async def close(self) -> None:
        self.closed = True

    def sever(self) -> None:
        self.closed = True


class MemoryPulseWire:
    """The line of the worker's own thread."""

    def __init__(self, connector: InMemoryConnector, listeners: list[Callable[[str], None]]) -> None:
        self._connector = connector
        self._listeners = listeners
        self._changed = threading.Condition()
        self._payloads: set[str] = set()
        self._interrupted = False
        self._closed = False

    def call(self, call: Call[T]) -> T:
        return _carried(self._connector, call, self._closed)

    def listen(self) -> None:
        self._listeners.append(self._hear)

    def _hear(self, payload: str) -> None:
        with self._changed:
            self._payloads.add(payload)
            self._changed.notify()

    def wait(self, seconds: float) -> set[str]:
        with self._changed:
            self._changed.wait_for(lambda: self._payloads or self._interrupted, seconds)
            payloads, self._payloads, self._interrupted = self._payloads, set(), False
            return payloads

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self._changed.notify()

    def sever(self) -> None:
        self._closed = True
        self.interrupt()

    def close(self) -> None:
        self.sever()
        if self._hear in self._listeners:
            self._listeners.remove(self._hear)


def _carried(connector: InMemoryConnector, call: Call[T], closed: bool) -> T:
    if closed:
        raise psycopg.OperationalError("the connection is closed")
    return connector.run_for_worker(call)
