"""How a run ended decides: abort requests, shutdowns and JobAborted."""

from __future__ import annotations

import pytest

USER, SHUTDOWN = {"reason": "user"}, {"reason": "shutdown"}
AT_ONCE, NEVER = {"retry": {"in": 0}}, {"retry": None}


@pytest.mark.parametrize(
    ("requested", "kind", "more", "policy", "status"),
    [
        # cancelled or JobAborted under a user's request: aborted, never retried
        (True, "aborted", USER, None, "aborted"),
        (True, "aborted", USER, True, "aborted"),
        (True, "aborted", USER | AT_ONCE, True, "aborted"),
        (True, "aborted", {}, True, "aborted"),
        # the request came first, whatever stopped the run in the end
        (True, "aborted", SHUTDOWN, None, "aborted"),
        (True, "aborted", SHUTDOWN, True, "aborted"),
        (True, "aborted", SHUTDOWN | AT_ONCE, True, "aborted"),
        # JobAborted with no request: aborted, never retried
        (False, "aborted", {}, None, "aborted"),
        (False, "aborted", {}, True, "aborted"),
        (False, "aborted", AT_ONCE, True, "aborted"),
        (False, "aborted", USER, True, "aborted"),
        # stopped by a shutdown: the retry policy, else aborted
        (False, "aborted", SHUTDOWN, None, "aborted"),
        (False, "aborted", SHUTDOWN, False, "aborted"),
        (False, "aborted", SHUTDOWN, True, "todo"),
        (False, "aborted", SHUTDOWN, 1, "todo"),
        (False, "aborted", SHUTDOWN, {"wait": 3600}, "todo"),
        (False, "aborted", SHUTDOWN | NEVER, True, "aborted"),
        (False, "aborted", SHUTDOWN | AT_ONCE, None, "todo"),
        # another error while an abort is requested: failed, never retried
        (True, "failed", {}, None, "failed"),
        (True, "failed", {}, True, "failed"),
        (True, "failed", AT_ONCE, True, "failed"),
        (False, "failed", {}, True, "todo"),
        (False, "failed", {}, None, "failed"),
        # a result in spite of it
        (True, "succeeded", {}, None, "succeeded"),
        (False, "succeeded", {}, None, "succeeded"),
        # not begun: there is nothing left to stop
        (True, "released", {}, True, "aborted"),
        (True, "unknown_task", {}, True, "aborted"),
        (False, "released", {}, None, "todo"),
    ],
    ids=str,
)
@pytest.mark.parametrize("locks", [{}, {"lock": "l", "queueing_lock": "q"}], ids=["", "locks"])
def test_how_a_run_ended_decides(db, requested, kind, more, policy, status, locks):
    worker = db.worker()
    db.worker(tasks={"task": {}})
    job_id = db.defer("task", retry=policy, **locks)
    follower = db.defer("follower", lock="l", schedule_in="1 second")
    job = worker.take()
    if requested:
        assert db.cancel(job_id, abort=True) == "abort_requested"
    verdict = worker.end(job, kind, error={"class": "Error"}, **more)
    assert (verdict.verdict, verdict.status, db.status(job_id)) == ("ok", status, status)
    after = db.job(job_id)
    assert after.abort_requested is False
    assert after.attempts == (0 if kind == "released" and status == "todo" else 1)
    assert (after.finished_at is None) == (status == "todo")
    if status != "todo":
        assert verdict.retry_at is None
        db.advance("1 second")
        assert worker.ids() == [follower]


def test_a_plain_success_in_spite_of_an_abort_request_is_a_success(db, worker):
    job_id = db.defer()
    job = worker.take()
    db.cancel(job_id, abort=True)
    assert [row.status for row in worker.finish(job)] == ["succeeded"]
    assert (db.status(job_id), db.job(job_id).abort_requested) == ("succeeded", False)


def test_the_policy_of_a_shutdown_filters_errors_too(db, worker):
    job_id = db.defer(retry={"retry_exceptions": ["CancelledError"]})
    other = db.defer(retry={"retry_exceptions": ["ValueError"]})
    for job in worker.fetch(2):
        worker.end(job, "aborted", reason="shutdown", error={"class": "CancelledError"})
    assert db.status(job_id, other) == ["todo", "aborted"]


def test_an_aborted_job_keeps_what_was_thrown(db, worker):
    job_id = db.defer()
    worker.end(worker.take(), "aborted", error={"class": "JobAborted", "message": "enough"})
    job = db.job(job_id)
    assert (job.error_class, job.error_message) == ("JobAborted", "enough")


def test_a_worker_is_told_of_aborts_by_its_heartbeat(db):
    one, two = db.worker("one"), db.worker("two")
    ids = [db.defer() for _ in range(4)]
    mine, others = one.fetch(3), two.fetch(1)
    assert one.heartbeat().abort == []
    db.cancel(ids[2], abort=True)
    db.cancel(ids[0], abort=True)
    db.cancel(ids[3], abort=True)
    assert (one.heartbeat().abort, two.heartbeat().abort) == ([ids[0], ids[2]], [ids[3]])
    assert one.heartbeat().abort == [ids[0], ids[2]], "told until it has ended"
    one.end(mine[0], "aborted", reason="user")
    two.finish(*others)
    assert (one.heartbeat().abort, two.heartbeat().abort) == ([ids[2]], [])


def test_a_request_is_for_one_run(db, worker):
    job_id = db.defer()
    job = worker.take()
    db.cancel(job_id, abort=True)
    worker.fail(job)
    db.retry(job_id)
    job = worker.take()
    assert (job.abort_requested, worker.heartbeat().abort) == (False, [])
    assert worker.fail(job, retry={"in": 0}).status == "todo"
