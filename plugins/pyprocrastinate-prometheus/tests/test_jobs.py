"""What the hooks of jobs count."""

from __future__ import annotations

import datetime
import time

import pytest

from pyprocrastinate import AbortReason
from pyprocrastinate.hookspecs import RescuedJob
from pyprocrastinate.jobs import Job
from pyprocrastinate_prometheus import OTHER

LABELS = {"task": "pay", "queue": "money"}


def make_job(task="pay", queue="money", **fields):
    return Job(id=1, task_name=task, queue=queue, lock=None, queueing_lock=None, **fields)


def ago(seconds):
    return datetime.datetime.fromtimestamp(time.time() - seconds, datetime.UTC)


def test_deferred_jobs_are_counted(plugin, sample):
    plugin.jobs_deferred(app=None, jobs=[make_job(), make_job(), make_job("other", "default")])
    assert sample("jobs_deferred_total", **LABELS) == 2
    assert sample("jobs_deferred_total", task="other", queue="default") == 1


@pytest.mark.parametrize(
    ("status", "name", "labels"),
    [
        ("succeeded", "jobs_finished_total", {"outcome": "succeeded"}),
        ("failed", "jobs_finished_total", {"outcome": "failed"}),
        ("aborted", "jobs_finished_total", {"outcome": "aborted"}),
        ("todo", "jobs_retried_total", {}),
        (None, "jobs_stale_total", {}),
    ],
)
def test_a_run_is_counted_once_by_how_it_ended(plugin, registry, sample, status, name, labels):
    plugin.job_finished(make_job(), status, 0.3)
    ends = ("procrastinate_jobs_finished_total", "procrastinate_jobs_retried_total", "procrastinate_jobs_stale_total")
    counted = [s for metric in registry.collect() for s in metric.samples if s.name in ends and s.value]
    assert [(s.name, s.labels, s.value) for s in counted] == [(f"procrastinate_{name}", LABELS | labels, 1)]
    assert sample("job_run_seconds_sum", **LABELS) == 0.3
    assert sample("job_run_seconds_bucket", **LABELS, le="0.25") == 0
    assert sample("job_run_seconds_bucket", **LABELS, le="0.5") == 1


@pytest.mark.parametrize(
    ("ages", "waited"),
    [({"deferred_at": 20}, 20), ({"deferred_at": 900, "scheduled_at": 20}, 20), ({"deferred_at": -200}, 0)],
)
def test_a_job_has_waited_since_it_was_due(plugin, sample, ages, waited):
    plugin.job_started(make_job(**{name: ago(seconds) for name, seconds in ages.items()}))
    assert sample("jobs_started_total", **LABELS) == 1
    assert sample("job_wait_seconds_count", **LABELS) == 1
    assert waited <= sample("job_wait_seconds_sum", **LABELS) < waited + 60


def test_only_the_first_start_ends_a_wait(plugin, sample):
    plugin.job_started(make_job(attempts=1, deferred_at=ago(20)))
    assert sample("jobs_started_total", **LABELS) == 1
    assert sample("job_wait_seconds_count", **LABELS) == 0


def test_requests_to_abort_are_told_apart(plugin, sample):
    plugin.job_abort_requested(make_job(), AbortReason.SHUTDOWN)
    assert sample("jobs_abort_requests_total", **LABELS, reason="shutdown") == 1


def test_rescued_jobs_are_counted(plugin, sample):
    rescued = [RescuedJob(n, "pay", "money", 7, status) for n, status in enumerate(("todo", "todo", "failed"))]
    plugin.jobs_rescued(worker=None, jobs=rescued)
    assert sample("jobs_rescued_total", **LABELS, status="todo") == 2
    assert sample("jobs_rescued_total", **LABELS, status="failed") == 1


def test_the_first_event_can_be_seen_as_an_increase(plugin, sample):
    plugin.job_started(make_job())
    assert sample("jobs_finished_total", **LABELS, outcome="failed") == 0
    assert sample("jobs_retried_total", **LABELS) == 0


def test_no_flood_of_names_makes_more_series(plugin, registry, sample):
    for number in range(3):
        plugin.job_started(make_job(f"task{number}", "default"))
    known = {s.name for metric in registry.collect() for s in metric.samples if s.labels.get("task") == "task0"}
    for number in range(100):
        plugin.job_started(make_job(f"flood{number}", f"queue{number}"))
        plugin.job_abort_requested(make_job(f"flood{number}"), AbortReason.SHUTDOWN)
    tasks = {s.labels["task"] for metric in registry.collect() for s in metric.samples if s.name in known}
    assert tasks == {"task0", "task1", "task2", OTHER}
    assert sample("jobs_started_total", task=OTHER, queue=OTHER) == 100
    assert sample("jobs_abort_requests_total", task=OTHER, queue=OTHER, reason="shutdown") == 100
    plugin.job_started(make_job("task1", "default"))
    assert sample("jobs_started_total", task="task1", queue="default") == 2
