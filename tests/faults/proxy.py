"""
A network that fails on command, between PostgreSQL and its clients.

It can do what a cable cannot: take a statement to the server, see its commit, and lose the answer; or fall silent while
every byte is still acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

# ReadyForQuery outside of a transaction: whatever was asked has been committed, or rolled back.
_COMMITTED = b"Z\0\0\0\x05I"
_IN_TRANSACTION = (b"Z\0\0\0\x05T", b"Z\0\0\0\x05E")
_PROTOCOL_3 = 196608

Address = tuple[str, int] | str


@dataclass
class Weather:
    """What the connections of one client have to bear."""

    frozen: bool = False
    delay: float = 0.0
    # Bytes that still pass towards the client before the connection is cut.
    budget: int | None = None
    lose_reply: bool = False


@dataclass(eq=False)
class Link:
    """One connection through the proxy."""

    name: str
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    listens: bool = False
    ready: bool = False
    withheld: bytes = b""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """Break the connection on both sides, towards the client with RST."""
        sock = self.client.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.transport.abort()
        self.server.transport.abort()


class Proxy:
    """
    Listens on a port of this machine and forwards to `upstream`, or to where `routes` sends a client.

    Clients are told apart by their `application_name`; they must not ask for TLS.
    Methods may be called from any thread.
    """

    def __init__(self, upstream: Address) -> None:
        self.routes: dict[str, Address] = {}
        self.port = 0
        self.lost_replies = 0
        self.upstream = upstream
        self._weather: dict[str, Weather] = defaultdict(Weather)
        self._links: set[Link] = set()
        self._changed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def change(self, name: str, **weather: Any) -> None:
        """Set fields of a client's weather."""

        def change() -> None:
            for key, value in weather.items():
                setattr(self._weather[name], key, value)
            # Who waits looks again; who comes later waits for the next change.
            self._changed.set()
            self._changed = asyncio.Event()

        self._call(change)

    def calm(self, name: str) -> None:
        """Let everything pass again."""
        self.change(name, frozen=False, delay=0.0, budget=None, lose_reply=False)

    def reset(self, name: str) -> int:
        """Break all connections of a client; return how many there were."""

        def reset() -> int:
            links = [link for link in self._links if link.name == name]
            for link in links:
                link.reset()
            return len(links)

        return int(self._call(reset))

    def connections(self, name: str) -> int:
        """Return how many connections a client has."""
        return int(self._call(lambda: sum(link.name == name for link in self._links)))

    def _call(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for link in list(self._links):
            link.reset()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readexactly(8)
            size, code = struct.unpack("!ii", head)
            head += await reader.readexactly(size - 8)
            name = _name(head) if code == _PROTOCOL_3 else ""
            upstream = self.routes.get(name, self.upstream)
            while self._weather[name].frozen:
                await self._changed.wait()
            if isinstance(upstream, str):
                replies, server = await asyncio.open_unix_connection(upstream)
            else:
                replies, server = await asyncio.open_connection(*upstream)
            link = Link(name, client, server)
            self._links.add(link)
            server.write(head)
            try:
                await asyncio.gather(self._up(link, reader), self._down(link, replies))
            finally:
                self._links.discard(link)
                server.close()
        client.close()

    async def _up(self, link: Link, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            if b"listen procrastinate" in data:
                link.listens = True
            await self._pass(link, data, link.server)
        link.server.close()

    async def _down(self, link: Link, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            weather = self._weather[link.name]
            if weather.lose_reply and link.ready and not link.listens:
                data = link.withheld = link.withheld + data
                if _COMMITTED in data:
                    weather.lose_reply = False
                    self.lost_replies += 1
                    link.reset()
                    return
                if not any(sign in data for sign in _IN_TRANSACTION):
                    continue
                link.withheld = b""
            elif link.withheld:
                data, link.withheld = link.withheld + data, b""
            link.ready = link.ready or _COMMITTED in data
            if weather.budget is not None:
                data = data[: weather.budget]
                weather.budget -= len(data)
            await self._pass(link, data, link.client)
            if weather.budget == 0:
                await link.client.drain()
                weather.budget = None
                link.reset()
                return
        link.client.close()

    async def _pass(self, link: Link, data: bytes, writer: asyncio.StreamWriter) -> None:
        weather = self._weather[link.name]
        if weather.delay:
            await asyncio.sleep(weather.delay)
        while weather.frozen:
            await self._changed.wait()
        writer.write(data)
        await writer.drain()


def _name(startup: bytes) -> str:
    fields = startup[8:].split(b"\0")
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(b"application_name", b"").decode()
