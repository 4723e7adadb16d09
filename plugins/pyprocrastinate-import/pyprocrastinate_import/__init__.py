"""
Moves the jobs of Procrastinate 3 to pyprocrastinate, within one database.

What is moved, and how, is in the SQL files of this package; this is the command.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from pyprocrastinate import hookimpl
from pyprocrastinate.cli import address
from pyprocrastinate_import.moving import findings


@hookimpl
def register_commands(cli: click.Group) -> None:
    cli.add_command(import_procrastinate)


@click.command()
@click.option("--schema", "source", default="public", help="Schema of Procrastinate's tables.")
@click.option("--finished", is_flag=True, help="Move also jobs that have ended.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    metavar="N",
    help="Commit after each N jobs, and go on there when called again. Default: one transaction.",
)
@click.option(
    "--force", is_flag=True, help="Move although an old worker is alive, and run again what dead ones left running."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.pass_obj
def import_procrastinate(app: str | None, /, **options: Any) -> None:
    """
    Move the jobs of Procrastinate 3, in the same database, to this queue.

    Stop its workers first. A job that waits is cancelled there; procrastinate_import.moved tells its id here.
    """
    dry_run = options["dry_run"]
    moved: Counter[str] = Counter()
    for found in findings(address(app), **options):
        match found.kind:
            case "left":
                click.echo(f"job {found.old_id} ({found.task}) {'would stay' if dry_run else 'stays'}: {found.note}")
            case "alive":
                click.echo(f"would refuse: worker {found.old_id} of Procrastinate is alive, {found.note}")
            case kind:
                moved[kind] += found.jobs or 0
    click.echo(
        f"{'would move' if dry_run else 'moved'} {moved['waiting']} waiting and {moved['finished']} finished jobs;"
        f" {moved['schedules']} schedules {'would ' if dry_run else ''}know their last tick"
    )
