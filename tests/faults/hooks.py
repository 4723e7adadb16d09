"""A plugin of one of the workers that, on command, raises, hangs or returns junk wherever it is called."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyprocrastinate import hookimpl

WAYS = ("raise", "hang", "junk")
# Longer than any hook is waited for.
_LONG = 6.0


def command(folder: Path, worker: str) -> Path:
    """Return the file that says how the plugin of a worker behaves; without it, well."""
    return folder / f"{worker}.hooks"


class Misbehaving:
    """Behaves as the file says."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _behave(self) -> Any:
        try:
            how = self._file.read_text()
        except FileNotFoundError:
            return None
        if how == "raise":
            raise ValueError("a plugin's own error")
        if how == "hang":
            time.sleep(_LONG)
        return object()

    @hookimpl
    def worker_started(self) -> Any:
        return self._behave()

    @hookimpl
    def worker_stopping(self) -> Any:
        return self._behave()

    @hookimpl
    def worker_stopped(self) -> Any:
        return self._behave()

    @hookimpl
    def job_started(self) -> Any:
        return self._behave()

    @hookimpl
    def job_finished(self) -> Any:
        return self._behave()

    @hookimpl
    def job_abort_requested(self) -> Any:
        return self._behave()

    @hookimpl
    def jobs_rescued(self) -> Any:
        return self._behave()

    @hookimpl
    def schedules_fired(self) -> Any:
        return self._behave()

    @hookimpl
    def wrap_job(self) -> Any:
        return self._behave() or self._around()

    @contextmanager
    def _around(self) -> Iterator[None]:
        yield
        self._behave()

    @hookimpl
    def decide_retry(self) -> Any:
        return self._behave()
