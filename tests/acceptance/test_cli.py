"""The command line as its users see it: in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Connection = psycopg.Connection[Any]

APP = """
from pyprocrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(), import_paths=["tasks"])
addressed = App(connector=PsycopgConnector(kwargs={"host": "localhost", "port": 1, "user": "u"}))
discreet = App(connector=PsycopgConnector(), log_args=False)
not_an_app = "something else"
"""
TASKS = """
from myapp import app

@app.task(name="greet", queue="polite", priority=3)
def greet(who, times=1):
    print("\\n".join(["Hello " + who] * times))

@app.task(name="fail")
def fail():
    raise ValueError("no luck")
"""


@pytest.fixture
def run(dsn: str, tmp_path: Path) -> Run:
    """Return a function that runs the command in a folder with an app, on the test's database."""
    (tmp_path / "myapp.py").write_text(APP)
    (tmp_path / "tasks.py").write_text(TASKS)
    clean = {k: v for k, v in os.environ.items() if not re.match("PG|PROCRASTINATE_", k)}

    def run(*args: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pyprocrastinate", *args],
            cwd=tmp_path,
            env={**clean, "PROCRASTINATE_APP": "myapp.app", "PROCRASTINATE_DSN": dsn, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done

    return run


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a failed command says."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


# What it does


@pytest.mark.scenario(4)
def test_defer_then_work(run: Run, conn: Connection) -> None:
    deferred = run("defer", "greet", '{"who": "Ada"}')
    assert "Launching a job: greet(who='Ada')\n" in deferred.stderr
    assert run("worker", "--one-shot").stdout == "Hello Ada\n"
    row = conn.execute("select id, status, queue, priority from procrastinate.jobs").fetchone()
    assert row == (int(deferred.stdout), "succeeded", "polite", 3)


def test_of_a_defer_that_fails_no_launch_is_told(run: Run) -> None:
    failed = run("defer", "greet", '{"who": "Ada"}', "--queue", "q" * 129, status=1)
    assert "Launching" not in failed.stderr


def test_a_failing_job_does_not_fail_the_worker(run: Run, conn: Connection) -> None:
    run("defer", "fail")
    assert "no luck" in run("worker", "--one-shot").stderr
    assert conn.execute("select status from procrastinate.jobs").fetchall() == [("failed",)]


@pytest.mark.scenario(73)
def test_defer_takes_every_option(run: Run, conn: Connection) -> None:
    options = ["--queue=q", "--lock=l", "--queueing-lock=ql", "--priority=-7"]
    run("defer", "greet", '{"who": "Ada"}', *options, "--at=2100-01-02T03:04:05")
    row = conn.execute(
        "select queue, lock, queueing_lock, priority, extract(epoch from scheduled_at)::bigint from procrastinate.jobs"
    ).fetchone()
    assert row == ("q", "l", "ql", -7, 4102542245)


def test_defer_takes_every_variable(run: Run, conn: Connection) -> None:
    run(
        "defer",
        "greet",
        PROCRASTINATE_DEFER_JSON_ARGS='{"who": "Bob"}',
        PROCRASTINATE_DEFER_QUEUE="q",
        PROCRASTINATE_DEFER_LOCK="l",
        PROCRASTINATE_DEFER_QUEUEING_LOCK="ql",
        PROCRASTINATE_DEFER_PRIORITY="0",
        PROCRASTINATE_DEFER_IN="3600",
    )
    row = conn.execute(
        "select args, queue, lock, queueing_lock, priority, "
        "round(extract(epoch from scheduled_at - deferred_at)) from procrastinate.jobs"
    ).fetchone()
    assert row == ({"who": "Bob"}, "q", "l", "ql", 0, 3600)
    again = {"PROCRASTINATE_DEFER_QUEUEING_LOCK": "ql"}
    run("defer", "greet", status=1, PROCRASTINATE_DEFER_IGNORE_ALREADY_ENQUEUED="n", **again)
    run("defer", "greet", PROCRASTINATE_DEFER_IGNORE_ALREADY_ENQUEUED="y", **again)
    run("defer", "nobody knows", PROCRASTINATE_DEFER_UNKNOWN="t")


def test_an_unknown_task_can_be_deferred_on_purpose(run: Run, conn: Connection) -> None:
    run("defer", "nobody knows", "--unknown")
    # without an app nothing is known
    run("defer", "nobody knows", PROCRASTINATE_APP="")
    assert conn.execute("select count(*) from procrastinate.jobs").fetchone() == (2,)


@pytest.mark.scenario(25)
def test_a_job_that_waits_already(run: Run) -> None:
    run("defer", "greet", "--queueing-lock=x")
    assert "queueing lock" in run("defer", "greet", "--queueing-lock=x", status=1).stderr
    assert "ignored" in run("defer", "greet", "--queueing-lock=x", "-i").stderr


def test_arguments_can_be_kept_out_of_the_output(run: Run) -> None:
    done = run("-va", "myapp.discreet", "defer", "greet", '{"who": "S3CR3T"}', "--unknown")
    assert "S3CR3T" not in done.stdout + done.stderr


def test_migrate(run: Run, empty_dsn: str, tmp_path: Path) -> None:
    env = {"PROCRASTINATE_APP": "", "PROCRASTINATE_DSN": empty_dsn}
    plan = run("migrate", "--plan", **env).stdout
    assert plan.splitlines()[0] == "pre/0001_schema"
    files = [Path(line.strip()) for line in plan.splitlines() if line.startswith("  ")]
    assert all(path.is_file() for path in files)
    assert "create schema procrastinate" in run("migrate", "--sql", **env).stdout
    assert run("migrate", "--stage", "pre", **env).stdout.startswith("applied ")
    assert run("migrate", **env).stdout == "nothing to apply\n"
    assert run("migrate", "--plan", **env).stdout == ""


@pytest.mark.scenario(73)
def test_schema(run: Run, empty_dsn: str, conn: Connection) -> None:
    env = {"PROCRASTINATE_APP": "", "PROCRASTINATE_DSN": empty_dsn}
    with psycopg.connect(empty_dsn) as other:
        other.execute(run("schema", "--read", **env).stdout.encode())
    assert run("schema", **env).stdout == "nothing to apply\n"
    assert run("schema", "--apply").stdout == "nothing to apply\n"
    folder = Path(run("schema", "--migrations-path", **env).stdout.strip())
    assert (folder / "pre" / "0001_schema.sql").is_file()


def test_an_explicit_dsn_wins_over_the_environment(run: Run, dsn: str) -> None:
    run("--dsn", dsn, "defer", "greet", PROCRASTINATE_DSN="host=localhost port=1")


def test_an_address_of_the_app_wins_over_both(run: Run) -> None:
    for command in (["migrate"], ["defer", "greet", "--unknown"]):
        said = complaint(run("-a", "myapp.addressed", *command, status=1))
        assert "port 1 failed" in said


@pytest.mark.scenario(73)
@pytest.mark.not_pooled("told as it is without one")
def test_healthchecks(run: Run) -> None:
    for app in ("myapp.app", ""):
        done = run("healthchecks", PROCRASTINATE_APP=app)
        assert done.stdout == "App configuration: OK\nDB connection: OK\nSchema: OK\nPooler: none\n"


def test_version_and_help(run: Run) -> None:
    assert re.match(r"pyprocrastinate, version \d", run("-V").stdout)
    commands = run("--help").stdout
    for command in ("worker", "defer", "migrate", "schema", "healthchecks", "demo"):
        assert f"\n  {command} " in commands
    assert "Usage: pyprocrastinate worker" in run("worker", "-h").stdout


def test_logs_go_as_they_are_told(run: Run) -> None:
    quiet = run("defer", "greet").stderr
    assert "INFO:pyprocrastinate" in quiet
    assert "DEBUG" not in quiet
    for loud in (run("-v", "defer", "greet"), run("defer", "greet", PROCRASTINATE_VERBOSE="1")):
        assert "DEBUG:pyprocrastinate" in loud.stderr
    for loud in (run("--log-level", "debug", "defer", "greet"), run("defer", "greet", PROCRASTINATE_LOG_LEVEL="debug")):
        assert "DEBUG:pyprocrastinate" in loud.stderr
    assert "INFO" not in run("--log-level=warning", "defer", "greet").stderr
    assert "exclude each other" in run("--log-level", "error", "-v", "defer", "greet", status=2).stderr
    styled = run("--log-format", "{levelname}!", "--log-format-style", "{", "defer", "greet")
    assert "INFO!" in styled.stderr
    env = {"PROCRASTINATE_LOG_FORMAT": "$name?", "PROCRASTINATE_LOG_FORMAT_STYLE": "$"}
    assert "pyprocrastinate.jobs?" in run("defer", "greet", **env).stderr


# What goes wrong


@pytest.mark.scenario(73)
@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("postgresql://ada:S3CR3T@localhost:1/x", "Connection refused"),
        ("postgresql//ada:S3CR3T@localhost:1/x", "the connection string is malformed"),
        ("host=localhost port=1 user=ada password=S3CR3T", "Connection refused"),
        ("host=localhost port=x user=ada password='S3CR3T it is'", "Check --dsn"),
        ("postgresql://ada:S3C/R3T@localhost:1/x", "port"),
        ("embedded:", "embedded:FOLDER"),
    ],
)
@pytest.mark.parametrize("verbose", ["0", "1"])
def test_a_wrong_dsn(run: Run, dsn: str, says: str, verbose: str) -> None:
    env = {"PROCRASTINATE_VERBOSE": verbose, "PROCRASTINATE_DSN": dsn}
    for command in (["defer", "greet"], ["worker"]) if verbose == "1" else (["defer", "greet"],):
        done = run(*command, status=1, **env)
        assert says in done.stderr
        assert re.search("S3C.?R3T", done.stdout + done.stderr) is None
        if verbose == "0":
            assert complaint(done)


def test_a_database_that_is_not_there(run: Run, dsn: str) -> None:
    said = complaint(run("migrate", status=1, PROCRASTINATE_DSN=f"{dsn} dbname=not_there"))
    assert 'database "not_there" does not exist' in said
    assert "PROCRASTINATE_DSN" in said


@pytest.mark.scenario(73)
def test_a_missing_app(run: Run) -> None:
    said = complaint(run("worker", status=1, PROCRASTINATE_APP=""))
    assert "--app" in said
    assert "PROCRASTINATE_APP" in said
    # nothing says where the database is, either
    assert complaint(run("defer", "x", status=1, PROCRASTINATE_APP="", PROCRASTINATE_DSN=""))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere.app", "No module named 'nowhere'"),
        ("myapp.nothing", "nothing"),
        ("myapp.not_an_app", "not an app"),
        ("nodots", "nodots cannot be loaded: write MODULE.NAME, as in shop.app"),
    ],
)
def test_an_app_that_cannot_be_loaded(run: Run, path: str, says: str) -> None:
    assert says in complaint(run("--app", path, "worker", status=1))


@pytest.mark.parametrize("command", [["healthchecks"], ["defer", "x"], ["migrate"], ["schema"]])
def test_every_command_needs_the_app_that_it_is_given(run: Run, command: list[str]) -> None:
    assert "nowhere" in complaint(run("--app", "nowhere.app", *command, status=1))


def test_an_app_whose_module_is_broken(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    assert "division by zero" in complaint(run("-a", "broken.app", "worker", status=1))
    assert "Traceback" in run("-v", "-a", "broken.app", "worker", status=1).stderr


def test_a_task_module_that_is_not_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").unlink()
    assert "No module named 'tasks'" in complaint(run("worker", status=1))


@pytest.mark.scenario(73)
def test_an_unknown_task(run: Run) -> None:
    said = complaint(run("defer", "nobody knows", status=1))
    assert "nobody knows" in said
    assert "--unknown" in said


def test_a_bad_cron_expression(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "tasks.py").open("a") as file:
        file.write('app.periodic(cron="never")(app.task(name="tick")(lambda timestamp: None))\n')
    said = run("worker", "--one-shot", status=1).stderr.splitlines()[-1]
    assert said.startswith("Error: ")
    assert "never" in said


@pytest.mark.scenario(73)
@pytest.mark.parametrize("command", [["worker"], ["defer", "greet"], ["healthchecks"]])
def test_a_schema_that_is_not_there(run: Run, empty_dsn: str, command: list[str]) -> None:
    done = run(*command, status=1, PROCRASTINATE_DSN=empty_dsn)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("Error: ")
    assert "pyprocrastinate migrate" in said
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["worker"], ["healthchecks"]])
def test_a_schema_that_has_retired_this_release(run: Run, conn: Connection, command: list[str]) -> None:
    conn.execute("update procrastinate.protocol_range set oldest = 7, newest = 9")
    done = run(*command, status=1)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("Error: ")
    assert "protocols 7 to 9" in said
    assert "Upgrade pyprocrastinate" in said
    assert "Traceback" not in done.stderr


def test_a_running_migration(run: Run, conn: Connection, connect: Callable[..., Connection], tmp_path: Path) -> None:
    (tmp_path / "impatient.py").write_text(
        "import pyprocrastinate_cli, pyprocrastinate_migrate\n"
        "pyprocrastinate_migrate.TURN_TIMEOUT = 0.01\n"
        "pyprocrastinate_cli.main()\n"
    )
    key = "select pg_advisory_xact_lock(x'70726F6372617374'::bigint)"
    with connect().transaction() as other:
        other.connection.execute(key)
        done = subprocess.run(
            [sys.executable, "impatient.py", "--dsn", conn_dsn(conn), "migrate"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: another migration is running")


def conn_dsn(conn: Connection) -> str:
    return f"{conn.info.dsn} password={conn.info.password}" if conn.info.password else conn.info.dsn


@pytest.mark.scenario(73)
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["defer", "greet", "{"], "not JSON"),
        (["defer", "greet", "[1]"], "not a JSON object"),
        (["defer", "greet", "--at=tomorrow"], "--at"),
        (["defer", "greet", "--at=2100-01-01", "--in=3"], "exclude each other"),
        (["defer", "greet", "--priority=high"], "--priority"),
        (["worker", "--concurrency=0"], "--concurrency"),
        (["worker", "--delete-jobs=maybe"], "--delete-jobs"),
        (["worker", "--conc=3"], "No such option"),
        (["migrate", "--stage=never"], "--stage"),
        (["nothing"], "No such command"),
    ],
)
def test_bad_usage(run: Run, args: list[str], says: str) -> None:
    done = run(*args, status=2)
    assert done.stdout == ""
    assert says in done.stderr


def test_what_the_schema_refuses_is_told(run: Run) -> None:
    said = run("defer", "greet", "--lock", "x" * 513, status=1).stderr.splitlines()[-1]
    assert said.startswith("Error: lock name is too long")
    assert "1 to 512 characters" in said


def test_a_dsn_on_the_command_line_replaces_the_one_of_the_app(run: Run, tmp_path: Path, dsn: str) -> None:
    app = (
        "import pyprocrastinate as p\napp = p.App(connector=p.PsycopgConnector('host=/nowhere', kwargs={'port': 1}))\n"
    )
    (tmp_path / "elsewhere.py").write_text(app)
    assert "/nowhere" in run("--app", "elsewhere.app", "healthchecks", status=1).stderr
    assert "Schema: OK" in run("--app", "elsewhere.app", "--dsn", dsn, "healthchecks").stdout
