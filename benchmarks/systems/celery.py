"""
Celery, from PyPI, with redis-server as its broker and without a result backend.

As it is without options it forks a process for each slot; `threads` is what its guide to
optimizing asks for with short tasks: threads, and a prefetch multiplier of 128.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.systems import System
from benchmarks.systems.api import pings

if TYPE_CHECKING:
    from benchmarks.load import Load, Tally, Work

# Put so many copies of the message into the queue, each with an id of its own.
FILL = """
local text = redis.call('get', 'installed')
local message = cjson.decode(text)
local old = message['headers']['id']
local tag = message['properties']['delivery_tag']
for number = 1, tonumber(ARGV[1]) do
  local id = string.format('%08x-%s', number, string.sub(old, 10))
  local copy = string.gsub(text, string.gsub(old, '%-', '%%-'), id)
  copy = string.gsub(copy, string.gsub(tag, '%-', '%%-'), string.format('%08x-%s', number, string.sub(tag, 10)))
  redis.call('lpush', 'celery', copy)
end
"""
STARTED = struct.Struct("dd")  # when a job has started, and when it was sent


class Celery(System):
    """Its pool writes into a file when each job starts, for many processes may share the work."""

    title = "Celery"
    requirements = ("celery[redis]>=5.4,<6", "psycopg[binary]>=3.2")
    programs = ("redis-server", "redis-cli")
    server = "redis"
    variants = ("", "threads")
    bulked = 6_000

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.drained = {1: 3_000, 10: 4_000}
        if self.variant == "threads":  # nobody would start a hundred processes
            self.drained[100] = 4_000

    def fill(self, conn: Any, load: Load) -> None:
        """Push copies of a message."""
        conn("eval", FILL, "0", str(load.count))

    def pending(self, conn: Any) -> int:
        """Count what is queued, and what a worker holds."""
        return int(conn("llen", "celery")) + int(conn("hlen", "unacked"))

    def load(self) -> None:
        """Import it."""
        import_module("celery")

    def install(self, dsn: str) -> Any:
        """Return a message to make copies of."""
        noop = self.task(dsn)
        noop.delay()
        with noop.app.connection_for_read() as connection:
            return connection.default_channel.client.lpop("celery").decode()

    def task(self, dsn: str) -> Any:
        """Return the task of an app that knows the broker."""
        os.environ["CELERY_BROKER_URL"] = dsn
        return import_module("benchmarks.systems.celery_app").noop

    async def work(self, work: Work) -> None:
        """Run its command, and count what its processes write."""
        path = work.tally.path.with_name("celery-started")
        path.write_bytes(b"")
        # The worker's processes are one group, which its command must not outlive.
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.systems.celery_app", "worker"]
        command += ["--loglevel", "ERROR", "--concurrency", str(work.concurrency)]
        if self.variant == "threads":
            command += ["--pool", "threads", "--prefetch-multiplier", "128"]
        process = subprocess.Popen(  # noqa: ASYNC220
            command,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            env=os.environ | {"CELERY_BROKER_URL": work.dsn, "BENCHMARK_STARTED": str(path)},
        )
        try:
            with path.open("rb") as file:
                while not work.stop.is_set() and process.poll() is None:
                    _count(file.read(STARTED.size * 10_000), work.tally)
                    await asyncio.sleep(0.002)
                assert process.stdin
                process.stdin.close()
                while process.poll() is None:
                    _count(file.read(STARTED.size * 10_000), work.tally)
                    await asyncio.sleep(0.01)
                _count(file.read(), work.tally)
        finally:
            process.wait()

    async def defer(self, dsn: str, count: int, connections: int) -> float:
        """Call delay, in as many threads as there are to be connections."""
        noop = self.task(dsn)
        numbers = iter(range(count))

        def some() -> None:
            for _ in numbers:
                noop.delay()

        noop.app.pool.acquire(block=True).release()
        begin = time.monotonic()
        with ThreadPoolExecutor(connections) as threads:
            for each in [threads.submit(some) for _ in range(connections)]:
                each.result()
        return time.monotonic() - begin

    async def bulk(self, dsn: str, count: int, size: int) -> float:
        """Apply groups."""
        noop, group = self.task(dsn), import_module("celery").group
        begin = time.monotonic()
        for _ in range(count // size):
            group([noop.s() for _ in range(size)]).apply_async()
        return time.monotonic() - begin

    async def ping(self, dsn: str, count: int, tally: Tally, others: Sequence[Tally] = ()) -> None:
        """Call delay now and then."""
        noop = self.task(dsn)

        async def defer() -> None:
            noop.delay(time.monotonic())

        await pings(defer, count, tally, *others)


def _count(written: bytes, tally: Tally) -> None:
    for at, sent_at in STARTED.iter_unpack(written):
        tally.tick(1, sent_at, at)


def system(name: str) -> System:
    """Return it."""
    return Celery(name)
