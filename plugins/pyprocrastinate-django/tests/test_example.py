"""The project in example/: its commands, and its tests, which are run by Django's test runner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "example"
Manage = Callable[..., tuple[list[str], str]]


@pytest.fixture
def manage(empty_dsn: str) -> Manage:
    """Return a function that runs manage.py; it returns the lines that it printed, and what it said besides."""
    environ = os.environ | {"PROCRASTINATE_DSN": empty_dsn, "PYTHONWARNINGS": "error"}

    def manage(*arguments: str) -> tuple[list[str], str]:
        argv = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(argv, cwd=EXAMPLE, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    return manage


def test_a_first_try(manage: Manage) -> None:
    manage("migrate")
    assert manage("buy", "Ada", "The Elements") == (["ordered: The Elements for Ada"], "")
    assert manage("procrastinate", "worker", "--one-shot") == (["sent: The Elements for Ada"], "")
    assert manage("procrastinate", "defer", "bookshop.tasks.count")[0] == ["2"]
    assert manage("procrastinate", "worker", "--one-shot") == (["1 of 1 orders sent"], "")
    assert manage("procrastinate", "healthchecks")[0][-1] == "Worker App: OK"


def test_its_tests(manage: Manage) -> None:
    _, said = manage("test", "--noinput")
    assert "Ran 3 tests" in said
