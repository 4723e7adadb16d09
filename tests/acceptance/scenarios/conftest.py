"""Apps, workers and programs as in the tests of the worker."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from worker.conftest import app, job, program, status, until, working

__all__ = ["app", "job", "program", "status", "until", "working"]
