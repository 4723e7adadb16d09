"""A fetch returns the same jobs, and no more than it was asked for, whatever plan PostgreSQL makes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import psycopg
import pytest

PLANNER = [
    "enable_" + what
    for what in (
        "nestloop", "hashjoin", "mergejoin", "material", "memoize", "seqscan", "indexscan", "indexonlyscan",
        "bitmapscan", "tidscan", "sort", "incremental_sort", "hashagg",
    )
]  # fmt: skip
# a join that looks into a subquery again for each row
NESTED = ("enable_hashjoin", "enable_mergejoin", "enable_material", "enable_memoize")
FORBIDDEN = [
    *itertools.combinations(PLANNER, 1),
    *itertools.combinations(PLANNER, 2),
    NESTED,
    (*NESTED, "enable_hashagg", "enable_sort"),
]

FETCH = "select id, token from procrastinate.fetch_v1(%s, %s)"
WORK = """
    select id, token from procrastinate.work_v1(%s, %s::bigint[], %s::bigint[], '[]', true, %s, 2, null)
     where id is not null
"""


@pytest.fixture(params=["by the functions' own settings", "free"])
def conn(request: pytest.FixtureRequest, conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Return a connection to a database in which functions leave the planner the scans, or do not."""
    if request.param == "free":
        functions = conn.execute("""
            select oid::regprocedure from pg_proc
             where pronamespace = 'procrastinate'::regnamespace and 'enable_seqscan=off' = any (proconfig)
        """).fetchall()
        assert functions
        for (name,) in functions:
            conn.execute(f"alter function {name} reset enable_seqscan reset enable_bitmapscan")
    return conn


@pytest.mark.parametrize("analysed", [True, False])
@pytest.mark.parametrize("queues", [None, ["a"], ["b", "a"]], ids=["all queues", "one queue", "two queues"])
def test_no_plan_makes_a_fetch_return_other_jobs(
    conn: psycopg.Connection[Any], queues: list[str] | None, analysed: bool
) -> None:
    jobs = [
        {"task": "t", "queue": "abc"[n % 3], "priority": n % 4, "lock": f"l{n % 7}" if n % 2 else None}
        for n in range(300)
    ]
    conn.execute("select count(*) from procrastinate.defer_many(%s)", [json.dumps(jobs)])
    ((worker,),) = conn.execute("select procrastinate.register_worker_v1('w', %s::text[])", [queues])
    claims = conn.execute(FETCH, [worker, 6]).fetchall()
    if analysed:
        conn.execute("analyze procrastinate.job")

    def fetched(forbidden: tuple[str, ...], *call: Any) -> list[int]:
        with conn.transaction(force_rollback=True):
            for name in forbidden:
                conn.execute(f"set local {name} = off")
            conn.execute("discard plans")
            return [job for job, _ in conn.execute(*call)]

    ids, tokens = [[claim[n] for claim in claims] for n in (0, 1)]
    calls: list[tuple[str, list[Any]]] = [(FETCH, [worker, 5]), (WORK, [worker, ids, tokens, 5])]
    expected = [fetched((), *call) for call in calls]
    assert [len(jobs) for jobs in expected] == [5, 7]
    for forbidden in FORBIDDEN:
        assert [fetched(forbidden, *call) for call in calls] == expected, f"without {forbidden}"


def test_a_limit_that_a_join_can_overrun_would_be_seen(conn: psycopg.Connection[Any]) -> None:
    """A subquery that is executed anew for each row passes over what the update has taken already, and takes more."""
    ((definition,),) = conn.execute("select pg_get_functiondef(oid) from pg_proc where proname = 'work_v1'")
    held = "j.id = any (v_ids)"
    limited = """
        j.id in (select k.id from procrastinate.job as k where k.state = 'r' order by k.rank, k.id
                  limit capacity for update skip locked)
    """
    assert held in definition
    conn.execute(definition.replace(held, limited).encode())
    conn.execute("select count(procrastinate.defer('t')) from generate_series(1, 100)")
    ((worker,),) = conn.execute("select procrastinate.register_worker_v1('w')")
    numbers = set()
    for forbidden in FORBIDDEN:
        with conn.transaction(force_rollback=True):
            for name in forbidden:
                conn.execute(f"set local {name} = off")
            conn.execute("discard plans")
            numbers.add(len(conn.execute(FETCH, [worker, 5]).fetchall()))
    assert min(numbers) == 5 < max(numbers)
