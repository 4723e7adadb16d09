"""Names of any kind by Django's door: to its connection, its models and its admin they mean nothing."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client

from pyprocrastinate.contrib.django import app
from pyprocrastinate.contrib.django.models import ProcrastinateJob
from pyprocrastinate.exceptions import InvalidName, InvalidText
from tests.nasty import EMPTY, NAMES, NUL, SURROGATE, TOO_LONG

JOBS = "/admin/procrastinate/procrastinatejob/"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_kept_as_it_is(dsn: str, conn: Any, name: str) -> None:
    names = {"queue": name, "lock": name, "queueing_lock": name}
    with transaction.atomic():
        job_id = app.configure_task(name, **names).defer(**{name: name})
        app.configure_task(name, queue=name).batch_defer({name: name}, {})
    row = conn.execute(
        "select task, queue, lock, queueing_lock, args from procrastinate.jobs where id = %s", [job_id]
    ).fetchone()
    assert row == (name, name, name, name, {name: name})
    assert ProcrastinateJob.objects.filter(queue_name=name, task_name=name).count() == 3
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    for path in (JOBS, f"{JOBS}{job_id}/change/"):
        response = client.get(path)
        assert response.status_code == 200
        page = response.content.decode()
        assert "<script>alert(1)" not in page
        assert "\x1b" not in page.replace(name, "")


@pytest.mark.parametrize("bad", [NUL, SURROGATE, TOO_LONG, EMPTY], ids=["nul", "surrogate", "too long", "empty"])
def test_one_that_cannot_be_is_refused(dsn: str, conn: Any, bad: str) -> None:
    expected = InvalidText if bad in (NUL, SURROGATE) else InvalidName
    with transaction.atomic(), pytest.raises(expected), transaction.atomic():
        app.configure_task(bad).defer()
    with transaction.atomic(), pytest.raises(expected), transaction.atomic():
        app.configure_task("t", queue=bad).batch_defer({}, {})
    assert conn.execute("select count(*) from procrastinate.jobs").fetchone() == (0,)
