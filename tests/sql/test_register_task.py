"""Defaults of tasks: set by `register_task`, or by workers as they start."""

from __future__ import annotations

import pytest


def defaults(db, name="task"):
    (row,) = db.rows("select * from procrastinate.tasks where name = %s", name)
    return (row.source, row.queue, row.priority, row.lock, row.queueing_lock, row.retry)


EVERYTHING = {"queue": "q", "priority": 1, "lock": "l", "queueing_lock": "ql", "retry": 3}


def test_a_task_is_registered_with_what_is_given(db):
    db.value("register_task", name="task")
    assert defaults(db) == ("sql", None, None, None, None, None)
    db.value("register_task", name="task", **EVERYTHING)
    assert defaults(db) == ("sql", "q", 1, "l", "ql", 3)


def test_registering_again_replaces_all(db):
    db.value("register_task", name="task", **EVERYTHING)
    db.value("register_task", name="task", priority=2)
    assert defaults(db) == ("sql", None, 2, None, None, None)


def test_a_worker_registers_its_tasks_as_it_starts(db):
    db.worker(tasks={"task": EVERYTHING, "bare": {}, "nulls": dict.fromkeys(EVERYTHING)})
    assert defaults(db) == ("worker", "q", 1, "l", "ql", 3)
    assert defaults(db, "bare") == ("worker", None, None, None, None, None)
    assert defaults(db, "nulls") == ("worker", None, None, None, None, None)


def test_the_worker_that_starts_last_is_right(db):
    db.worker(tasks={"task": EVERYTHING})
    db.worker(tasks={"task": {"queue": "new"}})
    assert defaults(db) == ("worker", "new", None, None, None, None)


def test_a_worker_leaves_tasks_alone_that_it_does_not_know(db):
    db.worker(tasks={"task": EVERYTHING})
    db.worker(tasks={"other": {}})
    assert defaults(db) == ("worker", "q", 1, "l", "ql", 3)


def test_a_worker_never_changes_what_was_set_in_sql(db):
    db.value("register_task", name="task", queue="by hand")
    db.worker(tasks={"task": EVERYTHING})
    assert defaults(db) == ("sql", "by hand", None, None, None, None)


def test_register_task_takes_a_task_over_from_the_workers(db):
    db.worker(tasks={"task": EVERYTHING})
    db.value("register_task", name="task", queue="by hand")
    db.worker(tasks={"task": EVERYTHING})
    assert defaults(db) == ("sql", "by hand", None, None, None, None)


def test_a_worker_that_changes_nothing_writes_nothing(db):
    db.worker(tasks={"task": EVERYTHING})
    before = db.rows("select * from procrastinate.tasks")
    db.advance("1 hour")
    db.worker(tasks={"task": EVERYTHING})
    assert db.rows("select * from procrastinate.tasks") == before


@pytest.mark.parametrize(
    ("sqlstate", "bad"),
    [
        ("JQ014", {"name": ""}),
        ("JQ014", {"name": None}),
        ("JQ014", {"name": "x" * 129}),
        ("JQ014", {"queue": "x" * 129}),
        ("JQ014", {"lock": "x" * 513}),
        ("JQ014", {"queueing_lock": ""}),
        ("JQ015", {"priority": -(2**31)}),
        ("JQ017", {"retry": {"waits": 3}}),
    ],
)
def test_what_no_job_could_have_is_refused(db, sqlstate, bad):
    with db.refused(sqlstate):
        db.value("register_task", **{"name": "task"} | bad)
    assert db.rows("select * from procrastinate.tasks") == []
