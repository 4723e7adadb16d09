"""
The two lines that a worker has to its database, one for its event loop, one for its pulse, and what psycopg makes of
them.

A connector runs workers if it can open both: `WorkerConnector`. Of the calls it is handed on a wire, each reads rows as
the schema's function gives them, but that a timestamptz is a number, the microseconds since 2000.
Whatever fails raises `psycopg.Error`, or a subclass with the `sqlstate` that the schema would raise.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import psycopg

from pyprocrastinate import operations, payload
from pyprocrastinate.operations import Call

T = TypeVar("T")

CHANNEL = "procrastinate_v1"
# A pooler between us and the server has no memory for prepared statements.
_NOT_PREPARED = ("26000", "42P05")


class Wire(Protocol):
    """The line of the event loop, which makes one call at a time."""

    @property
    def closed(self) -> bool:
        """Tell whether it is of no more use: after `close`, `sever`, or an error that has ended it."""

    async def call(self, call: Call[T]) -> T:
        """Carry out a call in a transaction of its own, and return what it makes of its rows."""

    async def close(self) -> None:
        """End the line."""

    def sever(self) -> None:
        """Make the call that is under way fail at once; safe from any thread."""


class PulseWire(Protocol):
    """The line of the worker's own thread, for heartbeats and notifications."""

    def call(self, call: Call[T]) -> T:
        """Carry out a call in a transaction of its own, and return what it makes of its rows."""

    def listen(self) -> None:
        """Hear from now on what is notified on `procrastinate_v1`."""

    def wait(self, seconds: float) -> set[str]:
        """Return the payloads that were notified, at once if there are some, else after `interrupt`, or this long."""

    def interrupt(self) -> None:
        """Let `wait`, or the next one if nobody waits, return at once; safe from any thread."""

    def sever(self) -> None:
        """Make the call that is under way fail at once; safe from any thread."""

    def close(self) -> None:
        """End the line."""


@runtime_checkable
class WorkerConnector(Protocol):
    """A connector that can run workers: a `BaseConnector` with these two, which connect or raise `psycopg.Error`."""

    json_dumps: payload.JsonDumps
    json_loads: payload.JsonLoads

    async def open_wire(self) -> Wire: ...

    def open_pulse_wire(self) -> PulseWire: ...


class _PsycopgWire:
    def __init__(self, connection: Any, prepare_nothing: Callable[[], None]) -> None:
        self._connection = connection
        self._prepare_nothing = prepare_nothing
        connection.adapters.register_loader("timestamptz", operations.MicrosecondsLoader)

    @property
    def closed(self) -> bool:
        return bool(self._connection.closed)

    def sever(self) -> None:
        with contextlib.suppress(OSError, psycopg.Error):
            borrowed = socket.socket(fileno=self._connection.fileno())
            try:
                borrowed.shutdown(socket.SHUT_RDWR)
            finally:
                borrowed.detach()

    @contextlib.contextmanager
    def _calling(self) -> Any:
        """Begin anew without prepared statements, if that is what went wrong."""
        try:
            yield
        except psycopg.Error as error:
            if error.sqlstate in _NOT_PREPARED:
                # This line has still prepared some, even if the other one was faster to find out.
                self._prepare_nothing()
                self._connection.pgconn.finish()
            raise


class PsycopgWire(_PsycopgWire):
    """A `Wire` over a connection of psycopg's."""

    async def call(self, call: Call[T]) -> T:
        with self._calling():
            return await operations.run_async(self._connection, call, binary=True)

    async def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            await self._connection.close()


class PsycopgPulseWire(_PsycopgWire):
    """A `PulseWire` over a connection of psycopg's."""

    def __init__(self, connection: psycopg.Connection[Any], prepare_nothing: Callable[[], None]) -> None:
        super().__init__(connection, prepare_nothing)
        self._poke_out, self._poke_in = socket.socketpair()
        self._poke_in.setblocking(False)
        self._poke_out.setblocking(False)

    def call(self, call: Call[T]) -> T:
        with self._calling():
            return operations.run(self._connection, call, binary=True)

    def listen(self) -> None:
        self._connection.execute(f"listen {CHANNEL}", prepare=False)

    def wait(self, seconds: float) -> set[str]:
        # Some came along with the answers to calls, and no socket tells of them.
        if payloads := self._heard():
            return payloads
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection.fileno(), selectors.EVENT_READ)
            selector.register(self._poke_out, selectors.EVENT_READ)
            selector.select(seconds)
        with contextlib.suppress(OSError):
            self._poke_out.recv(4096)
        return self._heard()

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            self._poke_in.send(b"!")

    def close(self) -> None:
        self._connection.close()
        self._poke_in.close()
        self._poke_out.close()

    def _heard(self) -> set[str]:
        return {notify.payload for notify in self._connection.notifies(timeout=0)}
