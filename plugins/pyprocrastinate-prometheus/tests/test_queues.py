"""What a scrape reads from the database."""

from __future__ import annotations

import psycopg
import pytest

from pyprocrastinate_prometheus import OTHER, QueueCollector

QUEUES = "procrastinate_queue_depth"


@pytest.fixture
def make(dsn):
    """Return a function that makes a collector; they are closed after the test."""
    made = []

    def make(**options):
        made.append(QueueCollector(lambda: dsn, **{"max_age": 0.0, **options}))
        return made[-1]

    yield make
    for collector in made:
        collector.close()


def read(collector, name=QUEUES):
    """Return the values of a metric, by the values of its labels; None where it is missing."""
    for metric in collector.collect():
        if metric.name == name:
            return {tuple(s.labels.values()): s.value for s in metric.samples}
    return None


def is_up(collector):
    return bool(read(collector, "procrastinate_database_up")[()])


@pytest.fixture
def fill(conn):
    """Return a function that defers jobs."""

    def fill(queue, count=1, **options):
        for _ in range(count):
            conn.execute(
                "select procrastinate.defer('t', queue => %s, lock => %s, schedule_in => %s)",
                [queue, options.get("lock"), options.get("schedule_in")],
            )

    return fill


@pytest.fixture
def take(conn):
    """Return a function that takes jobs, as a worker that is not heard of again."""

    def take(capacity):
        worker = "select procrastinate.register_worker_v1('w', stalled_after => '30 s')"
        (worker_id,) = conn.execute(worker).fetchone()
        rows = conn.execute("select id from procrastinate.fetch_v1(%s, %s)", [worker_id, capacity]).fetchall()
        assert len(rows) == capacity

    return take


@pytest.fixture
def advance(conn):
    """Return a function that moves the clock of the database on."""
    conn.execute("select procrastinate.enable_test_clock()")
    return lambda interval: conn.execute("select procrastinate.advance(%s)", [interval])


def test_depth_by_queue_status_and_state(make, fill, take):
    fill("money", 1)
    take(1)
    fill("money", 3)
    fill("money", 2, schedule_in="1 hour")
    fill("mail", 1)
    assert read(make()) == {
        ("money", "todo", "ready"): 3,
        ("money", "todo", "blocked"): 0,
        ("money", "todo", "scheduled"): 2,
        ("money", "doing", "running"): 1,
        ("mail", "todo", "ready"): 1,
        ("mail", "todo", "blocked"): 0,
        ("mail", "todo", "scheduled"): 0,
        ("mail", "doing", "running"): 0,
    }


def test_the_oldest_that_is_ready(make, advance, fill):
    fill("money")
    fill("mail", schedule_in="1 hour")
    advance("10 minutes")
    fill("money")
    oldest = read(make(), "procrastinate_queue_oldest_ready_seconds")
    assert oldest == {("money",): pytest.approx(600, abs=30), ("mail",): 0}


def test_workers_live_and_dead(make, advance, take):
    take(0)
    advance("1 minute")
    take(0)
    take(0)
    assert read(make(), "procrastinate_workers") == {("live",): 2, ("dead",): 1}


def test_the_rest_of_many_queues_is_summed_up(make, fill):
    for number in range(5):
        fill(f"queue{number}", 5 - number)
    assert {k: v for k, v in read(make(max_queues=2)).items() if k[2] == "ready"} == {
        ("queue0", "todo", "ready"): 5,
        ("queue1", "todo", "ready"): 4,
        (OTHER, "todo", "ready"): 3 + 2 + 1,
    }
    assert set(read(make(max_queues=2), "procrastinate_queue_oldest_ready_seconds")) == {
        ("queue0",),
        ("queue1",),
        (OTHER,),
    }


def test_the_views_are_read_once_for_scrapes_at_the_same_time(make, fill):
    collector = make(max_age=60.0)
    fill("money")
    before = read(collector)
    fill("money")
    assert read(collector) == before


@pytest.fixture
def end(conn):
    """Return a function that ends the sessions that read, and waits until they are gone; it returns how many."""

    def end():
        ended = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = %s"
        return conn.execute(ended, ["pyprocrastinate metrics"]).rowcount

    return end


def test_one_of_all_that_share_reads_the_views(make, fill, end):
    fill("money")
    first, second, third = (make(shared=True) for _ in range(3))
    assert read(first)
    assert (read(second), read(third)) == (None, None)
    assert is_up(second)
    assert read(first)
    for collector in (first, second, third):
        collector.close()
    end()
    assert read(third)
    assert (read(second), read(first)) == (None, None)


def test_whose_session_has_ended_gives_its_turn_to_another(make, fill, end):
    fill("money")
    first, second = make(shared=True), make(shared=True)
    assert read(first)
    assert end() == 1
    assert read(second)
    assert (read(first), is_up(first)) == (None, True)


def test_a_session_that_the_server_has_ended_is_no_fault(make, fill, end, caplog):
    fill("money")
    collector = make()
    assert read(collector)
    assert end() == 1
    assert read(collector)
    assert caplog.records == []


def test_a_database_that_cannot_be_reached_is_told(make, fill, caplog):
    fill("money")
    collector = QueueCollector(lambda: "host=127.0.0.1 port=1 user=x", max_age=0.0)
    assert not is_up(collector)
    assert read(collector) is None
    assert "cannot be read" in caplog.text


def test_it_recovers(dsn, fill):
    fill("money")
    addresses = iter(["host=127.0.0.1 port=1 user=x", dsn])
    collector = QueueCollector(lambda: next(addresses), max_age=0.0)
    assert not is_up(collector)
    assert is_up(collector)
    assert read(collector)
    collector.close()


def test_its_session_is_limited(make, conn):
    shared = make(shared=True)
    assert is_up(shared)
    connection = shared._connection
    assert isinstance(connection, psycopg.Connection)
    limits = "select current_setting('statement_timeout'), current_setting('idle_session_timeout')"
    assert connection.execute(limits).fetchone() == ("10s", "90s")
