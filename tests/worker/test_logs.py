"""What is logged, and what is kept out of logs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.joblog import JobLog
from tests.nasty import NAMES


@pytest.fixture(params=[True, False], ids=["with args", "without args"])
async def logging_app(request: pytest.FixtureRequest, dsn: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[App]:
    caplog.set_level("DEBUG", logger="pyprocrastinate")
    app = App(connector=PsycopgConnector(conninfo=dsn), log_args=request.param)
    async with app.open_async():
        yield app


def everything(record: Any) -> str:
    return f"{record.getMessage()} {vars(record)}"


async def test_arguments_are_in_the_logs_only_if_they_may(logging_app: App, caplog: pytest.LogCaptureFixture) -> None:
    app = logging_app

    @app.task
    async def good(x: str) -> None: ...

    @app.task
    async def bad(x: str) -> None:
        raise ValueError

    await good.defer_async(x="hunter2")
    bad.batch_defer({"x": "hunter2"})
    await app.configure_task("unknown").defer_async(x="hunter2")
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    actions = [getattr(record, "action", None) for record in caplog.records]
    assert actions.count("about_to_defer_jobs") == actions.count("jobs_deferred") == 3
    assert actions.count("start_job") == 2
    assert {"start_worker", "job_success", "job_error", "task_not_found", "stop_worker"} <= set(actions)
    assert any("hunter2" in everything(each) for each in caplog.records) == app.log_args


async def test_records_tell_about_job_and_worker(logging_app: App, caplog: pytest.LogCaptureFixture) -> None:
    app = logging_app

    @app.task(name="task", queue="q")
    async def task() -> str:
        return "y" * 1000

    job_id = await task.defer_async()
    await app.run_worker_async(wait=False, name="bob", queues=["q"], install_signal_handlers=False)
    (record,) = [each for each in caplog.records if getattr(each, "action", "") == "job_success"]
    extra = vars(record)
    assert record.name == "pyprocrastinate.worker.bob"
    assert record.levelname == "INFO"
    assert len(record.getMessage()) < 400
    assert extra["result"] == "y" * 1000
    assert extra["job"]["call_string"].startswith(f"task[{job_id}]")
    assert (extra["job"]["queue"], extra["job"]["id"]) == ("q", job_id)
    assert (extra["worker"]["name"], extra["worker"]["queues"]) == ("bob", ["q"])
    assert extra["worker"]["job_id"] == job_id
    assert extra["end_timestamp"] - extra["start_timestamp"] == pytest.approx(extra["duration"], abs=1e-5)


def test_what_the_clock_brought_is_told_in_sentences(
    dsn: str, conn: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="pyprocrastinate")
    log = JobLog(App(connector=PsycopgConnector(conninfo=dsn)).make_worker(name="bob"))

    def told() -> list[tuple[str, str, str]]:
        caplog.clear()
        conn.execute("update procrastinate.tick set next_at = '2000-01-01', purged_at = null")
        query = "select kind, job_id, detail from procrastinate.tick_v1() where kind is not null"
        log.ticked(conn.execute(query).fetchall())
        return [(record.levelname, vars(record)["action"], record.getMessage()) for record in caplog.records]

    conn.execute("""
        select procrastinate.enable_test_clock(), procrastinate.register_worker_v1('gone'),
          procrastinate.defer('again'),
          procrastinate.defer('never', retry => '{"rescues": 0}'), procrastinate.cancel(procrastinate.defer('old')),
          procrastinate.set_setting('retention', '{"cancelled": "1 hour"}'),
          procrastinate.schedule('fires', 't', '0 0 * * *'),
          procrastinate.schedule('waits', 't', '0 0 * * *', queueing_lock => 'q'),
          procrastinate.defer('t', queueing_lock => 'q', schedule_in => '1 year')
        """)
    conn.execute("select procrastinate.fetch_v1(max(id), 2) from procrastinate.workers")
    conn.execute(
        "select procrastinate.advance(date_trunc('day', now(), 'UTC') + '1 day 1 minute' - procrastinate.now_())"
    )
    tick = (
        "select to_char(next_tick at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS+00:00') from procrastinate.schedules"
    )
    (midnight,) = conn.execute(tick).fetchone() or ("",)
    assert told() == [
        ("WARNING", "job_rescued", "Job again[1] lost its worker, and will run again"),
        ("ERROR", "job_lost", "Job never[2] lost its worker, and has failed"),
        ("INFO", "periodic_task_deferred", f"Schedule fires deferred job 5 for {midnight}"),
        ("DEBUG", "skip_periodic_task_queueing_lock", f"Schedule waits skipped {midnight}: queueing lock"),
        ("INFO", "jobs_purged", "Purged 1 jobs that were cancelled"),
    ]
    conn.execute("""update procrastinate.config set retention = '{"failed": "x"}'""")
    ((level, action, text),) = told()
    assert (level, action) == ("ERROR", "deferrer_error")
    assert text.startswith("A tick could not do all: {")
    assert "invalid input syntax for type interval" in text


def test_no_name_forges_a_line_of_what_the_clock_brought(
    dsn: str, conn: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="pyprocrastinate")
    log = JobLog(App(connector=PsycopgConnector(conninfo=dsn)).make_worker(name="bob"))
    conn.execute("select procrastinate.enable_test_clock(), procrastinate.register_worker_v1('gone')")
    for name in NAMES.values():
        conn.execute("select procrastinate.defer(%s)", [name])
        conn.execute("select procrastinate.schedule(%s, 't', '* * * * *')", [name])
    conn.execute("select procrastinate.fetch_v1(max(id), 99) from procrastinate.workers")
    conn.execute("select procrastinate.advance('1 hour')")
    query = "select kind, job_id, detail from procrastinate.tick_v1() where kind is not null"
    log.ticked(conn.execute(query).fetchall())
    actions = [vars(record)["action"] for record in caplog.records]
    assert {"job_rescued", "periodic_task_deferred"} <= set(actions)
    assert actions.count("job_rescued") == len(NAMES)
    assert [text for record in caplog.records if not (text := record.getMessage()).isprintable()] == []


async def test_records_about_the_worker_tell_which(logging_app: App, caplog: pytest.LogCaptureFixture) -> None:
    app = logging_app
    app.task(name="task")(lambda: None)
    job_id = await app.tasks["task"].defer_async()
    await app.run_worker_async(wait=False, name="bob", queues=["default"], install_signal_handlers=False)
    extras = {each.action: vars(each) for each in caplog.records if hasattr(each, "worker")}
    worker_id = extras["start_worker"]["worker"]["worker_id"]
    assert worker_id is not None
    for action in ("start_worker", "stopping_worker", "stop_worker"):
        worker = {"name": "bob", "worker_id": worker_id, "job_id": None, "queues": ["default"]}
        assert extras[action]["worker"] == worker
        assert extras[action]["queues"] == ["default"]
    assert extras["start_job"]["worker"] == {**worker, "job_id": job_id}
    assert extras["start_job"]["start_timestamp"] == extras["job_success"]["start_timestamp"] > 0
