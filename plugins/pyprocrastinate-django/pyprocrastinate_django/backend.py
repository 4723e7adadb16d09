"""
A backend for the tasks of Django's own, `django.tasks`, from Django 6.0 on.

    TASKS = {"default": {"BACKEND": "pyprocrastinate_django.backend.ProcrastinateBackend"}}

A task of Django's becomes one of the app's when it is declared, under the name of its module and function. So its
module is to be one that the worker imports: `tasks` of an installed app, or one of PROCRASTINATE_IMPORT_PATHS.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import traceback
from collections.abc import Callable
from typing import Any

from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone
from django.utils.json import normalize_json

from pyprocrastinate import JobContext
from pyprocrastinate.payload import qualified
from pyprocrastinate.retry import RetryValue
from pyprocrastinate_django.app import app
from pyprocrastinate_django.models import ProcrastinateJob

_STATUSES = {
    "todo": TaskResultStatus.READY,
    "doing": TaskResultStatus.RUNNING,
    "succeeded": TaskResultStatus.SUCCESSFUL,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcrastinateTask(Task):
    """A task with options of `app.task`; Django's decorator takes them from Django 6.1 on."""

    retry: RetryValue = False
    lock: str | None = None
    queueing_lock: str | None = None


class ProcrastinateBackend(BaseTaskBackend):
    """
    Enqueues tasks as jobs, on Django's connection and so in its transactions.

    OPTIONS hold what all tasks of the backend are registered with, as `app.task` takes it: `{"retry": 3}`.
    Results are kept as the app keeps them: up to 64 KiB of JSON, in the queue's history.
    """

    task_class = ProcrastinateTask
    supports_async_task = True
    supports_defer = True
    supports_get_result = True
    supports_priority = True

    def validate_task(self, task: Task) -> None:
        """Do as Django's, and register the task with the app."""
        super().validate_task(task)
        if task.module_path not in app.tasks:
            own = {name: getattr(task, name) for name in ("retry", "lock", "queueing_lock") if getattr(task, name)}
            options = {"queue": task.queue_name, "priority": task.priority, **self.options, **own}
            app.task(name=task.module_path, pass_context=True, store_result=True, **options)(_runner(task))
        elif getattr(_of_django(app.tasks[task.module_path]), "func", None) is not task.func:
            raise InvalidTask(f"The app has another task of the name {task.module_path}.")

    def enqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        """Defer a job; raises as `JobDeferrer.defer`."""
        self.validate_task(task)
        at = task.run_after
        if at is not None and timezone.is_naive(at):
            at = timezone.make_aware(at)
        registered = app.tasks[task.module_path]
        deferrer = registered.configure(queue=task.queue_name, priority=task.priority, schedule_at=at)
        job_id = deferrer.defer(args=normalize_json(args), kwargs=normalize_json(kwargs))
        result = _result(task, job_id, args, kwargs, status=TaskResultStatus.READY, enqueued_at=timezone.now())
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> TaskResult:
        """Return what is known of a job; raises TaskResultDoesNotExist if it is not one of a task of Django's."""
        app.perform_import_paths()
        job: Any = ProcrastinateJob.objects.filter(pk=result_id).first() if result_id.isdecimal() else None
        task = _of_django(app.tasks.get(job.task_name)) if job else None
        if task is None:
            raise TaskResultDoesNotExist(result_id)
        events = job.procrastinateevent_set.order_by("at", "id")
        starts = [event for event in events if event.type == "started"]
        # Of a run that was retried, the error is a part of the detail; of the last one, all of it.
        details = [event.detail.get("error", event.detail) for event in events if event.detail]
        result = _result(
            task.using(queue_name=job.queue_name, priority=job.priority),
            job.pk,
            **job.args,
            status=_STATUSES.get(job.status, TaskResultStatus.FAILED),
            enqueued_at=job.deferred_at,
            started_at=starts[0].at if starts else None,
            last_attempted_at=starts[-1].at if starts else None,
            finished_at=job.finished_at,
            errors=[_error(**detail) for detail in details if "class" in detail],
            worker_ids=[str(event.worker_id) for event in starts],
        )
        object.__setattr__(result, "_return_value", job.result)
        return result


def _result(task: Task, job_id: Any, args: Any, kwargs: Any, **known: Any) -> TaskResult:
    unknown = dict.fromkeys(("enqueued_at", "started_at", "last_attempted_at", "finished_at"))
    more = {"errors": [], "worker_ids": [], **unknown, **known}
    return TaskResult(task=task, id=str(job_id), args=args, kwargs=kwargs, backend=task.backend, **more)


def _error(*, traceback: str = "", **detail: Any) -> TaskError:
    name = detail["class"]
    return TaskError(exception_class_path=name if "." in name else f"builtins.{name}", traceback=traceback)


def _of_django(registered: Any) -> Any:
    """Return the task of Django's that one of the app's runs, or None."""
    return getattr(getattr(registered, "func", None), "of_django", None)


class _Run:
    """A task's function while it runs, and the result that Django's signals tell of."""

    def __init__(self, task: Task, context: JobContext, args: Any, kwargs: Any) -> None:
        now = timezone.now()
        self.result = _result(
            task,
            context.job.id,
            args,
            kwargs,
            status=TaskResultStatus.RUNNING,
            started_at=now,
            last_attempted_at=now,
            worker_ids=[str(context.job.worker_id)] * (context.job.attempts + 1),
        )
        first = (TaskContext(task_result=self.result),) if task.takes_context else ()
        self.call = functools.partial(task.func, *first, *args, **kwargs)

    def end(self, value: Any = None, error: BaseException | None = None) -> Any:
        """Say in the result how it ended."""
        changes: dict[str, Any] = {"finished_at": timezone.now(), "_return_value": None}
        if error is None:
            changes |= {"status": TaskResultStatus.SUCCESSFUL, "_return_value": normalize_json(value)}
        else:
            text = "".join(traceback.format_exception(error))
            self.result.errors.append(_error(traceback=text, **{"class": qualified(type(error))}))
            changes["status"] = TaskResultStatus.FAILED
        for name, changed in changes.items():
            object.__setattr__(self.result, name, changed)
        return changes["_return_value"]


def _runner(task: Task) -> Callable[..., Any]:
    """Return what a job of the task runs."""

    def run(context: JobContext, args: Any, kwargs: Any) -> Any:
        running = _Run(task, context, args, kwargs)
        task_started.send(ProcrastinateBackend, task_result=running.result)
        try:
            return running.end(running.call())
        except BaseException as error:
            running.end(error=error)
            raise
        finally:
            task_finished.send(ProcrastinateBackend, task_result=running.result)

    async def run_async(context: JobContext, args: Any, kwargs: Any) -> Any:
        running = _Run(task, context, args, kwargs)
        await task_started.asend(ProcrastinateBackend, task_result=running.result)
        try:
            return running.end(await running.call())
        except BaseException as error:
            running.end(error=error)
            raise
        finally:
            await task_finished.asend(ProcrastinateBackend, task_result=running.result)

    runner: Any = run_async if inspect.iscoroutinefunction(task.func) else run
    runner.of_django = task
    return functools.update_wrapper(runner, task.func, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
