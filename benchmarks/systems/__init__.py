"""
The queues that are measured, one module each.

A module imports its queue inside its functions, because only the children's interpreter may have
it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, LiteralString

import psycopg
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from benchmarks.load import Load, Tally, Work

Connection = psycopg.Connection[Any]


class System:
    """A queue in one of its variants; written `module` or `module:variant`."""

    #: What tables and figures call it.
    title: ClassVar[str]
    #: What pip installs for it (or npm, named first); empty for what this checkout brings.
    requirements: ClassVar[tuple[str, ...]] = ()
    #: The program for its parts where `benchmarks.child` cannot run them; requirements then begin with `npm`.
    script: ClassVar[Path | None] = None
    #: Programs that it needs beside that.
    programs: ClassVar[tuple[str, ...]] = ()
    #: What it runs on, of `benchmarks.servers`.
    server: ClassVar[str] = "postgres"
    #: Variants share a schema, so it is installed once for all of them; the default one first, the best last.
    variants: ClassVar[tuple[str, ...]] = ("",)
    #: The plugins that a child loads, as in $PROCRASTINATE_PLUGINS.
    plugins: str = "none"
    #: How many jobs a drain needs, by concurrency, to take some seconds; none at a concurrency that makes no sense.
    drained: dict[int, int] = {1: 5_000, 10: 40_000, 100: 100_000}  # noqa: RUF012

    #: How many jobs a measurement of batches needs for that.
    bulked: ClassVar[int] = 40_000

    def __init__(self, name: str) -> None:
        self.name = name
        self.module, _, self.variant = name.partition(":")
        assert self.variant in self.variants, name

    @property
    def label(self) -> str:
        """What a table calls this variant."""
        return f"{self.title}, {self.variant}" if self.variant else self.title

    @property
    def schema(self) -> str:
        """What systems that share a schema have in common."""
        return self.module

    # In the harness

    def fill(self, conn: Connection, load: Load) -> None:
        """Put jobs in as fast as the server can, in the state in which defers leave them."""
        raise NotImplementedError

    def occupy(self, conn: Connection, lock: str) -> None:
        """Let somebody who never finishes run a job under a lock."""
        raise NotImplementedError

    def employ(self, conn: Connection) -> None:
        """Register a worker that is busy, where a defer asks for that."""

    def complaints(self, conn: Connection, jobs: int) -> list[str]:
        """Say what is not as it must be after so many jobs have run."""
        return []

    def pending(self, conn: Connection) -> int:
        """Count the jobs that have not ended, to see that each that ran did and no other."""
        raise NotImplementedError

    def resting(self, conn: Connection) -> int:
        """Count the workers that have declared that they have nothing to do."""
        raise NotImplementedError

    def size(self, conn: Connection) -> int:
        """Return the bytes of all tables and indexes that jobs pass through, history aside."""
        raise NotImplementedError

    # In a child

    def load(self) -> None:
        """Import what takes long."""

    def install(self, dsn: str) -> Any:
        """Install the schema."""
        raise NotImplementedError

    async def work(self, work: Work) -> None:
        """Run jobs until work is over, then finish in order."""
        raise NotImplementedError

    async def rest(self, work: Work) -> None:
        """Run so many workers that have nothing to do."""
        raise NotImplementedError

    async def defer(self, dsn: str, count: int, connections: int) -> float:
        """Defer jobs one by one, and return the seconds it took."""
        raise NotImplementedError

    async def bulk(self, dsn: str, count: int, size: int) -> float:
        """Defer jobs in batches, and return the seconds it took."""
        raise NotImplementedError

    async def steady(self, dsn: str, rate: int, seconds: float) -> None:
        """Defer so many jobs a second, some of them with a `t` of now."""
        raise NotImplementedError

    async def ping(self, dsn: str, count: int, tally: Tally, others: Sequence[Tally] = ()) -> None:
        """Defer one job after another, each once the one before has started on one of them, with a `t` of now."""
        raise NotImplementedError

    @property
    def best(self) -> bool:
        """Tell whether this is the variant that is fastest, as far as its documentation says."""
        return self.variant == self.variants[-1]


def find(name: str) -> System:
    """Return a system by its name."""
    module = import_module(f"benchmarks.systems.{name.partition(':')[0]}")
    system: System = module.system(name)
    return system


def variants_of(module: str) -> list[str]:
    """Return the names of a system's variants."""
    return [f"{module}:{variant}" if variant else module for variant in find(module).variants]


async def one_by_one(links: list[psycopg.AsyncConnection[Any]], statement: LiteralString, count: int) -> float:
    """Defer jobs with a statement that takes their arguments; return the seconds it took."""
    numbers = iter(range(count))

    async def some(link: psycopg.AsyncConnection[Any]) -> None:
        for _ in numbers:
            await link.execute(statement, (Jsonb({}),))

    begin = time.monotonic()
    await asyncio.gather(*map(some, links))
    return time.monotonic() - begin


async def connect(dsn: str) -> psycopg.AsyncConnection[Any]:
    """Return a connection as a careful user would open it: autocommit, all prepared."""
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=0)
