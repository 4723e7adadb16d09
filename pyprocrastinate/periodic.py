"""
Schedules that the app's code declares; the schema fires them while a live worker declares them.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack

from pyprocrastinate import exceptions, operations
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


# What croniter takes for a star; the schema, like cron, looks at how the field is written.
_ANY_DAY = {"*", "?", "*/1", "1-31", "1-31/1"}
_ANY_WEEKDAY = {"*", "?", "*/1", "0-6", "0-7", "1-7", "sun-sat", "mon-sun"}


def readings(cron: str) -> list[str]:
    """
    Return expressions of which croniter fires at each, where it reads `cron` differently from the
    schema; else none.

    They may differ when both day fields are given.
    Cron wants both days if one field begins with a star, else either; croniter wants either, unless
    one covers all days.
    """
    fields = cron.lower().split()
    if len(fields) not in (5, 6):
        return []
    day, weekday = fields[2], fields[4]
    covers = [day in _ANY_DAY, weekday in _ANY_WEEKDAY]
    starred = day[0] in "*?" or weekday[0] in "*?"
    only_day, only_weekday = fields.copy(), fields.copy()
    only_day[4] = only_weekday[2] = "*"
    if starred and not any(covers):
        return [" ".join(only_day), " ".join(only_weekday)]
    if not starred and covers in ([True, False], [False, True]):
        return [" ".join(only_weekday if covers[0] else only_day)]
    return []


def comparison(periodic: PeriodicTask, at: datetime.datetime) -> list[operations.Call[Any]]:
    """
    Return the calls that tell when the schedule fires next, by the schema and then by croniter, if
    these differ.
    """
    others = readings(periodic.cron)
    return [
        operations.cron_next(expression, at, periodic.timezone) for expression in (others and [periodic.cron, *others])
    ]


def warn_of_difference(periodic: PeriodicTask, times: list[datetime.datetime]) -> None:
    """Log that the schedule fires at other times than it would with croniter, as in Procrastinate."""
    text = (
        "The cron expression %r of task %s is read differently from croniter: it fires next at %s, there at %s."
        " If one day field begins with a star, both must match; if none does, either."
    )
    task, (here, *there) = periodic.task.name, [time.isoformat() for time in times]
    logger.warning(text, periodic.cron, task, here, min(there), extra={"action": "cron_read_differently", "task": task})
