"""
The commands `psql` and `demo`, which want a server of their own, or its tools.
"""

from __future__ import annotations

import importlib
import logging
import sys

import click
import pluggy

hookimpl = pluggy.HookimplMarker("pyprocrastinate")


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add them to the command `pyprocrastinate`."""
    cli.add_command(psql)
    cli.add_command(demo)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def psql(app: str | None, arguments: tuple[str, ...]) -> None:
    """Open psql on the database, with psql's ARGUMENTS, as in `psql -c 'table …'`."""
    from pyprocrastinate.cli import address
    from pyprocrastinate_embedded import psql

    sys.exit(psql.run(address(app), arguments))


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False))
@click.pass_context
def demo(ctx: click.Context, folder: str | None) -> None:
    """Show a queue at work on the files of a folder, in a PostgreSQL of its own."""
    from pyprocrastinate._sqlfiles import shipped

    sys.path.insert(0, str(shipped("examples")))
    program = importlib.import_module("demo.program")
    parent = ctx.find_root().params
    if not parent["verbose"]:
        logging.disable()
    sys.exit(program.main(folder, parent["dsn"]))
