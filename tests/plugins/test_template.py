"""The template is where a plugin starts from: copied under another name it can be installed, and its tests pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "plugins" / "pyprocrastinate-template"
MADE_BY_TOOLS = shutil.ignore_patterns("__pycache__", "*.egg-info", "dist", "build", ".*")


def renamed(text: str) -> str:
    return text.replace("template", "mine").replace("TEMPLATE", "MINE")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return the folder of a copy in which everything is named otherwise."""
    folder = tmp_path / "pyprocrastinate-mine"
    shutil.copytree(TEMPLATE, folder, ignore=MADE_BY_TOOLS)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            path.write_text(renamed(path.read_text("utf-8")), "utf-8")
        path.rename(path.with_name(renamed(path.name)))
    return folder


def run(*arguments: object, cwd: Path, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_copy_under_another_name_is_a_plugin(copy: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    # What it is built with is here, so nothing is fetched.
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run("pip", "install", "-q", *offline, "--target", site, copy, cwd=tmp_path)
    assert (site / "pyprocrastinate_mine" / "py.typed").exists()
    # Not the copy but what was installed.
    shutil.rmtree(copy / "pyprocrastinate_mine")
    tests = ("-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", copy, copy / "tests")
    environ = {"PYTHONPATH": str(site), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    assert "passed" in run("pytest", *tests, cwd=copy, **environ)


def test_nothing_in_a_copy_reminds_of_the_template(copy: Path) -> None:
    assert not [path for path in copy.rglob("*") if "template" in path.name.lower()]
    assert not [path for path in copy.rglob("*.*") if path.is_file() and "template" in path.read_text("utf-8").lower()]
