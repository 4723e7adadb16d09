"""Ending a job in the same transaction as the task's own writes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, JobContext
from pyprocrastinate.exceptions import ArgsTooLarge, TokenNotCurrent


@pytest.fixture
def ledger(conn: psycopg.Connection[Any]) -> Callable[[], int]:
    """Return a function that counts what tasks have written."""
    conn.execute("create table public.ledger (job_id bigint)")

    def count() -> int:
        row = conn.execute("select count(*) from ledger").fetchone()
        assert row
        return int(row[0])

    return count


WRITE = "insert into public.ledger values (%s)"


async def drain(app: App) -> None:
    await app.run_worker_async(wait=False, install_signal_handlers=False)


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_the_writes_and_the_end_commit_together(
    app: App, dsn: str, ledger: Callable[[], int], job: Callable[[int], dict[str, Any]], kind: str
) -> None:
    @app.task(name="coroutine", pass_context=True)
    async def coroutine(context: JobContext) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as mine:
            await mine.execute(WRITE, [context.job.id])
            await context.complete_async(mine, {"rows": 1})
            assert job(context.job.id)["status"] == "doing"

    @app.task(name="function", pass_context=True)
    def function(context: JobContext) -> None:
        with psycopg.connect(dsn) as mine:
            mine.execute(WRITE, [context.job.id])
            context.complete(mine, {"rows": 1})

    job_id = await app.configure_task(kind).defer_async()
    await drain(app)
    row = job(job_id)
    assert (row["status"], row["result"], row["attempts"], ledger()) == ("succeeded", {"rows": 1}, 1, 1)


async def test_a_rollback_takes_the_end_back_too(
    app: App, dsn: str, ledger: Callable[[], int], job: Callable[[int], dict[str, Any]]
) -> None:
    @app.task(pass_context=True, retry=1)
    def task(context: JobContext) -> None:
        with psycopg.connect(dsn) as mine:
            mine.execute(WRITE, [context.job.id])
            context.complete(mine)
            if context.job.attempts == 0:
                raise ValueError("before the commit")

    job_id = await task.defer_async()
    await drain(app)
    assert (job(job_id)["status"], job(job_id)["attempts"], ledger()) == ("succeeded", 2, 1)


async def test_an_error_after_the_commit_changes_nothing_but_is_logged(
    app: App,
    dsn: str,
    ledger: Callable[[], int],
    job: Callable[[int], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    @app.task(pass_context=True, retry=True)
    def task(context: JobContext) -> None:
        with psycopg.connect(dsn) as mine:
            mine.execute(WRITE, [context.job.id])
            context.complete(mine)
        raise ValueError("after the commit")

    job_id = await task.defer_async()
    await drain(app)
    assert (job(job_id)["status"], ledger()) == ("succeeded", 1)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "after the commit" in caplog.text
    assert record.action == "job_error_after_completion"  # type: ignore[attr-defined]


async def test_a_job_that_was_taken_away_cannot_be_completed(
    app: App, dsn: str, ledger: Callable[[], int], job: Callable[[int], dict[str, Any]]
) -> None:
    refusals: list[TokenNotCurrent] = []

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        if context.job.attempts:
            return
        app.job_manager.retry_job_by_id(context.job.id)
        with psycopg.connect(dsn) as mine:
            mine.execute(WRITE, [context.job.id])
            try:
                context.complete(mine)
            except TokenNotCurrent as refusal:
                refusals.append(refusal)
                raise

    job_id = await task.defer_async()
    await drain(app)
    assert len(refusals) == 1
    assert refusals[0].hint
    assert (job(job_id)["status"], job(job_id)["attempts"], ledger()) == ("succeeded", 2, 0)


async def test_a_result_that_is_too_large_is_refused(app: App, dsn: str) -> None:
    refusals: list[ArgsTooLarge] = []

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        with psycopg.connect(dsn) as mine:
            try:
                context.complete(mine, "x" * 70_000)
            except ArgsTooLarge as refusal:
                refusals.append(refusal)

    await task.defer_async()
    await drain(app)
    assert len(refusals) == 1
