"""The tasks of Django's own, enqueued as jobs."""

from __future__ import annotations

import datetime
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from asgiref.sync import sync_to_async
from bookshop.models import Order
from django.db import transaction

from pyprocrastinate.contrib.django import app
from pyprocrastinate.exceptions import AlreadyEnqueued

if django.VERSION < (6, 0):
    pytest.skip("needs Django 6", allow_module_level=True)

from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started

OPTIONS_OF_TASKS = django.VERSION >= (6, 1)
NOTES = """
from bookshop.models import Order
from django.tasks import task


@task(queue_name="parcels", priority=3)
def write(customer, *, title="-"):
    Order.objects.create(customer=customer, title=title)
    return [customer, title]


@task
async def write_async(customer):
    await Order.objects.acreate(customer=customer)
    return customer


@task(takes_context=True)
def attempt(context):
    if context.attempt < 2:
        raise LookupError("not yet")
    return context.attempt, context.task_result.id


@task
def fail():
    raise ZeroDivisionError("x")


def plain():
    pass
"""
ONCE = """

@task(queueing_lock="once", retry=1)
def once():
    pass
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a module with tasks of Django's."""
    (tmp_path / "notes.py").write_text(NOTES + ONCE * OPTIONS_OF_TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    tasks = dict(app.tasks)
    yield importlib.import_module("notes")
    del sys.modules["notes"]
    app.tasks.clear()
    app.tasks.update(tasks)


@pytest.fixture
def signals() -> Iterator[list[tuple[str, Any, str]]]:
    """Return a list of the signals that Django sends: which one, of which result, and its status then."""
    seen: list[tuple[str, Any, str]] = []
    receivers: list[tuple[Any, Callable[..., None]]] = []
    for signal, name in [(task_enqueued, "enqueued"), (task_started, "started"), (task_finished, "finished")]:

        def receive(sender: Any, task_result: Any, name: str = name, **_: Any) -> None:
            seen.append((name, task_result.id, task_result.status.value))

        signal.connect(receive)
        receivers.append((signal, receive))
    yield seen
    for signal, receive in receivers:
        signal.disconnect(receive)


def work() -> None:
    app.run_worker(wait=False, install_signal_handlers=False)


def test_a_task_is_a_job_in_the_transaction(dsn: str, notes: Any, conn: Any) -> None:
    with transaction.atomic():
        result = notes.write.enqueue("Ada", title="The Elements")
        assert conn.execute("select count(*) from procrastinate.jobs").fetchone() == (0,)
    found = conn.execute("select id::text, task, args, queue, priority from procrastinate.jobs").fetchone()
    args = {"args": ["Ada"], "kwargs": {"title": "The Elements"}}
    assert found == (result.id, "notes.write", args, "parcels", 3)
    assert (result.status, result.args, result.kwargs) == (TaskResultStatus.READY, ["Ada"], {"title": "The Elements"})
    with transaction.atomic():
        notes.write.enqueue("Mallory")
        transaction.set_rollback(True)
    assert conn.execute("select count(*) from procrastinate.jobs").fetchone() == (1,)


def test_its_result_can_be_had(dsn: str, notes: Any, signals: Any) -> None:
    result = notes.write.enqueue("Ada")
    assert notes.write.get_result(result.id).status is TaskResultStatus.READY
    work()
    result.refresh()
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, ["Ada", "-"])
    assert result.enqueued_at < result.started_at < result.finished_at
    assert (result.started_at, result.errors, result.attempts) == (result.last_attempted_at, [], 1)
    assert (result.task.queue_name, result.task.priority) == ("parcels", 3)
    assert Order.objects.get().customer == "Ada"
    assert signals == [
        ("enqueued", result.id, "READY"),
        ("started", result.id, "RUNNING"),
        ("finished", result.id, "SUCCESSFUL"),
    ]


@pytest.mark.usefixtures("threads")
async def test_async(dsn: str, notes: Any, signals: Any) -> None:
    result = await notes.write_async.aenqueue("Grace")
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    result = await notes.write_async.aget_result(result.id)
    assert (result.return_value, await Order.objects.acount()) == ("Grace", 1)
    assert [name for name, *_ in signals] == ["enqueued", "started", "finished"]
    await sync_to_async(notes.write.enqueue)("Ada")


def test_failures_are_told(dsn: str, notes: Any, signals: Any) -> None:
    result = notes.fail.enqueue()
    work()
    result.refresh()
    assert (result.status, result.is_finished) == (TaskResultStatus.FAILED, True)
    (error,) = result.errors
    assert error.exception_class is ZeroDivisionError
    assert error.traceback.rstrip().endswith("ZeroDivisionError: x")
    assert signals[-1] == ("finished", result.id, "FAILED")


def test_options_are_the_apps(dsn: str, notes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = task_backends["default"]
    monkeypatch.setattr(backend, "options", {"retry": 1})
    del app.tasks["notes.attempt"]
    result = notes.attempt.enqueue()
    work()
    work()
    result.refresh()
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, [2, result.id])
    assert [error.exception_class for error in result.errors] == [LookupError]
    assert result.started_at < result.last_attempted_at
    assert result.attempts == 2


@pytest.mark.skipif(not OPTIONS_OF_TASKS, reason="needs Django 6.1")
def test_tasks_have_options_of_their_own(dsn: str, notes: Any) -> None:
    notes.once.enqueue()
    with pytest.raises(AlreadyEnqueued):
        notes.once.enqueue()
    assert app.tasks["notes.once"].as_registered()["retry"]["max_attempts"] == 1


def test_it_can_be_run_later(dsn: str, notes: Any, conn: Any) -> None:
    at = datetime.datetime(2100, 1, 2, tzinfo=datetime.UTC)
    notes.fail.using(run_after=at, queue_name="parcels", priority=-7).enqueue()
    assert conn.execute("select scheduled_at, queue, priority from procrastinate.jobs").fetchone() == (
        at,
        "parcels",
        -7,
    )


def test_what_is_not_djangos_is_not_there(dsn: str, notes: Any) -> None:
    other = app.configure_task("bookshop.tasks.count").defer()
    unknown = app.configure_task("unknown").defer()
    for result_id in (str(other), str(unknown), "77", "x", ""):
        with pytest.raises(TaskResultDoesNotExist):
            task_backends["default"].get_result(result_id)


def test_what_cannot_be_enqueued_is_refused(dsn: str, notes: Any) -> None:
    with pytest.raises(InvalidTask, match="Queue 'x' is not valid"):
        notes.fail.using(queue_name="x")
    with pytest.raises(TypeError):
        notes.write.enqueue(object())
    app.task(name="notes.plain")(print)
    from django.tasks import task

    with pytest.raises(InvalidTask, match="another task of the name"):
        task(notes.plain)
