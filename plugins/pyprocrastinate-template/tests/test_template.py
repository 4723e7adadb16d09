from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import pyprocrastinate_template
from pyprocrastinate import App
from pyprocrastinate.jobs import Job

EXAMPLE = Path(__file__).parents[1] / "example.py"
JOB = Job(id=1, task_name="dig", queue="default", lock=None, queueing_lock=None)


@pytest.mark.parametrize(("duration", "warned"), [(59.0, False), (61.0, True)])
def test_a_long_run_is_warned_of(duration: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    pyprocrastinate_template.job_finished(JOB, "succeeded", duration)
    assert caplog.messages == (["Job 1 of dig took 61.0 s and is succeeded"] if warned else [])


def test_a_worker_calls_it(app: App, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_TEMPLATE_SECONDS", "0")

    @app.task(name="dig")
    def dig() -> None:
        raise ValueError("rock")

    job_id = dig.defer()
    with caplog.at_level(logging.WARNING, pyprocrastinate_template.logger.name):
        app.run_worker(wait=False, install_signal_handlers=False)
    warnings = [message for message in caplog.messages if message.endswith("and is failed")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"Job {job_id} of dig took ")


def test_the_command_lists_what_runs(app: App) -> None:
    printed: list[str] = []

    @app.task(name="list")
    def listing() -> None:
        printed.append(subprocess.check_output([sys.executable, "-m", "pyprocrastinate", "running"], text=True))

    job_id = listing.defer()
    app.run_worker(wait=False, install_signal_handlers=False)
    assert printed == [f"{job_id} list\n"]


@pytest.mark.usefixtures("app")
def test_the_example() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], check=True, capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if "of dig took" in line and line.endswith("and is succeeded")]
