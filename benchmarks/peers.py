"""
The other queues' interpreters: made when they are first asked for, in the user's cache.

Each peer has a virtual environment of its own, so that its dependencies and ours cannot meet.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks import BenchmarkError
from benchmarks.servers import program
from benchmarks.systems import find

WINDOWS = sys.platform == "win32"


class Peers:
    """The peers that were asked for: those that are there, and why the others are not."""

    def __init__(self, names: list[str]) -> None:
        self.interpreters: dict[tuple[str, ...], Path] = {(): Path(sys.executable)}
        self.present: list[str] = []
        self.missing: list[str] = []
        self.versions: dict[str, str] = {}
        for name in names:
            system = find(name)
            requirements = system.requirements
            try:
                for needed in system.programs:
                    program(needed)
                python = environment(requirements)
                self.versions[name] = _version(python, name)
            except (BenchmarkError, OSError, subprocess.CalledProcessError) as error:
                said = getattr(error, "stderr", None) or str(error)
                self.missing.append(f"missing: {system.title}: {said.strip()[-500:]}")
            else:
                self.interpreters[requirements] = python
                self.present.append(name)


def environment(requirements: tuple[str, ...]) -> Path:
    """Return a Python, or a folder of packages for node, with these; raises OSError or CalledProcessError."""
    if requirements[0] == "npm":
        return _packages(requirements[1:])
    wanted = "\n".join((sys.version, *requirements))
    folder = _cache() / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    python = folder / ("Scripts/python.exe" if WINDOWS else "bin/python")
    if not (folder / "complete").exists():
        print(f"installing {', '.join(requirements)} ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True, symlinks=not WINDOWS)
        _run(python, "-m", "pip", "install", "--quiet", *requirements)
        (folder / "complete").touch()
    return python


def _packages(requirements: tuple[str, ...]) -> Path:
    """Return a folder of node's packages; it must have node itself."""
    node = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout
    folder = _cache() / hashlib.sha256("\n".join((node, *requirements)).encode()).hexdigest()[:16]
    if not (folder / "complete").exists():
        print(f"installing {', '.join(requirements)} ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text("{}")
        subprocess.run(
            ["npm", "install", "--silent", *requirements], cwd=folder, check=True, capture_output=True, text=True
        )
        (folder / "complete").touch()
    return folder / "node_modules"


def _cache() -> Path:
    if WINDOWS:
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pyprocrastinate" / "benchmarks"


def _version(python: Path, name: str) -> str:
    if python.name == "node_modules":
        package = find(name).requirements[1].rpartition("@")[0]
        return str(json.loads((python / package / "package.json").read_text())["version"])
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return _run(python, "-c", code).strip()


def _run(python: Path, *argv: str) -> str:
    done = subprocess.run([python, *argv], check=True, capture_output=True, text=True)
    return done.stdout
