"""
Warns of jobs that run for long, and lists those that do right now.
"""

from __future__ import annotations

import logging
import os

import click

from pyprocrastinate import hookimpl
from pyprocrastinate.cli import load_app
from pyprocrastinate.jobs import Job

logger = logging.getLogger(__name__)


def limit() -> float:
    """Return after how many seconds a run is long."""
    return float(os.environ.get("PROCRASTINATE_TEMPLATE_SECONDS") or 60)


@hookimpl
def job_finished(job: Job, status: str | None, duration: float) -> None:
    if duration > limit():
        logger.warning("Job %s of %s took %.1f s and is %s", job.id, job.task_name, duration, status)


@hookimpl
def register_commands(cli: click.Group) -> None:
    cli.add_command(running)


@click.command()
@click.pass_obj
def running(app_path: str | None) -> None:
    """List the jobs that run."""
    with load_app(app_path, bare=True).open() as app:
        for job in app.job_manager.list_jobs(status="doing"):
            click.echo(f"{job.id} {job.task_name}")
