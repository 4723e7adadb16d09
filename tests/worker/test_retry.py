"""Retrying: policies go to the schema, decisions of user code are passed on."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, BaseRetryStrategy, RetryDecision, RetryStrategy
from pyprocrastinate.exceptions import JobRetry
from pyprocrastinate.jobs import Job


async def drain(app: App) -> None:
    await app.run_worker_async(wait=False, install_signal_handlers=False)


def a_job(attempts: int) -> Job:
    return Job(id=1, queue="q", lock=None, queueing_lock=None, task_name="t", attempts=attempts)


@pytest.mark.scenario(35)
@pytest.mark.parametrize(("retry", "runs"), [(False, 1), (0, 1), (1, 2), (3, 4)])
async def test_a_number_of_retries(app: App, job: Callable[[int], dict[str, Any]], retry: Any, runs: int) -> None:
    @app.task(retry=retry)
    async def fail() -> None:
        raise ValueError("no")

    job_id = await fail.defer_async()
    await drain(app)
    row = job(job_id)
    assert (row["status"], row["attempts"]) == ("failed", runs)
    assert (row["error_class"], row["error_message"]) == ("ValueError", "no")


@pytest.mark.scenario(35)
async def test_true_retries_at_once_and_without_end(app: App, job: Callable[[int], dict[str, Any]]) -> None:
    runs = 0

    @app.task(retry=True)
    def fail() -> None:
        nonlocal runs
        runs += 1
        if runs < 20:
            raise KeyboardInterrupt

    job_id = await fail.defer_async()
    await drain(app)
    assert (job(job_id)["status"], runs) == ("succeeded", 20)


@pytest.mark.scenario(15, 35)
async def test_only_final_failures_are_logged_as_errors(app: App, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(retry=1)
    async def fail() -> None:
        raise ValueError("no")

    await fail.defer_async()
    with caplog.at_level("INFO", logger="pyprocrastinate.worker"):
        await drain(app)
    logged = [
        (record.levelname, record.action, bool(record.exc_info))  # type: ignore[attr-defined]
        for record in caplog.records
        if hasattr(record, "job")
    ]
    assert logged == [
        ("INFO", "start_job", False),
        ("INFO", "job_error_retry", True),
        ("INFO", "start_job", False),
        ("ERROR", "job_error", True),
    ]


class Outage(ConnectionError):
    pass


@pytest.mark.scenario(6)
@pytest.mark.parametrize(
    ("raised", "attempts"), [(Outage(), 3), (ConnectionError(), 3), (OSError(), 1), (KeyError(), 3)]
)
async def test_only_these_exceptions_and_their_subclasses(
    app: App, job: Callable[[int], dict[str, Any]], raised: Exception, attempts: int
) -> None:
    strategy = RetryStrategy(max_attempts=2, retry_exceptions=[ConnectionError, KeyError])

    @app.task(retry=strategy)
    async def fail() -> None:
        raise raised

    job_id = await fail.defer_async()
    await drain(app)
    assert job(job_id)["attempts"] == attempts


async def test_the_schema_knows_the_policy(app: App, conn: psycopg.Connection[Any]) -> None:
    @app.task(name="t", retry=RetryStrategy(max_attempts=3, wait=5, retry_exceptions=[KeyError]))
    async def t() -> None: ...

    await drain(app)
    (policy,) = conn.execute("select retry from procrastinate.tasks where name = 't'").fetchone()
    assert policy == {
        "max_attempts": 3,
        "wait": 5,
        "linear_wait": 0,
        "exponential_wait": 0,
        "retry_exceptions": ["KeyError"],
    }


async def test_the_wait_counts_by_the_database_clock(
    app: App, job: Callable[[int], dict[str, Any]], conn: psycopg.Connection[Any]
) -> None:
    @app.task(retry=RetryStrategy(max_attempts=1, wait=3600))
    async def fail() -> None:
        raise ValueError

    job_id = await fail.defer_async()
    await drain(app)
    assert job(job_id)["status"] == "todo"
    conn.execute("select procrastinate.enable_test_clock()")
    conn.execute("select procrastinate.advance('1 hour 1 second')")
    await drain(app)
    assert (job(job_id)["status"], job(job_id)["attempts"]) == ("failed", 2)


class Custom(BaseRetryStrategy):
    def __init__(self, decision: Any) -> None:
        self.decision = decision
        self.asked: list[tuple[BaseException, Job]] = []

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        self.asked.append((exception, job))
        if isinstance(self.decision, Exception):
            raise self.decision
        return self.decision


class TestStrategiesOfTheUsersOwn:
    @pytest.mark.scenario(34)
    async def test_decides_when_and_where(self, app: App, job: Callable[[int], dict[str, Any]]) -> None:
        at = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
        strategy = Custom(RetryDecision(retry_at=at, priority=7, queue="other", lock="new"))

        @app.task(retry=strategy)
        async def fail(x: int) -> None:
            raise ValueError("no")

        job_id = await fail.defer_async(x=1)
        await drain(app)
        row = job(job_id)
        found = (row["status"], row["scheduled_at"], row["priority"], row["queue"], row["lock"])
        assert found == ("todo", at, 7, "other", "new")
        ((error, asked_for),) = strategy.asked
        assert (str(error), asked_for.id, asked_for.attempts) == ("no", job_id, 0)
        assert asked_for.task_kwargs == {"x": 1}

    async def test_in_a_while(
        self, app: App, job: Callable[[int], dict[str, Any]], conn: psycopg.Connection[Any]
    ) -> None:
        @app.task(retry=Custom(RetryDecision(retry_in={"minutes": 2})))
        async def fail() -> None:
            raise ValueError

        job_id = await fail.defer_async()
        await drain(app)
        (now,) = conn.execute("select procrastinate.now_()").fetchone()
        wait = job(job_id)["scheduled_at"] - now
        assert datetime.timedelta(seconds=90) < wait <= datetime.timedelta(seconds=120)

    @pytest.mark.parametrize("decision", [None, ValueError("broken strategy")])
    async def test_none_is_no_retry_and_neither_is_an_error(
        self, app: App, job: Callable[[int], dict[str, Any]], decision: Any
    ) -> None:
        @app.task(retry=Custom(decision))
        async def fail() -> None:
            raise KeyError

        job_id = await fail.defer_async()
        await drain(app)
        assert (job(job_id)["status"], job(job_id)["attempts"]) == ("failed", 1)

    @pytest.mark.parametrize(
        "decision",
        [
            RetryDecision(queue="x" * 1000),
            RetryDecision(lock="nul \0"),
            RetryDecision(priority=2**40),
            RetryDecision(retry_in={"days": 10**8}),
        ],
        ids=["queue", "lock", "priority", "time"],
    )
    async def test_a_decision_that_is_refused_fails_the_job_and_no_other(
        self, app: App, job: Callable[[int], dict[str, Any]], decision: RetryDecision
    ) -> None:
        @app.task(retry=Custom(decision))
        async def fail() -> None:
            raise KeyError

        @app.task
        async def healthy() -> None: ...

        ids = [await healthy.defer_async(), await fail.defer_async(), await healthy.defer_async()]
        await app.run_worker_async(wait=False, concurrency=3, install_signal_handlers=False)
        assert [job(each)["status"] for each in ids] == ["succeeded", "failed", "succeeded"]

    async def test_the_older_method_still_works(self, app: App, job: Callable[[int], dict[str, Any]]) -> None:
        class Older(BaseRetryStrategy):
            def get_schedule_in(self, *, exception: BaseException, attempts: int) -> int | None:
                return 3600 if attempts == 0 else None

        strategy = Older()
        with pytest.warns(DeprecationWarning, match="get_retry_decision"):
            decision = strategy.get_retry_decision(exception=ValueError(), job=a_job(0))
        assert decision
        assert decision.as_outcome() == {"in": 3600.0}
        with pytest.warns(DeprecationWarning, match="get_retry_decision"):
            assert strategy.get_retry_decision(exception=ValueError(), job=a_job(1)) is None
        with pytest.raises(NotImplementedError):
            BaseRetryStrategy().get_retry_decision(exception=ValueError(), job=a_job(0))

    async def test_a_task_may_raise_its_own_retry(self, app: App, job: Callable[[int], dict[str, Any]]) -> None:
        @app.task
        async def again() -> None:
            raise JobRetry(RetryDecision(retry_in={"seconds": 0}, priority=5))

        @app.task(retry=Custom(None))
        async def never() -> None:
            raise JobRetry(RetryDecision(retry_in={"hours": 1}))

        once, stays = await again.defer_async(), await never.defer_async()
        worker = app.make_worker(wait=True, install_signal_handlers=False)

        @app.task(priority=1)
        async def stop() -> None:
            worker.stop()

        await stop.defer_async()
        await worker.run()
        await app.run_worker_async(wait=False, queues=[], install_signal_handlers=False)
        assert job(stays)["status"] in ("todo", "doing")
        assert job(once)["priority"] in (0, 5)


@pytest.mark.scenario(36)
@pytest.mark.parametrize(
    ("strategy", "attempts", "seconds"),
    [
        (RetryStrategy(wait=5), 3, 5),
        (RetryStrategy(linear_wait=7), 3, 21),
        (RetryStrategy(exponential_wait=2), 5, 64),
        (RetryStrategy(wait=8, linear_wait=3, exponential_wait=2), 4, 52),
        (RetryStrategy(max_attempts=4), 3, 0),
    ],
)
def test_the_formula(strategy: RetryStrategy, attempts: int, seconds: float) -> None:
    decision = strategy.get_retry_decision(exception=ValueError(), job=a_job(attempts))
    assert decision
    assert decision.as_outcome() == {"in": seconds}


@pytest.mark.scenario(36)
def test_when_a_strategy_gives_up() -> None:
    strategy = RetryStrategy(max_attempts=3, retry_exceptions=[KeyError])
    assert strategy.get_retry_decision(exception=KeyError(), job=a_job(2))
    assert strategy.get_retry_decision(exception=KeyError(), job=a_job(3)) is None
    assert strategy.get_retry_decision(exception=ValueError(), job=a_job(0)) is None
    late = RetryStrategy(exponential_wait=1000).get_retry_decision(exception=ValueError(), job=a_job(2000))
    assert late
    assert late.retry_at
    assert late.retry_at.year == 9999


@pytest.mark.scenario(36)
def test_a_decision_has_one_time_with_a_zone() -> None:
    now = datetime.datetime.now(datetime.UTC)
    with pytest.raises(ValueError, match="exclude"):
        RetryDecision(retry_at=now, retry_in={"seconds": 1})
    with pytest.raises(ValueError, match="time zone"):
        RetryDecision(retry_at=now.replace(tzinfo=None))
