"""Asking running jobs to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import AbortReason, App, JobContext, RetryStrategy
from pyprocrastinate.exceptions import JobAborted

Status = Callable[[int], str]
BY_NOTIFICATION = {"listen_notify": True}
BY_POLLING = {"listen_notify": False, "abort_job_polling_interval": 0.1}
HOW = pytest.mark.parametrize("how", [BY_NOTIFICATION, BY_POLLING], ids=["notified", "polled"])


@pytest.mark.scenario(41, "R4")
@HOW
async def test_a_coroutine_is_cancelled(
    app: App, working: Any, until: Any, status: Status, how: dict[str, Any]
) -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    @app.task(retry=True)
    async def task() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    job_id = await task.defer_async()
    async with working(**how):
        await asyncio.wait_for(started.wait(), 20)
        assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await until(lambda: status(job_id) == "aborted")
    assert cleaned.is_set()


@pytest.mark.scenario(42)
@HOW
async def test_a_function_is_told(app: App, working: Any, until: Any, status: Status, how: dict[str, Any]) -> None:
    reasons: list[Any] = []
    pause = threading.Event()

    @app.task(pass_context=True, retry=RetryStrategy(max_attempts=9))
    def task(context: JobContext) -> None:
        while not context.should_abort():
            pause.wait(0.01)
        reasons.append(context.abort_reason())
        raise JobAborted

    job_id = await task.defer_async()
    async with working(**how):
        await until(lambda: status(job_id) == "doing")
        assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await until(lambda: status(job_id) == "aborted")
    assert reasons == [AbortReason.USER_REQUEST]


@pytest.mark.scenario(45)
async def test_a_coroutine_that_goes_on_has_succeeded(app: App, working: Any, until: Any, status: Status) -> None:
    @app.task
    async def task() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    job_id = await task.defer_async()
    async with working():
        await until(lambda: status(job_id) == "doing")
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await until(lambda: status(job_id) == "succeeded")


async def test_what_is_shielded_goes_on(app: App, working: Any, until: Any, status: Status) -> None:
    release, finished, asked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def inner() -> None:
        await release.wait()
        finished.set()

    @app.task
    async def task() -> None:
        shielded = asyncio.ensure_future(inner())
        try:
            await asyncio.shield(shielded)
        except asyncio.CancelledError:
            asked.set()
            await shielded
            raise

    job_id = await task.defer_async()
    async with working():
        await until(lambda: status(job_id) == "doing")
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await asyncio.wait_for(asked.wait(), 20)
        release.set()
        await until(lambda: status(job_id) == "aborted")
    assert finished.is_set()


@pytest.mark.scenario(43)
async def test_another_error_after_the_request_fails_for_good(
    app: App, working: Any, until: Any, job: Callable[[int], dict[str, Any]]
) -> None:
    @app.task(retry=True)
    async def task() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("while stopping") from None

    job_id = await task.defer_async()
    async with working():
        await until(lambda: job(job_id)["status"] == "doing")
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await until(lambda: job(job_id)["status"] == "failed")
    assert job(job_id)["attempts"] == 1


@pytest.mark.scenario(44)
@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_a_task_may_abort_by_itself(app: App, status: Status, kind: str) -> None:
    @app.task(name="coroutine", retry=True)
    async def coroutine() -> None:
        raise JobAborted

    @app.task(name="function", retry=True)
    def function() -> None:
        raise JobAborted

    job_id = await app.configure_task(kind).defer_async()
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert status(job_id) == "aborted"


@pytest.mark.scenario(46)
async def test_a_request_for_a_job_that_has_just_ended_changes_nothing(
    app: App, working: Any, until: Any, status: Status, conn: psycopg.Connection[Any]
) -> None:
    @app.task
    async def task() -> None:
        # Before the worker can tell of the end; as if the request had come at that moment.
        conn.execute("select procrastinate.cancel(%s, abort => true)", [job_id])

    job_id = await task.defer_async()
    async with working():
        await until(lambda: status(job_id) == "succeeded")


async def test_a_job_that_was_fetched_ahead_is_not_begun_any_more(
    app: App, working: Any, until: Any, status: Status
) -> None:
    begun: list[int] = []
    ids: list[int] = []
    release = asyncio.Event()

    @app.task
    async def quick(n: int) -> None:
        begun.append(n)

    @app.task
    async def block() -> None:
        # On the loop itself, so that what was fetched ahead cannot be given back first.
        last = await app.job_manager.get_job_status_async(ids[-1])
        begun.append(-2 if last.value == "doing" else -3)
        await app.job_manager.cancel_job_by_id_async(ids[-1], abort=True)
        await release.wait()

    # Short tasks make the worker fetch ahead; it then holds the last one behind the one that blocks.
    await quick.batch_defer_async(*({"n": n} for n in range(300)))
    ids.append(await block.defer_async())
    ids.append(await quick.defer_async(n=-1))
    async with working():
        await until(lambda: status(ids[-1]) in ("aborted", "cancelled"))
        release.set()
    assert begun[-1] == -2
    assert status(ids[-1]) == "aborted"


@pytest.mark.scenario(38, 39, 40)
async def test_waiting_jobs_are_cancelled_or_deleted(app: App, status: Status) -> None:
    @app.task
    async def task() -> None: ...

    ids = [await task.defer_async() for _ in range(3)]
    manager = app.job_manager
    assert await manager.cancel_job_by_id_async(ids[0])
    assert await manager.cancel_job_by_id_async(ids[1], delete_job=True)
    assert not await manager.cancel_job_by_id_async(12345)
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert [status(each) for each in ids] == ["cancelled", None, "succeeded"]
    assert not await manager.cancel_job_by_id_async(ids[2], abort=True)
