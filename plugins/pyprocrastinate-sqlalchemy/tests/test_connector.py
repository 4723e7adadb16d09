"""Jobs deferred and managed through SQLAlchemy, in its transactions and out of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from pyprocrastinate import App, JobContext, PsycopgConnector
from pyprocrastinate.contrib.sqlalchemy import SQLAlchemyConnector
from pyprocrastinate.exceptions import (
    AlreadyEnqueued,
    AppNotOpen,
    ConnectorException,
    InvalidText,
    JobNotFound,
    MovedElsewhere,
)
from pyprocrastinate.jobs import Status

Jobs = Callable[[], list[tuple[Any, ...]]]


@pytest.fixture
def url(dsn: str) -> URL:
    """Return the address of the test's database as SQLAlchemy writes it."""
    query = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    return URL.create("postgresql+psycopg", database=query.pop("dbname"), query=query)


@pytest.fixture
def engine(url: URL) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(url: URL) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url)
    yield engine
    await engine.dispose()


@pytest.fixture
def app(engine: Engine) -> Iterator[App]:
    """Return an app on an engine of the test's."""
    with App(connector=SQLAlchemyConnector()).open(engine) as app:
        yield app


@pytest.fixture
async def async_app(async_engine: AsyncEngine) -> AsyncIterator[App]:
    async with App(connector=SQLAlchemyConnector()).open_async(async_engine) as app:
        yield app


@pytest.fixture
def jobs(conn: psycopg.Connection[Any]) -> Jobs:
    """Return a function that reads task and arguments of the jobs that are committed, by id."""
    return lambda: conn.execute("select task, args from procrastinate.jobs order by id").fetchall()


def sessions(engine: Engine) -> list[Any]:
    return [engine.connect(), Session(engine), scoped_session(sessionmaker(engine))]


def async_sessions(engine: AsyncEngine) -> list[Any]:
    return [engine.connect(), AsyncSession(engine), async_sessionmaker(engine)()]


@pytest.mark.scenario(71)
@pytest.mark.parametrize("kind", range(3), ids=["Connection", "Session", "scoped_session"])
def test_a_job_is_there_with_the_commit(app: App, engine: Engine, jobs: Jobs, kind: int) -> None:
    connection = sessions(engine)[kind]
    deferrer = app.configure_task("t", connection=connection)
    deferrer.defer(a=1)
    deferrer.batch_defer({"a": 2}, {"a": 3})
    assert jobs() == []
    connection.commit()
    assert jobs() == [("t", {"a": 1}), ("t", {"a": 2}), ("t", {"a": 3})]
    deferrer.defer(a=4)
    connection.rollback()
    connection.close()
    assert len(jobs()) == 3


@pytest.mark.scenario(71)
@pytest.mark.parametrize("kind", range(3), ids=["AsyncConnection", "AsyncSession", "async_sessionmaker"])
async def test_a_job_is_there_with_the_commit_async(
    async_app: App, async_engine: AsyncEngine, jobs: Jobs, kind: int
) -> None:
    async with async_sessions(async_engine)[kind] as connection:
        deferrer = async_app.configure_task("t", connection=connection)
        await deferrer.defer_async(a=1)
        await deferrer.batch_defer_async({"a": 2}, {"a": 3})
        assert jobs() == []
        await connection.commit()
        assert jobs() == [("t", {"a": 1}), ("t", {"a": 2}), ("t", {"a": 3})]
        await deferrer.defer_async(a=4)
        await connection.rollback()
    assert len(jobs()) == 3


def test_a_job_and_the_users_rows_are_one_transaction(app: App, engine: Engine, jobs: Jobs) -> None:
    with Session(engine) as session:
        session.execute(text("create table customer (name text)"))
        session.commit()
        session.execute(text("insert into customer values ('Ada')"))
        app.configure_task("t", connection=session).defer()
        session.rollback()
        assert session.execute(text("select count(*) from customer")).scalar() == 0
    assert jobs() == []


def test_connections_of_psycopg_are_taken_too(app: App, connect: Any, jobs: Jobs) -> None:
    connection = connect(autocommit=False)
    app.configure_task("t", connection=connection).defer()
    assert jobs() == []
    connection.commit()
    assert jobs() == [("t", {})]


async def test_connections_of_psycopg_are_taken_too_async(async_app: App, aconnect: Any, jobs: Jobs) -> None:
    connection = await aconnect(autocommit=False)
    await async_app.configure_task("t", connection=connection).defer_async()
    assert jobs() == []
    await connection.commit()
    assert jobs() == [("t", {})]


def test_without_a_connection_a_job_is_committed_at_once(app: App, jobs: Jobs) -> None:
    job_id = app.configure_task("t", queue="q").defer(a="%s :a")
    assert jobs() == [("t", {"a": "%s :a"})]
    (job,) = app.job_manager.list_jobs(queue="q")
    assert (job.id, job.task_kwargs) == (job_id, {"a": "%s :a"})
    assert app.job_manager.cancel_job_by_id(job_id) is True
    assert app.job_manager.get_job_status(job_id) is Status.CANCELLED
    assert app.check_connection() is True


async def test_without_a_connection_a_job_is_committed_at_once_async(async_app: App, jobs: Jobs) -> None:
    job_id = await async_app.configure_task("t").defer_async(a=1)
    assert jobs() == [("t", {"a": 1})]
    assert await async_app.job_manager.cancel_job_by_id_async(job_id) is True
    # Sync calls have an engine of their own, made by the first of them.
    assert async_app.job_manager.get_job_status(job_id) is Status.CANCELLED


def test_managing_joins_the_transaction_too(app: App, engine: Engine) -> None:
    job_id = app.configure_task("t").defer()
    with engine.connect() as connection:
        assert app.job_manager.cancel_job_by_id(job_id, connection=connection) is True
        assert app.job_manager.get_job_status(job_id, connection=connection) is Status.CANCELLED
        assert app.job_manager.get_job_status(job_id) is Status.TODO


def test_errors_are_this_packages_and_tell_no_argument(app: App, engine: Engine) -> None:
    deferrer = app.configure_task("t", queueing_lock="l")
    deferrer.defer()
    with pytest.raises(AlreadyEnqueued) as caught:
        deferrer.defer(password="secret")
    error: BaseException | None = caught.value
    while error:
        assert "secret" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    with pytest.raises(JobNotFound):
        app.job_manager.retry_job_by_id(77)
    with pytest.raises(InvalidText):
        app.configure_task("\ud800").defer()
    with pytest.raises(InvalidText):
        app.configure_task("\0").defer()


async def test_errors_are_this_packages_async(async_app: App, async_engine: AsyncEngine) -> None:
    async with AsyncSession(async_engine) as session:
        deferrer = async_app.configure_task("t", queueing_lock="l", connection=session)
        await deferrer.defer_async()
        async with session.begin_nested() as nested:
            with pytest.raises(AlreadyEnqueued):
                await deferrer.defer_async()
            await nested.rollback()
        await session.commit()
    assert len(list(await async_app.job_manager.list_jobs_async())) == 1


def test_other_connections_are_refused(app: App, async_engine: AsyncEngine) -> None:
    for connection, what in [
        (async_engine.connect(), "AsyncConnection"),
        (AsyncSession(async_engine), "AsyncSession"),
        ("x", "str"),
    ]:
        with pytest.raises(ConnectorException, match=f"SQLAlchemy's Connection or Session here, not {what}"):
            app.configure_task("t", connection=connection).defer()
    wrong_driver = pytest.raises(ConnectorException, match=r"sqlite\+pysqlite.*only postgresql\+psycopg")
    with create_engine("sqlite://", poolclass=NullPool).connect() as sqlite, wrong_driver:
        app.configure_task("t", connection=sqlite).defer()


async def test_other_connections_are_refused_async(async_app: App, engine: Engine) -> None:
    refused = pytest.raises(ConnectorException, match="SQLAlchemy's AsyncConnection or AsyncSession here, not Session")
    with Session(engine) as session, refused:
        await async_app.configure_task("t", connection=session).defer_async()


def test_a_given_engine_is_not_disposed_of(engine: Engine, dsn: str, jobs: Jobs) -> None:
    app = App(connector=SQLAlchemyConnector(dsn))
    with app.open(engine):
        assert app.open() is app  # it is open
        app.configure_task("t").defer()
        assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    with pytest.raises(AppNotOpen):
        app.configure_task("t").defer()
    with app.open():
        app.configure_task("t").defer()
    assert len(jobs()) == 2
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("write", [str, make_url], ids=["text", "URL"])
def test_an_engine_of_its_own(url: URL, conn: psycopg.Connection[Any], write: Any) -> None:
    dsn = write(url.render_as_string(hide_password=False))
    connector = SQLAlchemyConnector(dsn, connect_args={"application_name": "shop"}, pool_size=1, max_overflow=0)
    others = "select count(*) from pg_stat_activity where application_name = 'shop'"
    with App(connector=connector).open() as app:
        app.configure_task("t").defer()
        app.configure_task("t").defer()
        assert conn.execute(others).fetchone() == (1,)
    with psycopg.connect(connector.address()) as same:
        assert same.execute("select count(*) from procrastinate.jobs").fetchone() == (2,)
        assert same.info.get_parameters()["application_name"] == "shop"


async def test_an_engine_of_its_own_async(dsn: str, jobs: Jobs) -> None:
    app = App(connector=SQLAlchemyConnector(dsn, poolclass=NullPool))
    with pytest.raises(AppNotOpen):
        await app.configure_task("t").defer_async()
    async with app.open_async():
        await app.configure_task("t").defer_async()
    with pytest.raises(AppNotOpen):
        await app.configure_task("t").defer_async()
    assert jobs() == [("t", {})]


def test_a_broken_connection_costs_no_job(dsn: str, conn: psycopg.Connection[Any], jobs: Jobs) -> None:
    with App(connector=SQLAlchemyConnector(dsn, connect_args={"application_name": "shop"})).open() as app:
        app.configure_task("t").defer()
        conn.execute("select pg_terminate_backend(pid, 20000) from pg_stat_activity where application_name = 'shop'")
        app.configure_task("t").defer()
    assert len(jobs()) == 2


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(ConnectorException, match=r"127\.0\.0\.1"):
        App(connector=SQLAlchemyConnector("postgresql+psycopg://127.0.0.1:1/x")).open()


def test_other_drivers_are_refused(url: URL) -> None:
    with pytest.raises(ConnectorException, match=r"postgresql\+asyncpg.*only postgresql\+psycopg"):
        SQLAlchemyConnector(url.set(drivername="postgresql+asyncpg"))
    with pytest.raises(ConnectorException, match=r"only postgresql\+psycopg"):
        App(connector=SQLAlchemyConnector()).open(create_engine("sqlite://"))


@pytest.mark.parametrize("given", ["dsn", "engine"])
def test_a_worker_runs_where_the_jobs_are(engine: Engine, url: URL, conn: psycopg.Connection[Any], given: str) -> None:
    app = App(connector=SQLAlchemyConnector(url if given == "dsn" else ""))
    ran: list[str] = []

    @app.task(name="first", pass_context=True)
    def first(context: JobContext) -> None:
        ran.append("first")
        with Session(engine) as session, session.begin():
            app.configure_task("second", connection=session).defer()

    @app.task(name="second")
    async def second() -> None:
        ran.append("second")

    with app.open(engine if given == "engine" else None):
        first.defer()
        app.run_worker(wait=False)
    assert ran == ["first", "second"]
    statuses = "select array_agg(status order by id) from procrastinate.jobs"
    assert conn.execute(statuses).fetchone() == (["succeeded", "succeeded"],)


def test_a_run_is_completed_in_a_sessions_transaction(engine: Engine, url: URL, conn: psycopg.Connection[Any]) -> None:
    app = App(connector=SQLAlchemyConnector(url))
    conn.execute("create table sent (job bigint)")
    committed: list[bool] = []

    @app.task(name="once", pass_context=True)
    def once(context: JobContext) -> None:
        with Session(engine) as session, session.begin():
            session.execute(text("insert into sent values (:job)"), {"job": context.job.id})
            context.complete(session)
        committed.append(conn.execute(status).fetchone() == ("succeeded",))

    @app.task(name="once_async", pass_context=True)
    async def once_async(context: JobContext) -> None:
        async_engine = create_async_engine(url, poolclass=NullPool)
        async with AsyncSession(async_engine) as session, session.begin():
            await session.execute(text("insert into sent values (:job)"), {"job": context.job.id})
            await context.complete_async(session)
        committed.append(conn.execute(status).fetchone() == ("succeeded",))

    status = "select status from procrastinate.jobs order by id desc limit 1"
    for task in (once, once_async):
        with app.open():
            task.defer()
        app.run_worker(wait=False)
    assert committed == [True, True]
    assert conn.execute("select count(*) from sent").fetchone() == (2,)


def test_an_empty_dsn_means_the_environment(dsn: str, monkeypatch: pytest.MonkeyPatch, jobs: Jobs) -> None:
    monkeypatch.setenv("PROCRASTINATE_DSN", dsn)
    with App(connector=SQLAlchemyConnector()).open() as app:
        app.configure_task("t").defer()
    assert jobs() == [("t", {})]


def test_custom_json_is_used(dsn: str, jobs: Jobs) -> None:
    connector = SQLAlchemyConnector(dsn, json_dumps=lambda value: '{"dumped": true}', json_loads=lambda text: {"a": 1})
    with App(connector=connector).open() as app:
        app.configure_task("t").defer()
        assert jobs() == [("t", {"dumped": True})]
        assert [job.task_kwargs for job in app.job_manager.list_jobs()] == [{"a": 1}]


def test_the_old_name_tells_the_new_one() -> None:
    with pytest.raises(MovedElsewhere, match="use SQLAlchemyConnector"):
        from pyprocrastinate.contrib.sqlalchemy import SQLAlchemyPsycopg2Connector  # noqa: F401


def test_it_is_one_of_psycopgs() -> None:
    """Everything that needs an address or runs workers takes it."""
    assert issubclass(SQLAlchemyConnector, PsycopgConnector)
