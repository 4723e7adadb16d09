"""What is cheap only because the planner takes the function's body into the query."""

from __future__ import annotations

from typing import Any

import psycopg


def test_the_check_of_a_job_is_inlined(conn: psycopg.Connection[Any]) -> None:
    plan = conn.execute(
        "explain (verbose) select from procrastinate.done as d where procrastinate._acceptable("
        "d.task, d.queue, d.rank, d.lock, d.queueing_lock, d.scheduled_at, d.args, d.headers, 99)"
    ).fetchall()
    assert "_acceptable" not in str(plan)
