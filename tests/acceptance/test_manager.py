"""The job manager: what an operator's program does with jobs, sync and async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from pyprocrastinate import App, PsycopgConnector, SyncPsycopgConnector
from pyprocrastinate.exceptions import JobNotFound, UniqueViolation, WrongJobState
from pyprocrastinate.jobs import Job, Status
from pyprocrastinate.manager import JobManager


@pytest.fixture
def manager(dsn: str) -> Iterator[JobManager]:
    """Return a manager over a sync connector."""
    with App(connector=SyncPsycopgConnector(dsn)).open() as app:
        yield app.job_manager


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[App]:
    async with App(connector=PsycopgConnector(dsn)).open_async() as app:
        yield app


def a_job(**options: object) -> Job:
    fields = {"queue": "default", "lock": None, "queueing_lock": None, "task_name": "task"} | options
    return Job(id=None, **fields)  # type: ignore[arg-type]


def test_a_job_is_deferred_as_it_is(manager: JobManager) -> None:
    job = manager.defer_job(a_job(queue="q", priority=3, lock="l", queueing_lock="ql", task_kwargs={"a": 1}))
    (found,) = manager.list_jobs(id=job.id)
    assert (job.id, job.status) == (found.id, "todo")
    assert (found.queue, found.priority, found.lock, found.queueing_lock) == ("q", 3, "l", "ql")
    assert found.task_kwargs == {"a": 1}
    assert found.deferred_at is not None
    with pytest.raises(UniqueViolation):
        manager.batch_defer_jobs([a_job(), a_job(queueing_lock="ql")])
    assert [job.id for job in manager.list_jobs()] == [found.id]


def test_many_keep_their_order(manager: JobManager) -> None:
    jobs = manager.batch_defer_jobs([a_job(task_kwargs={"n": n}) for n in range(3)])
    assert [job.task_kwargs["n"] for job in manager.list_jobs()] == [0, 1, 2]
    assert [job.id for job in jobs] == [job.id for job in manager.list_jobs()]


@pytest.mark.scenario(66)
def test_counts(manager: JobManager) -> None:
    manager.batch_defer_jobs([a_job(queue="q", lock="l"), a_job(task_name="other")])
    row = {"todo": 1, "doing": 0, "succeeded": 0, "failed": 0, "cancelled": 0, "aborted": 0}
    assert manager.list_queues() == [{"name": "default", "jobs_count": 1} | row, {"name": "q", "jobs_count": 1} | row]
    assert manager.list_tasks(queue="q") == [{"name": "task", "jobs_count": 1} | row]
    assert manager.list_locks() == [{"name": "l", "jobs_count": 1} | row]
    assert manager.list_locks(status="failed") == []


def test_what_runs_is_looked_at_and_ended(manager: JobManager, conn: object) -> None:
    job = manager.defer_job(a_job(queue="q"))
    assert job.id is not None
    with pytest.raises(WrongJobState):
        manager.finish_job_by_id(job.id, Status.FAILED, delete_job=False)
    conn.execute("select procrastinate.fetch_v1(procrastinate.register_worker_v1('w'))")  # type: ignore[attr-defined]
    assert manager.list_jobs_to_abort() == []
    assert manager.cancel_job_by_id(job.id, abort=True)
    assert manager.list_jobs_to_abort() == manager.list_jobs_to_abort(queue="q") == [job.id]
    assert manager.list_jobs_to_abort(queue="other") == []
    manager.finish_job_by_id(job.id, Status.ABORTED, delete_job=False)
    assert manager.get_job_status(job.id) is Status.ABORTED
    with pytest.raises(JobNotFound):
        manager.finish_job_by_id(99, Status.FAILED, delete_job=False)


def test_the_connection_is_checked(manager: JobManager, conn: object) -> None:
    assert manager.check_connection()
    conn.execute("drop schema procrastinate cascade")  # type: ignore[attr-defined]
    assert not manager.check_connection()


@pytest.mark.scenario(61, 63)
async def test_async_code_has_the_same_and_more(app: App, conn: object) -> None:
    manager = app.job_manager
    assert await manager.check_connection_async()
    job = await manager.defer_job_async(a_job())
    assert [found.id for found in await manager.list_jobs_async(task="task")] == [job.id]
    worker_id = await manager.register_worker()
    await manager.update_heartbeat(worker_id)
    assert await manager.get_stalled_jobs() == []
    conn.execute("select procrastinate.enable_test_clock()")  # type: ignore[attr-defined]
    conn.execute("select procrastinate.fetch_v1(procrastinate.register_worker_v1('w'))")  # type: ignore[attr-defined]
    conn.execute("select procrastinate.advance('40 seconds')")  # type: ignore[attr-defined]
    assert [found.id for found in await manager.get_stalled_jobs(task_name="task")] == [job.id]
    assert await manager.get_stalled_jobs(queue="other") == []
    await manager.unregister_worker(worker_id)
    (job,) = await manager.list_jobs_async(status="doing")
    assert await manager.prune_stalled_workers() == [job.worker_id]
    assert await manager.prune_stalled_workers() == []
    conn.execute("select procrastinate.fetch_v1(procrastinate.register_worker_v1('w'))")  # type: ignore[attr-defined]
    await manager.retry_job(job, queue="again")
    assert [found.id for found in await manager.list_jobs_async(queue="again", status="todo")] == [job.id]
    conn.execute("select procrastinate.fetch_v1(procrastinate.register_worker_v1('w'))")  # type: ignore[attr-defined]
    await manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
    assert await manager.get_job_status_async(job.id) is Status.SUCCEEDED


@pytest.mark.scenario(65)
async def test_old_jobs_are_deleted(app: App, conn: object) -> None:
    manager = app.job_manager
    conn.execute("select procrastinate.enable_test_clock()")  # type: ignore[attr-defined]
    ids = [job.id for job in await manager.batch_defer_jobs_async([a_job(), a_job(), a_job(queue="q")])]
    for job_id in ids[1:]:
        assert await manager.cancel_job_by_id_async(job_id or 0)
    conn.execute("select procrastinate.advance('2 hours')")  # type: ignore[attr-defined]
    assert await manager.delete_old_jobs(3, include_cancelled=True) == 0
    assert await manager.delete_old_jobs(1) == 0
    assert await manager.delete_old_jobs(1, queue="q", include_cancelled=True) == 1
    assert await manager.delete_old_jobs(1, include_cancelled=True) == 1
    assert [job.id for job in await manager.list_jobs_async()] == ids[:1]
