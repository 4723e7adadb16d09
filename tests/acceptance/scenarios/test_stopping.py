"""How an idle worker ends, and how one that has ended takes being told so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App
from pyprocrastinate.exceptions import InvalidCron

SOON = 10.0  # less than the worker would sleep


@pytest.mark.scenario(48, 53)
@pytest.mark.parametrize("how", ["stop", "cancel", "signal"])
async def test_an_idle_worker_ends_at_once(app: App, until: Any, conn: psycopg.Connection[Any], how: str) -> None:
    worker = app.make_worker(fetch_job_polling_interval=60.0, install_signal_handlers=how == "signal")
    run = asyncio.create_task(worker.run())
    await until(lambda: conn.execute("select from procrastinate.workers where idle").rowcount == 1)
    assert not run.done()
    match how:
        case "stop":
            worker.stop()
        case "cancel":
            run.cancel()
        case "signal":
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(asyncio.CancelledError) if how == "cancel" else contextlib.nullcontext():
        await asyncio.wait_for(run, SOON)
    assert conn.execute("select from procrastinate.workers").rowcount == 0


@pytest.mark.scenario(54)
async def test_a_worker_that_has_ended_may_be_told_to_stop(app: App) -> None:
    @app.periodic(cron="61 * * * *")
    @app.task
    async def task(timestamp: int) -> None: ...

    worker = app.make_worker(install_signal_handlers=False)
    with pytest.raises(InvalidCron):
        await worker.run()
    worker.stop()


@pytest.mark.scenario(55)
def test_without_handlers_ctrl_c_is_a_keyboard_interrupt(program: Any, conn: psycopg.Connection[Any]) -> None:
    conn.execute("select procrastinate.defer('task')")
    worker = program(
        """
        @app.task(name="task")
        async def task():
            say("begun")

        try:
            app.run_worker(install_signal_handlers=False)
        except KeyboardInterrupt:
            say("interrupted")
        """
    )
    worker.expect("begun")
    worker.signal(signal.SIGINT)
    worker.expect("interrupted")
    assert worker.finish()[0] == 0
