"""
`manage.py procrastinate`: those commands of `pyprocrastinate` that make sense in a project.
"""

from __future__ import annotations

import argparse
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.db.migrations.executor import MigrationExecutor

from pyprocrastinate import cli, operations
from pyprocrastinate.protocol import check_protocol
from pyprocrastinate.wires import WorkerConnector
from pyprocrastinate_django import conf
from pyprocrastinate_django.app import app

SHARED = ("worker", "defer", "shell", "jobs", "queues")
APP = "pyprocrastinate_django.app"


@click.command()
def healthchecks() -> None:
    """Check the database, its migrations, the app and a worker's connection; exit code 1 if something is wrong."""
    connection = connections[conf.database_alias()]
    connection.ensure_connection()
    click.echo("Database connection: OK")
    executor = MigrationExecutor(connection)
    newest = [node for node in executor.loader.graph.leaf_nodes() if node[0] == "procrastinate"]
    if pending := [migration.name for migration, _ in executor.migration_plan(newest)]:
        raise click.ClickException(f"migrations are not applied: {', '.join(pending)}. Run `manage.py migrate`")
    click.echo("Migrations: OK")
    app.perform_import_paths()
    check_protocol(*app.connector.run(operations.protocol()))
    click.echo("Default Django Procrastinate App: OK")
    if isinstance(app.connector, WorkerConnector):
        app.connector.open_pulse_wire().close()
    click.echo("Worker App: OK")


class Command(BaseCommand):
    help = "Run workers, and look after the queue. `manage.py procrastinate --help` lists the commands."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        names = ", ".join(self.group().commands)
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help=f"{names}; each has --help")

    def handle(self, *, arguments: list[str], traceback: bool = False, **_: Any) -> None:
        verbose = ["--verbose"] * traceback
        try:
            self.group().main([*verbose, *arguments], "manage.py procrastinate", standalone_mode=False, obj=APP)
        except click.ClickException as error:
            raise CommandError(error.format_message(), returncode=error.exit_code) from error

    def group(self) -> click.Group:
        shared = {name: cli.cli.commands[name] for name in SHARED if name in cli.cli.commands}
        verbose = click.Option(["--verbose"], count=True, hidden=True)
        commands = {**shared, "healthchecks": healthchecks}
        return cli.Commands("procrastinate", commands, params=[verbose], context_settings=cli.cli.context_settings)
