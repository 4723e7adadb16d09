"""A worker of several queues: one order over all of them."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest


def test_a_worker_of_several_queues_fetches_the_best_of_all_of_them(conn: psycopg.Connection[Any]) -> None:
    for queue, priority in ("a", 0), ("b", 5), ("unlisted", 9), ("a", 7), ("b", 0):
        conn.execute("select procrastinate.defer('t', queue => %s, priority => %s)", [queue, priority])
    (worker,) = conn.execute("select procrastinate.register_worker_v1('w', '{b,a}'::text[])").fetchone() or (None,)
    fetched = conn.execute("select queue, priority, id from procrastinate.fetch_v1(%s, 3)", [worker]).fetchall()
    assert [(row[0], row[1]) for row in fetched] == [("a", 7), ("b", 5), ("a", 0)]
    rest = conn.execute("select queue from procrastinate.fetch_v1(%s, 3)", [worker]).fetchall()
    assert rest == [("b",)]


@pytest.mark.parametrize("batch", [1, 3, 10, 40])
def test_the_order_holds_however_uneven_the_queues_are(conn: psycopg.Connection[Any], batch: int) -> None:
    """The best are now all of one queue, now of all of them."""
    jobs = [
        {"task": "t", "queue": "abcdx"[n // 30 % 5] if n % 3 else "abcdx"[n % 5], "priority": n * 7 % 3}
        for n in range(300)
    ]
    conn.execute("select count(*) from procrastinate.defer_many(%s)", [json.dumps(jobs)])
    expected = conn.execute(
        "select id from procrastinate.jobs where queue <> 'x' order by priority desc, id"
    ).fetchall()
    queues = [*"dbac", *"efghik"]  # most of them empty
    (worker,) = conn.execute("select procrastinate.register_worker_v1('w', %s::text[])", [queues]).fetchone() or (None,)
    fetched: list[Any] = []
    while claims := conn.execute("select id from procrastinate.fetch_v1(%s, %s)", [worker, batch]).fetchall():
        assert len(claims) == min(batch, len(expected) - len(fetched))
        fetched += claims
    assert fetched == expected
