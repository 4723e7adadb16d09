"""Each hook, in turn: when it is called, with what, in sync and async plugins."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from pyprocrastinate import AbortReason, Blueprint, JobContext, RetryDecision, RetryStrategy, hookimpl, hookspecs
from pyprocrastinate.exceptions import AlreadyEnqueued, ConnectorException, JobAborted, JobRetry
from pyprocrastinate.hookspecs import RescuedJob, Tick
from pyprocrastinate_hooks import observers

variable = contextvars.ContextVar("variable", default="unset")


class Seen(list):
    """A plugin that notes the calls of one hook."""

    def __init__(self, hook, *, is_async=False):
        super().__init__()
        names = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
        source = f"{'async ' * is_async}def {hook}({names}): seen.append(locals())"
        scope = {"seen": self}
        exec(source, scope)
        setattr(self, hook, hookimpl(scope[hook]))

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def seen(request):
    """Return a function that makes a plugin for a hook, and waits for what it saw."""
    return lambda hook: Seen(hook, is_async=request.param)


async def flush():
    await asyncio.to_thread(observers.flush)


# The worker


async def test_hook_worker_started(open_app, drain, seen):
    plugin = seen("worker_started")
    app = await open_app(plugin)
    await drain(app, name="w")
    await drain(app, name="x")
    assert [call["worker"].worker_name for call in plugin] == ["w", "x"]


async def test_hook_worker_stopping(open_app, drain, seen):
    plugin, started = seen("worker_stopping"), asyncio.Event()
    app = await open_app(plugin)

    @app.task(name="long")
    async def long():
        started.set()
        await asyncio.sleep(3600)

    await drain(app)
    assert [call["running"] for call in plugin] == [[]]
    job_id = await long.defer_async()
    worker = app.make_worker(install_signal_handlers=False, shutdown_graceful_timeout=0)
    run = asyncio.create_task(worker.run())
    await started.wait()
    worker.stop()
    await run
    assert [job.id for job in plugin[1]["running"]] == [job_id]
    assert plugin[1]["worker"] is worker


async def test_hook_worker_stopped(open_app, drain, seen, conn):
    plugin = seen("worker_stopped")
    app = await open_app(plugin)
    await drain(app)
    conn.execute("alter function procrastinate.register_worker_v1 rename to gone")
    with pytest.raises(ConnectorException) as failure:
        await drain(app)
    assert plugin[0]["error"] is None
    assert plugin[1]["error"] is failure.value
    assert len(plugin) == 2


# Jobs


@pytest.mark.parametrize("batch", [False, True])
async def test_hook_jobs_deferred(open_app, seen, batch):
    plugin = seen("jobs_deferred")
    app = await open_app(plugin)
    deferrer = app.configure_task("t", queue="q", lock="l", priority=3)
    ids = await deferrer.batch_defer_async({"a": 1}, {"a": 2}) if batch else [await deferrer.defer_async(a=1)]
    await flush()
    (call,) = plugin
    assert call["app"] is app
    assert not call["in_transaction"]
    assert [job.id for job in call["jobs"]] == ids
    assert [job.task_kwargs for job in call["jobs"]] == [{"a": 1}, {"a": 2}][: len(ids)]
    assert {(job.task_name, job.queue, job.lock, job.priority) for job in call["jobs"]} == {("t", "q", "l", 3)}


async def test_a_defer_in_the_callers_transaction_says_so(open_app, seen, connect, aconnect):
    plugin = seen("jobs_deferred")
    app = await open_app(plugin)
    autocommit, transaction = connect(), connect(autocommit=False)
    app.configure_task("t", connection=autocommit).defer()
    app.configure_task("t", connection=transaction).defer()
    with autocommit.transaction():
        app.configure_task("t", connection=autocommit).defer()
    await app.configure_task("t", connection=await aconnect(autocommit=False)).defer_async()
    await flush()
    assert [call["in_transaction"] for call in plugin] == [False, True, True, True]


async def test_a_defer_that_fails_is_not_told(open_app, seen):
    plugin = seen("jobs_deferred")
    app = await open_app(plugin)
    await app.configure_task("t", queueing_lock="q").defer_async()
    with pytest.raises(AlreadyEnqueued):
        await app.configure_task("t", queueing_lock="q").defer_async()
    await flush()
    assert len(plugin) == 1


async def test_hook_job_started(open_app, drain, seen):
    plugin = seen("job_started")
    app = await open_app(plugin)

    @app.task(name="t")
    async def t(a):
        pass

    before = datetime.now(UTC)
    job_id = await t.defer_async(a=1)
    await drain(app)
    (call,) = plugin
    job = call["job"]
    assert (job.id, job.status, job.task_name, job.task_kwargs, job.attempts) == (job_id, "doing", "t", {"a": 1}, 0)
    assert before - timedelta(minutes=1) < job.deferred_at <= datetime.now(UTC)


async def test_hook_job_finished(open_app, drain, seen):
    plugin = seen("job_finished")
    app = await open_app(plugin)
    later = datetime(2100, 1, 1, tzinfo=UTC)

    @app.task(name="ok")
    def ok():
        pass

    @app.task(name="bad")
    async def bad():
        raise ValueError("bad")

    @app.task(name="again")
    async def again():
        raise JobRetry(RetryDecision(retry_at=later))

    @app.task(name="stop")
    async def stop():
        raise JobAborted

    ids = [await task.defer_async() for task in (ok, bad, again, stop)]
    ids.append(await app.configure_task("unknown").defer_async())
    await drain(app, concurrency=5)
    ends = {call["job"].id: call for call in plugin}
    assert [ends[each]["status"] for each in ids] == ["succeeded", "failed", "todo", "aborted", "failed"]
    assert [type(ends[each]["exception"]) for each in ids] == [type(None), ValueError, JobRetry, JobAborted, type(None)]
    assert [ends[each]["retry_at"] for each in ids] == [None, None, later, None, None]
    assert all(0 <= call["duration"] < 60 for call in plugin)
    assert len(plugin) == 5


async def test_job_finished_comes_when_the_database_knows(open_app, drain, status):
    statuses = []

    class Plugin:
        @hookimpl
        def job_finished(self, job):
            statuses.append(status(job.id))

    app = await open_app(Plugin())

    @app.task(name="t")
    async def t():
        pass

    await t.defer_async()
    await drain(app)
    assert statuses == ["succeeded"]


async def test_a_run_that_no_longer_counts_has_no_status(open_app, drain, seen, conn):
    plugin = seen("job_finished")
    app = await open_app(plugin)

    @app.task(name="t", pass_context=True)
    async def t(context):
        if not context.job.attempts:
            await asyncio.to_thread(conn.execute, "select procrastinate.retry(%s)", [context.job.id])

    job_id = await t.defer_async()
    await drain(app)
    assert None in [call["status"] for call in plugin]
    assert {call["job"].id for call in plugin} == {job_id}


@pytest.mark.parametrize("reason", list(AbortReason))
async def test_hook_job_abort_requested(open_app, seen, until, status, reason):
    plugin, started = seen("job_abort_requested"), asyncio.Event()
    app = await open_app(plugin)

    @app.task(name="long")
    async def long():
        started.set()
        await asyncio.sleep(3600)

    job_id = await long.defer_async()
    worker = app.make_worker(install_signal_handlers=False, shutdown_graceful_timeout=0)
    run = asyncio.create_task(worker.run())
    await started.wait()
    if reason is AbortReason.USER_REQUEST:
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await until(lambda: status(job_id) == "aborted")
    worker.stop()
    await run
    assert [(call["job"].id, call["reason"]) for call in plugin] == [(job_id, reason)]


async def test_hook_jobs_rescued(open_app, seen, until, conn):
    plugin = seen("jobs_rescued")
    app = await open_app(plugin)

    @app.task(name="t")
    async def t():
        pass

    ids = [await t.defer_async(), await app.configure_task("t").defer_async()]
    (worker_id,) = conn.execute(
        "select procrastinate.register_worker_v1('dead', null, '{}', '[]', 1, '30 seconds', '{}')"
    ).fetchone()
    conn.execute("select procrastinate.fetch_v1(%s, 2)", [worker_id])
    conn.execute("select procrastinate.cancel(%s, abort => true)", [ids[1]])
    conn.execute(
        "update procrastinate.worker set heartbeat_at = heartbeat_at - interval '1 day' where id = %s", [worker_id]
    )
    conn.execute("update procrastinate.tick set next_at = now()")
    worker = app.make_worker(install_signal_handlers=False)
    run = asyncio.create_task(worker.run())
    await until(lambda: plugin)
    worker.stop()
    await run
    assert plugin[0]["jobs"] == [
        RescuedJob(ids[0], "t", "default", worker_id, "todo"),
        RescuedJob(ids[1], "t", "default", worker_id, "failed"),
    ]


async def test_hook_schedules_fired(open_app, seen, until, conn):
    plugin = seen("schedules_fired")
    app = await open_app(plugin)
    conn.execute("select procrastinate.schedule('s', 't', '* * * * * *')")
    worker = app.make_worker(install_signal_handlers=False)
    run = asyncio.create_task(worker.run())
    await until(lambda: plugin)
    worker.stop()
    await run
    (tick, *_) = plugin[0]["ticks"]
    assert isinstance(tick, Tick)
    assert tick.schedule == "s"
    assert tick.at.microsecond == 0
    row = conn.execute("select task from procrastinate.jobs where id = %s", [tick.job_id]).fetchone()
    assert row == ("t",)


async def test_observers_are_called_in_order_in_one_thread_of_their_own(open_app, drain):
    calls = []

    class Plugin:
        @hookimpl
        def worker_started(self):
            calls.append(("worker_started", threading.get_ident()))

        @hookimpl
        async def job_started(self):
            calls.append(("job_started", threading.get_ident()))

        @hookimpl
        def job_finished(self):
            calls.append(("job_finished", threading.get_ident()))

        @hookimpl
        def worker_stopping(self):
            calls.append(("worker_stopping", threading.get_ident()))

        @hookimpl
        async def worker_stopped(self):
            calls.append(("worker_stopped", threading.get_ident()))

    app = await open_app(Plugin())

    @app.task(name="t")
    async def t():
        pass

    await t.defer_async()
    await drain(app)
    names = ["worker_started", "job_started", "job_finished", "worker_stopping", "worker_stopped"]
    assert [name for name, _ in calls] == names
    assert len({thread for _, thread in calls}) == 1
    assert threading.get_ident() not in {thread for _, thread in calls}


# Around


def sync_wrapper(set_value, told):
    @contextmanager
    def wrapper(*_, **__):
        variable.set(set_value)
        try:
            yield
        except BaseException as error:
            told.append(error)
            raise
        else:
            told.append(None)

    return wrapper


def async_wrapper(set_value, told):
    @asynccontextmanager
    async def wrapper(*_, **__):
        with sync_wrapper(set_value, told)():
            await asyncio.sleep(0)
            yield

    return wrapper


@pytest.mark.parametrize("wrapper", [sync_wrapper, async_wrapper])
@pytest.mark.parametrize("error", [None, ValueError("bad")])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_hook_wrap_job(open_app, drain, status, wrapper, error, kind):
    told, found = [], []

    class Plugin:
        @hookimpl
        def wrap_job(self, worker, job, context):
            assert isinstance(context, JobContext)
            assert context.job is job
            assert worker.worker_id == job.worker_id
            return wrapper(f"job {job.id}", told)()

    def body():
        found.append(variable.get())
        assert not told
        if error:
            raise error

    app = await open_app(Plugin())
    if kind == "sync":
        task = app.task(name="t")(body)
    else:

        async def coroutine():
            body()

        task = app.task(name="t")(coroutine)
    job_id = await task.defer_async()
    await drain(app)
    assert found == [f"job {job_id}"]
    assert told == [error]
    assert status(job_id) == ("failed" if error else "succeeded")
    assert variable.get() == "unset"


async def test_wrappers_of_several_plugins_nest(open_app, drain):
    order = []

    class Plugin:
        def __init__(self, name):
            self.__name__ = name

        @hookimpl
        @contextmanager
        def wrap_job(self):
            order.append(f"{self.__name__} in")
            yield
            order.append(f"{self.__name__} out")

    app = await open_app(Plugin("inner"), Plugin("outer"))

    @app.task(name="t")
    async def t():
        order.append("job")

    await t.defer_async()
    await drain(app)
    assert order == ["outer in", "inner in", "job", "inner out", "outer out"]


async def test_what_a_wrapper_makes_of_an_exception_changes_nothing(open_app, drain, status):
    class Swallows:
        @hookimpl
        def wrap_job(self):
            return self

        def __enter__(self):
            return None

        def __exit__(self, *error):
            return True

    app = await open_app(Swallows())

    @app.task(name="t")
    async def t():
        raise ValueError

    job_id = await t.defer_async()
    await drain(app)
    assert status(job_id) == "failed"


class Headers:
    """A plugin that adds a header, and notes what it is told."""

    def __init__(self, key="trace"):
        self.__name__ = key
        self.told = []

    @hookimpl
    @contextmanager
    def wrap_defer(self, app, jobs, headers):
        headers[self.__name__] = [job.task_kwargs for job in jobs]
        try:
            yield
        except BaseException as error:
            self.told.append(error)
            raise
        self.told.append(None)


class AsyncHeaders(Headers):
    @hookimpl
    async def wrap_defer(self, app, jobs, headers):
        return Headers.wrap_defer(self, app, jobs, headers)


@pytest.mark.parametrize("made", [Headers, AsyncHeaders])
@pytest.mark.parametrize("how", ["defer", "defer_async", "batch_defer", "batch_defer_async"])
async def test_hook_wrap_defer(open_app, how, made):
    plugin = made()
    app = await open_app(plugin, Headers("more"))
    deferrer = app.configure_task("t")
    kwargs = [{"a": 1}, {"a": 2}] if "batch" in how else [{"a": 1}]
    call = getattr(deferrer, how)
    result = call(*kwargs) if "batch" in how else call(a=1)
    if inspect.isawaitable(result):
        await result
    jobs = list(await app.job_manager.list_jobs_async())
    assert [job.headers for job in jobs] == [{"trace": kwargs, "more": kwargs}] * len(kwargs)
    assert plugin.told == [None]


async def test_headers_reach_the_job_and_those_that_it_defers(open_app, drain):
    found = []
    app = await open_app(Headers())

    @app.task(name="child", pass_context=True)
    def child(context, n):
        found.append(context.job.headers)

    @app.task(name="parent", pass_context=True)
    async def parent(context, n):
        found.append(context.job.headers)
        await child.defer_async(n=n + 1)

    await parent.defer_async(n=1)
    await drain(app)
    assert found == [{"trace": [{"n": 1}]}, {"trace": [{"n": 2}]}]


async def test_wrap_defer_sees_the_context_and_the_failure_of_a_defer(open_app):
    contexts, plugin = [], Headers()

    class Plugin:
        @hookimpl
        async def wrap_defer(self):
            contexts.append(variable.get())

    app = await open_app(plugin, Plugin())
    variable.set("request 1")
    deferrer = app.configure_task("t", queueing_lock="q")
    await deferrer.defer_async()
    try:
        raise KeyError("in the middle of something else")
    except KeyError:
        with pytest.raises(AlreadyEnqueued):
            await deferrer.defer_async()
    assert [type(error) for error in plugin.told] == [type(None), AlreadyEnqueued]
    assert contexts == ["request 1"] * 2


# Decisions


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("answer", "retry", "expected"),
    [
        (None, 0, "failed"),
        (None, 1, "todo"),
        (False, 1, "failed"),
        (True, 0, "succeeded"),
        (RetryDecision(retry_in={"hours": 1}, queue="later"), 0, "todo"),
    ],
)
async def test_hook_decide_retry(open_app, drain, conn, answer, retry, expected, is_async):
    asked = []

    class Plugin:
        @hookimpl
        def decide_retry(self, worker, job, exception):
            asked.append((worker.worker_id, job.id, exception))
            return answer

    class AsyncPlugin:
        @hookimpl
        async def decide_retry(self, worker, job, exception):
            return Plugin().decide_retry(worker, job, exception)

    app = await open_app(AsyncPlugin() if is_async else Plugin())
    error = ValueError("bad")

    @app.task(name="t", retry=retry and RetryStrategy(max_attempts=1, wait=3600))
    async def t():
        if not asked:
            raise error

    job_id = await t.defer_async()
    await drain(app)
    assert asked[0][1:] == (job_id, error)
    query = "select status, queue, scheduled_at > now() + '30 minutes' from procrastinate.jobs where id = %s"
    status, queue, is_later = conn.execute(query, [job_id]).fetchone()
    assert status == expected
    assert (queue, is_later) == ("later", True) if isinstance(answer, RetryDecision) else queue == "default"


async def test_nobody_is_asked_where_the_task_has_decided(open_app, drain):
    asked = []

    class Plugin:
        @hookimpl
        def decide_retry(self, job):
            asked.append(job.id)
            return True

    app = await open_app(Plugin())

    @app.task(name="again")
    async def again():
        raise JobRetry(RetryDecision(retry_in={"hours": 1}))

    @app.task(name="stop")
    async def stop():
        raise JobAborted

    await again.defer_async()
    await stop.defer_async()
    await drain(app)
    assert asked == []


async def test_the_first_decision_holds(open_app, drain, status):
    class Decides:
        def __init__(self, answer):
            self.__name__ = f"decides {answer}"
            self.answer = answer

        @hookimpl
        def decide_retry(self):
            return self.answer

    app = await open_app(Decides(RetryDecision(retry_in={"hours": 1})), Decides(False), Decides(None))

    @app.task(name="t")
    async def t():
        raise ValueError

    job_id = await t.defer_async()
    await drain(app)
    assert status(job_id) == "failed"


# Tasks and commands


@pytest.mark.parametrize("is_async", [False, True])
async def test_hook_register_tasks(open_app, drain, status, is_async):
    blueprint = Blueprint()
    done = []

    @blueprint.task(name="sweep", aliases=["clean"])
    async def sweep():
        done.append(True)

    class Janitor:
        @hookimpl
        def register_tasks(self, app):
            return blueprint

    class AsyncJanitor:
        __name__ = "Janitor"

        @hookimpl
        async def register_tasks(self, app):
            return blueprint

    app = await open_app(AsyncJanitor() if is_async else Janitor())
    app.perform_import_paths()
    job_id = await app.configure_task("Janitor:sweep", allow_unknown=False).defer_async()
    await drain(app)
    assert done == [True]
    assert status(job_id) == "succeeded"
    assert {"Janitor:sweep", "Janitor:clean"} <= app.tasks.keys()


COMMANDS = """
import click
from pyprocrastinate import hookimpl

@hookimpl
def register_commands(cli):
    @cli.command()
    def greet():
        "Say hello."
        click.echo("hello")

    @cli.command()
    def worker():
        click.echo("usurped")
"""


@pytest.mark.parametrize("kind", ["", "async "])
def test_hook_register_commands(install, command, kind):
    install("greeter", COMMANDS.replace("def register", f"{kind}def register"))
    assert command("greet").output == "hello\n"
    assert "Say hello." in command("--help").output
    assert "usurped" not in command("worker", "--help").output
