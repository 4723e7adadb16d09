"""`manage.py procrastinate`."""

from __future__ import annotations

from typing import Any

import pytest
from bookshop.models import Order
from django.core.management import CommandError, call_command
from django.db import connection

from pyprocrastinate.contrib.django import app


def test_worker(dsn: str, jobs: Any, capfd: Any) -> None:
    Order.place("Ada", "The Elements")
    call_command("procrastinate", "worker", "--one-shot", "--queues", "default")
    assert [status for *_, status in jobs()] == ["todo"]
    call_command("procrastinate", "worker", "--one-shot", "-c", "3")
    assert [status for *_, status in jobs()] == ["succeeded"]
    assert Order.objects.get().sent is True
    assert capfd.readouterr().out == "sent: The Elements for Ada\n"


def test_defer(dsn: str, jobs: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_DEFER_QUEUE", "other")
    call_command("procrastinate", "defer", "bookshop.tasks.send", '{"order": 1}', "--lock", "l")
    assert jobs() == [("bookshop.tasks.send", {"order": 1}, "todo")]
    assert capfd.readouterr().out == "1\n"
    (job,) = app.job_manager.list_jobs()
    assert (job.queue, job.lock) == ("other", "l")


def test_healthchecks(dsn: str, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_VERBOSE", "2")  # the variable of the other command
    call_command("procrastinate", "healthchecks")
    assert capfd.readouterr().out.splitlines() == [
        "Database connection: OK",
        "Migrations: OK",
        "Default Django Procrastinate App: OK",
        "Worker App: OK",
    ]


@pytest.mark.scenario(77)
@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("delete from django_migrations where name = '0002_post'", "not applied: 0002_post"),
        ("drop schema procrastinate cascade", "procrastinate"),
    ],
)
def test_healthchecks_tell_what_is_wrong(dsn: str, conn: Any, statement: str, complaint: str) -> None:
    conn.execute(statement)
    with pytest.raises(CommandError, match=complaint) as caught:
        call_command("procrastinate", "healthchecks")
    assert caught.value.returncode == 1


def test_healthchecks_without_a_database(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "NAME", "nowhere")
    with pytest.raises(CommandError, match='database "nowhere" does not exist'):
        call_command("procrastinate", "healthchecks")


def test_jobs_are_looked_at_and_managed(dsn: str, jobs: Any, capfd: Any) -> None:
    call_command("procrastinate", "shell", "list_queues")
    assert capfd.readouterr().out == ""
    app.configure_task("bookshop.tasks.count").defer()
    call_command("procrastinate", "shell", "cancel", "1")
    assert jobs()[0][2] == "cancelled"
    for command in (["shell", "list_jobs"], ["jobs"]):
        capfd.readouterr()
        call_command("procrastinate", *command)
        assert "bookshop.tasks.count" in capfd.readouterr().out


def test_errors_are_one_line(dsn: str, capfd: Any) -> None:
    for arguments, complaint in [
        (["defer", "unknown"], "there is no task unknown"),
        (["defer", "bookshop.tasks.count", "{"], "not JSON"),
        (["worker", "--concurrency", "0"], "0 is not in the range"),
        (["nonsense"], "No such command"),
        ([], "worker"),
    ]:
        with pytest.raises(CommandError, match=complaint):
            call_command("procrastinate", *arguments)
        assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(CommandError):
        call_command("procrastinate", "defer", "bookshop.tasks.send", "--queue", "q" * 200, traceback=True)
    assert "Traceback" in capfd.readouterr().err


def test_help_lists_the_commands(capfd: Any) -> None:
    call_command("procrastinate", "worker", "--help")
    assert "--concurrency" in capfd.readouterr().out
