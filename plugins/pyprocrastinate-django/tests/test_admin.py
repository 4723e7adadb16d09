"""The queue in Django's admin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bookshop.models import Order
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.test.utils import setup_test_environment, teardown_test_environment

from pyprocrastinate.contrib.django import app

JOBS = "/admin/procrastinate/procrastinatejob/"


@pytest.fixture(autouse=True)
def contexts() -> Iterator[None]:
    """Let responses have the context of their templates."""
    setup_test_environment()
    yield
    teardown_test_environment()


@pytest.fixture
def admin(dsn: str) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def visitor(dsn: str) -> Client:
    """Return somebody who may look at jobs, and no more."""
    user = User.objects.create_user("visitor", is_staff=True)
    user.user_permissions.add(
        *Permission.objects.filter(codename__in=["view_procrastinatejob", "view_procrastinateevent"])
    )
    client = Client()
    client.force_login(user)
    return client


def act(client: Client, action: str, *job_ids: int) -> list[str]:
    """Do it to these jobs, and return what is said then."""
    response = client.post(JOBS, {"action": action, "_selected_action": job_ids}, follow=True)
    return [str(message) for message in response.context["messages"]]


@pytest.mark.parametrize("who", ["admin", "visitor"])
def test_jobs_are_listed(who: str, request: pytest.FixtureRequest) -> None:
    client = request.getfixturevalue(who)
    Order.place("Ada", "The Elements")
    app.configure_task("fails").defer(text="<script>")
    app.run_worker(wait=False, install_signal_handlers=False)
    app.configure_task("b.later", schedule_in={"hours": 3}, lock="account-7").defer()
    app.configure_task("waits").defer()
    page = client.get(JOBS).content.decode()
    for text in ("b.t.send", "2\xa0hours, 59\xa0minutes", "&lt;script&gt;", "waits since", "succeeded"):
        assert text in page, text
    found = client.get(JOBS, {"q": "account-7"}).context["cl"].result_list
    assert [job.task_name for job in found] == ["b.later"]
    found = client.get(JOBS, {"status__exact": "succeeded"}).context["cl"].result_list
    assert [job.task_name for job in found] == ["bookshop.tasks.send"]


@pytest.mark.parametrize("who", ["admin", "visitor"])
def test_a_job_is_shown_with_its_events(who: str, request: pytest.FixtureRequest) -> None:
    client = request.getfixturevalue(who)
    job_id = app.configure_task("fails", lock="a lock").defer()
    app.run_worker(wait=False, install_signal_handlers=False)
    response = client.get(f"{JOBS}{job_id}/change/")
    page = response.content.decode()
    for text in ("a lock", "deferred", "started", "failed"):
        assert text in page, text
    assert not response.context["has_change_permission"]


@pytest.mark.parametrize("what", ["add/", "1/delete/"])
def test_jobs_are_neither_added_nor_deleted(admin: Client, what: str) -> None:
    app.configure_task("t").defer()
    assert admin.get(JOBS + what).status_code == 403


def test_a_job_is_not_changed(admin: Client) -> None:
    job_id = app.configure_task("t").defer()
    assert admin.post(f"{JOBS}{job_id}/change/", {"status": "failed"}).status_code == 403


def test_actions(admin: Client, conn: Any) -> None:
    statuses = "select array_agg(status order by id) from procrastinate.jobs"
    first, second = app.configure_task("unknown").batch_defer({}, {})
    assert act(admin, "cancel", first) == ["1 of 1 jobs cancelled"]
    assert act(admin, "cancel", first, second) == ["1 of 2 jobs cancelled"]
    assert conn.execute(statuses).fetchone() == (["cancelled", "cancelled"],)
    assert act(admin, "retry", first) == ["1 of 1 jobs retried"]
    said = act(admin, "retry", first, second)
    assert said[0].startswith(f"Job {first}: ")
    assert said[1:] == ["1 of 2 jobs retried"]
    assert conn.execute(statuses).fetchone() == (["todo", "todo"],)
    (worker_id,) = conn.execute("select procrastinate.register_worker_v1('w')").fetchone()
    (running,) = conn.execute("select id from procrastinate.fetch_v1(%s)", [worker_id]).fetchone()
    assert act(admin, "abort", first, second) == ["2 of 2 jobs cancelled or asked to stop"]
    aborting = conn.execute("select id from procrastinate.jobs where abort_requested").fetchall()
    assert aborting == [(running,)]


def test_a_taken_queueing_lock_is_told(admin: Client) -> None:
    locked = app.configure_task("t", queueing_lock="l")
    first = locked.defer()
    act(admin, "cancel", first)
    locked.defer()
    said = act(admin, "retry", first)
    assert "queueing lock" in said[0]
    assert said[1] == "0 of 1 jobs retried"


def test_who_may_only_look_may_not_act(visitor: Client) -> None:
    job_id = app.configure_task("t").defer()
    assert "_selected_action" not in visitor.get(JOBS).content.decode()
    act(visitor, "cancel", job_id)
    assert app.job_manager.get_job_status(job_id).value == "todo"


def test_who_may_change_jobs_may_act(visitor: Client) -> None:
    permission = Permission.objects.get(codename="change_procrastinatejob")
    User.objects.get(username="visitor").user_permissions.add(permission)
    job_id = app.configure_task("t").defer()
    assert act(visitor, "cancel", job_id) == ["1 of 1 jobs cancelled"]
