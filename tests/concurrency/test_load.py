"""Everything at once: each job once, one of a lock at a time, in order, no error to a client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gates
import psycopg
import pytest
from judge import Report, judge
from load import Load, run

QUEUE_LISTS = (None, ("a",), ("a", "b", "c"), ("c", "b"))


@pytest.fixture(autouse=True)
def effect(conn: psycopg.Connection[Any]) -> None:
    conn.execute("create table effect (id bigint)")


def always_lanes(conn: psycopg.Connection[Any]) -> None:
    """Make every scan count as slow, so that lanes are in use from the second fetch on."""
    gates.rewrite(
        conn,
        "_fetch",
        "v_took := extract(epoch from clock_timestamp() - v_start) * 1e6 / (100 + v_size);",
        "v_took := 1e6;",
    )


def check(load: Load) -> Report:
    took = run(load)
    report = judge(load.dsn, Path(load.folder))
    print(f"\nseed {load.seed}, {took:.1f} s: {report.line()}")
    assert report.wrong == [], f"{len(report.wrong)} faults"
    # some ms, and 900 ms; how much more depends on how busy the machine is
    assert report.overlapped_for < 2
    assert report.late_for < 3
    return report


@pytest.mark.scenario("R2")
def test_four_workers(dsn: str, tmp_path: Path) -> None:
    report = check(Load(dsn, str(tmp_path), seed=1, jobs=4000))
    assert report.jobs > 3000
    assert report.runs > report.jobs * 0.9
    assert report.again_refused > 0


def test_four_workers_with_lanes(conn: psycopg.Connection[Any], dsn: str, tmp_path: Path) -> None:
    always_lanes(conn)
    check(Load(dsn, str(tmp_path), seed=2, jobs=2000, kills=1))


def test_workers_of_different_queues(dsn: str, tmp_path: Path) -> None:
    check(Load(dsn, str(tmp_path), seed=3, jobs=2000, workers=QUEUE_LISTS, kills=1))


@pytest.mark.parametrize("lanes", [False, True])
def test_a_lone_worker_passes_nothing_over(
    conn: psycopg.Connection[Any], dsn: str, tmp_path: Path, lanes: bool
) -> None:
    if lanes:
        always_lanes(conn)
    load = Load(dsn, str(tmp_path), seed=4, jobs=1000, workers=(None,), kills=0, operator=False)
    assert check(load).overlapped == 0


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 104))
@pytest.mark.parametrize("workers", [(None,) * 4, QUEUE_LISTS], ids=["all", "lists"])
@pytest.mark.parametrize("lanes", [False, True], ids=["heads", "lanes"])
def test_twenty_thousand_jobs(
    conn: psycopg.Connection[Any],
    dsn: str,
    tmp_path: Path,
    seed: int,
    workers: tuple[tuple[str, ...] | None, ...],
    lanes: bool,
) -> None:
    if lanes:
        always_lanes(conn)
    check(Load(dsn, str(tmp_path), seed=seed, jobs=20_000, workers=workers, kills=6))


# What the judge is for: each breaks one promise, and what it then must say.
FLAWS = {
    "old tokens accepted": (
        "_finish",
        (
            "and (j.token in (select t from unnest(tokens) as t)) is true and j.token > 0\n"
            "        returning j.id, j.token, j.worker_id"
        ),
        "returning j.id, j.token, j.worker_id",
        "an old token was accepted",
    ),
    "order forgotten": (
        "_candidates",
        "order by j.rank, j.id limit v_need for update skip locked",
        "order by j.id limit v_need for update skip locked",
        "a fetch is out of order|was passed over",
    ),
    "locks not looked at": (
        "_settle",
        "where j.lock = l.lock and j.state = 'x' order by j.token desc limit 1",
        "where j.lock = l.lock and j.state = '-' order by j.token desc limit 1",
        "ran at once under",
    ),
    "lines turned around": ("_first_in_line", "ORDER BY s.rank, s.id\n", "ORDER BY s.rank DESC, s.id DESC\n", "jumped"),
    "runs not counted": ("_finish", "d.attempts + 1", "d.attempts", "attempts, but"),
    "finished jobs thrown away": ("_finish", "'succeeded', d.task", "'failed', d.task", "successes, but failed"),
    "jobs lost": ("_finish", "          from d)\n", "          from d where d.id % 97 > 0)\n", "jobs are lost"),
    "cancels undone": ("cancel", "'cancelled', 0, 0", "'failed', 0, 0", "cancelled, but failed"),
}


@pytest.mark.parametrize(
    "flaw", [name if n < 2 else pytest.param(name, marks=pytest.mark.long) for n, name in enumerate(FLAWS)]
)
def test_the_judge_finds_a_schema_that_breaks_a_promise(
    conn: psycopg.Connection[Any], dsn: str, tmp_path: Path, flaw: str
) -> None:
    function, old, new, verdict = FLAWS[flaw]
    conn.execute("drop index procrastinate.backstop")
    gates.rewrite(conn, function, old, new)
    load = Load(dsn, str(tmp_path), seed=5, jobs=1000, workers=(None, None), kills=0)
    run(load)
    report = judge(dsn, tmp_path)
    assert any(re.search(verdict, sentence) for sentence in report.wrong), report.wrong[:5]
