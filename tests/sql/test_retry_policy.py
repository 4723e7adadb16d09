"""When a failed job runs again: the policy, who provides it, and the decision that overrides it."""

from __future__ import annotations

import datetime as dt

import pytest
from psycopg.types.json import Jsonb


def delay(db, policy, attempts=0, error=None):
    """Return the seconds that a run waits which had so many before it; None for ever."""
    at = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    retry_at = db.one(
        "select procrastinate._retry_at(%s, %s, %s, %s)",
        Jsonb(policy),
        attempts,
        None if error is None else Jsonb(error),
        at,
    )
    return None if retry_at is None else (retry_at - at).total_seconds()


# The formula


@pytest.mark.parametrize(
    ("policy", "attempts", "seconds"),
    [
        (False, 0, None),
        (None, 0, None),
        (0, 0, None),
        (True, 0, 0),
        (True, 10**6, 0),
        (3, 0, 0),
        (3, 2, 0),
        (3, 3, None),
        (3.0, 2, 0),
        ({}, 0, None),
        ({"rescues": 1}, 0, None),
        ({"max_attempts": None}, 7, 0),
        ({"max_attempts": 0}, 7, 0),
        ({"max_attempts": 3}, 2, 0),
        ({"max_attempts": 3}, 3, None),
        ({"max_attempts": 3}, 4, None),
        ({"wait": 5}, 0, 5),
        ({"wait": 5}, 9, 5),
        ({"wait": 0.25}, 0, 0.25),
        ({"linear_wait": 7}, 0, 0),
        ({"linear_wait": 7}, 3, 21),
        ({"exponential_wait": 2}, 0, 2),
        ({"exponential_wait": 2}, 5, 64),
        ({"exponential_wait": 1.5}, 1, 2.25),
        ({"exponential_wait": 0}, 3, 0),
        ({"exponential_wait": 1}, 10**6, 1),
        ({"exponential_wait": 0.5}, 1, 0.25),
        ({"wait": 8, "linear_wait": 3, "exponential_wait": 2}, 4, 52),
        ({"wait": 5, "max_attempts": None, "linear_wait": None}, 2, 5),
        ({"wait": 5, "max_wait": 3}, 0, 3),
        ({"wait": 5, "max_wait": 9}, 0, 5),
        ({"exponential_wait": 10, "max_wait": 3600}, 10**6, 3600),
        ({"wait": 5, "max_wait": 0}, 0, 0),
        ({"wait": 5, "jitter": 0}, 0, 5),
    ],
    ids=str,
)
def test_the_wait_is_what_the_formula_says(db, policy, attempts, seconds):
    assert delay(db, policy, attempts) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        ({"wait": 1e12}, 0),
        ({"linear_wait": 1e12}, 2**31 - 2),
        ({"exponential_wait": 1e12}, 2**31 - 2),
        ({"exponential_wait": 2}, 1000),
        ({"exponential_wait": 1.0000001}, 2**31 - 2),
        ({"wait": 1e12, "linear_wait": 1e12, "exponential_wait": 1e12}, 2**31 - 2),
    ],
    ids=str,
)
def test_a_wait_without_end_ends_before_the_year_9000(db, policy, attempts):
    seconds = delay(db, policy, attempts)
    assert 6000 < seconds / (365.25 * 86400) < 7000


def test_jitter_shortens_the_wait_by_up_to_its_share(db):
    waits = {delay(db, {"wait": 1000, "jitter": 0.5}) for _ in range(200)}
    assert len(waits) > 100
    assert 500 <= min(waits) < 600
    assert 900 < max(waits) <= 1000


def test_jitter_comes_after_the_maximum(db):
    waits = {delay(db, {"wait": 9000, "max_wait": 1000, "jitter": 0.1}) for _ in range(50)}
    assert len(waits) > 25
    assert 900 <= min(waits) <= max(waits) <= 1000


# Which errors


@pytest.mark.parametrize(
    ("exceptions", "error", "retried"),
    [
        (["ValueError"], {"class": "ValueError"}, True),
        (["KeyError", "ValueError"], {"class": "ValueError"}, True),
        (["ValueError"], {"class": "KeyError"}, False),
        (["LookupError"], {"class": "KeyError", "ancestors": ["LookupError", "Exception"]}, True),
        (["Exception"], {"class": "KeyError", "ancestors": ["LookupError", "Exception"]}, True),
        (["OSError"], {"class": "KeyError", "ancestors": ["LookupError", "Exception"]}, False),
        (["valueerror"], {"class": "ValueError"}, False),
        (["ValueError"], {"class": "MyValueError"}, False),
        (["ValueError"], {"class": None}, False),
        (["ValueError"], {}, False),
        (["ValueError"], None, False),
        ([], {"class": "ValueError"}, True),
        ([], None, True),
        (None, {"class": "ValueError"}, True),
    ],
    ids=str,
)
def test_only_the_named_errors_and_their_descendants_are_retried(db, exceptions, error, retried):
    policy = {"max_attempts": 3, "retry_exceptions": exceptions}
    assert (delay(db, policy, 0, error) is not None) == retried


def test_the_error_that_ended_the_run_decides(db, worker):
    policy = {"retry_exceptions": ["LookupError"]}
    a, b = db.defer(retry=policy), db.defer(retry=policy)
    first, second = worker.fetch(2)
    worker.end(first, "failed", error={"class": "KeyError", "ancestors": ["LookupError"]})
    worker.end(second, "failed", error={"class": "ValueError", "ancestors": ["Exception"]})
    assert db.status(a, b) == ["todo", "failed"]


# A job's life under a policy


def test_a_job_runs_once_more_than_it_is_retried(db, worker):
    job_id = db.defer(retry=2)
    runs = []
    while jobs := worker.fetch():
        runs.append(jobs[0].attempts)
        worker.fail(jobs[0])
    assert runs == [0, 1, 2]
    assert (db.status(job_id), db.job(job_id).attempts) == ("failed", 3)


def test_a_job_without_a_policy_is_not_retried(db, worker):
    job_id = db.defer()
    assert worker.fail(worker.take()).status == "failed"
    assert db.status(job_id) == "failed"


@pytest.mark.scenario(33)
def test_a_retry_keeps_all_but_the_time(db, worker):
    job_id = db.defer(args={"a": 1}, queue="q", priority=3, lock="l", queueing_lock="ql", retry={"wait": 60})
    before = db.job(job_id)
    verdict = worker.fail(worker.take())
    job = db.job(job_id)
    assert (verdict.status, verdict.retry_at) == ("todo", job.scheduled_at)
    assert abs(job.scheduled_at - db.now() - dt.timedelta(seconds=60)) < dt.timedelta(seconds=30)
    assert (job.status, job.attempts, job.worker_id, job.started_at) == ("todo", 1, None, None)
    changed = dict.fromkeys(["scheduled_at", "attempts", "error_class", "error_message"])
    assert job._replace(**changed) == before._replace(**changed)


def test_the_wait_grows_from_run_to_run(db, worker):
    db.defer(retry={"linear_wait": 3600, "wait": 3600})
    for hours in (1, 2, 3):
        worker.fail(worker.take())
        db.advance(f"{hours * 60 - 1} minutes")
        assert worker.fetch() == []
        db.advance("1 minute")


def test_a_retry_at_once_is_ready_at_once(db, worker):
    job_id = db.defer(retry=True)
    worker.fail(worker.take())
    assert worker.ids() == [job_id]


# Who provides the policy


def test_the_policy_of_the_job_comes_first(db):
    db.value("register_task", name="task", retry=True)
    worker = db.worker(tasks={"task": {"retry": True}})
    db.defer("task", retry=False)
    assert worker.fail(worker.take()).status == "failed"


def test_then_comes_what_the_worker_that_ran_it_registered(db):
    db.value("register_task", name="task", retry=True)
    stubborn, other = (db.worker(tasks={"task": {"retry": 5}}), db.worker(tasks={"task": {"retry": False}}))
    db.defer("task")
    assert stubborn.fail(stubborn.take()).status == "todo"
    assert other.fail(other.take()).status == "failed"


@pytest.mark.parametrize("tasks", [{}, {"task": {}}, {"task": {"retry": None}}, {"other": {}}])
def test_then_comes_what_is_in_tasks(db, tasks):
    db.value("register_task", name="task", retry=True)
    worker = db.worker(tasks=tasks)
    db.defer("task")
    assert worker.fail(worker.take()).status == "todo"


def test_a_policy_registered_after_the_defer_counts(db, worker):
    db.defer("task")
    db.value("register_task", name="task", retry=True)
    assert worker.fail(worker.take()).status == "todo"


# Decisions


@pytest.mark.parametrize("policy", [None, False, True, 3, {"wait": 50}])
def test_null_is_the_decision_not_to_retry(db, worker, policy):
    job_id = db.defer(retry=policy)
    assert worker.fail(worker.take(), retry=None).status == "failed"
    assert db.status(job_id) == "failed"


@pytest.mark.parametrize("policy", [None, False, 0, {"wait": 50}])
def test_a_decision_overrides_the_policy(db, worker, policy):
    job_id = db.defer(retry=policy)
    verdict = worker.fail(worker.take(), retry={"in": 3600})
    assert verdict.status == "todo"
    assert abs(verdict.retry_at - db.now() - dt.timedelta(hours=1)) < dt.timedelta(minutes=1)
    assert db.job(job_id).scheduled_at == verdict.retry_at


@pytest.mark.scenario(34)
def test_a_decision_may_give_a_time_and_move_the_job(db, worker):
    job_id = db.defer(queue="old", priority=1, lock="l")
    decision = {"at": "2040-01-01T00:00:00+01:00", "priority": -4, "queue": "new", "lock": "m"}
    verdict = worker.fail(worker.take(), retry=decision)
    at = dt.datetime(2039, 12, 31, 23, tzinfo=dt.UTC)
    job = db.job(job_id)
    assert (verdict.retry_at, job.scheduled_at) == (at, at)
    assert (job.queue, job.priority, job.lock) == ("new", -4, "m")


@pytest.mark.parametrize("when", [{}, {"in": 0}, {"in": -5}, {"at": "2020-01-01T00:00:00Z"}])
def test_a_decision_without_a_wait_means_at_once(db, worker, when):
    job_id = db.defer(queue="q", priority=2)
    worker.fail(worker.take(), retry=when)
    assert (db.job(job_id).queue, db.job(job_id).priority) == ("q", 2)
    assert worker.ids() == [job_id]


def test_a_decision_ignores_how_often_it_ran(db, worker):
    db.defer(retry=1)
    for _ in range(4):
        assert worker.fail(worker.take(), retry={"in": 0}).status == "todo"


@pytest.mark.parametrize("kind", ["succeeded", "released"])
def test_a_decision_is_for_runs_that_failed(db, worker, kind):
    job_id = db.defer()
    worker.end(worker.take(), kind, retry={"in": 3600, "queue": "new"})
    assert db.job(job_id).queue == "default"
    assert db.job(job_id).scheduled_at is None


# The budget


def test_an_operators_retry_grants_a_fresh_budget(db, worker):
    job_id = db.defer(retry=1)
    for _ in range(2):
        worker.fail(worker.take())
    assert db.status(job_id) == "failed"
    db.retry(job_id)
    runs = []
    while jobs := worker.fetch():
        runs.append(jobs[0].attempts)
        worker.fail(jobs[0])
    assert runs == [2, 3]
    assert (db.status(job_id), db.job(job_id).attempts) == ("failed", 4)


def test_taking_a_running_job_away_grants_a_fresh_budget_too(db, worker):
    job_id = db.defer(retry=1)
    worker.fail(worker.take())
    worker.take()
    db.retry(job_id)
    assert worker.fail(worker.take()).status == "todo"
    assert worker.fail(worker.take()).status == "failed"


def test_a_fresh_budget_starts_the_waits_anew(db, worker):
    job_id = db.defer(retry={"linear_wait": 3600})
    worker.fail(worker.take())
    worker.fail(worker.take())
    db.advance("1 hour")
    worker.finish(worker.take())
    db.retry(job_id)
    verdict = worker.fail(worker.take())
    assert abs(verdict.retry_at - db.now()) < dt.timedelta(minutes=1)


def test_a_replaced_job_has_a_fresh_budget(db, worker):
    db.defer(retry=1, queueing_lock="q")
    worker.fail(worker.take())
    db.defer(retry=1, queueing_lock="q", on_conflict="replace")
    assert worker.fail(worker.take()).status == "todo"
    assert worker.fail(worker.take()).status == "failed"


def test_a_release_costs_nothing(db, worker):
    db.defer(retry=1)
    for _ in range(3):
        worker.end(worker.take(), "released")
    assert worker.fail(worker.take()).status == "todo"
    assert worker.fail(worker.take()).status == "failed"


# What is no policy


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        (-1, "retry"),
        (1.5, "retry"),
        (2**31, "retry"),
        ("3", "retry"),
        ([], "retry"),
        ({"attempts": 3}, "attempts"),
        ({"max_attempts": -1}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"max_attempts": 2**31}, "max_attempts"),
        ({"max_attempts": "3"}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"wait": -1}, "wait"),
        ({"wait": "1 hour"}, "wait"),
        ({"wait": 1e13}, "wait"),
        ({"linear_wait": -1}, "linear_wait"),
        ({"exponential_wait": -1}, "exponential_wait"),
        ({"max_wait": -1}, "max_wait"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
        ({"rescues": -1}, "rescues"),
        ({"rescues": 0.5}, "rescues"),
        ({"retry_exceptions": "ValueError"}, "retry_exceptions"),
        ({"retry_exceptions": [None]}, "retry_exceptions"),
        ({"retry_exceptions": [["ValueError"]]}, "retry_exceptions"),
    ],
    ids=str,
)
def test_what_is_no_policy_is_refused_and_its_fault_is_named(db, policy, fault):
    for call in (
        lambda: db.defer(retry=policy),
        lambda: db.defer_many({"retry": policy}),
        lambda: db.value("register_task", name="task", retry=policy),
        lambda: db.worker(tasks={"task": {"retry": policy}}),
    ):
        with db.refused("JQ017", "bad retry policy", detail=f'"{fault}"', hint="max_attempts"):
            call()


@pytest.mark.parametrize(
    "policy",
    [
        True,
        False,
        0,
        2**31 - 1,
        {},
        {
            "max_attempts": 3,
            "wait": 1.5,
            "linear_wait": 0,
            "exponential_wait": 1e12,
            "max_wait": None,
            "jitter": 1,
            "rescues": 0,
            "retry_exceptions": ["ValueError"],
        },
    ],
    ids=str,
)
def test_what_is_a_policy_is_taken_everywhere(db, policy):
    db.defer(retry=policy)
    db.defer_many({"retry": policy})
    db.worker(tasks={"task": {"retry": policy}})
    db.value("register_task", name="task", retry=policy)
    assert db.one("select retry from procrastinate.tasks") == policy
