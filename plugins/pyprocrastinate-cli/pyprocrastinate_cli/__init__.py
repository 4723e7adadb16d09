"""
The command `pyprocrastinate`.

Every option can be given in the environment, too: `worker --concurrency` as
PROCRASTINATE_WORKER_CONCURRENCY.
What goes wrong comes out as one line that says what to do, and as an exit code that is not 0; the
traceback with `-v`.
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from pyprocrastinate.app import App


logger = logging.getLogger(__name__)


class Commands(click.Group):
    """A group that has one place for all errors, and the commands of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._take_from_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            self._take_from_plugins()
        return super().get_command(ctx, cmd_name)

    def _take_from_plugins(self) -> None:
        from pyprocrastinate.exceptions import PluginError
        from pyprocrastinate.hooks import Hooks
        from pyprocrastinate_hooks import PATIENCE

        try:
            implementations = Hooks().implementations["register_commands"]
        except PluginError as error:
            # What is not the plugin's still works.
            click.echo(f"Warning: {error}", err=True)
            return
        for each in implementations:
            own = click.Group()
            each.ask(PATIENCE, contextvars.copy_context(), functools.partial(each, cli=own))
            # A copy, for a call that was abandoned goes on.
            for name, command in list(own.commands.items()):
                if isinstance(command, click.Command):
                    self.commands.setdefault(name, command)
                else:
                    each.log(logging.ERROR, f"{name} is no command")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            from pyprocrastinate.jobs import plain
            from pyprocrastinate_cli._explain import explain, mask

            if ctx.params["verbose"]:
                lines = mask("".join(traceback.format_exception(error))).split("\n")
                click.echo("\n".join(map(plain, lines)), err=True)
            raise click.ClickException(explain(error)) from error


_SETTINGS = {"auto_envvar_prefix": "PROCRASTINATE", "help_option_names": ["-h", "--help"], "show_default": True}


@click.group(cls=Commands, context_settings=_SETTINGS)
@click.option("-a", "--app", metavar="PATH", help="Dotted path to the app, as in `myapp.queue.app`.")
@click.option(
    "--dsn", help="Address of the database, in place of the app's: a DSN or URL for libpq, or embedded:FOLDER."
)
@click.option("-v", "--verbose", count=True, help="Log more, and show tracebacks.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error", "critical"]), help="In place of -v."
)
@click.option("--log-format", default=logging.BASIC_FORMAT, help="Format of log records.")
@click.option("--log-format-style", type=click.Choice(["%", "{", "$"]), default="%")
@click.version_option(None, "-V", "--version", package_name="pyprocrastinate")
@click.pass_context
def cli(
    ctx: click.Context,
    app: str | None,
    dsn: str | None,
    verbose: int,
    log_level: str | None,
    log_format: str,
    log_format_style: Any,
) -> None:
    """Run and manage a task queue in PostgreSQL."""
    ctx.obj = app
    if dsn:
        os.environ["PROCRASTINATE_DSN"] = dsn
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if log_level and verbose:
        raise click.UsageError("--log-level and --verbose exclude each other")
    name = (log_level or ("debug" if verbose else "info")).upper()
    logging.basicConfig(level=name, format=log_format, style=log_format_style)
    logger.debug("Log level is %s", name, extra={"action": "set_log_level", "value": name})


def load_app(path: str | None, *, bare: bool = False) -> App:
    """Return the app; with `bare`, one without tasks where only the database is known."""
    from pyprocrastinate import App, PsycopgConnector, embedded

    if path:
        app = App.from_path(path)
        root = click.get_current_context().find_root()
        if root.get_parameter_source("dsn") is ParameterSource.COMMANDLINE:
            app.connector.redirect(root.params["dsn"])
        return app
    if bare and embedded.from_environment() is not None:
        return App(connector=PsycopgConnector())
    raise click.ClickException("no app: give its dotted path with --app or PROCRASTINATE_APP")


def address(path: str | None) -> str:
    """Return where the schema is: the app's address, empty for that of the environment."""
    return load_app(path).connector.address() if path else ""


@cli.command()
@click.option("--stage", type=click.Choice(["pre", "post"]), help="Apply one stage only.")
@click.option("--plan", "how", flag_value="plan", help="Only show what would be applied.")
@click.option("--sql", "how", flag_value="sql", help="Print it as a script for psql.")
@click.option(
    "--roles",
    default="",
    is_flag=False,
    flag_value="procrastinate",
    metavar="[PREFIX]",
    help="Also make roles: PREFIX_owner, _client, _worker, _observer, _admin. [PREFIX: procrastinate]",
)
@click.pass_obj
def migrate(app: str | None, stage: Any, how: str | None, roles: str) -> None:
    """
    Create the schema, or bring it to this release.

    To upgrade without a pause: --stage pre, then upgrade the workers, then --stage post.
    """
    from pyprocrastinate import migrate

    if how is None:
        steps = migrate.migrate(address(app), stage=stage, roles=roles)
        noun = "step" if len(steps) == 1 else "steps"
        click.echo(f"applied {len(steps)} {noun}" if steps else "nothing to apply")
        return
    steps = migrate.plan(address(app), stage=stage, roles=roles)
    if how == "sql":
        click.echo(migrate.script(steps))
    for step in steps if how == "plan" else ():
        click.echo("\n  ".join((step.name, *(str(path) for path, _ in step.files))))


@cli.command()
@click.option("--apply", "how", flag_value="apply", help="Same as `migrate`; the default.")
@click.option("--read", "how", flag_value="read", help="Print a script for an empty database.")
@click.option("--migrations-path", "how", flag_value="path", help="Tell where the files are.")
@click.pass_context
def schema(ctx: click.Context, how: str | None) -> None:
    """Apply the schema, print it, or tell where its files are."""
    from pyprocrastinate import _sqlfiles
    from pyprocrastinate.migrate import get_schema

    if how == "read":
        click.echo(get_schema())
    elif how == "path":
        click.echo(_sqlfiles.sql_dir() / "migrations")
    else:
        ctx.invoke(migrate)


@cli.command()
@click.option("-n", "--name", help="Name of the worker.")
@click.option("-q", "--queues", help="Names of queues, with commas between; default: all.")
@click.option("-c", "--concurrency", type=click.IntRange(1), help="Tasks at a time.")
@click.option("-p", "--fetch-job-polling-interval", type=float, metavar="SECONDS")
@click.option("-a", "--abort-job-polling-interval", type=float, metavar="SECONDS")
@click.option("--shutdown-graceful-timeout", type=float, metavar="SECONDS")
@click.option("-w/ ", "--wait/--one-shot", default=None, help="Go on when nothing is ready.")
@click.option("-l/ ", "--listen-notify/--no-listen-notify", default=None, help="Or only poll.")
@click.option("--prefetch/--no-prefetch", default=None, help="Fetch ahead of free slots.")
@click.option("--delete-jobs", type=click.Choice(["never", "successful", "always"]))
@click.pass_obj
def worker(app: str | None, /, **options: Any) -> None:
    """
    Run jobs until stopped.

    What is not given is as in the app's worker_defaults.
    """
    if options["queues"]:
        options["queues"] = [name.strip() for name in options["queues"].split(",")]
    given = {name: value for name, value in options.items() if value not in (None, "")}
    load_app(app).run_worker(**given)


@cli.command()
@click.argument("task")
@click.argument("json_args", envvar="PROCRASTINATE_DEFER_JSON_ARGS", default="{}")
@click.option("--queue")
@click.option("--lock")
@click.option("--queueing-lock")
@click.option("--priority", type=int)
@click.option(
    "-i/ ",
    "--ignore-already-enqueued/--no-ignore-already-enqueued",
    help="Succeed where a waiting job has the queueing lock.",
)
@click.option("--at", "schedule_at", envvar="PROCRASTINATE_DEFER_AT", metavar="ISO_TIME")
@click.option("--in", "seconds", envvar="PROCRASTINATE_DEFER_IN", type=float, metavar="SECONDS")
@click.option("--unknown/--no-unknown", help="Also defer tasks that the app does not know.")
@click.pass_obj
def defer(
    app_path: str | None,
    /,
    task: str,
    json_args: str,
    ignore_already_enqueued: bool,
    schedule_at: str | None,
    seconds: float | None,
    unknown: bool,
    **options: Any,
) -> None:
    """
    Defer a job, and print its id.

    JSON_ARGS are its arguments, as in '{"to": "a@b.c"}'. A time without a zone is UTC.
    """
    from pyprocrastinate.exceptions import AlreadyEnqueued, TaskNotFound
    from pyprocrastinate.jobs import call_string
    from pyprocrastinate_cli._explain import describe

    if schedule_at is not None and seconds is not None:
        raise click.UsageError("--at and --in exclude each other")
    if schedule_at is not None:
        options["schedule_at"] = parse_time(schedule_at)
    if seconds is not None:
        options["schedule_in"] = {"seconds": seconds}
    app = load_app(app_path, bare=True)
    args = parse_args(app, json_args)
    with app.open():
        try:
            known = not (unknown or app_path is None)
            deferrer = app.configure_task(task, allow_unknown=not known, **options)
        except TaskNotFound as error:
            raise click.ClickException(f"{error}. Defer it all the same with --unknown") from error
        try:
            job_id = deferrer.defer(**args)
        except AlreadyEnqueued as error:
            if not ignore_already_enqueued:
                raise
            click.echo(f"{describe(error)} (ignored)", err=True)
            return
        # Said only of a job that there is.
        call = call_string(task, None, args if app.log_args else None)
        click.echo(f"Launching a job: {call}", err=True)
        click.echo(job_id)


def parse_time(text: str) -> datetime.datetime:
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from error
    return at if at.tzinfo else at.replace(tzinfo=datetime.UTC)


def parse_args(app: App, text: str) -> dict[str, Any]:
    try:
        args = app.connector.json_loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="JSON_ARGS") from error
    if not isinstance(args, dict):
        raise click.BadParameter("not a JSON object", param_hint="JSON_ARGS")
    return args


@cli.command()
@click.pass_obj
def healthchecks(app_path: str | None) -> None:
    """Check the app, the database and the schema; exit code 1 if something is wrong."""
    from pyprocrastinate import operations
    from pyprocrastinate.exceptions import ConnectorException
    from pyprocrastinate.protocol import check_protocol
    from pyprocrastinate_cli import _pooler

    app = load_app(app_path, bare=True)
    app.perform_import_paths()
    click.echo("App configuration: OK")
    with app.open():
        ready = app.check_connection()
        click.echo("DB connection: OK")
        if not ready:
            raise ConnectorException("the schema is missing. Run `pyprocrastinate migrate`")
        check_protocol(*app.connector.run(operations.protocol()))
        click.echo("Schema: OK")
        click.echo(f"Pooler: {_pooler.find(app.connector.address())}")


_STATUSES = ("todo", "doing", "succeeded", "failed", "cancelled", "aborted")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1)
@click.pass_obj
def shell(app_path: str | None, /, command: tuple[str, ...]) -> None:
    """Look at jobs and manage them from a prompt, or with one COMMAND, as in `shell list_jobs status=failed`."""
    from pyprocrastinate_cli.shell import Shell

    with load_app(app_path, bare=True).open() as app:
        prompt = Shell(app.job_manager)
        if command:
            prompt.run(command)
        else:
            prompt.cmdloop()


@cli.command()
@click.option("--id", type=int)
@click.option("--queue")
@click.option("--task")
@click.option("--status", type=click.Choice(_STATUSES))
@click.option("--lock")
@click.option("--queueing-lock")
@click.option("--details", is_flag=True, help="Also print attempts, priority, time, arguments and lock.")
@click.pass_obj
def jobs(app_path: str | None, /, details: bool, **filters: Any) -> None:
    """List jobs, those that match all options."""
    from pyprocrastinate_cli.shell import job_line

    with load_app(app_path, bare=True).open() as app:
        for job in app.job_manager.list_jobs(**filters):
            click.echo(job_line(job, details=details))


@cli.command()
@click.option("--queue")
@click.option("--task")
@click.option("--status", type=click.Choice(_STATUSES))
@click.option("--lock")
@click.pass_obj
def queues(app_path: str | None, /, **filters: Any) -> None:
    """Count the jobs of each queue, in all and by status, those that match all options."""
    from pyprocrastinate_cli.shell import count_line

    with load_app(app_path, bare=True).open() as app:
        for counts in app.job_manager.list_queues(**filters):
            click.echo(count_line(counts))


@cli.command()
@click.pass_obj
def plugins(app: str | None) -> None:
    """List the plugins, where they are from, and their hooks."""
    from pyprocrastinate.hooks import Hooks

    hooks = load_app(app).hooks if app else Hooks()
    for name, origin in hooks.origins.items():
        used = (each.hook for several in hooks.implementations.values() for each in several if each.plugin == name)
        click.echo(f"{name} ({origin}): {', '.join(used)}")


def main() -> None:
    """Run the command, and exit."""
    cli(prog_name="pyprocrastinate")
