"""What the harness and its children, which may run in another interpreter, tell each other."""

from __future__ import annotations

import asyncio
import mmap
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LATENCIES = 8192
SIZE = 8 * (4 + LATENCIES)


@dataclass(frozen=True)
class Load:
    """Jobs to put into a database before the clock runs; SQL expressions know the number as g."""

    count: int
    queue: str = "'default'"
    lock: str = "null"
    scheduled: bool = False  # a year ahead
    finished: bool = False
    singly: bool = False  # as separate defers would leave them, not as one batch does


@dataclass
class Work:
    """What a worker process is asked to do."""

    dsn: str
    concurrency: int = 10
    target: int = sys.maxsize
    queues: list[str] | None = None
    pooled: bool = False  # by a pooler in transaction mode
    workers: int = 1  # in one process
    tally: Tally = field(repr=False, default=None)  # type: ignore[assignment]
    stop: asyncio.Event = field(repr=False, default=None)  # type: ignore[assignment]

    @property
    def over(self) -> bool:
        """Tell whether nothing is left to do."""
        return self.stop.is_set() or self.tally.count >= self.target


class Tally:
    """Count jobs where another process can read it while it happens."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(SIZE))
        self.path = path
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), SIZE)
        view = memoryview(self.memory)
        self.ints = view.cast("q")
        self.floats = view.cast("d")

    def tick(self, count: int = 1, sent_at: float = 0.0, at: float | None = None) -> None:
        """Count jobs that start now, or started then; sent_at is what the clock was before their defer."""
        now = time.monotonic() if at is None else at
        ints, floats = self.ints, self.floats
        if not ints[0]:
            floats[1] = now
        floats[2] = now
        if sent_at:
            floats[4 + ints[3] % LATENCIES] = now - sent_at
            ints[3] += 1
        ints[0] += count

    @property
    def count(self) -> int:
        """Jobs started so far."""
        return self.ints[0]

    @property
    def started(self) -> int:
        """Jobs started so far that said when they were sent."""
        return self.ints[3]

    @property
    def span(self) -> tuple[float, float]:
        """When the first and the last job started."""
        return self.floats[1], self.floats[2]

    def latencies(self, after: int = 0) -> list[float]:
        """Return the seconds from defer to start of jobs that said when they were sent, but for the first ones."""
        assert self.started - after <= LATENCIES
        return [self.floats[4 + n % LATENCIES] for n in range(after, self.started)]


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    try:
        import resource
    except ImportError:  # on Windows
        return time.process_time()
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


async def nap() -> None:
    """Wait a little."""
    await asyncio.sleep(0.01)


async def bare_loop(work: Work, exchange: Any, rest: Any = nap) -> None:
    """
    Run no-op tasks as the simplest worker would: finish a batch, fetch the next.

    `exchange(done, capacity)` does both in one round trip and returns the arguments of each job
    with whatever it needs to finish it; `rest()` waits until there may be more.
    """

    async def task(args: Any) -> None:
        return None

    done: list[Any] = []
    while True:
        over = work.over
        if over and not done:
            return
        done, arguments = await exchange(done, 0 if over else work.concurrency)
        if arguments:
            for running in [asyncio.create_task(task(each)) for each in arguments]:
                await running
            first = arguments[0]
            work.tally.tick(len(arguments), first.get("t", 0.0) if first else 0.0)
        elif not over:
            await rest()
