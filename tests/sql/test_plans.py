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


FLOODS = {
    "ready": '\'{"task": "t", "queue": "flood"}\'',
    "scheduled": '\'{"task": "t", "queue": "flood", "schedule_in": 3600}\'',
    "best of all": '\'{"task": "t", "queue": "flood", "priority": 1000}\'',
    "behind one lock": '\'{"task": "t", "queue": "flood", "lock": "flood"}\'',
    "behind many locks": "jsonb_build_object('task', 't', 'queue', 'flood', 'lock', n::text)",
}


def pages(conn: psycopg.Connection[Any], worker: int, jobs: list[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
    """Finish these jobs and fetch ten, and return how many pages that touched, and the new ones."""
    ids, tokens = (list(column) for column in zip(*jobs, strict=True)) if jobs else ([], [])
    with conn.transaction(force_rollback=False):
        row = conn.execute(
            "explain (analyze, buffers, format json) select * from procrastinate.work_v1("
            "%s, %s::bigint[], %s::bigint[], '[]', true, 10, 0, null)",
            [worker, ids, tokens],
        ).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
    held = conn.execute("select id, token from procrastinate.held_v1(%s)", [worker]).fetchall()
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], held


@pytest.mark.parametrize("flood", FLOODS)
def test_a_client_that_floods_costs_other_queues_little(conn: psycopg.Connection[Any], flood: str) -> None:
    def cost() -> float:
        """Return the pages that a job of the queue takes, from many rounds."""
        jobs = '[{"task": "t", "queue": "calm"}, {"task": "t", "queue": "calm", "lock": "l"}]'
        conn.execute(
            "select count(*) from procrastinate.defer_many((select jsonb_agg(j) from generate_series(1, 100),"
            " jsonb_array_elements(%s) as j))",
            [jobs],
        )
        touched, ended, held = 0, 0, []
        for _ in range(15):
            ended += len(held)
            count, held = pages(conn, worker, held)
            touched += count
        assert ended >= 100
        conn.execute("select procrastinate.cancel(id) from procrastinate.jobs where queue = 'calm' and status = 'todo'")
        pages(conn, worker, held)
        return touched / ended

    (worker,) = conn.execute("select procrastinate.register_worker_v1('w', '{calm}')").fetchone() or (0,)
    cost()
    before = cost()
    for _ in range(20):
        conn.execute(
            "select count(*) from procrastinate.defer_many((select jsonb_agg("
            + FLOODS[flood]
            + "::jsonb) from generate_series(1, 2000) as n))"
        )
    after = cost()
    assert after < 2 * before, (before, after)
    print(f"{flood}: {before:.1f} pages a job, {after:.1f} beside 40,000")
