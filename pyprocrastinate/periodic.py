"""
Schedules that the app's code declares; the schema fires them while a live worker declares them.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from pyprocrastinate import exceptions, removed
from pyprocrastinate.types import ConfigureTaskOptions

if TYPE_CHECKING:
    from pyprocrastinate.tasks import Task

logger = logging.getLogger(__name__)

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

    def register(self, periodic: PeriodicTask) -> None:
        removed.refuse(periodic.configure_kwargs.keys() - ConfigureTaskOptions.__optional_keys__)
        key = (periodic.task.name, periodic.periodic_id)
        if key in self.periodic_tasks:
            raise exceptions.TaskAlreadyRegistered(
                f"a schedule of task {key[0]} with the periodic_id {key[1]!r} is registered already"
            )
        self.periodic_tasks[key] = periodic
        extra = {"action": "registering_periodic_task", "task": key[0]}
        logger.debug("Registered schedule of task %s: %s", key[0], periodic.cron, extra=extra)
