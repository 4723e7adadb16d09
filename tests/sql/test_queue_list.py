"""A worker of several queues: one order over all of them."""

from __future__ import annotations

from typing import Any

import psycopg


def test_a_worker_of_several_queues_fetches_the_best_of_all_of_them(conn: psycopg.Connection[Any]) -> None:
    for queue, priority in ("a", 0), ("b", 5), ("unlisted", 9), ("a", 7), ("b", 0):
        conn.execute("select procrastinate.defer('t', queue => %s, priority => %s)", [queue, priority])
    (worker,) = conn.execute("select procrastinate.register_worker_v1('w', '{b,a}'::text[])").fetchone() or (None,)
    fetched = conn.execute("select queue, priority, id from procrastinate.fetch_v1(%s, 3)", [worker]).fetchall()
    assert [(row[0], row[1]) for row in fetched] == [("a", 7), ("b", 5), ("a", 0)]
    rest = conn.execute("select queue from procrastinate.fetch_v1(%s, 3)", [worker]).fetchall()
    assert rest == [("b",)]
