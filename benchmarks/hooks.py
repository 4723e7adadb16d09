"""
What the hooks cost a job where no plugin is loaded.

    python -m benchmarks.hooks

Printed: the median of 7 rounds, in microseconds of the processor, of what a worker and a defer do for the hooks' sake.
"""

from __future__ import annotations

import os
import statistics
import time
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from pyprocrastinate.execution import Run
from pyprocrastinate.hooks import Hooks

ROUNDS = 7
TIMES = 100_000


def main() -> None:
    """Measure and print."""
    os.environ["PROCRASTINATE_PLUGINS"] = "none"
    hooks = Hooks()
    run = Run.unseen(1, 1, 1)

    def job() -> None:
        hooks.has("wrap_job")
        hooks.has("job_started")
        _ = hooks.has("decide_retry") and run.is_open
        _ = run.outcome != "released" and (run.outcome, "succeeded") != ("unknown_task", "todo")
        hooks.has("job_finished")

    def defer() -> None:
        none: AbstractContextManager[Any] = nullcontext({})
        with hooks.wrap_defer(cast(Any, None), list) if hooks.has("wrap_defer") else none:
            pass
        hooks.has("jobs_deferred")

    for name, function in {"run a job": job, "defer a job": defer}.items():
        print(f"{name}: {median(function):.2f} µs")


def median(function: Callable[[], None]) -> float:
    """Return how long a call takes, in microseconds."""
    return (
        statistics.median(timeit.repeat(function, timer=time.process_time, number=TIMES, repeat=ROUNDS)) / TIMES * 1e6
    )


if __name__ == "__main__":
    main()
