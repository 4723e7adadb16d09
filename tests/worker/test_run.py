"""What a worker makes of tasks: it calls them with their arguments, and tells how they ended."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, JobContext, PsycopgConnector


async def drain(app: App, **options: Any) -> None:
    await app.run_worker_async(wait=False, install_signal_handlers=False, **options)


@pytest.mark.scenario(1)
async def test_tasks_are_called_with_their_arguments_in_the_order_of_deferring(app: App) -> None:
    calls: list[Any] = []

    @app.task
    async def coroutine(a: int, b: list[int]) -> None:
        calls.append((a, b))

    @app.task
    def function(text: str) -> None:
        calls.append(text)

    await coroutine.defer_async(1, b=[2, 3])
    await function.defer_async(text="é\u2028")
    await coroutine.defer_async(a=4, b=[])
    await drain(app)
    assert calls == [(1, [2, 3]), "é\u2028", (4, [])]


async def test_the_context_tells_about_the_job(app: App) -> None:
    seen: list[JobContext] = []

    @app.task(name="look", pass_context=True, queue="q", priority=3, lock="l", aliases=["glance"])
    def look(context: JobContext, x: int) -> None:
        context.additional_context["mine"] = x
        seen.append(context)

    ids = [await look.defer_async(x=1), await app.configure_task("glance").defer_async(x=2)]
    await drain(app, name="bob", queues=["q", "default"], additional_context={"shared": True})
    first, second = seen
    job = first.job
    assert (job.id, job.status, job.task_name, job.task_kwargs) == (ids[0], "doing", "look", {"x": 1})
    assert (job.queue, job.priority, job.lock, job.queueing_lock) == ("q", 3, "l", None)
    assert (job.attempts, job.call_string) == (0, f"look[{ids[0]}](x=1)")
    assert (first.worker_name, first.queues_display) == ("bob", "queues q, default")
    assert first.task is look
    assert second.task is look
    assert not first.should_abort()
    assert first.abort_reason() is None
    assert second.token > first.token
    assert first.additional_context == {"shared": True, "mine": 1}
    assert second.additional_context == {"shared": True, "mine": 2}


@pytest.mark.scenario(13)
async def test_what_a_function_returns_is_awaited_if_it_can_be(app: App, status: Callable[[int], str]) -> None:
    threads: list[threading.Thread] = []

    async def finish() -> None:
        threads.append(threading.current_thread())

    @app.task
    def begin() -> Any:
        threads.append(threading.current_thread())
        return finish()

    job_id = await begin.defer_async()
    await drain(app)
    assert status(job_id) == "succeeded"
    assert threads[0] is not threads[1] is threading.main_thread()


RAISED = [
    ValueError("no"),
    SystemExit(1),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(1),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    BaseException("bare"),
    RecursionError(),
    MemoryError(),
]


@pytest.mark.scenario(15)
@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_whatever_a_task_raises_fails_its_job_and_no_other(
    app: App, job: Callable[[int], dict[str, Any]], kind: str
) -> None:
    @app.task(name="coroutine")
    async def coroutine(n: int) -> None:
        raise RAISED[n]

    @app.task(name="function")
    def function(n: int) -> None:
        raise RAISED[n]

    @app.task
    async def healthy() -> None: ...

    task = app.configure_task(kind)
    ids = [await task.defer_async(n=n) for n in range(len(RAISED))]
    good = await healthy.defer_async()
    await drain(app)
    rows = [job(each) for each in ids]
    assert {(row["status"], row["attempts"]) for row in rows} == {("failed", 1)}
    expected = [type(error).__name__ for error in RAISED]
    assert [row["error_class"].rpartition(".")[2] for row in rows] == expected
    assert job(good)["status"] == "succeeded"


async def test_an_error_is_kept_without_local_variables_and_as_postgres_can_store_it(
    app: App, job: Callable[[int], dict[str, Any]], conn: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", logger="pyprocrastinate")  # pytest-xdist chokes on such logs

    class OddError(Exception):
        def __str__(self) -> str:
            return "nul \0, half \ud800, long " + "x" * 20_000

    @app.task
    async def odd() -> None:
        secret = "hunter2"
        raise OddError(secret)

    job_id = await odd.defer_async()
    await drain(app)
    row = job(job_id)
    assert row["error_class"].endswith("OddError")
    assert row["error_message"].startswith("nul \ufffd, half ?, long xxx")
    assert len(row["error_message"].encode()) <= 8192
    (detail,) = conn.execute(
        "select detail from procrastinate.events where job_id = %s and type = 'failed'", [job_id]
    ).fetchone()
    assert "raise OddError(secret)" in detail["traceback"]
    assert "hunter2" not in detail["traceback"]
    assert "execution.py" not in detail["traceback"]


async def test_the_end_of_a_long_traceback_is_kept(app: App, conn: psycopg.Connection[Any]) -> None:
    @app.task
    async def long() -> None:
        raise ValueError("y" * 200_000 + "the end")

    job_id = await long.defer_async()
    await drain(app)
    (detail,) = conn.execute(
        "select detail from procrastinate.events where job_id = %s and type = 'failed'", [job_id]
    ).fetchone()
    assert len(detail["traceback"].encode()) <= 65536
    assert detail["traceback"].endswith("the end\n")


async def test_an_exception_that_cannot_even_be_printed_fails_its_job(
    app: App, job: Callable[[int], dict[str, Any]]
) -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise SystemExit

    @app.task
    async def unspeakable() -> None:
        raise UnspeakableError

    job_id = await unspeakable.defer_async()
    await drain(app)
    assert job(job_id)["status"] == "failed"
    assert "cannot be read" in job(job_id)["error_message"]


class TestResults:
    async def test_is_stored_only_if_the_task_says_so(self, app: App, job: Callable[[int], dict[str, Any]]) -> None:
        @app.task(store_result=True)
        async def stores() -> Any:
            return {"a": [1, None]}

        @app.task
        async def does_not() -> Any:
            return 1

        ids = [await stores.defer_async(), await does_not.defer_async()]
        await drain(app)
        assert [job(each)["result"] for each in ids] == [{"a": [1, None]}, None]

    async def test_what_cannot_be_stored_is_logged_and_changes_nothing(
        self, app: App, job: Callable[[int], dict[str, Any]], caplog: pytest.LogCaptureFixture
    ) -> None:
        results = [float("nan"), "nul \0", "half \ud800", "x" * 70_000, object(), 10**5000]

        @app.task(store_result=True)
        async def stores(n: int) -> Any:
            return results[n]

        ids = [await stores.defer_async(n=n) for n in range(len(results))]
        await drain(app)
        rows = [job(each) for each in ids]
        assert {(row["status"], row["result"]) for row in rows} == {("succeeded", None)}
        actions = [getattr(record, "action", None) for record in caplog.records]
        assert actions == ["job_result_not_stored"] * len(results)


class TestUnknownTasks:
    @pytest.mark.scenario(14)
    async def test_fails_where_no_worker_knows_it(
        self, app: App, job: Callable[[int], dict[str, Any]], caplog: pytest.LogCaptureFixture
    ) -> None:
        job_id = await app.configure_task("os.getpid").defer_async()
        await drain(app)
        assert job(job_id)["status"] == "failed"
        (record,) = caplog.records
        assert (record.levelname, record.action) == ("ERROR", "task_not_found")  # type: ignore[attr-defined]

    @pytest.mark.scenario(14)
    async def test_goes_to_a_worker_that_knows_it(
        self, app: App, working: Any, dsn: str, until: Any, status: Callable[[int], str]
    ) -> None:
        other = App(connector=PsycopgConnector(conninfo=dsn))
        release = asyncio.Event()

        @other.task(name="known")
        async def known() -> None: ...

        @other.task(name="block")
        async def block() -> None:
            await release.wait()

        async with other.open_async(), working(other) as knowing:
            await until(lambda: knowing.worker_id)
            blocking = await other.configure_task("block").defer_async()
            await until(lambda: status(blocking) == "doing")
            job_id = await app.configure_task("known").defer_async()
            async with working(prefetch=False) as ignorant:
                await until(lambda: ignorant.worker_id)
                release.set()
                await until(lambda: status(job_id) == "succeeded")


@pytest.mark.scenario(37)
@pytest.mark.parametrize(
    ("delete_jobs", "left"), [("never", {"good", "bad"}), ("successful", {"bad"}), ("always", set())]
)
async def test_finished_jobs_are_deleted_as_the_worker_is_told(app: App, delete_jobs: str, left: set[str]) -> None:
    @app.task(name="good")
    async def good() -> None: ...

    @app.task(name="bad")
    async def bad() -> None:
        raise ValueError

    await good.defer_async()
    await bad.defer_async()
    await drain(app, delete_jobs=delete_jobs)
    assert {job.task_name for job in await app.job_manager.list_jobs_async()} == left


async def test_context_variables_of_one_job_are_not_seen_by_another(app: App) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    @app.task
    async def coroutine(name: str) -> None:
        seen.append(variable.get())
        variable.set(name)
        await asyncio.sleep(0)
        assert variable.get() == name

    @app.task
    def function(name: str) -> None:
        seen.append(variable.get())
        variable.set(name)

    variable.set("outer")
    for task in (coroutine, function):
        await task.batch_defer_async(*({"name": str(n)} for n in range(20)))
    await drain(app, concurrency=4)
    assert seen == ["outer"] * 40


@pytest.mark.scenario(12)
@pytest.mark.parametrize("kind", ["coroutine", "function"])
@pytest.mark.parametrize("prefetch", [True, False])
async def test_never_more_tasks_run_than_the_concurrency(app: App, kind: str, prefetch: bool) -> None:
    running = most = count = 0
    guard = threading.Lock()

    def change(by: int) -> None:
        nonlocal running, most, count
        with guard:
            running += by
            most = max(most, running)
            count += by > 0

    @app.task(name="coroutine")
    async def coroutine() -> None:
        change(1)
        await asyncio.sleep(0)
        change(-1)

    @app.task(name="function")
    def function() -> None:
        change(1)
        change(-1)

    await app.configure_task(kind).batch_defer_async(*({} for _ in range(500)))
    await drain(app, concurrency=7, prefetch=prefetch)
    assert count == 500
    assert most == 7 if kind == "coroutine" else 1 <= most <= 7


@pytest.mark.scenario(10)
async def test_functions_run_side_by_side(app: App) -> None:
    meeting = threading.Barrier(3, timeout=10)

    @app.task
    def meet() -> None:
        meeting.wait()

    await meet.batch_defer_async({}, {}, {})
    await drain(app, concurrency=3)
    assert all(job.status == "succeeded" for job in await app.job_manager.list_jobs_async())


@pytest.mark.scenario(12)
async def test_slots_are_filled_again_while_others_are_taken(app: App, working: Any, until: Any) -> None:
    release = asyncio.Event()
    done: list[int] = []

    @app.task
    async def slow() -> None:
        await release.wait()

    @app.task
    async def quick(n: int) -> None:
        done.append(n)

    await slow.defer_async()
    await quick.batch_defer_async(*({"n": n} for n in range(10)))
    async with working(concurrency=2, prefetch=False):
        await until(lambda: len(done) == 10)
        release.set()


@pytest.mark.scenario(8)
async def test_higher_priority_runs_first(app: App) -> None:
    order: list[str] = []

    @app.task(priority=5)
    async def task(name: str) -> None:
        order.append(name)

    await task.defer_async("default")
    await task.configure(priority=3).defer_async(name="low")
    await task.configure(priority=7).defer_async(name="high")
    await drain(app)
    assert order == ["high", "default", "low"]


class TestWithoutWaiting:
    async def test_runs_retries_that_are_due(self, app: App, job: Callable[[int], dict[str, Any]]) -> None:
        @app.task(retry=2, pass_context=True)
        async def third_time_lucky(context: JobContext) -> None:
            if context.job.attempts < 2:
                raise ValueError

        job_id = await third_time_lucky.defer_async()
        await drain(app, concurrency=3)
        row = job(job_id)
        assert (row["status"], row["attempts"]) == ("succeeded", 3)

    async def test_runs_what_a_job_deferred(self, app: App) -> None:
        depths: list[int] = []

        @app.task
        async def nested(depth: int) -> None:
            depths.append(depth)
            if depth:
                await nested.defer_async(depth - 1)

        @app.task
        def sync_nested(depth: int) -> None:
            depths.append(depth)
            if depth:
                sync_nested.defer(depth - 1)

        await nested.defer_async(3)
        await sync_nested.defer_async(3)
        await drain(app, concurrency=2)
        assert sorted(depths) == [0, 0, 1, 1, 2, 2, 3, 3]

    async def test_leaves_what_is_not_due_or_locked_elsewhere(
        self, app: App, conn: psycopg.Connection[Any], status: Callable[[int], str]
    ) -> None:
        @app.task(name="task")
        async def task() -> None: ...

        (other,) = conn.execute("select procrastinate.register_worker_v1('other')").fetchone()
        conn.execute("select procrastinate.defer('task', lock => 'taken')")
        conn.execute("select * from procrastinate.fetch_v1(%s)", [other])
        locked = await task.configure(lock="taken").defer_async()
        later = await task.configure(schedule_in={"hours": 1}).defer_async()
        await drain(app)
        assert (status(locked), status(later)) == ("todo", "todo")

    @pytest.mark.scenario(4, "R15")
    async def test_takes_only_its_queues(self, app: App, status: Callable[[int], str]) -> None:
        @app.task
        async def task() -> None: ...

        ids = [await task.configure(queue=queue).defer_async() for queue in ("a", "b")]
        await drain(app, queues=[])
        assert [status(each) for each in ids] == ["todo", "todo"]
        await drain(app, queues=["b"])
        assert [status(each) for each in ids] == ["todo", "succeeded"]


@pytest.mark.scenario(62)
async def test_a_worker_can_run_again(app: App, conn: psycopg.Connection[Any]) -> None:
    calls: list[int | None] = []

    @app.task
    async def task() -> None:
        calls.append(worker.worker_id)

    worker = app.make_worker(wait=False, install_signal_handlers=False)
    for _ in range(2):
        await task.defer_async()
        await worker.run()
    assert len(set(calls)) == 2
    assert worker.worker_id is None
    assert conn.execute("select count(*) from procrastinate.workers").fetchone() == (0,)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"update_heartbeat_interval": 20.0},
        {"update_heartbeat_interval": 0.0},
        {"delete_jobs": "sometimes"},
    ],
)
async def test_senseless_options_are_refused(app: App, options: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        app.make_worker(**options)
