"""
Tasks that every app has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyprocrastinate import removed

if TYPE_CHECKING:
    from pyprocrastinate.blueprints import Blueprint
    from pyprocrastinate.job_context import JobContext

# As workers and jobs of Procrastinate know it.
_NAME = "procrastinate.builtin_tasks.remove_old_jobs"


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
    """Add them to an app."""
    app.task(name=f"builtin:{_NAME}", aliases=[_NAME], pass_context=True, queue="builtin")(remove_old_jobs)
