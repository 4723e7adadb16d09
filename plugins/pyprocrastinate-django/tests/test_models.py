"""The models: the queue's views, which can only be read."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from bookshop.models import Order
from django.test.utils import override_settings

from pyprocrastinate.contrib.django import app
from pyprocrastinate.contrib.django.exceptions import ReadOnlyModel
from pyprocrastinate.contrib.django.models import (
    ProcrastinateEvent,
    ProcrastinateJob,
    ProcrastinatePeriodicDefer,
    ProcrastinateWorker,
)


def test_jobs_and_their_events(dsn: str) -> None:
    order = Order.place("Ada", "The Elements")
    at = datetime.datetime(2100, 1, 2, tzinfo=datetime.UTC)
    app.configure_task("later", queue="q", priority=3, lock="l", queueing_lock="ql", schedule_at=at).defer(a=[1])
    app.run_worker(wait=False, install_signal_handlers=False)
    sent, later = ProcrastinateJob.objects.order_by("id")
    assert (sent.status, sent.task_name, sent.queue_name) == ("succeeded", "bookshop.tasks.send", "parcels")
    assert (sent.args, sent.attempts, sent.abort_requested) == ({"order": order.pk}, 1, False)
    assert sent.deferred_at < sent.started_at < sent.finished_at
    assert (later.priority, later.lock, later.queueing_lock, later.scheduled_at) == (3, "l", "ql", at)
    assert str(later) == f"later[{later.pk}](a=[1])"
    for model in (sent, later):
        (job,) = app.job_manager.list_jobs(id=model.pk)
        assert model.procrastinate_job == job

    story = sent.procrastinateevent_set.order_by("at").values_list("type", flat=True)
    assert list(story) == ["deferred", "started", "succeeded"]
    succeeded = ProcrastinateEvent.objects.filter(job__status="succeeded").select_related("job").latest()
    assert (succeeded.type, succeeded.job) == ("succeeded", sent)
    assert str(succeeded) == f"succeeded at {succeeded.at}"
    assert ProcrastinateJob.objects.filter(procrastinateevent__type="scheduled", args__a=[1]).get() == later
    assert ProcrastinateJob.objects.exclude(status="todo").count() == 1


def test_workers_and_schedules(dsn: str, conn: Any) -> None:
    schedules = (
        '[{"name": "t:x", "task": "t", "cron": "0 6 * * *"}, {"name": "bookshop.tasks.report", '
        '"task": "bookshop.tasks.report", "cron": "* * * * * *"}]'
    )
    conn.execute("select procrastinate.enable_test_clock()")
    conn.execute("select procrastinate.schedule('by hand', 'bookshop.tasks.report', '* * * * *')")
    register = "select procrastinate.register_worker_v1('w', '{a,b}', schedules => %s)"
    (worker_id,) = conn.execute(register, [schedules]).fetchone()
    conn.execute("select procrastinate.advance('3 seconds'), procrastinate.tick_v1()")
    worker = ProcrastinateWorker.objects.get()
    assert (worker.pk, worker.name, worker.queues, worker.running) == (worker_id, "w", ["a", "b"], 0)
    assert str(worker) == f"w[{worker_id}]"
    job_ids = conn.execute("select array_agg(id order by id) from procrastinate.jobs where headers ? 'schedule'")
    last_job = job_ids.fetchone()[0][-1]
    report, other = ProcrastinatePeriodicDefer.objects.order_by("name")
    assert (report.task_name, report.periodic_id, report.cron) == ("bookshop.tasks.report", "", "* * * * * *")
    assert (report.job.pk, report.defer_timestamp) == (last_job, report.job.args["timestamp"])
    assert (other.periodic_id, other.defer_timestamp, other.job) == ("x", None, None)
    assert ProcrastinatePeriodicDefer.objects.get(periodic_id="x") == other
    assert str(other) == "t:x: 0 6 * * *"


@pytest.mark.scenario(77)
@pytest.mark.parametrize("setting", [True, False])
def test_nothing_can_be_written(dsn: str, setting: bool) -> None:
    app.configure_task("t").defer()
    job = ProcrastinateJob.objects.get()
    jobs = ProcrastinateJob.objects
    writes: list[Any] = [
        job.save,
        job.delete,
        ProcrastinateEvent(job=job).save,
        lambda: jobs.create(task_name="t"),
        lambda: jobs.get_or_create(task_name="u"),
        lambda: jobs.update_or_create(task_name="u"),
        lambda: jobs.update(status="failed"),
        lambda: jobs.filter(pk=1).update(status="failed"),
        lambda: jobs.all().delete(),
        lambda: jobs.bulk_create([job]),
        lambda: jobs.bulk_update([job], ["status"]),
        lambda: job.procrastinateevent_set.create(type="started"),
        lambda: job.procrastinateevent_set.all().delete(),
    ]
    with override_settings(PROCRASTINATE_READONLY_MODELS=setting):
        for write in writes:
            with pytest.raises(ReadOnlyModel):
                write()
    assert ProcrastinateJob.objects.get() == job


async def test_nothing_can_be_written_async() -> None:
    with pytest.raises(ReadOnlyModel):
        await ProcrastinateJob(task_name="t").asave()
    with pytest.raises(ReadOnlyModel):
        await ProcrastinateJob.objects.acreate(task_name="t")


def test_they_are_read_where_the_queue_is(dsn: str) -> None:
    with override_settings(PROCRASTINATE_DATABASE_ALIAS="other"):
        assert ProcrastinateJob.objects.all().db == "other"
        assert ProcrastinateJob.objects.using("default").db == "default"
    assert ProcrastinateJob.objects.all().db == "default"
