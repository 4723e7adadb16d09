"""
`./run`: two commands for a machine that has nothing but Python.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE = 60

pytestmark = pytest.mark.skipif(not (ROOT / ".venv" / "synced").exists(), reason="this Python was not set up by ./run")


def load(path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("run", str(path))
    spec = importlib.util.spec_from_loader("run", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout that has been set up, with this very Python."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    shutil.copy(ROOT / "run", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "plugins" / "one").mkdir(parents=True)
    (tmp_path / "plugins" / "one" / "pyproject.toml").write_text("")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    # without these two it is the Python below, which need not have pytest
    shutil.copy(ROOT / ".venv" / "pyvenv.cfg", tmp_path / ".venv")
    (tmp_path / ".venv" / "lib").symlink_to(ROOT / ".venv" / "lib")
    (tmp_path / ".venv" / "synced").write_text(load(tmp_path / "run").wanted())
    return tmp_path


def start(checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, checkout / "run", *arguments],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_programs_exit_code_is_passed_on(checkout: Path) -> None:
    process = start(checkout, "python", "-c", "import os; print(os.getcwd()); exit(7)")
    assert process.communicate(timeout=DEADLINE) == ("/\n", "")
    assert process.returncode == 7


def test_tests_are_found_from_everywhere(checkout: Path) -> None:
    (checkout / "test_one.py").write_text("def test_one(): pass")
    process = start(checkout, "test", "-p", "no:cacheprovider", "test_one.py")
    assert "1 passed" in process.communicate(timeout=DEADLINE)[0]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_reaches_the_program(checkout: Path, name: str) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with start(checkout, "python", "-c", code) as process:
        assert process.stdout
        assert int(process.stdout.readline()) == process.pid  # nobody in between to be left behind
        process.send_signal(getattr(signal, name))
        process.wait(DEADLINE)
    assert process.returncode == -getattr(signal, name)


def test_an_unknown_command_is_told_what_there_is(checkout: Path) -> None:
    process = start(checkout, "fly")
    out, error = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (2, "")
    assert "./run demo" in error


@pytest.mark.parametrize("changed", ["pyproject.toml", "plugins/one/pyproject.toml", "plugins/new/pyproject.toml"])
def test_a_changed_or_new_distribution_is_installed_anew(checkout: Path, changed: str) -> None:
    run = load(checkout / "run")
    assert run.ready(True)
    (checkout / changed).parent.mkdir(exist_ok=True)
    (checkout / changed).write_text("[project]")
    assert not run.ready(True)


def test_a_venv_made_for_the_demo_is_enough_for_the_demo_only(checkout: Path) -> None:
    run = load(checkout / "run")
    (checkout / ".venv" / "synced").write_text(run.DEMO_ONLY + run.wanted())
    assert (run.ready(False), run.ready(True)) == (True, False)
    (checkout / "pyproject.toml").write_text("[project]")
    assert not run.ready(False)


def test_a_venv_whose_python_is_gone_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to(checkout / "gone")
    assert not load(checkout / "run").ready(False)


def test_an_old_python_is_told_what_is_needed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load(checkout / "run")
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    monkeypatch.setattr(sys, "argv", ["run", "test"])
    monkeypatch.setenv("PATH", str(checkout))
    assert run.main() == 1
    assert "this is Python 3.10, and 3.11 or newer is needed" in capsys.readouterr().err


@pytest.mark.long
def test_two_first_calls_at_once_in_a_fresh_checkout(tmp_path: Path) -> None:
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for file in filter(None, files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    code = "import pyprocrastinate.embedded as e; print(e.__file__); e.Server().start().stop()"
    calls = [start(tmp_path, "python", "-c", code) for _ in range(2)]
    said = [call.communicate(timeout=300) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], said
    assert {out for out, _ in said} == {f"{tmp_path}/pyprocrastinate/embedded.py\n"}
    assert sum("installing" in error for _, error in said) == 1
    left = os.listdir(tmp_path)
    assert {".venv", ".venv.lock"} <= set(left)
