"""Deferring jobs from Python, in all its ways, and managing them."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest

from pyprocrastinate import App, Blueprint, JobContext, PsycopgConnector, SyncPsycopgConnector
from pyprocrastinate.exceptions import (
    AlreadyEnqueued,
    AppNotOpen,
    ConnectorException,
    FunctionPathError,
    InvalidName,
    JobNotFound,
    LoadFromPathError,
    PriorityOutOfRange,
    SyncConnectorConfigurationError,
    TaskAlreadyRegistered,
    TaskNotFound,
    UnboundTaskError,
    UniqueViolation,
    WrongJobState,
)
from pyprocrastinate.jobs import Status

Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[App]:
    app = App(connector=PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        yield app


@pytest.fixture(params=[SyncPsycopgConnector, PsycopgConnector])
def sync_app(dsn: str, request: pytest.FixtureRequest) -> Iterator[App]:
    with App(connector=request.param(dsn)).open() as app:
        yield app


@pytest.fixture
def jobs(conn: psycopg.Connection[Any]) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that reads all jobs, by id."""

    def jobs() -> list[dict[str, Any]]:
        with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return cursor.execute("select * from procrastinate.jobs order by id").fetchall()

    return jobs


async def drain(app: App) -> None:
    await app.run_worker_async(wait=False, install_signal_handlers=False)


@pytest.mark.scenario(3)
def test_everything_said_is_in_the_job(sync_app: App, jobs: Any) -> None:
    @sync_app.task(name="t", queue="q", priority=2, lock="l", queueing_lock="ql")
    def task(a: int, b: str = "") -> None: ...

    at = datetime.datetime(2100, 1, 2, tzinfo=datetime.UTC)
    ids = [
        task.defer(1, b="x"),
        task.configure(
            queue="q2", priority=-3, lock="l2", queueing_lock="ql2", schedule_at=at, task_kwargs={"a": 2, "b": "lost"}
        ).defer(b="won"),
        sync_app.configure_task("t", queueing_lock="ql3", lock=None).defer(a=3),
        sync_app.configure_task("elsewhere").defer(),
    ]
    keys = ("id", "task", "queue", "priority", "lock", "queueing_lock", "args", "scheduled_at")
    assert [tuple(job[key] for key in keys) for job in jobs()] == [
        (ids[0], "t", "q", 2, "l", "ql", {"a": 1, "b": "x"}, None),
        (ids[1], "t", "q2", -3, "l2", "ql2", {"a": 2, "b": "won"}, at),
        (ids[2], "t", "q", 2, "l", "ql3", {"a": 3}, None),
        (ids[3], "elsewhere", "default", 0, None, None, {}, None),
    ]


def test_a_delay_counts_by_the_database_clock(sync_app: App, jobs: Any, conn: psycopg.Connection[Any]) -> None:
    conn.execute("select procrastinate.enable_test_clock()")
    conn.execute("select procrastinate.advance('100 days')")
    sync_app.configure_task("t", schedule_in={"days": 1, "milliseconds": 1500}).defer()
    sync_app.configure_task("t", schedule_in={"days": 1}).batch_defer({})
    first, second = jobs()
    wait = datetime.timedelta(days=1, seconds=1.5)
    assert first["scheduled_at"] - first["deferred_at"] == wait
    assert second["scheduled_at"] - second["deferred_at"] == datetime.timedelta(days=1)


@pytest.mark.scenario(2, 3, "R15")
def test_a_batch_keeps_its_order(sync_app: App, jobs: Any) -> None:
    at = datetime.datetime(2100, 1, 2, tzinfo=datetime.UTC)
    deferrer = sync_app.configure_task("t", task_kwargs={"x": 1}, priority=4, schedule_at=at)
    ids = deferrer.batch_defer(*({"n": n} for n in range(100)))
    assert [(job["id"], job["args"]) for job in jobs()] == [(job_id, {"x": 1, "n": n}) for n, job_id in enumerate(ids)]
    assert {(job["priority"], job["scheduled_at"]) for job in jobs()} == {(4, at)}
    assert deferrer.batch_defer() == []


@pytest.mark.scenario(1, 2)
async def test_jobs_run_in_the_order_of_deferring(app: App) -> None:
    seen: list[int] = []

    @app.task
    async def task(n: int) -> None:
        seen.append(n)

    await task.defer_async(n=0)
    await task.batch_defer_async({"n": 1}, {"n": 2})
    task.defer(n=3)
    task.batch_defer({"n": 4}, {"n": 5})
    await app.configure_task(task.name).defer_async(n=6)
    await drain(app)
    assert seen == list(range(7))


@pytest.mark.scenario(26, 27)
def test_a_queueing_lock_lets_one_wait(sync_app: App, jobs: Any) -> None:
    deferrer = sync_app.configure_task("t", queueing_lock="only one")
    first = deferrer.defer()
    with pytest.raises(AlreadyEnqueued, match=str(first)) as caught:
        deferrer.defer()
    cause = caught.value.__cause__
    assert isinstance(cause, UniqueViolation)
    assert (cause.constraint_name, cause.queueing_lock) == ("jobs_queueing_lock", "only one")
    with pytest.raises(AlreadyEnqueued):
        sync_app.configure_task("t", queueing_lock="twice").batch_defer({}, {})
    assert [job["id"] for job in jobs()] == [first]


@pytest.mark.scenario(71)
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_in_the_callers_transaction(sync_app: App, connect: Connect, jobs: Any, ends: str) -> None:
    # Whatever the caller made of the connection, the job's id is read.
    mine = connect(autocommit=False, row_factory=psycopg.rows.dict_row)
    deferrer = sync_app.configure_task("t", connection=mine)
    assert isinstance(deferrer.defer(), int)
    assert len(deferrer.batch_defer({}, {})) == 2
    assert jobs() == []
    getattr(mine, ends)()
    assert len(jobs()) == (3 if ends == "commit" else 0)


@pytest.mark.scenario(71)
@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_in_the_callers_async_transaction(app: App, aconnect: Any, jobs: Any, ends: str) -> None:
    mine = await aconnect(autocommit=False)
    deferrer = app.configure_task("t", connection=mine)
    await deferrer.defer_async()
    await deferrer.batch_defer_async({}, {})
    assert jobs() == []
    await getattr(mine, ends)()
    assert len(jobs()) == (3 if ends == "commit" else 0)


@pytest.mark.scenario(47)
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_cancelling_in_the_callers_transaction(sync_app: App, connect: Connect, ends: str) -> None:
    job_id = sync_app.configure_task("t").defer()
    mine = connect(autocommit=False)
    manager = sync_app.job_manager
    assert manager.cancel_job_by_id(job_id, connection=mine)
    assert manager.get_job_status(job_id, connection=mine) == Status.CANCELLED
    assert manager.get_job_status(job_id) == Status.TODO
    getattr(mine, ends)()
    expected = Status.CANCELLED if ends == "commit" else Status.TODO
    assert manager.get_job_status(job_id) == expected


@pytest.mark.scenario(72)
async def test_only_fitting_connections_are_taken(app: App, conn: psycopg.Connection[Any], aconnect: Any) -> None:
    with pytest.raises(ConnectorException, match="AsyncConnection"):
        await app.configure_task("t", connection=conn).defer_async()
    with pytest.raises(ConnectorException, match=r"psycopg\.Connection"):
        app.configure_task("t", connection=await aconnect()).defer()
    with pytest.raises(ConnectorException, match="not object"):
        app.configure_task("t", connection=object()).defer()


def test_senseless_options_are_refused(sync_app: App) -> None:
    now = datetime.datetime.now(datetime.UTC)
    with pytest.raises(ValueError, match="exclude"):
        sync_app.configure_task("t", schedule_at=now, schedule_in={"seconds": 1})
    with pytest.raises(ValueError, match="time zone"):
        sync_app.configure_task("t", schedule_at=now.replace(tzinfo=None))
    with pytest.raises(InvalidName) as caught:
        sync_app.configure_task("").defer()
    assert caught.value.hint
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InvalidName):
        sync_app.configure_task("t", lock="x" * 513).defer()
    with pytest.raises(PriorityOutOfRange):
        sync_app.configure_task("t", priority=-(2**31)).batch_defer({})
    with pytest.raises(TypeError, match="JSON serializable"):
        sync_app.configure_task("t").defer(x=object())  # type: ignore[arg-type]


def test_positional_arguments_get_their_names(sync_app: App, jobs: Any) -> None:
    @sync_app.task(pass_context=True)
    def task(context: JobContext, a: int, b: int = 0) -> None: ...

    task.defer(1, b=2)
    task.defer(3, 4)
    assert [job["args"] for job in jobs()] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    with pytest.raises(TypeError, match="too many positional"):
        task.defer(1, 2, 3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="several values for a"):
        task.defer(1, a=2)  # type: ignore[misc]


@pytest.mark.scenario(4)
async def test_a_codec_of_the_users_own(dsn: str) -> None:
    def default(value: Any) -> Any:
        return {"uuid": str(value)}

    def object_hook(value: dict[str, Any]) -> Any:
        return uuid.UUID(value["uuid"]) if value.keys() == {"uuid"} else value

    app = App(
        connector=PsycopgConnector(
            conninfo=dsn,
            json_dumps=lambda value: json.dumps(value, default=default, ensure_ascii=False),
            json_loads=lambda text: json.loads(text, object_hook=object_hook),
        )
    )
    seen: list[Any] = []

    @app.task(store_result=True)
    async def task(x: uuid.UUID, y: str) -> uuid.UUID:
        seen.append((x, y))
        return x

    value = uuid.uuid4()
    async with app.open_async():
        await task.defer_async(x=value, y="é")
        await drain(app)
        (job,) = await app.job_manager.list_jobs_async()
    assert seen == [(value, "é")]
    assert job.task_kwargs == {"x": value, "y": "é"}


class TestManager:
    def test_a_job_can_be_retried(self, sync_app: App, conn: psycopg.Connection[Any]) -> None:
        manager = sync_app.job_manager
        job_id = sync_app.configure_task("t").defer()
        with pytest.raises(WrongJobState):
            manager.retry_job_by_id(job_id)
        manager.cancel_job_by_id(job_id)
        at = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
        manager.retry_job_by_id(job_id, at, priority=4, queue="q", lock="l")
        (job,) = manager.list_jobs()
        assert (job.status, job.scheduled_at, job.priority) == ("todo", at, 4)
        assert (job.queue, job.lock) == ("q", "l")
        with pytest.raises(JobNotFound):
            manager.retry_job_by_id(12345)

    def test_a_status(self, sync_app: App) -> None:
        job_id = sync_app.configure_task("t").defer()
        assert sync_app.job_manager.get_job_status(job_id) == Status.TODO
        with pytest.raises(JobNotFound):
            sync_app.job_manager.get_job_status(12345)

    @pytest.mark.scenario(66)
    def test_a_listing(self, sync_app: App) -> None:
        first = sync_app.configure_task("a", queue="q", lock="l").defer(x=1)
        second = sync_app.configure_task("b", queueing_lock="ql").defer()
        manager = sync_app.job_manager
        manager.cancel_job_by_id(second)

        def ids(**filters: Any) -> list[int | None]:
            return [job.id for job in manager.list_jobs(**filters)]

        assert ids() == [first, second]
        assert ids(id=first) == ids(queue="q") == ids(task="a") == ids(lock="l") == [first]
        assert ids(status="cancelled") == ids(queueing_lock="ql") == [second]
        assert ids(queue="q", status="cancelled") == ids(worker_id=1) == []
        (job,) = manager.list_jobs(id=first)
        assert job.call_string == f"a[{first}](x=1)"
        assert job.evolve(id=7).asdict()["id"] == 7

    async def test_the_same_from_async_code(self, app: App) -> None:
        manager = app.job_manager
        job_id = await app.configure_task("t").defer_async()
        assert await manager.cancel_job_by_id_async(job_id)
        await manager.retry_job_by_id_async(job_id)
        assert await manager.get_job_status_async(job_id) == Status.TODO
        assert [job.id for job in await manager.list_jobs_async(status="todo")] == [job_id]


class TestOpening:
    def test_without_it_nothing_works(self, dsn: str) -> None:
        app = App(connector=PsycopgConnector(dsn))
        with pytest.raises(AppNotOpen):
            app.configure_task("t").defer()

    async def test_without_it_nothing_works_either(self, dsn: str) -> None:
        app = App(connector=PsycopgConnector(dsn))
        with pytest.raises(AppNotOpen):
            await app.configure_task("t").defer_async()

    async def test_twice_is_harmless(self, dsn: str) -> None:
        app = await App(connector=PsycopgConnector(dsn)).open_async()
        await app.open_async()
        assert app.configure_task("t").defer()
        await app.close_async()
        with pytest.raises(AppNotOpen):
            await app.configure_task("t").defer_async()

    def test_a_pool_of_the_users_own_stays_open(self, dsn: str) -> None:
        with psycopg_pool.ConnectionPool(dsn, min_size=1, open=True) as pool:
            app = App(connector=SyncPsycopgConnector())
            with app.open(pool):
                assert app.configure_task("t").defer()
            assert not pool.closed

    async def test_an_async_pool_of_the_users_own_serves_a_worker(self, dsn: str) -> None:
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
            app = App(connector=PsycopgConnector())
            seen: list[int] = []

            @app.task
            async def task() -> None:
                seen.append(1)

            async with app.open_async(pool):
                await task.defer_async()
                await drain(app)
            assert not pool.closed
        assert seen == [1]

    def test_an_address_that_leads_nowhere_is_told_at_once(self) -> None:
        app = App(connector=SyncPsycopgConnector("host=/nowhere"))
        with pytest.raises(ConnectorException, match="nowhere"):
            app.open()

    async def test_a_pool_does_not_hand_out_dead_connections(self, app: App, conn: psycopg.Connection[Any]) -> None:
        await app.configure_task("t").defer_async()
        app.configure_task("t").defer()
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
        count = "select count(*) from pg_stat_activity where datname = current_database()"
        while conn.execute(count).fetchone() != (1,):
            pass
        await app.configure_task("t").defer_async()
        app.configure_task("t").defer()

    def test_the_connection_can_be_checked(self, sync_app: App, empty_dsn: str) -> None:
        assert sync_app.check_connection()
        with App(connector=SyncPsycopgConnector(empty_dsn)).open() as app:
            assert not app.check_connection()

    async def test_a_connector_can_be_replaced_for_a_while(self, app: App, dsn: str) -> None:
        other = SyncPsycopgConnector(dsn)
        before = app.connector
        with app.replace_connector(other) as same:
            assert same is app
            assert app.connector is app.job_manager.connector is other
        assert app.connector is before

    def test_a_sync_connector_runs_no_worker(self, sync_app: App, dsn: str) -> None:
        app = App(connector=SyncPsycopgConnector(dsn))
        with pytest.raises(SyncConnectorConfigurationError):
            app.run_worker()
        with pytest.raises(SyncConnectorConfigurationError):
            app.make_worker()


class TestTasks:
    def test_a_task_is_still_the_function(self, sync_app: App) -> None:
        @sync_app.task(queue="q")
        def add(a: int, b: int) -> int:
            """Add."""
            return a + b

        assert add(1, 2) == 3
        assert (add.__doc__, add.__name__) == ("Add.", "add")
        assert add.name == add.full_path == f"{__name__}.add"

    def test_a_name_is_needed_and_taken_once(self, sync_app: App) -> None:
        with pytest.raises(FunctionPathError):
            sync_app.task(object())  # type: ignore[call-overload]

        @sync_app.task(name="a", aliases=["b"])
        def task() -> None: ...

        for name in ("a", "b"):
            with pytest.raises(TaskAlreadyRegistered):
                sync_app.task(name=name)(lambda: None)
        sync_app.add_task_alias(task, "c")
        assert sync_app.tasks["c"] is sync_app.tasks["b"] is task

    def test_unknown_names_may_be_refused(self, sync_app: App) -> None:
        with pytest.raises(TaskNotFound):
            sync_app.configure_task("unknown", allow_unknown=False)

    async def test_a_blueprint_becomes_part_of_an_app(self, app: App) -> None:
        inner, outer = Blueprint(), Blueprint()
        seen: list[str] = []

        @inner.task(name="task", aliases=["alias"])
        async def task(x: str) -> None:
            seen.append(x)

        with pytest.raises(UnboundTaskError):
            await task.defer_async("never")
        outer.add_tasks_from(inner, namespace="in")
        app.add_tasks_from(outer, namespace="out")
        assert (task.name, task.aliases) == ("out:in:task", ["out:in:alias"])
        await task.defer_async("by name")
        await app.configure_task("out:in:alias").defer_async(x="by alias")
        assert {job.task_name for job in await app.job_manager.list_jobs_async()} == {"out:in:task"}
        await drain(app)
        assert seen == ["by name", "by alias"]

        again = Blueprint()
        again.task(name="in:task")(lambda: None)
        before = dict(app.tasks)
        with pytest.raises(TaskAlreadyRegistered):
            app.add_tasks_from(again, namespace="out")
        assert app.tasks == before

    def test_an_app_is_found_by_its_path(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "some_app.py").write_text(
            "import pyprocrastinate\napp = pyprocrastinate.App(connector=pyprocrastinate.SyncPsycopgConnector())\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert isinstance(App.from_path("some_app.app"), App)
        for path in ("some_app.other", "some_app.pyprocrastinate", "nowhere.app", "app"):
            with pytest.raises(LoadFromPathError):
                App.from_path(path)
