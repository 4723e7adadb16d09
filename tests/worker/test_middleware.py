"""Functions of the user's around the run of a job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyprocrastinate import App, JobContext
from pyprocrastinate.exceptions import MiddlewareKindMismatch
from pyprocrastinate.worker import Worker

Trace = list[tuple[str, str]]


def sync_middleware(trace: Trace, name: str) -> Callable[..., Any]:
    def middleware(call_next: Callable[[], Any], context: JobContext, worker: Worker) -> Any:
        trace.append((name, threading.current_thread().name.split("_")[0]))
        return f"{name}({call_next()})"

    return middleware


def async_middleware(trace: Trace, name: str) -> Callable[..., Any]:
    async def middleware(call_next: Callable[[], Any], context: JobContext, worker: Worker) -> Any:
        trace.append((name, context.job.task_name))
        return f"{name}({await call_next()})"

    return middleware


async def drain(app: App, **options: Any) -> None:
    await app.run_worker_async(wait=False, install_signal_handlers=False, **options)


@pytest.mark.scenario(78)
async def test_an_async_task_is_surrounded_in_order(app: App, job: Any) -> None:
    trace: Trace = []

    @app.task(name="task", store_result=True, task_middleware=[async_middleware(trace, "own")])
    async def task() -> str:
        return "result"

    job_id = await task.defer_async()
    await drain(
        app,
        task_middleware=[async_middleware(trace, "a"), sync_middleware(trace, "not"), async_middleware(trace, "b")],
        worker_middleware=[async_middleware(trace, "outer"), async_middleware(trace, "inner")],
    )
    assert [name for name, _ in trace] == ["outer", "inner", "a", "b", "own"]
    assert job(job_id)["result"] == "outer(inner(a(b(own(result)))))"


@pytest.mark.scenario(78)
async def test_a_sync_task_is_surrounded_in_its_thread(app: App, job: Any) -> None:
    trace: Trace = []

    @app.task(name="task", store_result=True, task_middleware=[sync_middleware(trace, "own")])
    def task() -> str:
        trace.append(("task", threading.current_thread().name.split("_")[0]))
        return "result"

    job_id = await task.defer_async()
    await drain(
        app,
        task_middleware=[sync_middleware(trace, "a"), async_middleware(trace, "not")],
        worker_middleware=[async_middleware(trace, "outer")],
    )
    thread = "pyprocrastinate"
    assert trace == [("outer", "task"), ("a", thread), ("own", thread), ("task", thread)]
    assert job(job_id)["result"] == "outer(a(own(result)))"


@pytest.mark.scenario(78)
@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_it_sees_what_the_task_raises(app: App, job: Any, error: type[BaseException], kind: str) -> None:
    seen: list[type] = []

    async def outer(call_next: Callable[[], Any], context: JobContext, worker: Worker) -> Any:
        try:
            return await call_next()
        except BaseException as caught:
            seen.append(type(caught))
            raise

    if kind == "sync":

        @app.task(name="task")
        def task() -> None:
            raise error
    else:

        @app.task(name="task")
        async def task() -> None:
            raise error

    job_id = await app.configure_task("task").defer_async()
    await drain(app, worker_middleware=[outer])
    assert (job(job_id)["status"], job(job_id)["error_class"]) == ("failed", error.__name__)
    # no coroutine can raise StopIteration
    assert seen == [RuntimeError if error is StopIteration else error]


@pytest.mark.scenario(57, 78)
async def test_it_may_stop_the_worker_and_fail_the_job(app: App, job: Any) -> None:
    async def stops(call_next: Callable[[], Any], context: JobContext, worker: Worker) -> Any:
        worker.stop()
        raise LookupError("not now")

    @app.task(name="task")
    async def task() -> None:
        raise AssertionError("it was not to be called")

    ids = [await task.defer_async(), await task.defer_async()]
    await app.run_worker_async(install_signal_handlers=False, prefetch=False, worker_middleware=[stops])
    assert [(job(each)["status"], job(each)["error_class"]) for each in ids] == [
        ("failed", "LookupError"),
        ("todo", None),
    ]


async def test_of_the_wrong_kind_it_is_refused(app: App) -> None:
    async_one, sync_one = async_middleware([], "a"), sync_middleware([], "s")
    with pytest.raises(MiddlewareKindMismatch):
        app.task(name="a", task_middleware=[async_one])(lambda: None)

    async def coroutine() -> None: ...

    with pytest.raises(MiddlewareKindMismatch):
        app.task(name="b", task_middleware=[sync_one])(coroutine)
    with pytest.raises(MiddlewareKindMismatch):
        app.make_worker(worker_middleware=[sync_one])
    with pytest.raises(TypeError):
        app.make_worker(task_middleware=["not callable"])  # type: ignore[list-item]
    assert not {"a", "b"} & app.tasks.keys()
