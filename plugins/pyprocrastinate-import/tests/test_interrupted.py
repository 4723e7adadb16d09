"""Programs that defer there meanwhile, and imports that are killed or meet each other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import procrastinate
import psycopg
import pytest

PROGRAM = "from pyprocrastinate_import import import_procrastinate; import_procrastinate()"


@pytest.fixture
def start(dsn):
    """Return a function that starts the command as a process of its own."""
    started = []

    def start(*options):
        environ = {**os.environ, "PROCRASTINATE_DSN": dsn}
        started.append(subprocess.Popen([sys.executable, "-c", PROGRAM, *options], env=environ, text=True, stdout=-1))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def blocked(conn):
    """Return a function that waits until so many sessions wait for a lock."""

    def blocked(count: int = 1) -> None:
        query = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        deadline = threading.Event()
        for _ in range(2000):
            if conn.execute(query).fetchone()[0] >= count:
                return
            deadline.wait(0.01)
        pytest.fail("nobody waits")

    return blocked


@pytest.mark.parametrize("end", ["killed", "cut off"])
@pytest.mark.parametrize(("options", "kept"), [(("--batch", "10"), 20), ((), 0)])
def test_an_import_that_died_goes_on_when_called_again(old, start, run, jobs, conn, blocked, end, options, kept):
    old_ids = [old.defer(args={"n": n}) for n in range(30)]
    old.finish(old_ids[0], "failed")
    with old.conn.transaction():
        # it comes as far as here
        old.conn.execute("select from procrastinate_jobs where id = %s for update", [old_ids[25]])
        process = start("--finished", *options)
        blocked()
        if end == "killed":
            process.kill()
            process.wait()
        query = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where wait_event_type = 'Lock'"
        conn.execute(query)
    process.wait()
    assert len(jobs()) == kept
    rest = run("--finished").output.splitlines()[-1]
    assert rest.startswith(f"moved {30 - (kept or 1)} waiting and {0 if kept else 1} finished")
    assert [job.args for job in jobs()] == [{"n": n} for n in range(30)]
    assert conn.execute("select count(*), count(distinct new_id) from procrastinate_import.moved").fetchone() == (
        30,
        30,
    )
    assert set(old.statuses().values()) == {"failed", "cancelled"}


def test_two_imports_at_once_move_each_job_once(old, start, jobs, conn, blocked):
    old_ids = [old.defer(args={"n": n}) for n in range(30)]
    with old.conn.transaction():
        old.conn.execute("select from procrastinate_jobs where id = %s for update", [old_ids[5]])
        both = [start("--batch", "10"), start("--batch", "10")]
        blocked(2)
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [job.args for job in jobs()] == [{"n": n} for n in range(30)]
    assert sum(int(text.split()[1]) for text in said) == 30


def test_a_defer_there_waits_while_jobs_are_moved(old, start, run, jobs, dsn, blocked):
    def defer_late() -> None:
        with procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=dsn)).open() as app:
            app.configure_task("late").defer()

    old_id = old.defer("early")
    late = threading.Thread(target=defer_late)
    with old.conn.transaction():
        old.conn.execute("select from procrastinate_jobs where id = %s for update", [old_id])
        process = start()
        blocked()
        late.start()
        blocked(2)
        assert old.statuses() == {old_id: "todo"}
    assert process.communicate()[0].startswith("moved 1 waiting")
    late.join()
    assert run().output.startswith("moved 1 waiting")
    assert [job.task for job in jobs()] == ["early", "late"]


def test_the_import_waits_for_who_defers_there(old, start, jobs, blocked):
    with old.conn.transaction():
        old.conn.execute("insert into procrastinate_jobs (queue_name, task_name) values ('q', 'open')")
        process = start()
        blocked()
    assert process.communicate()[0].startswith("moved 1 waiting")
    assert [job.task for job in jobs()] == ["open"]


@pytest.mark.long
def test_it_does_not_wait_for_ever(old, run, jobs):
    with old.conn.transaction():
        old.conn.execute("insert into procrastinate_jobs (queue_name, task_name) values ('q', 'open')")
        assert isinstance(run().exception, psycopg.errors.LockNotAvailable)
    assert jobs() == []
    assert run().output.startswith("moved 1 waiting")
