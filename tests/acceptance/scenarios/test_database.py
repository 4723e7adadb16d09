"""What the database knows of jobs and workers, and what a worker asks of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, JobContext, PsycopgConnector
from pyprocrastinate.jobs import Status
from tests.pooler import pgbouncer


@pytest.mark.scenario("R1")
def test_a_better_job_comes_while_its_lock_is_being_taken(conn: psycopg.Connection[Any], connect: Any) -> None:
    def fetch(connection: psycopg.Connection[Any], worker_id: int) -> list[Any]:
        return connection.execute("select id, token from procrastinate.fetch_v1(%s)", [worker_id]).fetchall()

    def defer(priority: int) -> int:
        ((job_id,),) = conn.execute(
            "select procrastinate.defer('t', lock => 'l', priority => %s)", [priority]
        ).fetchall()
        return int(job_id)

    workers = [conn.execute("select procrastinate.register_worker_v1('w')").fetchall()[0][0] for _ in range(2)]
    first = defer(0)
    other = connect()
    with other.transaction():
        ((found, token),) = fetch(other, workers[0])
        better = defer(9)
        conn.execute("set statement_timeout = '10s'")  # it waits for nobody
        assert (found, fetch(conn, workers[1])) == (first, [])
    assert fetch(conn, workers[1]) == []
    conn.execute(
        "select procrastinate.finish_v1(%s, array[%s]::bigint[], array[%s]::bigint[])", [workers[0], first, token]
    )
    assert [job_id for job_id, _ in fetch(conn, workers[1])] == [better]


@pytest.mark.scenario("R10")
def test_twelve_workers_pass_jobs_of_tomorrow_and_take_each_lock_once(
    conn: psycopg.Connection[Any], connect: Any
) -> None:
    # a second job that runs under a lock would raise
    conn.execute("create unique index one_at_a_time on procrastinate.job (lock) where state = 'x'")
    heads = "select procrastinate.defer('t', lock => g::text, priority => 99, schedule_in => '1 day')"
    conn.execute(f"{heads} from generate_series(0, 4) as g")
    due = "select procrastinate.defer('t', lock => (g % 5)::text, priority => g * 7 % 11)"
    conn.execute(f"{due} from generate_series(1, 300) as g")
    left = "select from procrastinate.jobs where status in ('todo', 'doing') and scheduled_at is null limit 1"
    pause = threading.Event()

    def work(connection: psycopg.Connection[Any]) -> int:
        ((worker_id,),) = connection.execute("select procrastinate.register_worker_v1('w')").fetchall()
        done = 0
        deadline = time.monotonic() + 60
        while connection.execute(left).rowcount:
            assert time.monotonic() < deadline
            for claim in connection.execute("select id, token from procrastinate.fetch_v1(%s)", [worker_id]).fetchall():
                finish = "select verdict from procrastinate.finish_v1(%s, array[%s]::bigint[], array[%s]::bigint[])"
                # refused while another session looks at the lock: the same again
                while connection.execute(finish, [worker_id, *claim]).fetchone() != ("ok",):
                    pause.wait(0.001)
                done += 1
            pause.wait(0.001)
        return done

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(work, [connect() for _ in range(12)])) == 300
    statuses = conn.execute("select status, count(*) from procrastinate.jobs group by 1 order by 1").fetchall()
    assert statuses == [("succeeded", 300), ("todo", 5)]


@pytest.mark.scenario(62)
async def test_a_running_job_knows_its_worker(
    app: App, job: Callable[[int], dict[str, Any]], conn: psycopg.Connection[Any]
) -> None:
    seen: list[tuple[Any, ...]] = []

    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        ((registered,),) = conn.execute("select id from procrastinate.workers where live").fetchall()
        seen.append((context.job.worker_id, job(job_id)["worker_id"], registered))

    job_id = await task.defer_async()
    worker = app.make_worker(wait=False, install_signal_handlers=False)
    await worker.run()
    ((of_context, of_row, registered),) = seen
    assert of_context == of_row == registered
    assert conn.execute("select from procrastinate.workers").rowcount == 0


@pytest.mark.scenario(64)
async def test_the_age_of_a_run_counts_from_its_latest_start(
    app: App, job: Callable[[int], dict[str, Any]], conn: psycopg.Connection[Any]
) -> None:
    starts: list[Any] = []

    @app.task(retry=1)
    async def task() -> None:
        starts.append(job(job_id)["started_at"])
        if len(starts) == 1:
            conn.execute("select procrastinate.enable_test_clock(), procrastinate.advance('1 second')")
            raise ValueError

    job_id = await task.defer_async()
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    first, second = starts
    assert second > first
    assert job(job_id)["started_at"] == second


@pytest.mark.scenario(67)
def test_python_names_every_status_of_the_schema(conn: psycopg.Connection[Any]) -> None:
    source = conn.execute("select pg_get_viewdef('procrastinate.jobs'::regclass)").fetchone()
    assert source
    waiting_or_running = {name for name in ("todo", "doing") if f"'{name}'::text" in source[0]}
    ended = {"succeeded", "failed", "aborted", "cancelled"}
    conn.execute("select procrastinate.purge('1 day', %s)", [list(ended)])
    for name in {each.value for each in Status} - ended:
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            conn.execute("select procrastinate.purge('1 day', array[%s])", [name])
    assert waiting_or_running | ended == {each.value for each in Status}


@pytest.mark.scenario("R12")
def test_work_never_reads_the_finished_jobs(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        'select procrastinate.defer_many((select jsonb_agg(\'{"task": "t"}\'::jsonb) from generate_series(1, 1000)))'
    )
    ((first,),) = conn.execute("select procrastinate.register_worker_v1('first')").fetchall()
    claims = conn.execute("select id, token from procrastinate.fetch_v1(%s, 1000)", [first]).fetchall()
    conn.execute("select procrastinate.finish_v1(%s, %s, %s)", [first, *map(list, zip(*claims, strict=True))])
    reads = "select seq_tup_read + coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables where relname = 'done'"
    with conn.transaction():
        conn.execute("select procrastinate.defer('t', lock => 'l')")
        ((second,),) = conn.execute("select procrastinate.register_worker_v1('second')").fetchall()
        ((job_id, token),) = conn.execute("select id, token from procrastinate.fetch_v1(%s)", [second]).fetchall()
        conn.execute("select procrastinate.heartbeat_v1(%s)", [second])
        conn.execute(
            "select procrastinate.work_v1(%s, array[%s]::bigint[], array[%s]::bigint[], '[]', true, 1, 0, null)",
            [second, job_id, token],
        )
        conn.execute("select procrastinate.idle_v1(%s)", [second])
        conn.execute("select procrastinate.unregister_worker_v1(%s)", [second])
        assert conn.execute(reads).fetchone() == (0,)
    assert conn.execute("select status from procrastinate.jobs where id = %s", [job_id]).fetchone() == ("succeeded",)
    purged = conn.execute("select procrastinate.purge('0', '{succeeded}', max_rows => 10)").fetchone()
    assert purged == (10,)


@pytest.fixture
def pooled(direct_dsn: str) -> Iterator[str]:
    """Return the DSN of a PgBouncer in transaction mode, with two connections to the test's database."""
    with pgbouncer(direct_dsn) as pooled:
        yield pooled


@pytest.mark.scenario("R18")
@pytest.mark.needs_tool("pgbouncer")
async def test_everything_works_through_a_pooler_in_transaction_mode(pooled: str, until: Any, working: Any) -> None:
    app = App(connector=PsycopgConnector(conninfo=pooled, kwargs={"prepare_threshold": None}))
    began: list[int] = []

    @app.task(retry=1, pass_context=True)
    async def task(context: JobContext, n: int) -> None:
        began.append(n)
        if n == 1 and context.job.attempts == 0:
            raise ValueError
        if n == 2:
            await until(context.should_abort)

    async with app.open_async():
        ids = await task.configure(lock="l", priority=2).batch_defer_async({"n": 0}, {"n": 1})
        ids.append(await task.defer_async(n=2))
        manager = app.job_manager
        async with working(
            app, concurrency=2, listen_notify=False, fetch_job_polling_interval=0.1, abort_job_polling_interval=0.1
        ):
            await until(lambda: 2 in began)
            assert await manager.cancel_job_by_id_async(ids[2], abort=True)

            async def ended() -> bool:
                return not [each for each in await manager.list_jobs_async() if each.status in ("todo", "doing")]

            await until(ended)
            assert [str(each.status) for each in await manager.list_jobs_async()] == [
                "succeeded",
                "succeeded",
                "aborted",
            ]
    assert sorted(began) == [0, 1, 1, 2]
