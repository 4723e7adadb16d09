"""Losing connections, one or all, for a moment or for good."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, JobContext, operations
from pyprocrastinate.exceptions import ConnectorException, ScheduleNameTaken
from pyprocrastinate.outcomes import Describer
from pyprocrastinate.pulse import Pulse
from pyprocrastinate.wires import PulseWire

Status = Callable[[int], str]
Events = Callable[[int], list[str]]

# Of the worker's two connections, the one that listens.
PULSE = "and query ~* 'heartbeat'"
LINK = "and query !~* 'heartbeat|tick|listen'"


@pytest.fixture
def kill(conn: psycopg.Connection[Any], until: Any) -> Callable[..., Any]:
    """Return an async function that ends one of the worker's backends."""

    async def kill(which: str) -> None:
        find = f"""
            select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'pyprocrastinate worker' {which}
        """
        await until(lambda: conn.execute(find).rowcount)

    return kill


@pytest.mark.scenario(60, "R14")
@pytest.mark.parametrize("which", [PULSE, LINK, ""], ids=["pulse", "link", "both"])
async def test_an_idle_worker_comes_back(
    app: App, working: Any, until: Any, status: Status, kill: Any, which: str
) -> None:
    @app.task
    async def task() -> None: ...

    async with working(update_heartbeat_interval=0.1) as worker:
        first = await task.defer_async()
        await until(lambda: status(first) == "succeeded")
        worker_id = worker.worker_id
        await kill(which)
        second = await task.defer_async()
        await until(lambda: status(second) == "succeeded")
        assert worker.worker_id == worker_id


@pytest.mark.parametrize("which", [PULSE, LINK, ""], ids=["pulse", "link", "both"])
async def test_a_running_job_is_neither_lost_nor_run_twice(
    app: App, working: Any, until: Any, status: Status, events: Events, kill: Any, which: str
) -> None:
    runs = 0
    begun, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def task() -> None:
        nonlocal runs
        runs += 1
        begun.set()
        await release.wait()

    job_id = await task.defer_async()
    async with working(update_heartbeat_interval=0.1):
        await asyncio.wait_for(begun.wait(), 20)
        await kill(which)
        release.set()
        await until(lambda: status(job_id) == "succeeded")
    assert runs == 1
    assert events(job_id) == ["deferred", "started", "succeeded"]


async def test_requests_to_abort_made_during_the_outage_are_delivered(
    app: App, working: Any, until: Any, status: Status, kill: Any, conn: psycopg.Connection[Any]
) -> None:
    begun = asyncio.Event()

    @app.task
    async def task() -> None:
        begun.set()
        await asyncio.sleep(60)

    job_id = await task.defer_async()
    async with working():
        await asyncio.wait_for(begun.wait(), 20)
        await kill("")
        conn.execute("select procrastinate.cancel(%s, abort => true)", [job_id])
        await until(lambda: status(job_id) == "aborted")


class Answers:
    """Breaks the link after chosen calls have taken effect, before their answers are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lose_next: Callable[[operations.Call[Any], Any], bool] | None = None
        self.lost = 0
        real = operations.run_async

        async def run_async(connection: Any, call: Any, *, binary: bool = False) -> Any:
            answer = await real(connection, call, binary=binary)
            if self.lose_next and self.lose_next(call, answer):
                self.lose_next = None
                self.lost += 1
                await connection.close()
                raise psycopg.OperationalError("the answer is lost")
            return answer

        monkeypatch.setattr(operations, "run_async", run_async)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


async def test_jobs_whose_fetch_was_never_answered_are_run(
    app: App, working: Any, until: Any, status: Status, events: Events, answers: Answers
) -> None:
    @app.task
    async def task() -> None: ...

    answers.lose_next = lambda call, answer: call.source == "work_v1" and bool(answer.claims)
    async with working(concurrency=5):
        ids = await task.batch_defer_async(*({} for _ in range(5)))
        await until(lambda: {status(each) for each in ids} == {"succeeded"})
    assert answers.lost == 1
    assert all("rescued" not in events(each) for each in ids)


@pytest.mark.scenario("R13")
@pytest.mark.parametrize("fails", [False, True])
async def test_outcomes_whose_arrival_was_never_confirmed_count_once(
    app: App, working: Any, until: Any, job: Callable[[int], dict[str, Any]], answers: Answers, fails: bool
) -> None:
    runs = 0

    @app.task
    async def task() -> None:
        nonlocal runs
        runs += 1
        if fails:
            raise ValueError

    answers.lose_next = lambda call, _: (
        call.source == "work_v1" and (call.args["succeeded"] != "{}" or call.args["outcomes"] != "[]")
    )
    job_id = await task.defer_async()
    async with working():
        await until(lambda: answers.lost)
        await until(lambda: job(job_id)["status"] in ("succeeded", "failed"))
    row = job(job_id)
    assert (row["status"], row["attempts"], runs) == ("failed" if fails else "succeeded", 1, 1)


async def test_a_bad_outcome_does_not_hurt_the_others(
    app: App, status: Status, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Describer.describe

    def describe(self: Any, run: Any) -> None:
        real(self, run)
        if run.kwargs.get("bad"):
            run.described = '{"id": 1, "token": "\\u0000"}'

    monkeypatch.setattr(Describer, "describe", describe)

    @app.task
    async def task(bad: bool) -> None: ...

    ids = await task.batch_defer_async(*({"bad": bad} for bad in (False, True, False)))
    await app.run_worker_async(wait=False, concurrency=3, install_signal_handlers=False)
    assert [status(each) for each in ids] == ["succeeded", "failed", "succeeded"]


async def test_a_blocked_event_loop_does_not_cost_the_worker_its_jobs(
    app: App, working: Any, until: Any, events: Events, status: Status, dsn: str
) -> None:
    stop = threading.Event()

    def tick() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            while not stop.wait(0.05):
                conn.execute("select procrastinate.tick_v1()")

    @app.task
    async def task() -> None:
        time.sleep(3)  # noqa: ASYNC251

    others = threading.Thread(target=tick)
    others.start()
    try:
        job_id = await task.defer_async()
        async with working(stalled_worker_timeout=1.0, update_heartbeat_interval=0.2):
            await until(lambda: status(job_id) == "succeeded")
    finally:
        stop.set()
        others.join()
    assert events(job_id) == ["deferred", "started", "succeeded"]


async def test_cut_off_for_too_long_it_stops_its_own_tasks(
    app: App, working: Any, until: Any, events: Events, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    cut_off = False
    real = Pulse._beat

    def beat(self: Pulse, wire: PulseWire, now: float) -> None:
        if cut_off:
            raise psycopg.OperationalError("cut off")
        real(self, wire, now)

    monkeypatch.setattr(Pulse, "_beat", beat)

    @app.task(name="coroutine")
    async def coroutine() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("coroutine")

    @app.task(name="function", pass_context=True)
    def function(context: JobContext) -> None:
        while not context.should_abort():
            time.sleep(0.01)
        ended.append("function")

    @app.task
    async def after() -> None: ...

    lost, kept = await coroutine.defer_async(), await function.defer_async()
    async with working(
        concurrency=2, stalled_worker_timeout=1.5, update_heartbeat_interval=0.2, prefetch=False
    ) as worker:
        await until(lambda: status(kept) == "doing")
        first_id = worker.worker_id
        began = time.monotonic()
        cut_off = True
        await until(lambda: len(ended) == 2)
        assert time.monotonic() - began < 1.5
        cut_off = False
        del app.tasks["coroutine"]

        @app.task(name="coroutine")
        async def second_try() -> None: ...

        await until(lambda: status(lost) == "succeeded")
        assert worker.worker_id != first_id
    assert "rescued" in events(lost)
    # It ended in time, so its outcome counts although the worker had given it up.
    assert (status(kept), "rescued" in events(kept)) == ("succeeded", False)


async def test_a_worker_that_was_given_up_registers_again(
    app: App, working: Any, until: Any, status: Status, conn: psycopg.Connection[Any]
) -> None:
    @app.task
    async def task() -> None: ...

    async with working(update_heartbeat_interval=0.1) as worker:
        first_id = await until(lambda: worker.worker_id)
        conn.execute("select procrastinate.unregister_worker_v1(%s)", [first_id])
        await until(lambda: worker.worker_id not in (None, first_id))
        job_id = await task.defer_async()
        await until(lambda: status(job_id) == "succeeded")


STOPPED = """
    @app.task(name="task")
    async def task():
        say("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            say("told to stop")

    logging.basicConfig(level="INFO")
    app.run_worker(stalled_worker_timeout=1.0, update_heartbeat_interval=0.2)
"""


@pytest.mark.scenario("R7")
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
async def test_what_a_frozen_worker_says_later_does_not_count(
    app: App, working: Any, until: Any, program: Any, job: Callable[[int], dict[str, Any]]
) -> None:
    release = asyncio.Event()
    tokens: list[int] = []

    @app.task(name="task", pass_context=True)
    async def task(context: JobContext) -> None:
        tokens.append(context.token)
        await release.wait()

    job_id = await task.defer_async()
    frozen = program(STOPPED)
    await asyncio.to_thread(frozen.expect, "begun")
    frozen.signal(signal.SIGSTOP)
    async with working(update_heartbeat_interval=0.2) as worker:
        await until(lambda: tokens)
        assert job(job_id)["worker_id"] == worker.worker_id
        frozen.signal(signal.SIGCONT)
        await asyncio.to_thread(frozen.expect, "told to stop")
        frozen.signal(signal.SIGTERM)
        code, errors = await asyncio.to_thread(frozen.finish)
        assert code == 0
        assert "was given to another worker" in errors
        row = job(job_id)
        assert (row["status"], row["worker_id"], row["attempts"]) == ("doing", worker.worker_id, 1)
        release.set()
        await until(lambda: job(job_id)["status"] == "succeeded")
    assert job(job_id)["attempts"] == 2


@pytest.mark.scenario(56)
async def test_a_refusal_for_good_ends_the_worker_with_an_error(
    app: App, conn: psycopg.Connection[Any], until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker = app.make_worker(install_signal_handlers=False, listen_notify=False, fetch_job_polling_interval=0.1)
    run = asyncio.create_task(worker.run())
    await until(lambda: worker.worker_id)
    caplog.set_level(logging.CRITICAL)
    conn.execute("alter function procrastinate.idle_v1 rename to gone")
    conn.execute("alter function procrastinate.work_v1 rename to gone")
    with pytest.raises(ConnectorException, match="does not exist"):
        await asyncio.wait_for(run, 20)


async def test_the_environment_and_the_role_may_have_other_ideas(
    app: App, working: Any, until: Any, job: Any, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(store_result=True)
    async def task(name: str) -> str:
        return f"{name} \N{SNOWMAN}"

    job_id = await task.defer_async(name="\N{SNOWMAN}")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    database = psycopg.sql.Identifier(conn.info.dbname)
    text = "alter database {} set default_transaction_isolation = 'repeatable read'"
    conn.execute(psycopg.sql.SQL(text).format(database))
    async with working():
        await until(lambda: job(job_id)["status"] == "succeeded")
    assert job(job_id)["result"] == "\N{SNOWMAN} \N{SNOWMAN}"


async def test_refused_when_it_registers_again_it_ends_after_its_tasks(
    app: App, conn: psycopg.Connection[Any], until: Any
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @app.periodic(cron="0 0 1 1 *")
    @app.task(name="yearly")
    async def yearly(timestamp: int) -> None: ...

    @app.task
    async def task() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)
            ended.set()

    await task.defer_async()
    worker = app.make_worker(install_signal_handlers=False, update_heartbeat_interval=0.1)
    run = asyncio.create_task(worker.run())
    await asyncio.wait_for(begun.wait(), 20)
    conn.execute("delete from procrastinate.schedule")
    conn.execute("select procrastinate.unregister_worker_v1(%s)", [worker.worker_id])
    conn.execute("select procrastinate.schedule('yearly', 'yearly', '0 0 1 1 *')")
    with pytest.raises(ScheduleNameTaken):
        await asyncio.wait_for(run, 20)
    assert ended.is_set()


async def test_a_pooler_that_forgets_what_was_prepared_costs_each_line_one_answer(app: App) -> None:
    wire, pulse = await app.connector.open_wire(), app.connector.open_pulse_wire()
    call = operations.protocol()
    try:
        expected = await wire.call(call)
        assert pulse.call(call) == expected
        for line in (wire, pulse):
            # past psycopg, which would forget with it
            line._connection.pgconn.exec_(b"deallocate all")
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            pulse.call(call)
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            await wire.call(call)
        # the other one knew already, and still neither is of any more use
        assert wire.closed
        assert pulse.closed
    finally:
        await wire.close()
        pulse.close()
    anew = await app.connector.open_wire()
    try:
        for _ in range(2):
            assert await anew.call(call) == expected
        prepared = await anew._connection.execute("select from pg_prepared_statements")
        assert prepared.rowcount == 0
    finally:
        await anew.close()


async def test_no_heartbeat_is_put_off_once_the_loop_has_found_the_database_again(
    working: Any, conn: psycopg.Connection[Any], until: Any, kill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = threading.Event()
    # what several failures in a row come to
    monkeypatch.setattr("pyprocrastinate.pulse.backoff", lambda _: paused.set() or 3600.0)
    options = {"fetch_job_polling_interval": 0.05, "update_heartbeat_interval": 0.1}
    async with working(**options) as worker:
        first = await until(lambda: worker.worker_id)
        # the pulse is cut off, and the worker is taken for dead
        await kill(PULSE)
        await until(paused.is_set)
        conn.execute("delete from procrastinate.worker")
        await until(lambda: worker.worker_id not in (None, first))
        beats = "select heartbeat_at > started_at from procrastinate.workers where id = %s"
        await until(lambda: conn.execute(beats, [worker.worker_id]).fetchone() == (True,))
