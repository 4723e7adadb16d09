"""
Collections of tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

from pyprocrastinate import exceptions
from pyprocrastinate.periodic import PeriodicRegistry, PeriodicTask
from pyprocrastinate.tasks import Task, add_namespace
from pyprocrastinate.types import ConfigureTaskOptions, TaskOptions

if TYPE_CHECKING:
    from pyprocrastinate.job_context import JobContext
    from pyprocrastinate.jobs import JobDeferrer

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
D = ParamSpec("D")


class Blueprint:
    """
    A collection of tasks, to be added to an app, or to another blueprint, with `add_tasks_from`.

    Its tasks can be deferred once it is part of an app.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Task[..., Any, ...]] = {}
        self.periodic_registry = PeriodicRegistry()

    @overload
    def task(self, func: Callable[P, R], /) -> Task[P, R, P]: ...

    @overload
    def task(
        self, func: None = None, /, *, pass_context: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[P, R]], Task[P, R, P]]: ...

    @overload
    def task(
        self, func: None = None, /, *, pass_context: Literal[True], **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[Concatenate[JobContext, P], R]], Task[Concatenate[JobContext, P], R, P]]: ...

    def task(self, func: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """
        Make a task of a function, sync or async.

        Args:
            name: By default the function's module and name. Jobs carry it, so give one to be able to move the function.
            aliases: Further names under which jobs may have been deferred.
            retry: False, True (at once and without end), a number of retries, or a strategy.
            pass_context: Call the function with a `JobContext` as its first argument.
            queue, priority, lock, queueing_lock: What jobs get unless `configure` says otherwise.
            store_result: Keep what the function returns, as JSON of at most 64 KiB, as the job's
                `result`.
            task_middleware: Around each run of the task, and of its kind, sync or async; see `middleware`.

        Raises:
            TaskAlreadyRegistered: The name or an alias is taken.
        """

        def decorate(func: Callable[..., Any]) -> Task[..., Any, ...]:
            task: Task[..., Any, ...] = Task(func, blueprint=self, **options)
            self._register(dict.fromkeys((task.name, *task.aliases), task))
            return task

        return decorate(func) if func else decorate

    def periodic(
        self,
        *,
        cron: str,
        periodic_id: str = "",
        timezone: str = "UTC",
        **configure_kwargs: Unpack[ConfigureTaskOptions],
    ) -> Callable[[Task[P, R, Concatenate[int, D]]], Task[P, R, D]]:
        """
        Run a task at the times of a cron expression, while a worker lives that knows this schedule.

        The task is called with `timestamp`, the scheduled time in seconds since 1970.
        Put it above `@app.task`, or call it on a task; one task may have several, told apart by
        `periodic_id`.
        """

        def decorate(task: Task[P, R, Concatenate[int, D]]) -> Task[P, R, D]:
            self.periodic_registry.register(PeriodicTask(task, cron, periodic_id, configure_kwargs, timezone))
            return task  # type: ignore[return-value] # only what a caller may pass has changed

        return decorate

    def add_task_alias(self, task: Task[P, R, D], alias: str) -> None:
        """Let the task also run jobs that were deferred under this name."""
        self._register({alias: task})
        task.aliases.append(alias)

    def add_tasks_from(self, blueprint: Blueprint, *, namespace: str) -> None:
        """
        Take over the tasks and schedules of a blueprint, whose names and aliases then begin with
        `namespace:`.

        Raises:
            TaskAlreadyRegistered: A name is taken. Nothing has changed then.
        """
        added = {add_namespace(name, namespace): task for name, task in blueprint.tasks.items()}
        self._register(added)
        for task in {id(task): task for task in added.values()}.values():
            task.add_namespace(namespace)
            task.blueprint = self
        for periodic in blueprint.periodic_registry.periodic_tasks.values():
            self.periodic_registry.register(periodic)
        extra = {"action": "loading_blueprint", "namespace": namespace, "tasks": list(added)}
        logger.debug("Loaded %s tasks from a blueprint", len(added), extra=extra)

    def deferrer(self, task_name: str, options: ConfigureTaskOptions) -> JobDeferrer:
        """Return a deferrer for jobs of this task; only an app can."""
        raise exceptions.UnboundTaskError(
            f"task {task_name} is in a blueprint that no app has: call app.add_tasks_from first"
        )

    def _register(self, tasks: dict[str, Task[..., Any, ...]]) -> None:
        if taken := self.tasks.keys() & tasks.keys():
            raise exceptions.TaskAlreadyRegistered(f"already registered: {', '.join(sorted(taken))}")
        self.tasks.update(tasks)
