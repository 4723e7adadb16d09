"""
Tasks that every app has.
"""

from __future__ import annotations

import copy
from typing import Any

from pyprocrastinate import removed
from pyprocrastinate.blueprints import Blueprint
from pyprocrastinate.job_context import JobContext

# As workers and jobs of Procrastinate know it.
_NAME = "procrastinate.builtin_tasks.remove_old_jobs"

builtin = Blueprint()


@builtin.task(name=f"builtin:{_NAME}", aliases=[_NAME], pass_context=True, queue="builtin")
async def remove_old_jobs(
    context: JobContext,
    /,
    *,
    max_hours: float,
    queue: str | None = None,
    remove_failed: bool = False,
    remove_cancelled: bool = False,
    remove_aborted: bool = False,
    **unknown: Any,
) -> None:
    """Delete jobs that ended more than `max_hours` ago: those that succeeded, and those asked for."""
    removed.refuse(unknown)
    await context.app.job_manager.delete_old_jobs(
        nb_hours=max_hours,
        queue=queue,
        include_failed=remove_failed,
        include_cancelled=remove_cancelled,
        include_aborted=remove_aborted,
    )


def register(app: Blueprint) -> None:
    """Add them to an app, as tasks of its own; those of this module are deferred to the app that was made last."""
    task = copy.copy(remove_old_jobs)
    task.blueprint = remove_old_jobs.blueprint = app
    app.tasks.update(dict.fromkeys((task.name, *task.aliases), task))
