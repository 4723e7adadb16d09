"""Closing a connector: its pool first, then the server that may be embedded."""

from __future__ import annotations

import threading
from typing import Any

import psycopg_pool
import pytest

from pyprocrastinate import PsycopgConnector, SyncPsycopgConnector, embedded


class Server:
    """Stand-in for an embedded server: it notes what has become of the pool when it is left."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.pools: list[Any] = []
        self.left: list[tuple[list[bool], threading.Thread]] = []

    def resolve(self, _: str) -> embedded.Resolved:
        resolved = embedded.Resolved(self.dsn)
        resolved.callback(self.leave)
        return resolved

    def leave(self) -> None:
        self.left.append(([pool.closed for pool in self.pools], threading.current_thread()))

    def pool(self, kind: type) -> Any:
        def factory(*args: Any, **kwargs: Any) -> Any:
            self.pools.append(kind(*args, **kwargs))
            return self.pools[-1]

        return factory


@pytest.fixture
def server(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(dsn)
    monkeypatch.setattr(embedded, "resolve", server.resolve)
    return server


def test_the_server_is_left_after_the_pool_is_closed(server: Server) -> None:
    connector = SyncPsycopgConnector(pool_factory=server.pool(psycopg_pool.ConnectionPool))
    connector.open()
    connector.close()
    connector.close()
    assert [pools for pools, _ in server.left] == [[True]]


async def test_the_event_loop_goes_on_while_the_server_stops(server: Server) -> None:
    connector = PsycopgConnector(pool_factory=server.pool(psycopg_pool.AsyncConnectionPool))
    await connector.open_async()
    await connector.close_async()
    await connector.close_async()
    assert [pools for pools, _ in server.left] == [[True]]
    assert server.left[0][1] is not threading.current_thread()


def test_the_server_is_left_even_when_the_pool_does_not_close(server: Server) -> None:
    class Stuck(psycopg_pool.ConnectionPool[Any]):
        def close(self, timeout: float = 5.0) -> None:
            super().close(timeout)
            raise RuntimeError("stuck")

    connector = SyncPsycopgConnector(pool_factory=server.pool(Stuck))
    connector.open()
    with pytest.raises(RuntimeError, match="stuck"):
        connector.close()
    assert len(server.left) == 1
