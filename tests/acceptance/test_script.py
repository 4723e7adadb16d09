"""A program of one file, which is started as a script."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from pyprocrastinate import App, PsycopgConnector
app = App(connector=PsycopgConnector())

@app.task({})
def greet(): ...
print(greet.name)
"""


@pytest.mark.parametrize(
    ("options", "name", "warning"),
    [
        ("", "hello.greet", "Task hello.greet is named after the script that defines it. "),
        ("name='greet'", "greet", ""),
    ],
)
def test_it_is_warned_of_task_names_that_hang_on_how_it_is_started(folder, options, name, warning):
    (folder / "hello.py").write_text(SCRIPT.format(options))
    argv = [sys.executable, "hello.py"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == f"{name}\n"
    assert done.stderr.startswith(warning)
    assert bool(done.stderr) is bool(warning)
