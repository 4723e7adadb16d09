"""
Names of any kind, by every door: they mean nothing to SQL, JSON, a terminal, a log or Python's imports.

Django's door is tested with its plugin.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pyprocrastinate import App, PsycopgConnector, SyncPsycopgConnector
from pyprocrastinate.exceptions import InvalidName, InvalidText, InvalidValue, TaskNotFound
from pyprocrastinate.testing import InMemoryConnector
from pyprocrastinate_cli import cli
from tests.nasty import EMPTY, NAMES, NUL, SURROGATE, TOO_LONG

Connection = psycopg.Connection[Any]

everyone = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Return a function that tells all that was logged, as it stands in a file, without tracebacks."""
    caplog.set_level("DEBUG", logger="pyprocrastinate")
    caplog.handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))

    def lines() -> list[str]:
        return [f"{record.levelname}:{record.name}:{record.getMessage()}" for record in caplog.records]

    yield lines
    assert [line for line in lines() if not line.isprintable()] == []


def row(conn: Connection, job_id: int) -> tuple[Any, ...]:
    found = conn.execute(
        "select task, queue, lock, queueing_lock, status from procrastinate.jobs where id = %s", [job_id]
    ).fetchone()
    assert found is not None
    return tuple(found)


def tables(conn: Connection) -> int:
    query = "select count(*) from pg_class where relnamespace = 'procrastinate'::regnamespace"
    return int(conn.execute(query.encode()).fetchone()[0])  # type: ignore[index]


@everyone
def test_sql_keeps_a_name_as_it_is(conn: Connection, name: str) -> None:
    def one(query: str, *parameters: Any) -> Any:
        found = conn.execute(query.encode(), parameters).fetchone()
        return found and found[0]

    before = tables(conn)
    one("select procrastinate.register_task(%s, queue => %s, lock => %s)", name, name, name)
    worker = one("select procrastinate.register_worker_v1(%s, array[%s])", name, name)
    job = one("select procrastinate.defer(%s, queueing_lock => %s)", name, name)
    many = json.dumps([{"task": name, "queue": name, "lock": name, "args": {name: name}}])
    one("select id from procrastinate.defer_many(%s)", many)
    one("select procrastinate.schedule(%s, %s, '* * * * *', queue => %s, lock => %s)", name, name, name, name)
    assert one("select name from procrastinate.schedules where task = %s", name) == name
    assert one("select name from procrastinate.workers where queues = array[%s]", name) == name

    claims = conn.execute(
        "select id, task, queue, lock, queueing_lock, token from procrastinate.fetch_v1(%s)", [worker]
    )
    ((*claim, token),) = claims.fetchall()
    assert claim == [job, name, name, name, name]
    outcome = {"id": job, "token": token, "outcome": "failed", "error": {"class": name, "message": name}}
    retry = {"retry": {"in": 0, "queue": name, "lock": name}}
    verdict = "select verdict from procrastinate.finish_v1(%s, outcomes => %s)"
    assert one(verdict, worker, json.dumps([outcome | retry])) == "ok"
    assert row(conn, job) == (name, name, name, name, "todo")
    assert one("select lock from procrastinate.locks where lock = %s", name) == name
    for by in ("queue", "task", "lock"):
        assert one("select name from procrastinate.count_jobs_v1(%s)", by) == name
    assert one("select procrastinate.cancel(%s)", job) == "cancelled"
    assert one("select procrastinate.retry(%s, queue => %s, lock => %s)", job, name, name) is True
    assert one("select procrastinate.unschedule(%s)", name) is True
    with pytest.raises(psycopg.Error) as raised:
        one("select procrastinate.set_setting(%s, '1')", name)
    assert raised.value.sqlstate == "JQ018"
    assert tables(conn) == before


@everyone
@pytest.mark.parametrize("memory", [False, True], ids=["database", "memory"])
async def test_python_keeps_a_name_as_it_is(dsn: str, lines: Any, name: str, memory: bool) -> None:
    app = App(connector=InMemoryConnector() if memory else PsycopgConnector(conninfo=dsn))
    ran: list[tuple[str, dict[str, Any]]] = []

    @app.task(name=name, queue=name, pass_context=True)
    async def task(context: Any, **kwargs: Any) -> str:
        ran.append((context.job.task_name, kwargs))
        return name

    @app.periodic(cron="0 0 1 1 *", periodic_id=name)
    @app.task(name=name + "2" if len(name) < 128 else name[1:], queue=name)
    async def yearly(timestamp: int) -> None: ...

    async with app.open_async():
        first = await task.configure(lock=name, queueing_lock=name).defer_async(**{name: name})
        await app.configure_task(name, lock=name).defer_async(again=name)
        assert [job.task_name for job in await app.job_manager.list_jobs_async(queue=name)] == [name, name]
        await app.run_worker_async(queues=[name], name=name, wait=False, install_signal_handlers=False)
        assert ran == [(name, {name: name}), (name, {"again": name})]
        (job,) = await app.job_manager.list_jobs_async(id=first)
        assert (job.queue, job.lock, job.queueing_lock, job.status) == (name, name, name, "succeeded")
        for listed in (app.job_manager.list_queues_async, app.job_manager.list_tasks_async):
            assert [counts["name"] for counts in await listed(queue=name)] == [name]
    assert [line for line in lines() if "Starting job" in line]


@everyone
async def test_a_name_that_nobody_knows_imports_nothing(dsn: str, lines: Any, conn: Connection, name: str) -> None:
    app = App(connector=PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        with pytest.raises(TaskNotFound):
            app.configure_task(name, allow_unknown=False)
        before = set(sys.modules)
        for each in (name, f"{name[:100]}.tasks.run", "antigravity.anything", "this"):
            conn.execute("select procrastinate.defer(%s)", [each])
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    statuses = {
        (job["status"],)
        for job in conn.cursor(row_factory=psycopg.rows.dict_row)
        .execute("select status from procrastinate.jobs")
        .fetchall()
    }
    assert statuses == {("failed",)}
    assert set(sys.modules) - before == set()


async def test_a_keyword_that_no_task_takes_forges_no_line(
    dsn: str, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="pyprocrastinate")
    app = App(connector=PsycopgConnector(conninfo=dsn))
    forged = "x\nCRITICAL:root:FORGED\x1b[31m"
    plain = r"x\nCRITICAL:root:FORGED\x1b[31m"
    ran: list[dict[str, Any]] = []

    @app.task(name="coroutine")
    async def coroutine() -> None: ...

    @app.task(name="function", pass_context=True)
    def function(context: Any) -> None: ...

    @app.task(name="wrapper")
    async def wrapper(**kwargs: Any) -> None:
        await coroutine(**kwargs)

    @app.task(name="any")
    async def takes_any(**kwargs: Any) -> None:
        ran.append(kwargs)

    for name in ("coroutine", "function", "wrapper", "any"):
        conn.execute("select procrastinate.defer(%s, %s)", [name, json.dumps({forged: 1})])
    async with app.open_async():
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert ran == [{forged: 1}]
    assert [line for line in caplog.text.split("\n") if not line.isprintable() or line.startswith("CRITICAL")] == []
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [(type(error), plain in str(error)) for error in errors] == [(TypeError, True)] * 3
    stored = conn.execute(
        "select error ->> 'message', error ->> 'traceback' from procrastinate.done where error is not null"
    )
    assert [(plain in message, forged in message + traceback) for message, traceback in stored] == [(True, False)] * 3


@everyone
def test_the_command_shows_a_name_on_one_line(dsn: str, conn: Connection, monkeypatch: Any, name: str) -> None:
    monkeypatch.setenv("PROCRASTINATE_DSN", dsn)

    def command(*arguments: str) -> Result:
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        for line in (result.stdout + result.stderr).splitlines():
            assert line.isprintable(), arguments
        return result

    options = ["--queue", name, "--lock", name, "--queueing-lock", name]
    deferred = command("defer", "--unknown", *options, "--", name, json.dumps({name: name}))
    assert deferred.exit_code == 0
    assert row(conn, int(deferred.stdout)) == (name, name, name, name, "todo")
    assert len(deferred.stderr.splitlines()) == 1
    for listing in (
        ["jobs"],
        ["jobs", "--details"],
        ["jobs", "--queue", name],
        ["queues"],
        ["shell", "list_locks"],
        ["shell", "list_jobs", "details"],
        ["shell", "list_tasks", f"task={name}"],
    ):
        assert len(command(*listing).stdout.splitlines()) == 1, listing
    again = command("defer", "--unknown", *options, "--", name)
    assert (again.exit_code, len(again.stderr.splitlines())) == (1, 1)
    unknown = command("shell", name)
    assert unknown.exit_code == (name != "--help")


@pytest.mark.parametrize("bad", [NUL, SURROGATE, TOO_LONG, EMPTY], ids=["nul", "surrogate", "too long", "empty"])
@pytest.mark.parametrize("what", ["task", "queue", "lock", "queueing_lock"])
@pytest.mark.parametrize("kind", ["async", "sync", "memory"])
def test_a_name_that_cannot_be_is_refused_alike(dsn: str, what: str, bad: str, kind: str) -> None:
    connectors = {"async": PsycopgConnector, "sync": SyncPsycopgConnector}
    app = App(connector=InMemoryConnector() if kind == "memory" else connectors[kind](conninfo=dsn))
    if bad == TOO_LONG and "lock" in what:
        bad = "x" * 513
    with app.open():
        deferrer = app.configure_task("t", **({} if what == "task" else {what: bad}))
        if what == "task":
            deferrer = app.configure_task(bad)
        expected: type[InvalidValue] = InvalidText if bad in (NUL, SURROGATE) else InvalidName
        for defer in (deferrer.defer, lambda: deferrer.batch_defer({}, {})):
            with pytest.raises(expected):
                defer()
        assert app.job_manager.list_jobs() == []
