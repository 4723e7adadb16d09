"""What a fetch must not read, however much of it there is."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest


def read_from(conn: psycopg.Connection[Any], index: str) -> int:
    """Return how many entries of an index were read so far."""
    conn.execute("select pg_stat_force_next_flush()")
    (count,) = conn.execute(
        "select idx_tup_read from pg_stat_user_indexes where indexrelname = %s", [index]
    ).fetchone() or (0,)
    return int(count)


@pytest.mark.parametrize("queues", [["a-small"], ["a-small", "empty"]])
@pytest.mark.parametrize("analyzed", [True, False])
def test_a_fetch_does_not_read_the_jobs_of_other_queues(
    conn: psycopg.Connection[Any], queues: list[str], analyzed: bool
) -> None:
    for queue, count in ("z-large", 20_000), ("a-small", 2_000):
        conn.execute(
            "insert into procrastinate.job (task, queue) select 't', %s from generate_series(1, %s::int)",
            [queue, count],
        )
    if analyzed:
        conn.execute("analyze procrastinate.job")
    (worker,) = conn.execute("select procrastinate.register_worker_v1('w', %s::text[])", [queues]).fetchone() or (None,)
    indexes = "job_ready", "job_ready_queue"
    before = [read_from(conn, index) for index in indexes]
    for _ in range(8):  # more often than a plan is made for the very values
        fetched = conn.execute("select queue from procrastinate.fetch_v1(%s, 10)", [worker]).fetchall()
        assert fetched == [("a-small",)] * 10
        assert conn.execute("select ready from procrastinate.idle_v1(%s)", [worker]).fetchone() == (True,)
    read = [read_from(conn, index) - n for index, n in zip(indexes, before, strict=True)]
    assert sum(read) < 1_000, dict(zip(indexes, read, strict=True))
