"""What `finish_v1` promises: one verdict for each run that ended, and no outcome harms another."""

from __future__ import annotations

import pytest


def verdicts(rows):
    return [(row.id, row.verdict, row.status) for row in rows]


@pytest.mark.scenario(30)
def test_a_run_that_succeeded_makes_the_job_succeeded(db, worker):
    job_id = db.defer("task", args={"a": 1}, lock="l", queueing_lock="q", headers={"h": 1})
    before = db.now()
    job = worker.take()
    assert verdicts(worker.finish(job)) == [(job_id, "ok", "succeeded")]
    after = db.job(job_id)
    assert (after.status, after.attempts, after.worker_id) == ("succeeded", 1, worker.id)
    assert before <= after.started_at <= after.finished_at <= db.now()
    assert (after.task, after.args, after.headers) == ("task", {"a": 1}, {"h": 1})
    assert (after.lock, after.queueing_lock, after.deferred_at) == ("l", "q", job.deferred_at)
    assert (after.error_class, after.result, after.abort_requested) == (None, None, False)


@pytest.mark.parametrize("kind", ["succeeded", "failed", "aborted"])
def test_every_ended_run_is_an_attempt(db, worker, kind):
    job_id = db.defer()
    worker.end(worker.take(), kind)
    assert (db.status(job_id), db.job(job_id).attempts) == (kind, 1)


def test_all_kinds_go_in_one_call_and_verdicts_come_in_the_order_given(db, worker, outcome):
    ids = [db.defer(n, retry=n == "retried") for n in ["plain", "a", "b", "c", "retried", "d", "e"]]
    plain, a, b, c, retried, d, e = worker.fetch(9)
    rows = worker.finish(
        plain,
        outcomes=[
            outcome(e, "unknown_task"),
            outcome(a, "succeeded", result={"x": 1}),
            outcome(retried, "failed"),
            outcome(b, "failed"),
            outcome(c, "aborted"),
            outcome(d, "released"),
        ],
    )
    assert verdicts(rows) == [
        (plain.id, "ok", "succeeded"),
        (e.id, "ok", "failed"),
        (a.id, "ok", "succeeded"),
        (retried.id, "ok", "todo"),
        (b.id, "ok", "failed"),
        (c.id, "ok", "aborted"),
        (d.id, "ok", "todo"),
    ]
    assert db.status(*ids) == [
        "succeeded", "succeeded", "failed", "aborted", "todo", "todo", "failed",
    ]  # fmt: skip
    assert [row.token for row in rows] == [j.token for j in (plain, e, a, retried, b, c, d)]


def test_nothing_to_finish_is_no_error(worker):
    assert worker.finish() == []


@pytest.mark.scenario(31)
@pytest.mark.parametrize("kind", ["succeeded", "failed", "aborted"])
def test_a_run_ends_once(db, worker, kind):
    job_id = db.defer()
    job = worker.take()
    worker.end(job, kind)
    before = db.job(job_id)
    assert verdicts(worker.finish(job)) == [(job_id, "already", kind)]
    for again in ("succeeded", "failed", "aborted", "released"):
        verdict = worker.end(job, again)
        assert (verdict.verdict, verdict.status) == ("already", kind)
    assert db.job(job_id) == before


@pytest.mark.parametrize("kind", ["failed", "released"])
def test_a_run_whose_job_waits_again_has_ended_too(db, worker, kind):
    job_id = db.defer(retry=True)
    job = worker.take()
    worker.end(job, kind)
    before = db.job(job_id)
    assert verdicts(worker.finish(job)) == [(job_id, "already", "todo")]
    assert db.job(job_id) == before


def test_a_run_is_stale_once_the_job_was_claimed_anew(db, worker):
    job_id = db.defer(retry=True)
    old = worker.take()
    worker.fail(old)
    new = worker.take()
    assert verdicts(worker.finish(old)) == [(job_id, "stale", None)]
    assert worker.fail(old).verdict == "stale"
    assert db.status(job_id) == "doing"
    assert verdicts(worker.finish(new)) == [(job_id, "ok", "succeeded")]


@pytest.mark.parametrize("first", ["old", "new"])
def test_an_old_and_a_new_run_of_a_job_may_end_in_one_call(db, worker, outcome, first):
    job_id = db.defer(retry=True)
    old = worker.take()
    worker.end(old, "released")
    new = worker.take()
    runs = [old, new] if first == "old" else [new, old]
    rows = worker.finish(outcomes=[outcome(run, "failed", retry=None) for run in runs])
    assert {row.token: row.verdict for row in rows} == {old.token: "stale", new.token: "ok"}
    assert db.status(job_id) == "failed"


@pytest.mark.parametrize("first", ["old", "new"])
@pytest.mark.parametrize("keep", [True, False])
def test_an_old_and_a_new_run_may_both_succeed_in_one_call(db, worker, first, keep):
    db.defer(retry=True)
    old = worker.take()
    worker.end(old, "released")
    new = worker.take()
    rows = worker.finish(*([old, new] if first == "old" else [new, old]), keep=keep)
    assert {row.token: row.verdict for row in rows} == {old.token: "stale", new.token: "ok"}


def test_a_run_told_twice_in_one_call_counts_once(db, worker, outcome):
    job_id = db.defer()
    job = worker.take()
    rows = worker.finish(outcomes=[outcome(job, "failed"), outcome(job, "failed")])
    assert verdicts(rows) == [(job_id, "ok", "failed")] * 2
    assert db.job(job_id).attempts == 1


def test_nobody_ends_a_run_without_its_token(db, worker):
    job_id = db.defer()
    job = worker.take()
    for token in (job.token + 1, job.token - 1, -job.token, 0, None):
        forged = job._replace(token=token)
        assert verdicts(worker.finish(forged)) == [(job_id, "stale", None)]
        assert worker.end(forged, "failed").verdict == "stale"
    assert db.status(job_id) == "doing"


def test_the_token_of_another_job_is_no_good(db, worker):
    a, b = db.defer(), db.defer()
    job, other = worker.fetch(2)
    assert worker.finish(job._replace(token=other.token))[0].verdict == "stale"
    assert worker.end(job._replace(token=other.token), "failed").verdict == "stale"
    assert db.status(a, b) == ["doing", "doing"]


def test_a_job_that_is_not_there_is_stale(db, worker):
    db.defer()
    job = worker.take()
    assert verdicts(worker.finish(job._replace(id=77))) == [(77, "stale", None)]
    assert worker.end(job._replace(id=77), "failed").verdict == "stale"


def test_tokens_never_go_back(db, worker):
    job_id = db.defer(retry=True)
    tokens = []
    ways = [
        lambda job: worker.fail(job),
        lambda job: worker.end(job, "released"),
        lambda job: (worker.succeed(job), db.retry(job_id)),
        lambda job: db.retry(job_id),
        lambda job: (worker.fail(job), db.cancel(job_id), db.retry(job_id)),
        lambda job: (db.advance("1 hour"), db.tick()),
    ]
    for way in ways:
        worker = db.worker()
        job = worker.take()
        tokens.append(job.token)
        way(job)
    tokens.append(db.worker().take().token)
    assert tokens == sorted(set(tokens))


# What is kept


def test_what_is_not_kept_is_gone_with_its_story(db, worker):
    job_id = db.defer(retry=True)
    worker.fail(worker.take())
    assert len(db.events(job_id)) > 1
    job = worker.take()
    assert verdicts(worker.finish(job, keep=False)) == [(job_id, "ok", "succeeded")]
    assert (db.job(job_id), db.events(job_id)) == (None, [])
    assert worker.finish(job, keep=False)[0].verdict == "stale"


@pytest.mark.parametrize("kind", ["succeeded", "failed", "aborted"])
def test_each_outcome_says_whether_the_job_is_kept(db, worker, outcome, kind):
    ids = [db.defer() for _ in range(3)]
    a, b, c = worker.fetch(3)
    rows = worker.finish(
        keep=False, outcomes=[outcome(a, kind, keep=True), outcome(b, kind, keep=False), outcome(c, kind)]
    )
    assert [row.status for row in rows] == [kind] * 3
    assert db.status(*ids) == [kind, None, kind]
    assert db.events(ids[1]) == []


def test_a_job_that_is_retried_is_kept_whatever_is_said(db, worker):
    job_id = db.defer(retry=1)
    worker.fail(worker.take(), keep=False)
    assert db.status(job_id) == "todo"
    worker.fail(worker.take(), keep=False)
    assert db.status(job_id) is None


# Results and errors


@pytest.mark.parametrize("result", [{"a": [1, None]}, [], "text", 0, False, 1.5, None])
def test_a_result_is_stored_as_it_is(db, worker, result):
    job_id = db.defer()
    worker.succeed(worker.take(), result=result)
    stored = db.one("select result::text from procrastinate.jobs where id = %s", job_id)
    assert db.job(job_id).result == result
    assert stored is not None


def test_a_result_may_have_64_kib_and_no_more(db, worker):
    fits, too_large = db.defer(), db.defer()
    verdict = worker.succeed(worker.take(), result="x" * 65534)
    assert (verdict.verdict, verdict.message) == ("ok", None)
    verdict = worker.succeed(worker.take(), result="x" * 65535)
    assert (verdict.verdict, verdict.status) == ("ok", "succeeded")
    assert "64 KiB" in verdict.message
    assert (db.job(fits).result, db.job(too_large).result) == ("x" * 65534, None)
    assert db.status(too_large) == "succeeded"


def test_a_failure_does_not_store_a_result(db, worker):
    job_id = db.defer()
    worker.fail(worker.take())
    assert db.job(job_id).result is None


def error_of(db, job_id):
    """Return all that is kept of the error a job ended with."""
    return db.one("select detail from procrastinate.events where job_id = %s and type = 'failed'", job_id)


def test_an_error_is_stored_with_class_message_and_traceback(db, worker):
    job_id = db.defer()
    error = {"class": "ValueError", "ancestors": ["Exception"], "message": "no", "traceback": "tb"}
    worker.end(worker.take(), "failed", error=error)
    job = db.job(job_id)
    assert (job.error_class, job.error_message) == ("ValueError", "no")
    assert error_of(db, job_id) == {"class": "ValueError", "message": "no", "traceback": "tb"}


def test_of_a_long_error_the_start_of_the_message_and_the_end_of_the_traceback_are_kept(db, worker):
    job_id = db.defer()
    error = {"class": "C" * 600, "message": "m" + "x" * 9000, "traceback": "x" * 70000 + "t"}
    worker.end(worker.take(), "failed", error=error)
    kept = error_of(db, job_id)
    assert kept["class"] == "C" * 500
    assert kept["message"] == "m" + "x" * 8191
    assert kept["traceback"] == "x" * 65535 + "t"


def test_an_error_may_be_left_out(db, worker):
    job_id = db.defer()
    worker.end(worker.take(), "failed")
    assert (db.status(job_id), db.job(job_id).error_class) == ("failed", None)


@pytest.mark.parametrize("error", ["boom", 3, [], None, {}])
def test_an_error_of_the_wrong_shape_does_not_save_the_job(db, worker, error):
    job_id = db.defer()
    worker.end(worker.take(), "failed", error=error)
    assert (db.status(job_id), db.job(job_id).error_class) == ("failed", None)


@pytest.mark.parametrize("queueing_lock", [None, "q"])
def test_errors_are_not_stored_where_the_setting_says_so(db, worker, queueing_lock):
    db.set("store_errors", False)
    job_id = db.defer(retry=1, queueing_lock=queueing_lock)
    error = {"class": "ValueError", "message": "secret", "traceback": "secret"}
    worker.end(worker.take(), "failed", error=error)
    assert (db.job(job_id).error_class, db.job(job_id).error_message) == ("ValueError", None)
    worker.end(worker.take(), "failed", error=error)
    assert (db.job(job_id).error_class, db.job(job_id).error_message) == ("ValueError", None)
    assert "secret" not in str(db.rows("select * from procrastinate.events"))


def test_a_waiting_job_shows_the_error_of_its_last_run(db, worker):
    job_id = db.defer(retry=True)
    worker.fail(worker.take(), "KeyError")
    assert (db.status(job_id), db.job(job_id).error_class) == ("todo", "KeyError")
    worker.finish(worker.take())
    assert (db.status(job_id), db.job(job_id).error_class) == ("succeeded", None)


# Bad outcomes


BAD = [
    ("22023", "unknown outcome", {"outcome": "exploded"}),
    ("22023", "unknown outcome", {"outcome": None}),
    ("22P02", None, {"retry": {"in": "soon"}}),
    (None, None, {"retry": {"in": 1e300}}),  # 22008, before PostgreSQL 17 JQ013
    ("22007", None, {"retry": {"at": "tomorrowish"}}),
    ("JQ013", None, {"retry": {"at": "infinity"}}),
    ("JQ013", None, {"retry": {"in": 1e12}}),
    ("22P02", None, {"retry": {"priority": "high"}}),
    ("22003", None, {"retry": {"priority": -(2**31)}}),
    ("JQ014", None, {"retry": {"queue": ""}}),
    ("JQ014", None, {"retry": {"queue": "x" * 129}}),
    ("JQ014", None, {"retry": {"lock": "x" * 513}}),
]  # fmt: skip


@pytest.mark.scenario(32)
@pytest.mark.parametrize(("sqlstate", "message", "bad"), BAD, ids=str)
@pytest.mark.parametrize("queueing_lock", [None, "q"])
def test_a_bad_outcome_harms_only_itself(db, worker, outcome, sqlstate, message, bad, queueing_lock):
    ids = [db.defer(retry=1), db.defer(queueing_lock=queueing_lock), db.defer(), db.defer()]
    before, job, after, plain = worker.fetch(4)
    rows = worker.finish(
        plain,
        outcomes=[
            outcome(before, "failed"),
            outcome(job, "failed", error={"class": "E"}) | bad,
            outcome(after, "failed"),
        ],
    )
    assert [row.verdict for row in rows] == ["ok", "ok", "refused", "ok"]
    assert rows[2].sqlstate == (sqlstate or rows[2].sqlstate)
    assert rows[2].message == (message or rows[2].message)
    assert rows[2].message
    assert db.status(*ids) == ["todo", "doing", "failed", "succeeded"]
    verdict = worker.fail(job, retry=None)
    assert (verdict.verdict, verdict.status) == ("ok", "failed")


@pytest.mark.parametrize("decision", [True, 3, "soon", [], {"wait": 5}])
def test_a_retry_decision_that_nothing_would_read_is_refused(db, worker, decision):
    db.defer()
    verdict = worker.fail(worker.take(), retry=decision)
    assert (verdict.verdict, verdict.sqlstate) == ("refused", "JQ016")


def test_a_policy_written_past_the_checks_harms_only_its_own_job(db, worker):
    bad, good = db.defer(retry=1), db.defer(retry=1)
    db.conn.execute("""update procrastinate.job set retry = '{"wait": "long"}' where id = %s""", [bad])
    a, b = worker.fetch(2)
    assert worker.fail(a).verdict == "refused"
    assert worker.fail(b).status == "todo"
    assert worker.fail(a, retry=None).status == "failed"
    assert db.status(bad, good) == ["failed", "todo"]


def test_junk_among_the_outcomes_is_stale_and_harms_nobody(db, worker, outcome):
    job_id = db.defer()
    job = worker.take()
    rows = worker.finish(outcomes=[{}, outcome(job, "failed"), {"id": 5, "outcome": "failed"}])
    assert [row.verdict for row in rows] == ["stale", "ok", "stale"]
    assert db.status(job_id) == "failed"


def test_a_finish_rolled_back_never_was(db, worker, session):
    job_id = db.defer()
    job = worker.take()
    other = session(autocommit=False)
    assert worker.on(other).finish(job)[0].verdict == "ok"
    other.conn.rollback()
    assert db.status(job_id) == "doing"
    assert worker.finish(job)[0].verdict == "ok"


def test_a_worker_that_is_no_longer_registered_may_still_finish(db, worker):
    job_id = db.defer()
    job = worker.take()
    db.conn.execute("delete from procrastinate.worker")
    assert worker.finish(job)[0].verdict == "ok"
    assert db.status(job_id) == "succeeded"
