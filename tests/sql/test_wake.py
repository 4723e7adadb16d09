"""When a defer sends a NOTIFY, and when it saves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.conftest import Connect

DEFER = "select procrastinate.defer(%s::text)"


@pytest.fixture
def listener(connect: Connect) -> psycopg.Connection[Any]:
    """Return a connection that listens."""
    conn = connect()
    conn.execute("listen procrastinate_v1")
    return conn


@contextmanager
def heard(
    listener: psycopg.Connection[Any], sender: psycopg.Connection[Any]
) -> Iterator[list[str]]:
    """Collect what is notified meanwhile."""
    payloads: list[str] = []
    yield payloads
    sender.execute("notify procrastinate_v1, 'end'")
    for notify in listener.notifies(timeout=10):
        if notify.payload == "end":
            return
        payloads.append(notify.payload)
    raise AssertionError("the end was not heard")


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_autocommitted_defers_are_silent_while_nobody_waits(
    listener: psycopg.Connection[Any], connect: Connect, protocol: str
) -> None:
    conn = connect(prepare_threshold=0)
    cursor = psycopg.ClientCursor(conn) if protocol == "simple" else conn.cursor()
    cursor.execute(DEFER, ["t"])  # the first call of a statement also prepares it
    with heard(listener, conn) as payloads:
        for _ in range(5):
            cursor.execute(DEFER, ["t"])
    assert payloads == []


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_defers_in_a_transaction_block_notify_once(
    listener: psycopg.Connection[Any], connect: Connect, protocol: str
) -> None:
    conn = connect(prepare_threshold=0)
    cursor = psycopg.ClientCursor(conn) if protocol == "simple" else conn.cursor()
    with heard(listener, conn) as payloads, conn.transaction():
        for _ in range(5):
            cursor.execute(DEFER, ["t"])
    assert len(payloads) == 1


def test_an_autocommitted_defer_wakes_who_waits(
    listener: psycopg.Connection[Any], connect: Connect
) -> None:
    conn = connect(prepare_threshold=0)
    for queue in "default", "other":
        (worker,) = conn.execute(
            "select procrastinate.register_worker_v1('w', array[%s])", [queue]
        ).fetchone() or (None,)
        with heard(listener, conn) as payloads:
            conn.execute("select procrastinate.idle_v1(%s)", [worker])
            conn.execute(DEFER, ["t"])
        assert len(payloads) == (queue == "default")
        conn.execute("select procrastinate.unregister_worker_v1(%s)", [worker])
