"""All that is known of a soak, as plain data: what processes wrote down, and what the database did and has left."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.history import Event, read


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One transition of one job, as the trigger saw it; `at` and `began` are of the monotonic clock."""

    seq: int
    at: float
    began: float
    job: int
    was: str | None
    now: str
    token: int | None = None
    worker: int | None = None
    attempts: int = 0
    rescues: int = 0
    lock: str | None = None
    queueing_lock: str | None = None
    rank: int = 0
    due: float | None = None
    key: str | None = None
    # For how many seconds the lease of the run that this ends was over.
    overdue: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Final:
    """What a job has come to."""

    id: int
    status: str
    task: str
    attempts: int
    args: Any = None
    error: str | None = None

    @property
    def key(self) -> str | None:
        return self.args.get("key") if isinstance(self.args, dict) else None


@dataclasses.dataclass
class Record:
    """What the checker judges; `facts` are counts of what must not be there at the end."""

    events: list[Event]
    steps: list[Step]
    jobs: dict[int, Final]
    effects: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def of(self, *kinds: str) -> list[Event]:
        """Return the events of these kinds, by time."""
        return [event for event in self.events if event["kind"] in kinds]

    def save(self, folder: Path) -> None:
        """Write it where `load` finds it."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "history.jsonl").open("w") as file:
            file.writelines(json.dumps(event) + "\n" for event in self.events)
        rows: dict[str, Iterable[Any]] = {
            "steps": map(_fields(Step), self.steps),
            "jobs": map(_fields(Final), self.jobs.values()),
            "effects": self.effects,
            "facts": self.facts.items(),
        }
        for name, values in rows.items():
            with (folder / f"{name}.json").open("w") as file:
                file.writelines(json.dumps(value) + "\n" for value in values)


def _fields(of: type) -> Callable[[Any], tuple[Any, ...]]:
    return attrgetter(*(field.name for field in dataclasses.fields(of)))


def load(folder: Path) -> Record:
    """Return the record that was saved in a folder."""

    def rows(name: str) -> Iterator[Any]:
        with (folder / f"{name}.json").open() as file:
            yield from map(json.loads, file)

    jobs = {job[0]: Final(*job) for job in rows("jobs")}
    effects = [(key, job, token) for key, job, token in rows("effects")]
    return Record(read(folder), [Step(*step) for step in rows("steps")], jobs, effects, dict(rows("facts")))


_STEPS = """
select seq, extract(epoch from at)::float8 - %(offset)s, extract(epoch from began)::float8 - %(offset)s, job, was, now,
       token, worker, attempts, rescues, lock, queueing_lock, rank, extract(epoch from due)::float8 - %(offset)s, key,
       extract(epoch from overdue)::float8
  from audit.log order by seq
"""


def collect(conn: psycopg.Connection[Any], folder: Path, facts: dict[str, Any]) -> Record:
    """Gather the record of a soak that is over."""
    offset = time.time() - time.monotonic()
    # In portions: of a long soak there are millions.
    with conn.transaction(), conn.cursor("steps") as cursor:
        cursor.itersize = 10_000
        cursor.execute(_STEPS, {"offset": offset})
        steps = [Step(*row) for row in cursor]
    # As text: a row may be one that json cannot read.
    jobs = conn.execute("select id, status, task, attempts, args::text, error_class from procrastinate.jobs").fetchall()
    finals = {
        row[0]: Final(id=row[0], status=row[1], task=row[2], attempts=row[3], args=_read(row[4]), error=row[5])
        for row in jobs
    }
    effects = conn.execute("select key, job, token from audit.effect").fetchall()
    return Record(read(folder), steps, finals, effects, facts)


def _read(args: str) -> Any:
    try:
        return json.loads(args)
    except (ValueError, RecursionError):
        return None
