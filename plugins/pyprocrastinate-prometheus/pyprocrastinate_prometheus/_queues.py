"""
Gauges of what the database holds, read from its views at a scrape.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psycopg
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pyprocrastinate_prometheus._jobs import OTHER

logger = logging.getLogger(__name__)

_QUEUES = """
select name, ready, blocked, scheduled, doing, extract(epoch from procrastinate.now_() - oldest_ready_at)::float8
  from procrastinate.queues order by ready + blocked + scheduled + doing desc, name
"""
_WORKERS = "select count(*) filter (where live), count(*) filter (where not live) from procrastinate.workers"
_STATES = (("todo", "ready"), ("todo", "blocked"), ("todo", "scheduled"), ("doing", "running"))
# A count that takes longer than Prometheus waits for it helps nobody.
_LIMIT = "select set_config('statement_timeout', '10s', false)"
# Who is not scraped, or is gone without a word, gives its turn to another.
_YIELD_TURN = "select set_config('idle_session_timeout', '90s', false)"
# Any number that nobody else takes; such locks are of one database.
_TAKE_TURN = "select pg_try_advisory_lock(7525934081536110)"


class QueueCollector(Collector):
    """
    Collects the gauges; register it in a registry of yours, or let the plugin's endpoints do so.

    The views are read at most once in `max_age` seconds, whoever asks. Of all that are `shared`, in whatever process,
    one reads them; the others collect nothing but `procrastinate_database_up`. The largest `max_queues` queues are
    told apart, the rest is summed up as "(other)".

    Args:
        address: Returns where the database is, as `app.connector.address` does.
    """

    def __init__(
        self, address: Callable[[], str], *, shared: bool = False, max_age: float = 5.0, max_queues: int = 200
    ) -> None:
        self._address = address
        self._shared = shared
        self._max_age = max_age
        self._max_queues = max_queues
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._has_turn = not shared
        self._families: Sequence[Metric] = ()
        self._read_at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        # Nothing: a registry that does not get this asks the database at once.
        return ()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at >= self._max_age:
                self._families = self._read()
                self._read_at = time.monotonic()
            return self._families

    def close(self) -> None:
        """Give up the connection; the next `collect` opens one again."""
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None
        self._has_turn = not self._shared

    def _read(self) -> Sequence[Metric]:
        up = GaugeMetricFamily("procrastinate_database_up", "Whether the database answered.")
        families = [up]
        try:
            connection = self._connected()
            if not self._has_turn:
                self._has_turn = bool(self._rows(connection, _TAKE_TURN)[0][0])
            if self._has_turn:
                families += self._gauges(connection)
        except psycopg.Error as error:
            logger.warning("The queues cannot be read: %s", error)
            self._disconnect()
            families = [up]
        up.add_metric((), float(self._connection is not None))
        return families

    def _connected(self) -> psycopg.Connection[Any]:
        # The server may have ended a session that was idle: that is no fault, so it is found out first.
        if self._connection and not _is_alive(self._connection):
            self._disconnect()
        if self._connection is None:
            self._connection = psycopg.connect(
                self._address(), autocommit=True, connect_timeout=5, application_name="pyprocrastinate metrics"
            )
            self._rows(self._connection, _LIMIT)
            if self._shared:
                self._rows(self._connection, _YIELD_TURN)
        return self._connection

    def _rows(self, connection: psycopg.Connection[Any], query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query.encode()).fetchall()

    def _gauges(self, connection: psycopg.Connection[Any]) -> list[GaugeMetricFamily]:
        depth = GaugeMetricFamily(
            "procrastinate_queue_depth", "Jobs that wait or run.", labels=("queue", "status", "state")
        )
        oldest = GaugeMetricFamily(
            "procrastinate_queue_oldest_ready_seconds",
            "For how long the oldest job that could run has waited.",
            labels=("queue",),
        )
        workers = GaugeMetricFamily("procrastinate_workers", "Registered workers, live or dead.", labels=("state",))
        for name, *counts, age in self._bounded(self._rows(connection, _QUEUES)):
            for labels, count in zip(_STATES, counts, strict=True):
                depth.add_metric((name, *labels), count)
            oldest.add_metric((name,), max(0.0, age or 0.0))
        for state, count in zip(("live", "dead"), self._rows(connection, _WORKERS)[0], strict=True):
            workers.add_metric((state,), count)
        return [depth, oldest, workers]

    def _bounded(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        shown, rest = rows[: self._max_queues], rows[self._max_queues :]
        if rest:
            _, *counts, ages = zip(*rest, strict=True)
            shown.append((OTHER, *map(sum, counts), max(age or 0.0 for age in ages)))
        return shown


def _is_alive(connection: psycopg.Connection[Any]) -> bool:
    try:
        connection.execute("select 1")
    except psycopg.OperationalError:
        return False
    return True
