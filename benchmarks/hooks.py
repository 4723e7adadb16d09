"""
What the calls of hooks alone cost a job.

    python -m benchmarks.hooks

Printed: the median of 7 rounds, in microseconds of the processor, of what a worker and a defer do for the hooks' sake,
without a plugin and with that for Prometheus, whose own work, in the thread of the observers, is in it.
`python -m benchmarks --only hooks` shows what is left of that in whole runs.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.execution import Run
from pyprocrastinate.joblog import JobLog
from pyprocrastinate_hooks import observers

ROUNDS = 7
TIMES = 10_000
# How many are under way at a time: as many as a busy worker has.
AT_ONCE = 500
# As a claim has it: microseconds since 2000.
DEFERRED_AT = 850_000_000_000_000


def main() -> None:
    """Measure and print."""
    for plugins in ("none", "prometheus"):
        os.environ["PROCRASTINATE_PLUGINS"] = plugins
        for name, (hooked, bare) in calls().items():
            print(f"{plugins}, {name}: {median(hooked, bare):.2f} µs")


def calls() -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Return what is done for a job, with the hooks and without."""
    app = App(connector=PsycopgConnector())
    worker = app.make_worker()
    hooks, log = app.hooks, JobLog(worker)
    claim = (1, 1, "noop", "default", "{}", None, 0, 0, None, None, None, DEFERRED_AT, False)
    job = dataclasses.replace(Run(claim, None, 1, 0.0).job, status="todo")

    def fetch() -> Run:
        run = Run(claim, None, 1, 0.0)
        run.outcome = "succeeded"
        return run

    def bare() -> None:
        fetch()

    def run_job() -> None:
        run = fetch()
        log.started(run)
        hooks.has("wrap_job")
        _ = hooks.has("decide_retry") and run.is_open
        log.ended(run, "succeeded", None)

    def defer() -> None:
        none: AbstractContextManager[Any] = nullcontext({})
        with hooks.wrap_defer(app, lambda: [job]) if hooks.has("wrap_defer") else none:
            pass
        if hooks.has("jobs_deferred"):
            hooks.observe("jobs_deferred", app=app, jobs=[job], in_transaction=False)

    return {"run a job": (run_job, bare), "defer a job": (defer, lambda: None)}


def median(hooked: Callable[[], None], bare: Callable[[], None]) -> float:
    """Return by how much longer the one takes, in microseconds."""
    spent(hooked)
    return statistics.median(spent(hooked) - spent(bare) for _ in range(ROUNDS)) / TIMES * 1e6


def spent(function: Callable[[], None]) -> float:
    """Return the seconds that all threads spend on it, until the last observer has been called."""
    began = time.process_time()
    for _ in range(TIMES // AT_ONCE):
        for _ in range(AT_ONCE):
            function()
        observers.flush()
    return time.process_time() - began


if __name__ == "__main__":
    main()
