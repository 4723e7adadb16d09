"""What this queue is meant to reach, beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.workloads import Measured, Table, backlog, locks, middle, percent, soak, spread, times

OURS, DELETE = "pyprocrastinate", "pyprocrastinate:delete"
Values = Callable[[Measured], list[float]]


@dataclass(frozen=True)
class Target:
    """A figure, the median of the rounds, that is to be so high, or with `at_most` no higher."""

    workload: str
    what: str
    goal: float
    values: Values
    form: Callable[[list[float]], str] = percent
    at_most: bool = False

    def row(self, measured: Measured) -> list[str]:
        """Return its row, which says also where something to compare with was not measured."""
        sign = "at most" if self.at_most else "at least"
        cells = [self.what, f"{sign} {self.form([self.goal])}"]
        if not (values := self.values(measured)):
            return [*cells, "-", "not measured"]
        median = statistics.median(values)
        met = median <= self.goal if self.at_most else median >= self.goal
        return [*cells, self.form(values), "yes" if met else "**no**"]


def beside(key: str, other: str) -> Values:
    """Return a way to the speed of one beside another's."""
    return lambda measured: measured.ratios(key, other)


def figure(key: str, name: str) -> Values:
    """Return a way to a figure."""
    return lambda measured: measured.figures(key, name)


def rate(key: str) -> Values:
    """Return a way to jobs a second."""
    return lambda measured: measured.rates(key)


def milliseconds(values: list[float]) -> str:
    """Return times."""
    return spread(values, ".2f") + " ms"


def shares(values: list[float]) -> str:
    """Return parts of a whole, small ones."""
    return spread([100 * value for value in values], ".2f") + " %"


def speeds(values: list[float]) -> str:
    """Return jobs a second."""
    return spread(values) + " jobs/s"


TARGETS = [
    Target(
        "drain", "drain, concurrency 100, beside Procrastinate", 40, beside(f"{OURS}/100", "procrastinate/100"), times
    ),
    Target("drain", "the same, beside pgqueuer", 3, beside(f"{OURS}/100", "pgqueuer/100"), times),
    Target("drain", "the same, of the floor that archives", 0.9, beside(f"{OURS}/100", "minq:archive/100")),
    Target(
        "drain",
        'with delete_jobs="always", beside Graphile Worker, batched',
        1,
        beside(f"{DELETE}/100", "graphile:batched/100"),
        times,
    ),
    Target("drain", "concurrency 10, beside Procrastinate", 15, beside(f"{OURS}/10", "procrastinate/10"), times),
    Target("drain", "concurrency 1, beside Procrastinate", 2.5, beside(f"{OURS}/1", "procrastinate/1"), times),
    Target("drain", "concurrency 10, of the floor", 0.95, beside(f"{OURS}/10", "minq:archive/10")),
    Target("drain", "concurrency 1, of the floor", 0.95, beside(f"{OURS}/1", "minq:archive/1")),
    Target("defer", "defer one by one, 1 connection, of the floor", 0.9, beside(f"{OURS}/1", "minq:archive/1")),
    Target("defer", "the same in SQL, without Python's part", 0.9, beside("core/1", "minq:archive/1")),
    Target("defer", "defer one by one, 10 connections, of the floor", 0.65, beside(f"{OURS}/10", "minq:archive/10")),
    Target("defer", "the same in SQL, without Python's part", 0.65, beside("core/10", "minq:archive/10")),
    Target("defer", "defer_many, 1,000 a call", 100_000, rate(f"{OURS}/many"), speeds),
    Target("defer", "the same in SQL, without Python's part", 100_000, rate("core/many"), speeds),
    Target("latency", "defer to start on an idle worker, p50", 3, figure(OURS, "p50"), milliseconds, at_most=True),
    Target("latency", "the same, p99", 6, figure(OURS, "p99"), milliseconds, at_most=True),
    *(
        Target("locks", what + where, goal, beside(f"{key}/{system}", f"{other}/{system}"))
        for key, other, what, goal in (
            ("10,000 jobs on 10 locks", locks.NONE, "10,000 jobs on 10 locks, of the speed without", 0.6),
            ("the same, horizon held", "10,000 jobs on 10 locks", "the same under a held horizon, of that", 0.5),
            ("10,000 jobs on 10,000 locks", locks.NONE, "10,000 jobs on 10,000 locks, of the speed without", 0.75),
            ("those, horizon held", "10,000 jobs on 10,000 locks", "the same under a held horizon, of that", 0.5),
        )
        for system, where in ((OURS, ""), ("core", "; in a bare loop"))
    ),
    *(
        Target("backlog", f"{key}, of the speed without", goal, beside(f"{key}/{OURS}", f"{backlog.EMPTY}/{OURS}"))
        for key, goal in (
            ("1,000,000 waiting", 0.9),
            ("1,000,000 scheduled a year ahead", 0.9),
            ("1,000,000 in another queue", 0.95),
            ("1,000,000 finished", 0.95),
            ("100,000 blocked behind a lock", 0.8),
        )
    ),
    Target("horizon", "horizon held while 500,000 run, last quarter of first", 0.8, lambda m: m.quarters(OURS)),
    Target(
        "idle", "100 idle workers, of a core of the server", 0.01, figure(OURS, "server_cores"), shares, at_most=True
    ),
    Target(
        "soak",
        "soak: p99 at the end of the transaction, beside before",
        1.5,
        figure(soak.SYSTEM, "p99_growth"),
        times,
        at_most=True,
    ),
    Target("soak", "soak: buffers a call, the same", 1.5, figure(soak.SYSTEM, "buffers_growth"), times, at_most=True),
    Target(
        "soak",
        "soak: size of live tables after it, beside at its end",
        1.1,
        figure(soak.SYSTEM, "size_after"),
        times,
        at_most=True,
    ),
]
#: Costs that have no goal, beside Procrastinate's.
REPORTED = {
    "bytes of WAL": ("wal", ",.0f"),
    "statements": ("statements", ".3f"),
    "transactions": ("transactions", ".3f"),
}


def table(workloads: Mapping[str, Measured]) -> Table:
    """Return the targets of the workloads that were measured."""
    rows = [target.row(workloads[target.workload]) for target in TARGETS if target.workload in workloads]
    if drain := workloads.get("drain"):
        for what, (name, form) in REPORTED.items():
            ours, theirs = (middle(drain.figures(f"{system}/100", name), form) for system in (OURS, "procrastinate"))
            rows.append([f"{what} per job, concurrency 100", "reported", f"{ours}, Procrastinate's {theirs}", ""])
    return Table("Targets", ["what", "target", "measured", "met"], rows)
