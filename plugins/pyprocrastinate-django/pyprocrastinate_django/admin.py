"""
The queue in Django's admin: looked at by whom may view it, managed by whom may change jobs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.timesince import timesince, timeuntil

from pyprocrastinate.exceptions import ConnectorException
from pyprocrastinate.manager import JobManager
from pyprocrastinate_django import conf
from pyprocrastinate_django.app import app
from pyprocrastinate_django.models import ProcrastinateEvent, ProcrastinateJob


class _LookOnly:
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class EventInline(_LookOnly, admin.TabularInline):
    model = ProcrastinateEvent
    fields = ("at", "type", "worker_id", "detail")
    readonly_fields = fields
    ordering = ("at", "id")
    extra = 0


@admin.register(ProcrastinateJob)
class JobAdmin(_LookOnly, admin.ModelAdmin):
    list_display = ("pk", "short_task_name", "pretty_args", "status", "queue_name", "priority", "summary")
    list_filter = ("status", "queue_name", "task_name", "scheduled_at", "priority")
    # Names of locks are too many for a filter.
    search_fields = ("=id", "=lock", "=queueing_lock", "task_name")
    search_help_text = "An id, a lock, a queueing lock, or a part of a task's name"
    ordering = ("-id",)
    show_full_result_count = False
    actions = ("retry", "cancel", "abort")
    inlines = (EventInline,)
    fields = (
        "pk", "task_name", "pretty_args", "status", "queue_name", "priority", "lock", "queueing_lock", "attempts",
        "deferred_at", "scheduled_at", "started_at", "finished_at", "worker_id", "abort_requested", "error_class",
        "error_message", "result",
    )  # fmt: skip
    readonly_fields = fields

    def has_manage_permission(self, request: HttpRequest) -> bool:
        """Tell who may use the actions."""
        return bool(request.user.has_perm("procrastinate.change_procrastinatejob"))

    @admin.display(description="Task", ordering="task_name")
    def short_task_name(self, job: ProcrastinateJob) -> str:
        *modules, name = job.task_name.split(".")
        return ".".join([*(module[:1] for module in modules), name])

    @admin.display(description="Arguments")
    def pretty_args(self, job: ProcrastinateJob) -> str:
        return format_html("<pre>{}</pre>", json.dumps(job.args, indent=2, ensure_ascii=False))

    @admin.display
    def summary(self, job: ProcrastinateJob) -> str:
        if job.finished_at:
            return f"{timesince(job.finished_at)} ago{f': {job.error_class}' if job.error_class else ''}"
        if job.status == "doing":
            return f"for {timesince(job.started_at)}{', is to abort' if job.abort_requested else ''}"
        if job.scheduled_at and job.scheduled_at > timezone.now():
            return f"in {timeuntil(job.scheduled_at)}"
        return f"waits since {timesince(job.deferred_at)}"

    @admin.action(description="Retry", permissions=["manage"])
    def retry(self, request: HttpRequest, jobs: QuerySet) -> None:
        self._each(request, jobs, "retried", lambda manager, pk: manager.retry_job_by_id(pk))

    @admin.action(description="Cancel", permissions=["manage"])
    def cancel(self, request: HttpRequest, jobs: QuerySet) -> None:
        self._each(request, jobs, "cancelled", lambda manager, pk: manager.cancel_job_by_id(pk))

    @admin.action(description="Abort", permissions=["manage"])
    def abort(self, request: HttpRequest, jobs: QuerySet) -> None:
        self._each(request, jobs, "cancelled or asked to stop", lambda m, pk: m.cancel_job_by_id(pk, abort=True))

    def _each(self, request: HttpRequest, jobs: QuerySet, what: str, act: Callable[[JobManager, int], Any]) -> None:
        """Do it to each by itself, and tell what became of it."""
        done = 0
        wanted = list(jobs.values_list("pk", flat=True))
        for pk in wanted:
            try:
                with transaction.atomic(using=conf.database_alias()):
                    done += act(app.job_manager, pk) is not False
            except ConnectorException as error:
                self.message_user(request, f"Job {pk}: {error}", messages.ERROR)
        level = messages.SUCCESS if done == len(wanted) else messages.WARNING
        self.message_user(request, f"{done} of {len(wanted)} jobs {what}", level)
