"""What a worker asks of the database while there is nothing to do, counted by the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from conftest import PgServer
from pyprocrastinate import App, PsycopgConnector, embedded
from pyprocrastinate.migrate import migrate

INTERVAL = 0.4
LOOKS = "idle_v1|work_v1|fetch_v1"
PATTERNS = (LOOKS, "idle_v1", "heartbeat_v1", "tick_v1", "")


@pytest.fixture(scope="module")
def counting_dsn(pg_server: PgServer) -> Iterator[str]:
    """Return a database with the schema, on a server that counts statements."""
    if pg_server.server is None:
        pytest.skip("needs a server of its own, with pg_stat_statements")
    with embedded.Server(settings={"shared_preload_libraries": "pg_stat_statements"}) as server:
        dsn = server.conninfo()
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("create extension pg_stat_statements")
        migrate(dsn)
        yield dsn


async def test_a_settled_worker_asks_once_an_interval(counting_dsn: str, working: Any, until: Any) -> None:
    app = App(connector=PsycopgConnector(conninfo=counting_dsn))
    intervals = dict.fromkeys(
        ("fetch_job_polling_interval", "abort_job_polling_interval", "update_heartbeat_interval"), INTERVAL
    )
    with psycopg.connect(counting_dsn, autocommit=True, application_name="counting") as conn:

        def count() -> dict[str, int]:
            """Count the workers' statements that match, all at one moment, whatever else this test asks."""
            rows = conn.execute(
                "select p, coalesce(sum(s.calls), 0)::int from unnest(%s::text[]) as p "
                "left join (select calls, query from pg_stat_statements offset 0) as s "
                "  on s.query ~ p and s.query !~ 'pg_stat_statements|procrastinate.workers' group by p",
                [[*PATTERNS]],
            ).fetchall()
            return dict(rows)

        async with app.open_async(), working(app, **intervals):
            # It looks again a few times after it has become idle, the last time a second later.
            await until(lambda: count()["idle_v1"] >= 5)
            began = time.monotonic()
            before = count()
            await until(lambda: count()[LOOKS] - before[LOOKS] >= 8)
            after = count()
            intervals_passed = (time.monotonic() - began) / INTERVAL
    made = {pattern: after[pattern] - before[pattern] for pattern in before}
    assert 8 <= made[LOOKS] <= intervals_passed + 1
    assert 1 <= made["heartbeat_v1"] <= intervals_passed + 1
    # One is due when a worker could be found dead: half a minute after its last heartbeat.
    assert made["tick_v1"] <= intervals_passed * INTERVAL / 20 + 1
    assert made[""] == made[LOOKS] + made["heartbeat_v1"] + made["tick_v1"], "and nothing else"
