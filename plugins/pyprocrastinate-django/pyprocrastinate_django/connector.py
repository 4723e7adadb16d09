"""
Calls on Django's own connection, so that a job is deferred in the transaction that Django is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, transaction
from psycopg.types.datetime import TimestamptzLoader

from pyprocrastinate import PsycopgConnector, operations
from pyprocrastinate.connector import BaseConnector
from pyprocrastinate.exceptions import ConnectorException
from pyprocrastinate.operations import Call
from pyprocrastinate.wires import PulseWire, Wire

T = TypeVar("T")


def connector_params(alias: str = "default") -> dict[str, Any]:
    """Return the arguments with which psycopg connects as Django does to this database."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise ImproperlyConfigured(f"the database {alias} is {connection.display_name}, not PostgreSQL")
    options = connection.settings_dict["OPTIONS"]
    params: dict[str, Any] = connection.get_connection_params()
    # What is for Django's eyes only. A pooler wants prepare_threshold, Django always says one.
    unwanted = {"context", "cursor_factory"} | ({"prepare_threshold"} - options.keys())
    if role := options.get("assume_role"):
        escaped = role.replace("\\", r"\\").replace(" ", r"\ ")
        params["options"] = f"{params.get('options', '')} -c role={escaped}".strip()
    return {key: value for key, value in params.items() if key not in unwanted}


class DjangoConnector(BaseConnector):
    """
    Defers and manages jobs on Django's connection to the database `alias`, from sync and async code; workers run on it.

    Within `atomic()` a job is there with its commit, and gone with its rollback; after an error, as after any of the
    database's, the block can only be rolled back. From async code, the call is made where Django's async ORM makes its
    queries.
    `connection=` takes a connection of psycopg's or of Django's in place of that one.
    """

    def __init__(self, alias: str = "default", **json: Any) -> None:
        super().__init__(**json)
        self.alias = alias
        self._worker_connectors: dict[str, PsycopgConnector] = {}

    def get_worker_connector(self) -> PsycopgConnector:
        """
        Return a connector that uses nothing of Django's but its address.

        Workers need none: they run on this one, by connections of their own, and what their tasks defer is in Django's
        transactions.
        """
        params = connector_params(self.alias)
        return PsycopgConnector(kwargs=params, json_dumps=self.json_dumps, json_loads=self.json_loads)

    async def open_wire(self) -> Wire:
        return await self._for_workers().open_wire()

    def open_pulse_wire(self) -> PulseWire:
        return self._for_workers().open_pulse_wire()

    def _for_workers(self) -> PsycopgConnector:
        # The same one each time, for it learns; but Django's test runner puts another database in place.
        return self._worker_connectors.setdefault(self.address(), self.get_worker_connector())

    def address(self) -> str:
        return self.get_worker_connector().address()

    def open(self, pool: Any = None) -> None:
        """Do nothing: Django opens its connections, and closes them."""

    def close(self) -> None:
        """Do nothing."""

    async def open_async(self, pool: Any = None) -> None:
        """Do nothing."""

    async def close_async(self) -> None:
        """Do nothing."""

    def run(self, call: Call[T], connection: Any = None) -> T:
        with _translated():
            if isinstance(connection, psycopg.Connection):
                return operations.run(connection, call)
            ours = connections[self.alias] if connection is None else connection
            if getattr(ours, "vendor", None) != "postgresql":
                raise ConnectorException(f"jobs need a connection to PostgreSQL, not {type(ours).__qualname__}")
            query, args = call.statement()
            with transaction.mark_for_rollback_on_error(using=ours.alias), ours.cursor() as cursor:
                # Django's own leaves times without a time zone where USE_TZ is off.
                cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
                cursor.execute(query.decode(), args)
                return call.read(cursor.fetchall())

    async def run_async(self, call: Call[T], connection: Any = None) -> T:
        if isinstance(connection, psycopg.AsyncConnection):
            with _translated():
                return await operations.run_async(connection, call)
        return await sync_to_async(self.run)(call, connection)

    def in_transaction(self, connection: Any) -> bool:
        if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection):
            return super().in_transaction(connection)
        ours = connections[self.alias] if connection is None else connection
        return bool(ours.in_atomic_block)


@contextmanager
def _translated() -> Iterator[None]:
    with operations.translated():
        try:
            yield
        except Error as error:
            if isinstance(error.__cause__, psycopg.Error):
                raise error.__cause__ from None
            raise ConnectorException(str(error)) from error
