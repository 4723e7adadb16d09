"""
Errors of jobs, and check-ins of schedules, in Sentry.

It works where the program calls `sentry_sdk.init`, and is quiet elsewhere. What it sends is in the README; arguments of
jobs are not, unless the SDK is told that they may be.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import sentry_sdk
from sentry_sdk.crons import capture_checkin
from sentry_sdk.scope import add_global_event_processor, use_isolation_scope
from sentry_sdk.utils import event_from_exception

from pyprocrastinate import hookimpl
from pyprocrastinate.exceptions import JobAborted, JobRetry

if TYPE_CHECKING:
    from sentry_sdk import Scope
    from sentry_sdk.types import Event, Hint, MonitorConfig

    from pyprocrastinate.jobs import Job
    from pyprocrastinate.worker import Worker

RETRIES, CRONS = "PROCRASTINATE_SENTRY_RETRIES", "PROCRASTINATE_SENTRY_CRONS"
# How a run ends that is no error.
_ASKED_FOR = (JobAborted, JobRetry, asyncio.CancelledError)
# What the worker logs as errors of jobs, and is told here with more.
_TOLD = {"job_error", "task_not_found"}
_SCOPE = "__sentry_scope_of_job__"
_SLUG_LENGTH = 50
_FLUSH_SECONDS = 2.0


@hookimpl
def wrap_job(job: Job) -> AbstractContextManager[None] | None:
    return _scope_of(job) if sentry_sdk.is_initialized() else None


@contextmanager
def _scope_of(job: Job) -> Iterator[None]:
    """Give the run a scope of its own, which an error keeps until the database has taken note of it."""
    with sentry_sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        _describe(scope, job)
        try:
            yield
        except BaseException as error:
            setattr(error, _SCOPE, scope)
            raise


@hookimpl
def job_started(worker: Worker, job: Job) -> None:
    _check_in(worker, job, "in_progress")


@hookimpl
def job_finished(
    worker: Worker, job: Job, status: str | None, duration: float, exception: BaseException | None
) -> None:
    """Report the error, unless it was asked for, and how the run of a schedule ended."""
    if status == "failed" or (exception and status == "succeeded"):
        _report(job, exception, "error")
    elif exception and status == "todo" and _is_on(RETRIES, "on") and not isinstance(exception, _ASKED_FOR):
        _report(job, exception, "warning")
    if status in ("succeeded", "failed", "aborted"):
        _check_in(worker, job, "ok" if status == "succeeded" else "error", duration)


@hookimpl
def worker_stopped() -> None:
    sentry_sdk.flush(_FLUSH_SECONDS)


def _describe(scope: Scope, job: Job) -> None:
    scope.set_transaction_name(job.task_name, source="task")
    scope.set_tag("procrastinate.task", job.task_name)
    scope.set_tag("procrastinate.queue", job.queue)
    details: dict[str, Any] = {"job_id": job.id, "task": job.task_name, "queue": job.queue, "attempt": job.attempts + 1}
    if _may_send_args():
        details["args"] = job.task_kwargs
    scope.set_context("procrastinate", details)


def _report(job: Job, error: BaseException | None, level: str) -> None:
    client = sentry_sdk.get_client()
    if not client.is_active():
        return
    scope: Scope | None = getattr(error, _SCOPE, None)
    if scope is None:  # it failed before its task began
        scope = sentry_sdk.get_isolation_scope().fork()
        _describe(scope, job)
    event: Event = {"logentry": {"message": f"Job of {job.task_name} failed"}}
    hint: Hint = {}
    if error is not None:
        event, hint = event_from_exception(error, client.options, {"type": "pyprocrastinate", "handled": False})
        if not _may_send_args():
            _remove_variables(event)
    event["level"] = level  # type: ignore[typeddict-item]  # it is one of Sentry's
    with use_isolation_scope(scope):
        sentry_sdk.capture_event(event, hint)


def _may_send_args() -> bool:
    client = sentry_sdk.get_client()
    # Of newer releases of the SDK, in place of send_default_pii.
    collection = client.options.get("data_collection")
    if collection and collection.get("provided_by_user"):
        return bool(collection["queues"])
    return client.should_send_default_pii()


def _remove_variables(event: Event) -> None:
    """Local variables of the task are, or are made of, the arguments."""
    for error in event["exception"]["values"]:
        for frame in (error.get("stacktrace") or {}).get("frames", ()):
            frame.pop("vars", None)


# Check-ins: the header `schedule` of a job names the schedule that has deferred it.


def _check_in(worker: Worker, job: Job, status: str, duration: float | None = None) -> None:
    name = job.headers.get("schedule")
    if not isinstance(name, str) or not _is_on(CRONS, "off"):
        return
    slug = monitor_slug(name)
    # Whichever process says it, it is the same check-in.
    check_in_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{slug} {job.id}").hex
    capture_checkin(slug, check_in_id, status, duration, _monitor(worker, name))


def monitor_slug(schedule: str) -> str:
    """Return the monitor of a schedule: its name in lower case, with a hyphen for what a slug cannot have."""
    slug = re.sub(r"[^a-z0-9_-]+", "-", schedule.lower()).strip("-")
    if len(slug) > _SLUG_LENGTH:
        mark = hashlib.sha256(schedule.encode()).hexdigest()[:8]
        slug = f"{slug[: _SLUG_LENGTH - 9]}-{mark}"
    return slug


def _monitor(worker: Worker, name: str) -> MonitorConfig | None:
    """Return what the monitor is to expect, if the worker knows: Sentry then makes or changes it."""
    for schedule in worker.app.periodic_registry.periodic_tasks.values():
        declared = ":".join(filter(None, (schedule.task.name, schedule.periodic_id)))
        # Sentry knows no seconds.
        if declared == name and len(schedule.cron.split()) <= 5:
            return {"schedule": {"type": "crontab", "value": schedule.cron}, "timezone": schedule.timezone}
    return None


# What other integrations tell of jobs


def _process(event: Event, hint: Hint) -> Event | None:
    record = hint.get("log_record")
    if record is not None and record.name.startswith("pyprocrastinate.") and getattr(record, "action", "") in _TOLD:
        return None
    crumbs = event.get("breadcrumbs")
    if isinstance(crumbs, dict) and not _may_send_args():
        # Records of the queue itself name jobs with their arguments.
        crumbs["values"] = [c for c in crumbs["values"] if not str(c.get("category")).startswith("pyprocrastinate.")]
    return event


add_global_event_processor(_process)


def _is_on(variable: str, default: str) -> bool:
    return (os.environ.get(variable) or default).strip().lower() in ("1", "true", "t", "yes", "y", "on")
