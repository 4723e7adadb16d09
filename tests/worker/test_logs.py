"""What is logged, and what is kept out of logs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pyprocrastinate import App, PsycopgConnector


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
