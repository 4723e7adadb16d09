"""
Every call of the schema, each described once: what is called, with which arguments, how its rows are read.

A `Call` is carried by whatever connection there is, sync or async, so nothing is written twice.
A test double can carry it too: it sees the function's name and arguments, not SQL.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.rows import tuple_row

from pyprocrastinate import exceptions, payload

T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")
Row = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of a function, or one look at a view, of the schema `procrastinate`."""

    source: str
    args: Mapping[str, Any]
    read: Callable[[Sequence[Row]], T]
    view: Sequence[str] = ()
    connection: Any = None

    def then(self, read: Callable[[T], U], connection: Any = None) -> Call[U]:
        """Return the same call, on a connection of the caller's if one is given, with more made of its answer."""
        return Call(self.source, self.args, lambda rows: read(self.read(rows)), self.view, connection)

    def statement(self) -> tuple[bytes, list[Any]]:
        return _query(self.source, tuple(self.args), tuple(self.view)), list(self.args.values())


@functools.cache
def _query(source: str, args: tuple[str, ...], columns: tuple[str, ...]) -> bytes:
    if columns:
        where = " and ".join(f"{name} = %s" for name in args)
        # All names are this package's.
        query = f"select {', '.join(columns)} from procrastinate.{source}"  # noqa: S608
        return f"{query}{where and ' where '}{where}{' order by id' * ('id' in columns)}".encode()
    named = ", ".join(f"{name} => %s" for name in args)
    return f"select * from procrastinate.{source}({named})".encode()  # noqa: S608


def run(connection: psycopg.Connection[Any], call: Call[T], *, binary: bool = False) -> T:
    """Carry out a call; raises what psycopg raises."""
    with connection.cursor(binary=binary, row_factory=tuple_row) as cursor:
        return call.read(cursor.execute(*call.statement()).fetchall())


async def run_async(connection: psycopg.AsyncConnection[Any], call: Call[T], *, binary: bool = False) -> T:
    """Carry out a call; raises what psycopg raises."""
    async with connection.cursor(binary=binary, row_factory=tuple_row) as cursor:
        await cursor.execute(*call.statement())
        return call.read(await cursor.fetchall())


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into this package's: a class for each SQLSTATE of the schema."""
    try:
        yield
    except UnicodeEncodeError:
        raise exceptions.InvalidText("half a surrogate pair is in a name") from None
    except psycopg.Error as error:
        translation = translate(error)
        # PostgreSQL quotes the text that it could not read.
        raise translation from (None if isinstance(translation, exceptions.InvalidText) else error)


def translate(error: psycopg.Error) -> exceptions.ProcrastinateException:
    """Return this package's exception for one of psycopg's."""
    message = error.diag.message_primary
    if refusal := exceptions.REFUSALS.get(error.sqlstate or ""):
        if issubclass(refusal, exceptions.InvalidText):
            return refusal(message)
        return refusal(message, detail=error.diag.message_detail, hint=error.diag.message_hint)
    if isinstance(error, psycopg.errors.UniqueViolation):
        return exceptions.UniqueViolation(message, constraint_name=error.diag.constraint_name or "")
    if isinstance(error, psycopg.DataError) and error.sqlstate is None:
        return exceptions.InvalidText("a NUL character is in a name")
    return exceptions.ConnectorException(message or str(error))


class _Connected(Protocol):
    @property
    def connector(self) -> Any: ...


S = TypeVar("S", bound=_Connected)


def both(
    describe: Callable[Concatenate[S, P], Call[T]],
) -> tuple[Callable[Concatenate[S, P], T], Callable[Concatenate[S, P], Coroutine[Any, Any, T]]]:
    """Make two methods of one that returns a call: a sync one and an async one, which carry it out."""

    @functools.wraps(describe)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        call = describe(self, *args, **kwargs)
        return self.connector.run(call, call.connection)

    @functools.wraps(describe)
    async def run_async(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        call = describe(self, *args, **kwargs)
        return await self.connector.run_async(call, call.connection)

    return run, run_async


def _first(rows: Sequence[Row]) -> Any:
    return rows[0][0]


def given(**args: Any) -> dict[str, Any]:
    """Return the arguments that are not None: for those left out, the schema's defaults hold."""
    return {name: value for name, value in args.items() if value is not None}


# Deferring and managing jobs


def defer(options: Mapping[str, Any], args: str) -> Call[list[int]]:
    """Defer one job, described by the parameters of `procrastinate.defer` and its args as JSON."""
    return Call("defer", {**options, "args": args}, lambda rows: [rows[0][0]])


def defer_many(jobs: Iterable[tuple[Mapping[str, Any], str]]) -> Call[list[int]]:
    """Defer jobs, each described as for `defer`; their ids come back in the order given."""
    described: list[str] = []
    last: Mapping[str, Any] | None = None
    for options, args in jobs:
        if options is not last:  # mostly they are the same for all
            last, rest = options, payload.encode(options, what="the options")[1:]
        described.append(f'{{"args":{args},{rest}')

    def ids(rows: Sequence[Row]) -> list[int]:
        return [job_id for _, job_id, *_ in sorted(rows)]

    return Call("defer_many", {"jobs": f"[{','.join(described)}]"}, ids)


def complete(job_id: int, token: int, result: str | None, connection: Any) -> Call[None]:
    args = given(job_id=job_id, token=token, result=result)
    return Call("complete_v1", args, lambda rows: None, connection=connection)


def protocol() -> Call[tuple[int, int]]:
    return Call("protocol", {}, lambda rows: (rows[0][0], rows[0][1]))


# What a worker says. Arrays go as text: that is an order of magnitude cheaper than a list.


def register(name: str, queues: Iterable[str] | None, protocol: int, stalled_after: float, **json: str) -> Call[int]:
    args = {
        "name": name,
        "queues": None if queues is None else list(queues),
        **json,
        "protocol": protocol,
        "stalled_after": datetime.timedelta(seconds=stalled_after),
    }
    return Call("register_worker_v1", args, _first)


def unregister(worker_id: int) -> Call[int]:
    return Call("unregister_worker_v1", {"worker_id": worker_id}, _first)


def _array(numbers: Sequence[int]) -> str:
    return f"{{{','.join(map(str, numbers))}}}"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcomes:
    """How jobs ended: plain successes as two lists, everything else as JSON objects already written."""

    ids: Sequence[int]
    tokens: Sequence[int]
    described: Sequence[str]
    keep: bool

    def args(self) -> dict[str, Any]:
        return {
            "succeeded": _array(self.ids),
            "tokens": _array(self.tokens),
            "outcomes": f"[{','.join(self.described)}]",
            "keep": self.keep,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What `work_v1` gave: claims (rows of 13 columns and two more), verdicts, and where to scan next."""

    claims: Sequence[Row]
    verdicts: Sequence[Mapping[str, Any]]
    scan_next: Sequence[int] | None


def work(worker_id: int, outcomes: Outcomes, *, capacity: int, extra: int, scan: Sequence[int] | None) -> Call[Work]:
    """Finish what ended and fetch what fits, in one round trip."""
    args = {
        "worker_id": worker_id,
        **outcomes.args(),
        "capacity": capacity,
        "extra": extra,
        "scan_from": None if scan is None else _array(scan),
    }

    def read(rows: Sequence[Row]) -> Work:
        return Work(rows[:-1], rows[-1][13] or [], rows[-1][14])

    return Call("work_v1", args, read)


def finish(worker_id: int, outcomes: Outcomes) -> Call[Sequence[Mapping[str, Any]]]:
    """Finish only; there is a verdict for each outcome."""
    names = ("id", "token", "verdict", "sqlstate", "message", "status", "retry_at")
    return Call(
        "finish_v1",
        {"worker_id": worker_id, **outcomes.args()},
        lambda rows: [dict(zip(names, (*row[:6], row[6] and str(moment(row[6]))), strict=True)) for row in rows],
    )


def held(worker_id: int) -> Call[Sequence[Row]]:
    """Return id and token of each job that the schema takes to be with this worker."""
    return Call("held_v1", {"worker_id": worker_id}, lambda rows: rows)


def idle(worker_id: int, scan: Sequence[int] | None) -> Call[tuple[bool, float | None]]:
    """Declare the worker idle; say whether a job is ready, and in how many seconds the next one will be."""

    def read(rows: Sequence[Row]) -> tuple[bool, float | None]:
        ready, next_due_at, at = rows[0]
        return ready, _seconds(next_due_at, at)

    return Call("idle_v1", {"worker_id": worker_id, "scan_from": None if scan is None else _array(scan)}, read)


@dataclasses.dataclass(frozen=True, slots=True)
class Heartbeat:
    registered: bool
    abort: Sequence[int]
    next_tick_in: float | None


def heartbeat(worker_id: int) -> Call[Heartbeat]:
    def read(rows: Sequence[Row]) -> Heartbeat:
        registered, abort, next_tick_at, at = rows[0]
        return Heartbeat(registered, abort or [], _seconds(next_tick_at, at))

    return Call("heartbeat_v1", {"worker_id": worker_id}, read)


def tick() -> Call[tuple[list[Row], float | None]]:
    """Rescue, fire schedules, purge; say what was done (kind, job id, detail), and when the next tick is due."""

    def read(rows: Sequence[Row]) -> tuple[list[Row], float | None]:
        events = [row[:3] for row in rows if row[0] is not None]
        return events, _seconds(rows[-1][3], rows[-1][4])

    return Call("tick_v1", {}, read)


# A worker's connections give times as microseconds since 2000: cheap, and no time is too odd to be read.


class MicrosecondsLoader(Loader):
    """Read a timestamptz as an int; one that `datetime` cannot hold must not cost the rows around it."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int.from_bytes(data, "big", signed=True)


_EPOCH = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


def moment(microseconds: int | None) -> datetime.datetime | None:
    """Return the time, or the nearest that `datetime` can hold."""
    if microseconds is None:
        return None
    try:
        return _EPOCH + datetime.timedelta(microseconds=microseconds)
    except OverflowError:
        extreme = datetime.datetime.max if microseconds > 0 else datetime.datetime.min
        return extreme.replace(tzinfo=datetime.UTC)


def _seconds(until: int | None, at: int) -> float | None:
    return None if until is None else max(0.0, (until - at) / 1e6)
