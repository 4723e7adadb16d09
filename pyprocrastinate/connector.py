"""
How calls of the schema reach the database: pools for deferring and managing, connections of their own for workers.
"""

from __future__ import annotations

import asyncio
import logging
import re
import selectors
import threading
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from pyprocrastinate import embedded, exceptions, operations, payload, wires
from pyprocrastinate.jobs import plain
from pyprocrastinate.operations import Call

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Where the user says nothing: a broken link is noticed in half a minute, not in two hours.
_LINK = conninfo_to_dict(
    "connect_timeout=5 keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=20000 "
    "application_name='pyprocrastinate worker'"
)
_ADDRESS = {"host", "hostaddr", "port", "dbname", "user", "service"}
_PSYCOPGS = {"autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory"}
# What a role, a database or the environment may say otherwise, and workers cannot do with.
_ISOLATION = "set default_transaction_isolation = 'read committed'"
# What async pools and connections take, and sync ones must not get.
_ASYNC_ONLY = {"configure", "reset", "check", "connection_class", "reconnect_failed", "cursor_factory", "row_factory"}


class BaseConnector:
    """
    What an app needs of a connector.

    `run` and `run_async` carry out a call, on `connection` if one is given.
    """

    def __init__(
        self, *, json_dumps: payload.JsonDumps | None = None, json_loads: payload.JsonLoads | None = None
    ) -> None:
        self.json_dumps = json_dumps or payload.dumps
        self.json_loads = json_loads or payload.loads

    def address(self) -> str:
        """Return where migrations connect to; empty for what the environment says."""
        return ""

    def redirect(self, conninfo: str) -> None:
        """Use this address in place of the one given before; to be called before it is opened."""
        raise exceptions.ConnectorException(f"{type(self).__name__} has no address to replace")

    def open(self, pool: Any = None) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    async def open_async(self, pool: Any = None) -> None:
        raise exceptions.SyncConnectorConfigurationError

    async def close_async(self) -> None:
        raise exceptions.SyncConnectorConfigurationError

    def run(self, call: Call[T], connection: Any = None) -> T:
        raise NotImplementedError

    async def run_async(self, call: Call[T], connection: Any = None) -> T:
        raise exceptions.SyncConnectorConfigurationError

    def in_transaction(self, connection: Any) -> bool:
        """Tell whether what was done on it, if given, may still roll back; on others than psycopg's it always may."""
        return connection is not None and getattr(connection.info, "transaction_status", None) != TransactionStatus.IDLE


class SyncPsycopgConnector(BaseConnector):
    """
    Defers and manages jobs from sync code; it cannot run a worker.

    `conninfo` is a DSN for libpq or `embedded:FOLDER`; empty means $PROCRASTINATE_DSN, else libpq's own variables.
    Further arguments go to psycopg_pool's pool, among them `kwargs` for its connections.
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        json_dumps: payload.JsonDumps | None = None,
        json_loads: payload.JsonLoads | None = None,
        pool_factory: Any = psycopg_pool.ConnectionPool,
        **pool_kwargs: Any,
    ) -> None:
        super().__init__(json_dumps=json_dumps, json_loads=json_loads)
        self._conninfo = conninfo
        self._pool_factory = pool_factory
        self._pool_kwargs = {"min_size": 1, **pool_kwargs}
        self._kwargs = {**self._pool_kwargs.pop("kwargs", {}), "autocommit": True}
        self._resolved: embedded.Resolved | None = None
        self._opening = threading.Lock()
        self._pool: Any = None
        self._own_pools: list[Any] = []

    def redirect(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._kwargs = {key: value for key, value in self._kwargs.items() if key in _PSYCOPGS}

    def address(self) -> str:
        libpqs = {key: value for key, value in self._kwargs.items() if key not in _PSYCOPGS}
        return make_conninfo(self._resolve(), **libpqs)

    def open(self, pool: psycopg_pool.ConnectionPool[Any] | None = None) -> None:
        with self._opening, operations.translated():
            if self._pool is None:
                self._pool = self._open_pool() if pool is None else self._adopt(pool)

    def close(self) -> None:
        pool, self._pool = self._pool, None
        try:
            if pool in self._own_pools:
                self._own_pools.remove(pool)
                pool.close()
        finally:
            self._leave()

    def run(self, call: Call[T], connection: Any = None) -> T:
        with operations.translated():
            if connection is not None:
                return operations.run(_of_type(connection, psycopg.Connection), call)
            if self._pool is None:
                raise exceptions.AppNotOpen
            with self._pool.connection() as pooled:
                return operations.run(pooled, call)

    def _open_pool(self) -> Any:
        conninfo, kwargs = self._resolve(), self._for_sync(self._kwargs)
        # A pool keeps trying in the background; this tells at once, and why.
        psycopg.connect(conninfo, **kwargs).close()
        options = {"check": _check, **self._for_sync(self._pool_kwargs)}
        pool = self._pool_factory(conninfo, kwargs=kwargs, open=False, **options)
        pool.open()
        self._own_pools.append(pool)
        return pool

    def _for_sync(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs

    def _resolve(self) -> str:
        """Return the address for libpq; an embedded server is started."""
        if not self._conninfo and _ADDRESS & self._kwargs.keys():
            return ""
        if self._resolved is None:
            self._resolved = _readable(embedded.resolve(self._conninfo))
        return self._resolved.conninfo

    def _leave(self) -> None:
        """Let an embedded server go, if nothing here uses it any more."""
        if self._resolved and not self._own_pools:
            resolved, self._resolved = self._resolved, None
            resolved.close()

    def _adopt(self, pool: Any) -> Any:
        """Use a pool of the user's, who also closes it; workers connect to where it does."""
        self._conninfo = pool.conninfo if isinstance(pool.conninfo, str) else self._conninfo
        if isinstance(pool.kwargs, dict):
            self._kwargs = {**pool.kwargs, "autocommit": True}
        return pool


class PsycopgConnector(SyncPsycopgConnector):
    """
    Runs workers, and defers and manages jobs from async and sync code.

    Sync calls use a pool of their own, which the first of them opens.
    `conninfo` is a DSN for libpq or `embedded:FOLDER`; empty means $PROCRASTINATE_DSN, else libpq's own variables.
    Further arguments go to psycopg_pool's pool, among them `kwargs` for its connections, which workers heed as well.
    """

    def __init__(
        self, conninfo: str = "", *, pool_factory: Any = psycopg_pool.AsyncConnectionPool, **pool_kwargs: Any
    ) -> None:
        super().__init__(conninfo, **pool_kwargs)
        self._async_pool_factory = pool_factory
        self._async_pool: Any = None

    async def open_async(self, pool: psycopg_pool.AsyncConnectionPool[Any] | None = None) -> None:
        if self._async_pool is not None:
            return
        if pool is not None:
            self._async_pool = self._adopt(pool)
            return
        with operations.translated():
            conninfo = await asyncio.to_thread(self._resolve)
            await (await psycopg.AsyncConnection.connect(conninfo, **self._kwargs)).close()
            options = {"check": _check_async, **self._pool_kwargs}
            self._async_pool = self._async_pool_factory(conninfo, kwargs=self._kwargs, open=False, **options)
            self._own_pools.append(self._async_pool)
            await self._async_pool.open()

    async def close_async(self) -> None:
        pool, self._async_pool = self._async_pool, None
        try:
            if pool in self._own_pools:
                self._own_pools.remove(pool)
                await pool.close()
        finally:
            await asyncio.to_thread(self.close)

    def run(self, call: Call[T], connection: Any = None) -> T:
        if connection is None and self._async_pool is not None:
            self.open()
        return super().run(call, connection)

    async def run_async(self, call: Call[T], connection: Any = None) -> T:
        with operations.translated():
            if connection is not None:
                connection = _of_type(connection, psycopg.AsyncConnection)
                return await operations.run_async(connection, call)
            if self._async_pool is None:
                raise exceptions.AppNotOpen
            async with self._async_pool.connection() as pooled:
                return await operations.run_async(pooled, call)

    async def open_wire(self) -> wires.Wire:
        """Connect a worker's event loop."""
        arguments = await asyncio.to_thread(self._dedicated)
        connection = await psycopg.AsyncConnection.connect(**arguments)
        connection.add_notice_handler(_log_warning)
        await connection.execute(_ISOLATION, prepare=False)
        return wires.PsycopgWire(connection, self._prepare_nothing)

    def open_pulse_wire(self) -> wires.PulseWire:
        """Connect a worker's thread."""
        connection = psycopg.connect(**self._dedicated())
        connection.execute(_ISOLATION, prepare=False)
        return wires.PsycopgPulseWire(connection, self._prepare_nothing)

    def _prepare_nothing(self) -> None:
        """Let workers connect without prepared statements from now on."""
        self._kwargs["prepare_threshold"] = None

    def _for_sync(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in kwargs.items() if key not in _ASYNC_ONLY}

    def _dedicated(self) -> dict[str, Any]:
        """Return the arguments for a connection that serves nothing but a worker."""
        given = {**_LINK, **conninfo_to_dict(self._resolve()), **self._for_sync(self._kwargs)}
        return {"prepare_threshold": 0, **given, "client_encoding": "utf8"}


def _readable(resolved: embedded.Resolved) -> embedded.Resolved:
    """Return it, or refuse it in our own words: those of libpq quote what may be a part of the password."""
    with suppress(psycopg.ProgrammingError):
        parts = conninfo_to_dict(resolved.conninfo)
        # What follows an @ of the password is taken for the host or the port. A socket may begin with one.
        if not re.search("[^,]@", f"{parts.get('host')},{parts.get('port')}"):
            return resolved
    raise exceptions.ConnectorException("the connection string is malformed, or lacks escapes for special characters")


def _log_warning(notice: psycopg.errors.Diagnostic) -> None:
    if notice.severity_nonlocalized == "WARNING":
        text = f"{notice.message_primary}. {notice.message_detail or ''}".rstrip()
        logger.warning("%s", plain(text), extra={"action": "database_warning"})


def _of_type(connection: Any, kind: type[T]) -> T:
    if not isinstance(connection, kind):
        given = type(connection).__qualname__
        raise exceptions.ConnectorException(f"connection= takes a psycopg.{kind.__name__} here, not {given}")
    return connection


def _silent(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    # What the server sends to a connection that waits is mostly its goodbye, and that is here without a round trip.
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return not selector.select(0)


def _check(connection: psycopg.Connection[Any]) -> None:
    if not _silent(connection):
        psycopg_pool.ConnectionPool.check_connection(connection)


async def _check_async(connection: psycopg.AsyncConnection[Any]) -> None:
    if not _silent(connection):
        await psycopg_pool.AsyncConnectionPool.check_connection(connection)
