"""Outcomes that no rule is about: they hurt themselves only."""

from __future__ import annotations

import json

import pytest
from psycopg.types.json import Jsonb

FAULTS = [
    ({"id": "x"}, "id and token must be integers"),
    ({"id": "1"}, "id and token must be integers"),
    ({"id": 1.5}, "id and token must be integers"),
    ({"id": 10**30}, "id and token must be integers"),
    ({"token": 2**63}, "id and token must be integers"),
    ({"token": {}}, "id and token must be integers"),
    ({"keep": "maybe"}, "keep must be true or false"),
    ({"keep": 1}, "keep must be true or false"),
    ({"outcome": "x"}, "unknown outcome"),
    ({"outcome": None}, "unknown outcome"),
    ({"outcome": ["failed"]}, "unknown outcome"),
]


@pytest.fixture
def claims(db, worker):
    db.defer_many({}, {}, {})
    return worker.fetch(3)


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_only_the_malformed_outcome_is_refused(db, worker, claims, outcome, fault, message):
    plain, bad, good = claims
    told = [outcome(bad, "succeeded") | fault, outcome(good, "failed")]
    verdicts = worker.finish(plain, outcomes=told)
    assert [(v.verdict, v.sqlstate, v.message) for v in verdicts] == [
        ("ok", None, None),
        ("refused", "22023", message),
        ("ok", None, None),
    ]
    assert db.status(plain.id, bad.id, good.id) == ["succeeded", "doing", "failed"]
    # the worker then says that it failed
    assert worker.fail(bad).verdict == "ok"


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_work_refuses_it_too(db, worker, claims, outcome, fault, message):
    plain, bad, good = claims
    _, last = worker.work(plain, outcomes=[outcome(bad, "succeeded") | fault, outcome(good, "failed")])
    assert [v["verdict"] for v in last.verdicts if v.get("id") == good.id] == ["ok"]
    (refused,) = (v for v in last.verdicts if v["verdict"] == "refused")
    assert (refused["sqlstate"], refused["message"]) == ("22023", message)
    assert db.status(plain.id, bad.id, good.id) == ["succeeded", "doing", "failed"]


@pytest.mark.parametrize("fault", [1, "x", None, [], True])
def test_an_outcome_that_is_no_object(db, worker, claims, outcome, fault):
    verdicts = worker.finish(outcomes=[fault, outcome(claims[0], "failed"), fault])
    assert [(v.id, v.verdict, v.sqlstate) for v in verdicts] == [
        (None, "refused", "22023"),
        (claims[0].id, "ok", None),
        (None, "refused", "22023"),
    ]


@pytest.mark.parametrize("outcomes", ['{"id": 1}', "1", "null"])
def test_outcomes_that_are_no_array(db, worker, outcomes):
    with db.refused("22023", "outcomes must be a JSON array"):
        db.rows("select procrastinate.finish_v1(%s, outcomes => %s)", worker.id, outcomes)


def test_an_id_that_is_written_as_a_fraction_or_a_power(db, worker, claims):
    told = f'[{{"id": {claims[0].id}.0, "token": {claims[0].token}, "outcome": "failed"}}]'
    (row,) = db.rows("select * from procrastinate.finish_v1(%s, outcomes => %s)", worker.id, told)
    assert (row.verdict, row.sqlstate) == ("refused", "22023")


# Told twice


@pytest.mark.parametrize("queueing_lock", [None, "q"])
@pytest.mark.parametrize("kind", ["released", "failed", "succeeded"])
def test_a_run_that_is_told_twice_counts_once(db, worker, outcome, kind, queueing_lock):
    job_id = db.defer("task", retry=True, queueing_lock=queueing_lock)
    run = worker.take()
    verdicts = worker.finish(outcomes=[outcome(run, kind), outcome(run, kind)])
    status = "succeeded" if kind == "succeeded" else "todo"
    assert [(v.verdict, v.status) for v in verdicts] == [("ok", status)] * 2
    assert db.job(job_id).attempts == (kind != "released")
    assert db.one("select coalesce(max(token), -1) < 0 from procrastinate.job")
    assert [v.verdict for v in worker.finish(outcomes=[outcome(run, kind), outcome(run, kind)])] == ["already"] * 2
    assert db.status(job_id) == status


def test_of_two_ends_of_a_run_the_first_counts(db, worker, outcome):
    job_id = db.defer("task")
    run = worker.take()
    verdicts = worker.finish(outcomes=[outcome(run, "failed"), outcome(run, "succeeded")])
    assert [(v.verdict, v.status) for v in verdicts] == [("ok", "failed")] * 2
    assert db.status(job_id) == "failed"


@pytest.mark.parametrize("keep", [True, False])
def test_a_plain_success_counts_before_an_outcome(db, worker, outcome, keep):
    job_id = db.defer("task", lock="l")
    run = worker.take()
    verdicts = worker.finish(run, run, outcomes=[outcome(run, "failed")], keep=keep)
    assert [(v.verdict, v.status) for v in verdicts] == [("ok", "succeeded")] * 3
    assert db.status(job_id) == ("succeeded" if keep else None)


def test_stale_runs_that_are_told_twice(db, worker, outcome):
    db.defer("task")
    run = worker.take()
    worker.finish(run)
    db.conn.execute("delete from procrastinate.done")
    verdicts = worker.finish(run, run, outcomes=[outcome(run, "failed")] * 2)
    assert [v.verdict for v in verdicts] == ["stale"] * 4


# Tokens that are spent, negated as the table keeps them


@pytest.mark.parametrize("kind", ["released", "failed"])
def test_a_spent_token_never_matches(db, worker, outcome, kind):
    job_id = db.defer("task", retry=True)
    run = worker.take()
    worker.end(run, kind)
    attempts = db.job(job_id).attempts
    for token in run.token, -run.token:
        spent = run._replace(token=token)
        verdicts = worker.finish(spent, outcomes=[outcome(spent, "succeeded")])
        assert "ok" not in [v.verdict for v in verdicts]
        _, last = worker.work(spent, outcomes=[outcome(spent, "failed")])
        assert "ok" not in [v["verdict"] for v in last.verdicts]
        with db.refused("JQ002"):
            db.value("complete_v1", job_id=job_id, token=token)
    assert (db.status(job_id), db.job(job_id).attempts) == ("todo", attempts)


def test_the_negative_of_a_current_token_is_not_the_token(db, worker, outcome):
    job_id = db.defer("task")
    run = worker.take()
    wrong = run._replace(token=-run.token)
    verdicts = worker.finish(wrong, outcomes=[outcome(wrong, "released"), outcome(wrong, "succeeded", keep=False)])
    assert [v.verdict for v in verdicts] == ["stale"] * 3
    worker.finish(run)
    verdicts = worker.finish(wrong, outcomes=[outcome(wrong, "succeeded")], keep=False)
    assert [v.verdict for v in verdicts] == ["stale"] * 2
    assert db.status(job_id) == "succeeded"


# Errors are cut by bytes


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀"])
@pytest.mark.parametrize("shift", range(4))
def test_an_error_is_kept_up_to_so_many_bytes(db, worker, letter, shift):
    job_id = db.defer("task")
    text = "x" * shift + letter * 70_000 + "y" * shift
    worker.end(worker.take(), "failed", error={"class": "E", "message": text, "traceback": text})
    message = db.job(job_id).error_message
    traceback = db.one("select error ->> 'traceback' from procrastinate.done where id = %s", job_id)
    assert text.startswith(message)
    assert text.endswith(traceback)
    assert 8192 - 4 < len(message.encode()) <= 8192
    assert 65536 - 4 < len(traceback.encode()) <= 65536


def test_an_error_that_just_fits_is_kept_whole(db, worker):
    job_id = db.defer("task")
    text = "é" * 4096
    worker.end(worker.take(), "failed", error={"class": "E", "message": text, "traceback": text * 8})
    assert db.job(job_id).error_message == text
    assert db.one("select error ->> 'traceback' from procrastinate.done where id = %s", job_id) == text * 8


# Numbers of few bytes and many digits


@pytest.mark.parametrize("call", ["defer", "defer_many", "headers"])
def test_a_number_counts_as_the_text_it_is(db, call):
    db.set("max_args_bytes", 1000)
    long = {"n": json.loads("1e300")}
    query = {
        "defer": "select procrastinate.defer('t', %s)",
        "defer_many": "select procrastinate.defer_many(jsonb_build_array(jsonb_build_object("
        "'task', 't', 'args', %s::jsonb)))",
        "headers": "select procrastinate.defer('t', headers => %s)",
    }[call]
    db.rows(query, Jsonb(long))
    with db.refused("JQ012"):
        db.rows(query, '{"n": 1e131000}')
