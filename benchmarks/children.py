"""The processes in which systems work and defer; each ends with the harness, for its standard input does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import IO, Any

from benchmarks import BenchmarkError
from benchmarks.systems import System

ROOT = Path(__file__).parents[1]


def command_of(system: System, interpreter: Path) -> list[str | Path]:
    """Return what runs a part of a system, but for the part."""
    if system.script is None:
        return [interpreter, "-m", "benchmarks.child", system.name]
    # For programs in JavaScript, the interpreter is where their packages are.
    return ["env", f"NODE_PATH={interpreter}", "node", system.script, system.variant]


class Child:
    """A process of the benchmark."""

    def __init__(self, name: str, command: list[str | Path], log: Path, plugins: str = "none") -> None:
        self.name = name
        self.log: IO[bytes] = log.open("w+b")
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PROCRASTINATE_PLUGINS": plugins},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def await_ready(self) -> None:
        """Wait until one that is gated stands at its gate."""
        assert self.process.stdout
        if not self.process.stdout.readline():
            raise BenchmarkError(f"{self.name} failed: {self.last_words()}")

    def go(self) -> None:
        """Let it through its gate."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def wait(self, seconds: float) -> Any:
        """Return what it says at its end."""
        assert self.process.stdout
        try:
            self.process.wait(seconds)
            if self.process.returncode:
                raise BenchmarkError(f"{self.name} failed: {self.last_words()}")
            return json.loads(self.process.stdout.read().splitlines()[-1])
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{self.name} does not end: {self.last_words()}") from None
        finally:
            self.end()

    def stop(self) -> Any:
        """Ask it to end, and return what it says."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.wait(30)

    def end(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            if file:
                file.close()

    def last_words(self) -> str:
        """Return the end of what it wrote to standard error, once it has ended."""
        self.process.kill()
        self.process.wait()
        self.log.seek(0)
        return self.log.read().decode(errors="replace").strip()[-2000:] or "it said nothing"
