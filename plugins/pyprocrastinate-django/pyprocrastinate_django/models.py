"""
The queue's views as models, with the names that Procrastinate gives them, and some more.

Nothing can be written: what may become of a job is up to the schema's functions.
"""

from __future__ import annotations

from typing import Any, NoReturn

from django.db import models
from django.db.models.functions import Cast, Length, Substr

from pyprocrastinate.jobs import VIEW_COLUMNS, Job
from pyprocrastinate_django import conf
from pyprocrastinate_django.exceptions import ReadOnlyModel


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise ReadOnlyModel


def _choices(values: str) -> tuple[tuple[str, str], ...]:
    return tuple((value, value) for value in values.split())


class ReadOnlyQuerySet(models.QuerySet):
    """What the ORM writes with, each raising ReadOnlyModel."""

    bulk_create = bulk_update = create = delete = update = _raw_delete = _update = _refuse


class _Manager(models.Manager):
    def get_queryset(self) -> models.QuerySet:
        return ReadOnlyQuerySet(self.model, using=self._db or conf.database_alias())

    bulk_create = bulk_update = create = update = _refuse


class _ReadOnly(models.Model):
    objects = _Manager()

    class Meta:
        abstract = True

    save = delete = save_base = _refuse


class _TextArray(models.Field):
    """One of django.contrib.postgres would ask for another installed app."""

    def db_type(self, connection: Any) -> str:
        return "text[]"


class ProcrastinateWorker(_ReadOnly):
    """A registered worker."""

    id = models.BigAutoField(primary_key=True)
    name = models.TextField()
    queues = _TextArray(null=True)
    protocol = models.IntegerField()
    started_at = models.DateTimeField()
    last_heartbeat = models.DateTimeField(db_column="heartbeat_at")
    stalled_after = models.DurationField()
    idle = models.BooleanField()
    live = models.BooleanField()
    running = models.BigIntegerField()
    info = models.JSONField()

    class Meta:
        managed = False
        db_table = '"procrastinate"."workers"'
        verbose_name = "worker"

    def __str__(self) -> str:
        return f"{self.name}[{self.pk}]"


class ProcrastinateJob(_ReadOnly):
    """A job."""

    STATUSES = _choices("todo doing succeeded failed cancelled aborted")

    id = models.BigAutoField(primary_key=True)
    status = models.CharField(max_length=32, choices=STATUSES)
    task_name = models.CharField(max_length=128, db_column="task")
    queue_name = models.CharField(max_length=128, db_column="queue")
    args = models.JSONField()
    headers = models.JSONField(null=True)
    priority = models.IntegerField()
    lock = models.TextField(null=True)
    queueing_lock = models.TextField(null=True)
    attempts = models.IntegerField()
    deferred_at = models.DateTimeField()
    scheduled_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    worker = models.ForeignKey(ProcrastinateWorker, models.DO_NOTHING, null=True, db_constraint=False)
    abort_requested = models.BooleanField()
    error_class = models.TextField(null=True)
    error_message = models.TextField(null=True)
    result = models.JSONField(null=True)

    class Meta:
        managed = False
        db_table = '"procrastinate"."jobs"'
        verbose_name = "job"

    def __str__(self) -> str:
        return self.procrastinate_job.call_string

    @property
    def procrastinate_job(self) -> Job:
        """The job as tasks see it."""
        values = {field.column: getattr(self, field.attname) for field in self._meta.concrete_fields}
        # A column may come with a cast there.
        fields = {name: values[column.partition("::")[0]] for column, name in VIEW_COLUMNS.items()}
        return Job(**{**fields, "headers": self.headers or {}})


class ProcrastinateEvent(_ReadOnly):
    """Something that happened to a job."""

    TYPES = _choices(
        "deferred started deferred_for_retry failed succeeded cancelled abort_requested aborted scheduled"
        " retried rescued replaced"
    )

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(ProcrastinateJob, models.DO_NOTHING, db_constraint=False)
    type = models.CharField(max_length=32, choices=TYPES)
    at = models.DateTimeField(null=True)
    worker = models.ForeignKey(ProcrastinateWorker, models.DO_NOTHING, null=True, db_constraint=False)
    detail = models.JSONField(null=True)

    class Meta:
        managed = False
        db_table = '"procrastinate"."events"'
        verbose_name = "event"
        get_latest_by = "at"

    def __str__(self) -> str:
        return f"{self.type} at {self.at}"


class _Schedules(_Manager):
    def get_queryset(self) -> models.QuerySet:
        periodic_id = models.Case(
            models.When(name=models.F("task_name"), then=models.Value("")),
            default=Substr("name", Length("task_name") + 2),
        )
        # Not Django's Extract, which would first move the time to the zone that Django is in.
        epoch = models.Func("last_tick", template="extract(epoch from %(expressions)s)")
        timestamp = Cast(epoch, models.BigIntegerField())
        declared = super().get_queryset().filter(kind="declared")
        return declared.annotate(periodic_id=periodic_id, defer_timestamp=timestamp)


class ProcrastinatePeriodicDefer(_ReadOnly):
    """
    A schedule that workers declare with `@app.periodic`, and when it last fired.

    `periodic_id` and `defer_timestamp`, in seconds since 1970, are there for queries, too.
    """

    name = models.TextField(primary_key=True)
    kind = models.TextField()
    task_name = models.CharField(max_length=128, db_column="task")
    cron = models.TextField()
    timezone = models.TextField()
    last_tick = models.DateTimeField(null=True)
    next_tick = models.DateTimeField(null=True)
    enabled = models.BooleanField()
    live = models.BooleanField()

    objects = _Schedules()

    class Meta:
        managed = False
        db_table = '"procrastinate"."schedules"'
        verbose_name = "periodic defer"

    def __str__(self) -> str:
        return f"{self.name}: {self.cron}"

    @property
    def job(self) -> ProcrastinateJob | None:
        """The newest of its jobs that is still there."""
        return ProcrastinateJob.objects.filter(headers__schedule=self.name).order_by("id").last()
