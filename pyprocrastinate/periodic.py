"""
Schedules that the app's code declares; the schema fires them while a live worker declares them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack

from pyprocrastinate import exceptions
from pyprocrastinate.types import ConfigureTaskOptions

if TYPE_CHECKING:
    from pyprocrastinate.tasks import Task

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
D = ParamSpec("D")

DEFAULT_MAX_DELAY = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class PeriodicTask:
    task: Task[..., Any, ...]
    cron: str
    periodic_id: str
    configure_kwargs: ConfigureTaskOptions
    timezone: str = "UTC"

    def as_schedule(self, max_delay: float) -> dict[str, Any]:
        """Return the schedule as a worker declares it to the schema."""
        options = self.task.options(**self.configure_kwargs)
        name = f"{self.task.name}:{self.periodic_id}" if self.periodic_id else self.task.name
        schedule = {
            "name": name,
            "task": self.task.name,
            "cron": self.cron,
            "timezone": self.timezone,
            "args": options.get("task_kwargs") or {},
            "max_delay": max_delay,
        }
        for key in ("queue", "priority", "lock", "queueing_lock"):
            if options.get(key) is not None:
                schedule[key] = options.get(key)
        return schedule


class PeriodicRegistry:
    def __init__(self) -> None:
        self.periodic_tasks: dict[tuple[str, str], PeriodicTask] = {}

    def periodic_decorator(
        self, cron: str, periodic_id: str, timezone: str, **configure_kwargs: Unpack[ConfigureTaskOptions]
    ) -> Callable[[Task[P, R, Concatenate[int, D]]], Task[P, R, D]]:
        """
        Return a decorator that registers the task, which it calls with the scheduled time as
        `timestamp`.
        """

        def decorate(task: Task[P, R, Concatenate[int, D]]) -> Task[P, R, D]:
            self.register(PeriodicTask(task, cron, periodic_id, configure_kwargs, timezone))
            return task  # type: ignore[return-value] # only what a caller may pass has changed

        return decorate

    def register(self, periodic: PeriodicTask) -> None:
        key = (periodic.task.name, periodic.periodic_id)
        if key in self.periodic_tasks:
            raise exceptions.TaskAlreadyRegistered(
                f"a schedule of task {key[0]} with the periodic_id {key[1]!r} is registered already"
            )
        self.periodic_tasks[key] = periodic
        extra = {"action": "registering_periodic_task", "task": key[0]}
        logger.debug("Registered schedule of task %s: %s", key[0], periodic.cron, extra=extra)
