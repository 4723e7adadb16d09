"""What becomes of each job, beside the schema that Procrastinate's release on PyPI installs."""

from __future__ import annotations

import asyncio
import datetime

import procrastinate
import psycopg
import pytest

from pyprocrastinate import App, PsycopgConnector

LATER = datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC)


def last_line(result) -> str:
    return result.output.splitlines()[-1]


def test_a_waiting_job_keeps_all_it_has(old, run, jobs):
    at = datetime.datetime(2030, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    old_id = old.defer(
        "mail.send", {"to": "ada", "n": [1, {}]}, queue="mail", priority=7, lock="l", queueing_lock="q", schedule_at=at
    )
    assert last_line(run()) == "moved 1 waiting and 0 finished jobs; 0 schedules know their last tick"
    (job,) = jobs()
    assert (job.status, job.task, job.queue, job.args) == ("todo", "mail.send", "mail", {"to": "ada", "n": [1, {}]})
    assert (job.priority, job.lock, job.queueing_lock, job.scheduled_at) == (7, "l", "q", at)
    ((deferred_at,),) = old.conn.execute("select at from procrastinate_events where type = 'deferred'").fetchall()
    assert (job.attempts, job.deferred_at) == (0, deferred_at)
    assert old.statuses() == {old_id: "cancelled"}


def test_the_order_is_kept_and_the_ids_are_told(old, run, jobs, conn):
    old_ids = [old.defer(f"task{n}", lock="l") for n in range(5)]
    run("--batch", "2")
    assert [job.task for job in jobs()] == [f"task{n}" for n in range(5)]
    moved = conn.execute("select old_id, new_id from procrastinate_import.moved order by 1").fetchall()
    assert moved == list(zip(old_ids, [job.id for job in jobs()], strict=True))


def test_a_retry_goes_on_counting(old, run, jobs):
    old_id = old.defer(lock="l")
    old.fetch(old.worker())
    old.retry(old_id, LATER)
    run()
    (job,) = jobs()
    assert (job.status, job.attempts, job.scheduled_at, job.started_at) == ("todo", 1, LATER, None)


def test_a_job_that_waits_for_its_retry_still_holds_its_lock(old, run, jobs, conn):
    old_id = old.defer("first", lock="l")
    old.fetch(old.worker())
    old.retry(old_id, LATER)
    old.defer("second", lock="l")
    run()
    assert conn.execute("select state, waiting from procrastinate.locks").fetchall() == [("waits for its retry", 2)]


@pytest.mark.parametrize("batch", [(), ("--batch", "3")])
async def test_what_was_moved_runs_in_its_order_under_its_locks(old, run, dsn, batch):
    for n, priority in enumerate([0, 5, 0, 9, 0, 5, 1, 0]):
        old.defer("run", {"n": n}, lock=f"lock{n % 2}", priority=priority, queueing_lock="q" if n == 3 else None)
    run(*batch)
    ran: list[int] = []
    app = App(connector=PsycopgConnector(conninfo=dsn))

    @app.task(name="run")
    async def _(n: int) -> None:
        ran.append(n)

    async with app.open_async():
        await app.run_worker_async(wait=False, concurrency=1, install_signal_handlers=False)
    assert ran == [3, 1, 5, 6, 0, 2, 4, 7]


def test_finished_jobs_stay_unless_asked_for(old, run, jobs):
    for status in ("succeeded", "failed", "aborted"):
        old.finish(old.defer(status), status)
    assert last_line(run()) == "moved 0 waiting and 0 finished jobs; 0 schedules know their last tick"
    assert jobs() == []


def test_finished_jobs_keep_their_times(old, run, jobs):
    worker_id = old.worker()
    for status in ("succeeded", "failed", "aborted"):
        old_id = old.defer(status, queue="q", priority=3, lock="l", queueing_lock="k", args={"a": 1})
        old.finish(old.fetch(worker_id), status)
    old_id = old.defer("cancelled")
    old.conn.execute("select procrastinate_cancel_job_v1(%s, false, false)", [old_id])
    before = old.statuses()
    assert last_line(run("--finished")) == "moved 0 waiting and 4 finished jobs; 0 schedules know their last tick"
    assert old.statuses() == before
    query = "select job_id, type::text, at from procrastinate_events"
    times = {(job_id, kind): at for job_id, kind, at in old.conn.execute(query).fetchall()}
    for old_id, job in zip(before, jobs(), strict=True):
        assert (job.status, job.task) == (job.task, before[old_id])
        assert (job.deferred_at, job.started_at, job.finished_at) == (
            times[old_id, "deferred"],
            times.get((old_id, "started")),
            times[old_id, job.status],
        )
        if job.status != "cancelled":
            assert (job.queue, job.priority, job.lock, job.queueing_lock) == ("q", 3, "l", "k")
            assert (job.args, job.attempts) == ({"a": 1}, 1)


def test_a_finished_job_without_events_is_moved(old, run, jobs):
    old.finish(old.defer(), "failed")
    old.conn.execute("delete from procrastinate_events")
    run("--finished")
    (job,) = jobs()
    assert job.finished_at == job.deferred_at


def test_twice_moves_nothing_twice(old, run, jobs):
    old.defer()
    old.finish(old.defer(), "failed")
    assert last_line(run("--finished")).startswith("moved 1 waiting and 1 finished")
    before = jobs()
    assert last_line(run("--finished")) == "moved 0 waiting and 0 finished jobs; 0 schedules know their last tick"
    assert jobs() == before


def test_the_second_run_moves_what_came_after_the_first(old, run, jobs):
    old.defer("early")
    run()
    old.defer("late")
    assert last_line(run()).startswith("moved 1 waiting")
    assert [job.task for job in jobs()] == ["early", "late"]


def test_a_job_that_somebody_put_back_there_is_not_moved_again(old, run, jobs):
    old_id = old.defer()
    run()
    old.conn.execute("update procrastinate_jobs set status = 'todo'")
    assert run().output.startswith(f"job {old_id} (task) stays: it was moved before, as job {jobs()[0].id}, and waits")
    assert len(jobs()) == 1


def test_the_old_tables_may_be_in_any_schema(old, old_in, run, jobs):
    other = old_in('Od"d')
    assert old.defer("here") == other.defer("there")
    run()
    run("--schema", 'Od"d')
    assert [job.task for job in jobs()] == ["here", "there"]


# What runs there


def test_a_running_job_is_told_and_left(old, run, jobs):
    old_id = old.defer()
    old.fetch(old.worker())
    result = run()
    assert result.exit_code == 0
    assert result.output.startswith(f"job {old_id} (task) stays: it runs, or did when its worker died\n")
    assert (jobs(), old.statuses()) == ([], {old_id: "doing"})


def test_with_force_what_dead_workers_left_runs_again(old, run, jobs):
    old_id = old.defer()
    old.fetch(old.worker())
    run("--force")
    (job,) = jobs()
    assert (job.status, job.attempts, old.statuses()) == ("todo", 1, {old_id: "cancelled"})


def test_not_even_with_force_does_a_job_run_twice_at_once(old, run, jobs):
    running = old.defer("running")
    worker_id = old.worker(seconds_ago=1)
    old.fetch(worker_id)
    old.defer("waiting")
    result = run("--force")
    assert result.output.startswith(
        f"job {running} (running) stays: it runs under worker {worker_id}, which is alive\n"
    )
    assert [job.task for job in jobs()] == ["waiting"]
    old.finish(running, "succeeded")


def test_with_force_a_job_that_was_to_be_aborted_stays(old, run, jobs):
    old_id = old.defer()
    old.fetch(old.worker())
    old.conn.execute("select procrastinate_cancel_job_v1(%s, true, false)", [old_id])
    assert "stays: it was to be aborted when its worker died" in run("--force").output
    assert jobs() == []


def test_with_force_one_of_each_queueing_lock_waits(old, run, jobs):
    for task in ("first", "second", "third"):
        old.defer(task, queueing_lock="q")
        if task != "third":
            old.fetch(old.worker())
    result = run("--force")
    assert [job.task for job in jobs()] == ["third"]
    assert result.output.count("another job with its queueing lock waits") == 2


def test_an_old_worker_that_lives_is_refused(old, run, jobs, conn):
    old.defer()
    worker_id = old.worker(seconds_ago=1)
    result = run()
    assert isinstance(result.exception, psycopg.errors.ObjectInUse)
    assert f"worker {worker_id} of Procrastinate is alive" in str(result.exception)
    assert jobs() == []
    assert conn.execute("select to_regnamespace('procrastinate_import')").fetchone() == (None,)
    assert last_line(run("--force")).startswith("moved 1 waiting")


async def test_procrastinates_own_worker_is_alive_until_it_has_stopped(old, run, dsn):
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        at_work = asyncio.Event()

        @app.task(name="at work")
        async def tell() -> None:
            at_work.set()

        await tell.defer_async()
        worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False))
        await at_work.wait()
        assert isinstance(run().exception, psycopg.errors.ObjectInUse)
        worker.cancel()
        await asyncio.wait([worker])
    assert run().exit_code == 0


# Limits


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("scheduled_at = '9999-12-31'", "time is out of range: It is before the year 2000 or after 9000"),
        ("scheduled_at = 'infinity'", "time is out of range: It is infinite"),
        ("queue_name = ''", "queue name is empty: It has 0 characters"),
        ("lock = repeat('é', 513)", "lock name is too long: It has 513 characters"),
        ("queueing_lock = repeat('x', 513)", "queueing lock name is too long: It has 513 characters"),
        ("priority = -2147483648", "priority is out of range: "),
        ("args = '[1]'", "args must be a JSON object: It is of type array"),
        ("args = jsonb_build_object('a', repeat('x', 1048576))", "args are too large: They take 1048585 bytes"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_job_that_does_not_fit_is_told_and_harms_no_other(old, run, jobs, change, why, finished):
    bad = old.defer("bad")
    good = old.defer("good")
    old.conn.execute(f"update procrastinate_jobs set {change} where id = {bad}")
    if finished:
        old.finish(bad, "failed")
        old.finish(good, "failed")
    result = run("--finished")
    assert result.exit_code == 0
    assert result.output.startswith(f"job {bad} (bad) stays: {why}")
    assert [job.task for job in jobs()] == ["good"]


def test_a_queueing_lock_that_is_taken_here_is_told(old, run, jobs, conn):
    conn.execute("select procrastinate.defer('new', queueing_lock => 'q')")
    old.defer("old", queueing_lock="q")
    assert "(old) stays: another job with its queueing lock waits" in run().output
    assert [job.task for job in jobs()] == ["new"]


# Dry run


def test_a_dry_run_says_what_would_be_done_and_does_nothing(old, run, jobs, conn):
    old.defer("one")
    running = old.defer("running", priority=1)
    old.fetch(old.worker())
    old.finish(old.defer(), "failed")
    old.periodic("tick", 1_700_000_000)
    before = old.statuses()
    result = run("--dry-run", "--finished")
    assert result.output == (
        f"job {running} (running) would stay: it runs, or did when its worker died\n"
        "would move 2 waiting and 1 finished jobs; 1 schedules would know their last tick\n"
    )
    assert (jobs(), old.statuses()) == ([], before)
    assert conn.execute("select to_regnamespace('procrastinate_import')").fetchone() == (None,)
    assert conn.execute("select count(*) from procrastinate.schedules").fetchone() == (0,)


def test_a_dry_run_says_that_it_would_refuse(old, run):
    worker_id = old.worker(seconds_ago=1)
    line = f"would refuse: worker {worker_id} of Procrastinate is alive, its last heartbeat was 00:00:01 ago\n"
    assert run("--dry-run").output.startswith(line)
    assert "refuse" not in run("--dry-run", "--force").output


def test_a_dry_run_waits_for_nobody(old, run):
    old_id = old.defer()
    with old.conn.transaction():
        old.conn.execute("lock table procrastinate_jobs in share update exclusive mode")
        old.conn.execute("update procrastinate_jobs set priority = 1 where id = %s", [old_id])
        assert last_line(run("--dry-run")).startswith("would move 1 waiting")


# What cannot be


def test_no_tables_of_procrastinate(run):
    result = run("--schema", "elsewhere")
    assert isinstance(result.exception, psycopg.errors.InvalidParameterValue)
    assert 'there is no table procrastinate_jobs in schema "elsewhere"' in str(result.exception)


def test_tables_of_an_older_release(conn, run):
    conn.execute("create table public.procrastinate_jobs (id bigint)")
    assert 'the tables in schema "public" are older than Procrastinate 3' in str(run().exception)


def test_no_schema_to_move_to(empty_dsn, run, monkeypatch):
    monkeypatch.setenv("PROCRASTINATE_DSN", empty_dsn)
    assert isinstance(run().exception, psycopg.errors.InvalidSchemaName)
