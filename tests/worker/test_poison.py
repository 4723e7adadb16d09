"""
Rows that PostgreSQL takes and Python chokes on fail their own job; the healthy one behind always runs.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App
from pyprocrastinate.exceptions import ArgsTooDeep, ArgsTooLarge, InvalidText, TimeOutOfRange

# What the schema's own checks keep out is put in place by its owner, past them.
DIRECT = """
    insert into procrastinate.job (task, args, deferred_at, headers) values ('task', %s, %s, %s) returning id
"""


@pytest.fixture
def ran(app: App) -> list[Any]:
    ran: list[Any] = []

    @app.task(name="task", pass_context=True)
    async def task(context: Any, x: Any = None) -> None:
        ran.append((x, context.job))

    return ran


async def run_with_a_healthy_one_behind(app: App, ran: list[Any]) -> None:
    healthy = await app.configure_task("task").defer_async(x="healthy")
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert ran[-1][0] == "healthy"
    assert (await app.job_manager.get_job_status_async(healthy)).value == "succeeded"


def nested(depth: int) -> str:
    return '{"x":' + "[" * depth + "]" * depth + "}"


HUGE_INT = '{"x": ' + "1" * 5000 + "}"
DEEP_TEXT = nested(5000)


def decodes(text: str) -> bool:
    """Tell whether this Python can: from 3.12 on, its limit for nesting is higher than that of PostgreSQL."""
    try:
        json.loads(text)
    except RecursionError:
        return False
    return True


UNUSABLE = {
    DEEP_TEXT: "RecursionError",
    HUGE_INT: "ValueError",
    '{"unexpected": 1}': "TypeError",
    '{"x": 1, "": 2}': "TypeError",
    '{"context": 1}': "TypeError",
}


@pytest.mark.parametrize("door", ["sql", "owner"])
async def test_args_that_cannot_be_used(app: App, ran: list[Any], conn: psycopg.Connection[Any], door: str) -> None:
    expected = {}
    for args, error in UNUSABLE.items():
        if door == "owner":
            (bad,) = conn.execute(DIRECT, [args, "2020-01-01", None]).fetchone()
            expected[bad] = ("succeeded", None) if args == DEEP_TEXT and decodes(args) else ("failed", error)
        elif error == "RecursionError":
            with pytest.raises(psycopg.DatabaseError, match="nested"):
                conn.execute("select procrastinate.defer('task', %s)", [args])
        else:
            (bad,) = conn.execute("select procrastinate.defer('task', %s)", [args]).fetchone()
            expected[bad] = ("failed", error)
    await run_with_a_healthy_one_behind(app, ran)
    assert len(ran) == 1 + sum(status == "succeeded" for status, _ in expected.values())
    rows = conn.execute("select id, status, error_class from procrastinate.jobs order by id").fetchall()
    assert {row[0]: row[1:] for row in rows[:-1]} == expected
    listed = await app.job_manager.list_jobs_async()
    assert [job.id for job in listed] == [row[0] for row in rows]


@pytest.mark.parametrize("time", ["infinity", "-infinity", "20000-01-01", "4000-01-01 BC"])
def test_times_that_python_cannot_hold_are_refused(conn: psycopg.Connection[Any], time: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="jobs_readable"):
        conn.execute(DIRECT, ["{}", time, None])


async def test_headers_that_cannot_be_decoded(app: App, ran: list[Any], conn: psycopg.Connection[Any]) -> None:
    conn.execute(DIRECT, ["{}", "2020-01-01", DEEP_TEXT])
    await run_with_a_healthy_one_behind(app, ran)
    assert len(ran) == 1 + decodes(DEEP_TEXT)
    assert len(list(await app.job_manager.list_jobs_async())) == 2


async def test_values_that_change_their_type_still_arrive(
    app: App, ran: list[Any], conn: psycopg.Connection[Any]
) -> None:
    for value in ("1e400", "-0.0", "1e2", '"\\u2028"', "18446744073709551616"):
        conn.execute("select procrastinate.defer('task', %s)", [f'{{"x": {value}}}'])
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert [x for x, _ in ran] == [10**400, 0.0, 100, "\u2028", 2**64]


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

REFUSED = [
    ("nul \0 secret", InvalidText),
    ({"nul \0 secret": 1}, InvalidText),
    ("half \ud800 secret", InvalidText),
    ("\udc00secret", InvalidText),
    (float("nan"), InvalidText),
    (float("inf"), InvalidText),
    (10**5000, InvalidText),
    (CYCLE, InvalidText),
    (DEEP, ArgsTooDeep),
    (json.loads("[" * 100 + "]" * 100), ArgsTooDeep),
    ("secret" * 300_000, ArgsTooLarge),
]


async def called(method: Any, *arguments: Any) -> Any:
    result = method(*arguments)
    return await result if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize("how", ["defer", "defer_async", "batch_defer", "batch_defer_async"])
async def test_python_refuses_at_the_door_and_does_not_quote_the_value(app: App, how: str) -> None:
    for value, error in REFUSED:
        deferrer = app.configure_task("task", task_kwargs={"x": value})
        arguments = [{}] if how.startswith("batch") else []
        with pytest.raises(error) as caught:
            await called(getattr(deferrer, how), *arguments)
        chain: BaseException | None = caught.value
        while chain:
            assert "secret" not in str(chain)
            chain = chain.__cause__
    assert await app.job_manager.list_jobs_async() == []


async def test_text_that_only_looks_bad_is_fine(app: App, ran: list[Any]) -> None:
    texts = ["\\u0000", "😀\\ud83d", '"\\', "\u2028\x01\x7f"]
    for text in texts:
        await app.configure_task("task").defer_async(x={text: text})
    await run_with_a_healthy_one_behind(app, ran)
    assert [x for x, _ in ran[:-1]] == [{text: text} for text in texts]


async def test_names_with_bad_characters_are_refused(app: App) -> None:
    for name in ("nul \0", "half \ud800"):
        with pytest.raises(InvalidText):
            await app.configure_task(name).defer_async()
        with pytest.raises(InvalidText):
            app.configure_task("task", lock=name).batch_defer({})


async def test_absurd_times_are_refused(app: App) -> None:
    with pytest.raises(TimeOutOfRange):
        app.configure_task("task", schedule_in={"days": 10**12})
    with pytest.raises(TimeOutOfRange):
        await app.configure_task("task", schedule_in={"days": 365_000 * 8}).defer_async()
