"""Options and variables of `worker`, and what reaches the app of them."""

from __future__ import annotations

import sys
import types
from typing import Any

import click.testing
import pytest

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.cli import cli


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs `worker` and returns the options that the app got."""
    seen: list[dict[str, Any]] = []
    module = types.ModuleType("module_of_app")
    monkeypatch.setitem(sys.modules, "module_of_app", module)
    monkeypatch.setattr(App, "run_worker", lambda _, **options: seen.append(options))
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr(module, "app", App(connector=PsycopgConnector()), raising=False)

    def options(*args: str, **env: str) -> dict[str, Any]:
        result = click.testing.CliRunner().invoke(
            cli,
            ["--app", "module_of_app.app", "worker", *args],
            env={f"PROCRASTINATE_WORKER_{name}": value for name, value in env.items()},
        )
        assert result.exit_code == 0, result.output
        return seen.pop()

    return options


def test_nothing_given_leaves_all_to_the_app(options: Any) -> None:
    assert options() == {}


@pytest.mark.scenario(73)
@pytest.mark.parametrize(
    ("flags", "variable", "value", "expected"),
    [
        (["--queues", "a,b"], "QUEUES", "a, b", {"queues": ["a", "b"]}),
        (["-q", "a"], "QUEUES", "a", {"queues": ["a"]}),
        (["-q", ""], "QUEUES", "", {}),
        (["--name", "ada"], "NAME", "ada", {"name": "ada"}),
        (["-n", "ada"], "NAME", "ada", {"name": "ada"}),
        (["--concurrency", "3"], "CONCURRENCY", "3", {"concurrency": 3}),
        (["-c", "3"], "CONCURRENCY", "3", {"concurrency": 3}),
        (["--wait"], "WAIT", "1", {"wait": True}),
        (["-w"], "WAIT", "y", {"wait": True}),
        (["--one-shot"], "WAIT", "0", {"wait": False}),
        (["--one-shot"], "WAIT", "n", {"wait": False}),
        (["--one-shot"], "WAIT", "f", {"wait": False}),
        (["-l"], "LISTEN_NOTIFY", "t", {"listen_notify": True}),
        (["--listen-notify"], "LISTEN_NOTIFY", "true", {"listen_notify": True}),
        (["--no-listen-notify"], "LISTEN_NOTIFY", "0", {"listen_notify": False}),
        (["--no-prefetch"], "PREFETCH", "0", {"prefetch": False}),
        (["--delete-jobs", "always"], "DELETE_JOBS", "always", {"delete_jobs": "always"}),
        (
            ["--fetch-job-polling-interval", "1.5"],
            "FETCH_JOB_POLLING_INTERVAL",
            "1.5",
            {"fetch_job_polling_interval": 1.5},
        ),
        (["-p", "2"], "FETCH_JOB_POLLING_INTERVAL", "2", {"fetch_job_polling_interval": 2.0}),
        (["--abort-job-polling-interval", "1"], "ABORT_JOB_POLLING_INTERVAL", "1", {"abort_job_polling_interval": 1.0}),
        (["-a", "1"], "ABORT_JOB_POLLING_INTERVAL", "1", {"abort_job_polling_interval": 1.0}),
        (["--shutdown-graceful-timeout", "0"], "SHUTDOWN_GRACEFUL_TIMEOUT", "0", {"shutdown_graceful_timeout": 0.0}),
    ],
)
def test_flags_and_variables_mean_the_same(
    options: Any, flags: list[str], variable: str, value: str, expected: dict[str, Any]
) -> None:
    assert options(*flags) == expected
    assert options(**{variable: value}) == expected


def test_a_flag_wins_over_a_variable(options: Any) -> None:
    assert options("--wait", WAIT="0") == {"wait": True}
    assert options("--one-shot", WAIT="1") == {"wait": False}
