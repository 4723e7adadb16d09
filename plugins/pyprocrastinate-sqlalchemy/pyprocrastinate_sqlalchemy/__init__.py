"""
Defers and manages jobs on SQLAlchemy's connections and sessions, in their transactions.

A call goes through SQLAlchemy, never past it to the driver: SQLAlchemy does not commit a transaction that it has not
seen begin.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import URL, Connection, Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import Session, scoped_session

from pyprocrastinate import PsycopgConnector, operations
from pyprocrastinate.exceptions import AppNotOpen, ConnectorException, MovedElsewhere
from pyprocrastinate.operations import Call
from pyprocrastinate.payload import JsonDumps, JsonLoads

__all__ = ["SQLAlchemyConnector"]

T = TypeVar("T")
E = TypeVar("E", Engine, AsyncEngine)
C = TypeVar("C", Connection, AsyncConnection)


@dataclasses.dataclass
class _Opened(Generic[E]):
    """An engine in use; one that is not the connector's own is not disposed of."""

    engine: E
    own: bool


class SQLAlchemyConnector(PsycopgConnector):
    """
    Defers and manages jobs through SQLAlchemy, from sync and async code, and runs workers.

    `connection=` takes a connection or a session of SQLAlchemy over psycopg, or a connection of psycopg's own, and the
    call joins its transaction. Without one, a call is committed at once, on a connection of the engine.
    `open` takes an `Engine`, `open_async` an `AsyncEngine`, which remain the caller's to dispose of; given none, the
    connector makes one. Workers connect by themselves: to `dsn`, or, if there is none, to the URL of that engine.

    Args:
        dsn: `postgresql+psycopg://…`, or what PsycopgConnector takes.
        json_dumps, json_loads: For the arguments of jobs.
        engine_kwargs: For `create_engine` and `create_async_engine`; workers heed `connect_args`.
    """

    def __init__(
        self,
        dsn: str | URL = "",
        *,
        json_dumps: JsonDumps | None = None,
        json_loads: JsonLoads | None = None,
        **engine_kwargs: Any,
    ) -> None:
        self._connect_args: dict[str, Any] = dict(engine_kwargs.pop("connect_args", {}))
        super().__init__(_conninfo(dsn), json_dumps=json_dumps, json_loads=json_loads, kwargs=self._connect_args)
        # A connection that broke while it was idle shall not cost a job.
        self._engine_kwargs = {"pool_pre_ping": True, **engine_kwargs}
        self._follows_engine = not dsn
        self._opening = threading.Lock()
        self._sync_engine: _Opened[Engine] | None = None
        self._async_engine: _Opened[AsyncEngine] | None = None

    def open(self, pool: Any = None) -> None:
        with self._opening, _translated():
            if self._sync_engine is None:
                opened = self._take(pool, create_engine)
                opened.engine.connect().close()
                self._sync_engine = opened

    async def open_async(self, pool: Any = None) -> None:
        with _translated():
            if self._async_engine is None:
                opened = await asyncio.to_thread(self._take, pool, create_async_engine)
                await (await opened.engine.connect()).close()
                self._async_engine = opened

    def _take(self, given: E | None, make: Callable[..., E]) -> _Opened[E]:
        if given is None:
            connect_args = {**conninfo_to_dict(self.address()), **self._connect_args}
            engine = make("postgresql+psycopg://", connect_args=connect_args, **self._engine_kwargs)
        else:
            engine = given
            if self._follows_engine:
                self.redirect(_conninfo(engine.url))
        return _Opened(engine.execution_options(isolation_level="AUTOCOMMIT"), own=given is None)

    def close(self) -> None:
        opened, self._sync_engine = self._sync_engine, None
        if opened and opened.own:
            opened.engine.dispose()
        if self._async_engine is None:
            self._leave()

    async def close_async(self) -> None:
        opened, self._async_engine = self._async_engine, None
        if opened and opened.own:
            await opened.engine.dispose()
        await asyncio.to_thread(self.close)

    def run(self, call: Call[T], connection: Any = None) -> T:
        with _translated():
            if isinstance(connection, psycopg.Connection):
                return operations.run(connection, call)
            if isinstance(connection, Session | scoped_session):
                connection = connection.connection()
            if connection is not None:
                return _run(_checked(connection, Connection), call)
            if self._sync_engine is None and self._async_engine is not None:
                self.open()
            if self._sync_engine is None:
                raise AppNotOpen
            with self._sync_engine.engine.connect() as own:
                return _run(own, call)

    async def run_async(self, call: Call[T], connection: Any = None) -> T:
        with _translated():
            if isinstance(connection, psycopg.AsyncConnection):
                return await operations.run_async(connection, call)
            if isinstance(connection, AsyncSession | async_scoped_session):
                connection = await connection.connection()
            if connection is not None:
                return await _run_async(_checked(connection, AsyncConnection), call)
            if self._async_engine is None:
                raise AppNotOpen
            async with self._async_engine.engine.connect() as own:
                return await _run_async(own, call)


def _run(connection: Connection, call: Call[T]) -> T:
    query, args = call.statement()
    return call.read([tuple(row) for row in connection.exec_driver_sql(query.decode(), tuple(args))])


async def _run_async(connection: AsyncConnection, call: Call[T]) -> T:
    query, args = call.statement()
    return call.read([tuple(row) for row in await connection.exec_driver_sql(query.decode(), tuple(args))])


def _checked(connection: Any, kind: type[C]) -> C:
    if not isinstance(connection, kind):
        wanted = f"{kind.__name__} or {kind.__name__.replace('Connection', 'Session')}"
        raise ConnectorException(f"connection= takes SQLAlchemy's {wanted} here, not {type(connection).__qualname__}")
    _check_driver(f"{connection.dialect.name}+{connection.dialect.driver}")
    return connection


def _check_driver(name: str) -> None:
    if name not in ("postgresql+psycopg", "postgresql+psycopg_async"):
        raise ConnectorException(f"the driver is {name}, and only postgresql+psycopg can be used")


def _conninfo(dsn: str | URL) -> str:
    """Return a DSN as libpq understands it; what is not SQLAlchemy's alone stays as it is."""
    if isinstance(dsn, str) and not dsn.startswith("postgresql+"):
        return dsn
    url = make_url(dsn)
    if url.drivername != "postgresql":  # with no driver, the address is all there is to it
        _check_driver(url.drivername)
    dialect = url.set(drivername="postgresql+psycopg").get_dialect()()
    return make_conninfo("", **dialect.create_connect_args(url)[1])


@contextmanager
def _translated() -> Iterator[None]:
    with operations.translated():
        try:
            yield
        except SQLAlchemyError as error:
            # SQLAlchemy's own text quotes the parameters, and so the arguments of jobs.
            if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.Error):
                raise error.orig from None
            raise ConnectorException(str(error)) from error


def __getattr__(name: str) -> Any:
    if name == "SQLAlchemyPsycopg2Connector":
        raise MovedElsewhere(f"{name} is gone: use SQLAlchemyConnector, which takes the same arguments, over psycopg 3")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
