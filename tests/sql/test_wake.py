"""When a NOTIFY is sent, and when it is saved: each takes a lock of the whole cluster."""

from __future__ import annotations

import hashlib

import psycopg
import pytest


def q(queue="default"):
    """Return the payload for a queue."""
    return "q" + hashlib.sha256(queue.encode()).hexdigest()[:8]


@pytest.fixture
def idle(db, listener):
    """Return a worker of all queues that waits."""
    worker = db.worker()
    worker.idle()
    listener.heard()
    return worker


@pytest.mark.parametrize("queue", ["default", "a b", "ü🦀", "x" * 128])
def test_a_payload_is_a_short_hash_of_the_queue(db, idle, listener, queue):
    db.defer(queue=queue)
    assert listener.heard() == [q(queue)]


# Transaction blocks


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_a_transaction_notifies_once_for_each_queue(db, listener, session, protocol):
    other = session(prepare_threshold=0)
    if protocol == "simple":
        other.conn.cursor_factory = psycopg.ClientCursor
    with other.conn.transaction():
        for queue in ("a", "b", "a", "b", "a"):
            other.defer(queue=queue)
        other.defer_many({"queue": "b"}, {"queue": "c"})
        assert listener.heard() == []
    assert sorted(listener.heard()) == sorted([q("a"), q("b"), q("c")])


def test_a_rolled_back_transaction_notifies_nobody(db, idle, listener, session):
    other = session(autocommit=False)
    other.defer()
    other.conn.rollback()
    with other.conn.transaction():
        with other.conn.transaction(force_rollback=True):
            other.defer(queue="a")
        other.defer(queue="b")
    assert listener.heard() == [q("b")]


def test_a_refused_job_notifies_nobody(db, idle, listener):
    db.defer(queueing_lock="q")
    listener.heard()
    with db.refused("23505"):
        db.defer(queueing_lock="q")
    with db.refused("JQ014"):
        db.defer("")
    assert listener.heard() == []


# Autocommit


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_an_autocommitted_defer_is_silent_while_nobody_waits(db, listener, session, protocol):
    db.worker()
    other = session(prepare_threshold=0)
    if protocol == "simple":
        other.conn.cursor_factory = psycopg.ClientCursor
    query = "select procrastinate.defer('task')"
    other.rows(query)
    listener.heard()  # the first call of a statement is also its preparation
    for _ in range(3):
        other.rows(query)
    assert listener.heard() == []


def test_an_autocommitted_batch_is_silent_while_nobody_waits(db, listener):
    db.worker()
    db.conn.prepare_threshold = None
    query = """select procrastinate.defer_many('[{"task": "a"}, {"task": "b", "queue": "q"}]')"""
    db.conn.execute(query)
    assert listener.heard() == []


@pytest.mark.parametrize(
    ("queues", "wakes"), [(None, True), (["q"], True), (["other", "q"], True), (["other"], False), ([], False)]
)
def test_an_autocommitted_defer_wakes_who_waits_for_its_queue(db, listener, queues, wakes):
    worker = db.worker(queues=queues)
    worker.idle()
    listener.heard()
    db.conn.execute("select procrastinate.defer('task', queue => 'q')")
    assert listener.heard() == [q("q")] * wakes
    db.conn.execute("""select procrastinate.defer_many('[{"task": "task", "queue": "q"}]')""")
    assert listener.heard() == [q("q")] * wakes


def test_a_worker_that_works_is_not_woken(db, idle, listener):
    db.defer_many({}, {})
    idle.work(capacity=1)
    db.advance("2 seconds")
    idle.work(capacity=1)
    listener.heard()
    db.conn.execute("select procrastinate.defer('task')")
    assert listener.heard() == []


def test_a_job_for_later_is_told_too(db, idle, listener):
    """Else who waits would sleep past the time it is due."""
    db.defer(schedule_in="1 hour")
    assert listener.heard() == [q()]


def test_a_job_that_is_ignored_or_replaced_wakes_for_the_queue_it_is_given(db, idle, listener):
    db.defer(queue="old", queueing_lock="l")
    listener.heard()
    db.defer(queue="new", queueing_lock="l", on_conflict="replace")
    assert listener.heard() == [q("new")]


# Jobs that become ready in other ways


@pytest.fixture
def running(db, idle, listener):
    """Return a running job of the queue q, under a lock for which the next one waits in queue n."""
    db.defer(queue="q", lock="l", retry=True)
    job = idle.take()
    db.defer(queue="n", lock="l")
    assert idle.fetch() == []
    idle.idle()
    listener.heard()
    return job


def test_a_freed_lock_wakes_for_the_next_job(idle, running, listener):
    idle.finish(running)
    assert listener.heard() == [q("n")]


def test_a_job_completed_in_a_transaction_wakes_for_the_next_one(db, session, running, listener):
    other = session(autocommit=False)
    other.call("complete_v1", job_id=running.id, token=running.token)
    assert listener.heard() == []
    other.conn.commit()
    assert listener.heard() == [q("n")]


@pytest.mark.scenario("R6")
@pytest.mark.parametrize("kind", ["released", "failed"])
def test_a_job_that_comes_back_wakes_for_itself(idle, running, listener, kind):
    idle.end(running, kind)
    assert q("q") in listener.heard()


def test_a_retry_for_later_is_told_too(idle, running, listener):
    idle.fail(running, retry={"in": 3600})
    assert q("q") in listener.heard()


def test_a_rescued_job_wakes(db, idle, running, listener):
    db.advance("1 hour")
    db.worker("other").idle()
    listener.heard()
    db.tick()
    assert q("q") in listener.heard()


def test_a_worker_that_takes_leave_wakes_for_what_it_held(db, idle, running, listener):
    db.worker("other").idle()
    listener.heard()
    idle.unregister()
    assert q("q") in listener.heard()


def test_an_operators_retry_wakes(db, idle, running, listener):
    idle.finish(running)
    listener.heard()
    db.retry(running.id, queue="r")
    assert listener.heard() == [q("r")]


def test_cancelling_the_head_of_a_lock_wakes_for_the_next_job(db, idle, running, listener):
    idle.fail(running, retry={"in": 3600})
    assert idle.fetch() == []
    idle.idle()
    listener.heard()
    db.cancel(running.id)
    assert listener.heard() == [q("n")]


def test_a_head_in_another_queue_is_told_to_who_serves_it(db, idle, listener):
    """A finish passed the lock to the best it saw; a better one came, in a queue of others."""
    here = db.worker("here", queues=["here"])
    db.defer(queue="here", lock="l")
    job = here.take()
    db.defer(queue="there", lock="l", priority=1)
    db.defer(queue="here", lock="l")
    assert here.fetch() == []
    listener.heard()
    here.work(job, capacity=1)
    assert q("there") in listener.heard()


# Aborts


def test_an_abort_request_is_told_at_once_and_again(db, worker, listener):
    job_id = db.defer()
    worker.take()
    listener.heard()
    db.cancel(job_id, abort=True)
    assert listener.heard() == ["a"]
    db.cancel(job_id, abort=True)
    assert listener.heard() == ["a"]


def test_an_abort_request_rolled_back_is_not_told(db, worker, listener, session):
    job_id = db.defer()
    worker.take()
    other = session(autocommit=False)
    listener.heard()
    other.cancel(job_id, abort=True)
    other.conn.rollback()
    assert listener.heard() == []


def test_a_worker_that_may_soon_be_dead_hurries_the_heartbeats_of_others(db, worker, listener):
    """Because a heartbeat is what tells when the next tick is due."""
    db.call("tick_v1")
    db.worker("hasty", stalled_after="2 seconds")
    assert listener.heard() == ["a"]
    db.worker("patient", stalled_after="1 hour")
    assert listener.heard() == []


# Off


def test_nothing_is_sent_where_the_setting_says_so(db, idle, running, listener, session):
    db.set("notify", False)
    db.defer()
    db.defer_many({})
    db.cancel(running.id, abort=True)
    idle.finish(running)
    db.worker("hasty", stalled_after="2 seconds")
    other = session(autocommit=False)
    other.defer()
    other.conn.commit()
    assert listener.heard() == []


# A message of several statements, and a DO block: the commit may be long in coming


@pytest.mark.parametrize(
    "message",
    [
        "begin; select procrastinate.defer('task'); commit",
        "select procrastinate.defer('task'); select 1",
        "do $$ begin perform procrastinate.defer('task'); end $$",
    ],
)
def test_a_defer_that_is_not_alone_in_its_message_notifies(db, listener, message):
    db.worker()
    db.conn.execute(message)
    assert listener.heard() == [q()]


@pytest.mark.parametrize("end", [";", " ;\n", ""])
def test_a_defer_that_is_alone_is_silent_however_it_ends(db, listener, end):
    db.worker()
    db.conn.execute("select procrastinate.defer('task')" + end)
    assert listener.heard() == []
