"""
What is measured, one module each.

A workload measures for some rounds and returns tables.
In each round it goes through all systems in turn, and a ratio compares figures of one round only: a machine that is
slower now than a minute ago slows both sides.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.harness import Result
from benchmarks.systems import System

T = TypeVar("T")


@dataclass
class Plan:
    """What was asked for."""

    rounds: int
    quick: bool
    peers: Sequence[System]
    #: What could not be measured, and why.
    problems: list[str] = field(default_factory=list)

    def progress(self, line: str) -> None:
        """Say how far it is."""
        print(line, file=sys.stderr)

    def scaled(self, count: int) -> int:
        """Return fewer jobs for a quick look."""
        return max(count // 10, 1000) if self.quick else count

    def either(self, full: T, quick: T) -> T:
        """Return what a full run takes, or what a quick look does."""
        return quick if self.quick else full

    def peers_in(self, number: int) -> list[System]:
        """Return the peers of a round: in the first all configurations, later only the best."""
        return [peer for peer in self.peers if peer.best or not number]

    @property
    def postgres_peers(self) -> list[System]:
        """The peers whose jobs are in PostgreSQL, in their best configuration."""
        return [peer for peer in self.peers if peer.server == "postgres" and peer.best]


@dataclass
class Table:
    """One table of the report; cells are finished text."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    #: What to remember of it.
    sentences: list[str] = field(default_factory=list)


class Measured:
    """Results by what was measured, one for each round."""

    def __init__(self) -> None:
        self.results: dict[str, list[Result]] = {}

    def add(self, key: str, result: Result) -> None:
        """Add one round's result."""
        self.results.setdefault(key, []).append(result)

    def rates(self, key: str) -> list[float]:
        """Return the jobs a second of each round."""
        return [result.rate for result in self.results.get(key, ())]

    def figures(self, key: str, name: str) -> list[float]:
        """Return a figure of each round that has it."""
        return [r.figures[name] for r in self.results.get(key, ()) if name in r.figures]

    def ratios(self, key: str, other: str) -> list[float]:
        """Return what the rates are beside those of another, round by round; nothing if one was not measured."""
        return [a / b for a, b in zip(self.rates(key), self.rates(other), strict=False)]

    def quarters(self, key: str) -> list[float]:
        """Return what the rate of the last quarter is beside that of the first, for each round long enough to tell."""
        first, last = self.figures(key, "first_quarter"), self.figures(key, "last_quarter")
        return [b / a for a, b in zip(first, last, strict=True)]

    @property
    def raw(self) -> dict[str, list[dict[str, Any]]]:
        """Return all of it for --json."""
        return {
            key: [{"jobs": r.jobs, "seconds": r.seconds, "rate": r.rate, **r.figures, "course": r.course} for r in each]
            for key, each in self.results.items()
        }


#: Of what each row of a table of costs tells, per job: the column, the figure, how it is written.
COSTS = {
    "statements": ("statements", ",.3f", 1.0),
    "transactions": ("transactions", ",.3f", 1.0),
    "WAL bytes": ("wal", ",.0f", 1.0),
    "dead rows": ("dead", ",.2f", 1.0),
    "server CPU µs": ("server_cpu", ",.0f", 1e6),
    "client CPU µs": ("client_cpu", ",.0f", 1e6),
}


def costs(measured: Measured, key: str, columns: Sequence[str] = tuple(COSTS)) -> list[str]:
    """Return the medians of what a job costs; "-" where a system has no such thing."""
    return [_cost(measured, key, *COSTS[column]) for column in columns]


def _cost(measured: Measured, key: str, name: str, form: str, unit: float) -> str:
    return middle([unit * value for value in measured.figures(key, name)], form)


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median, and from where to where the rounds went."""
    if not values:
        return "-"
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values):{form}} to {max(values):{form}}]"


def middle(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median."""
    return format(statistics.median(values), form) if values else "-"


def percent(values: Sequence[float]) -> str:
    """Return ratios as percentages."""
    return spread([100 * value for value in values]) + " %" if values else "-"


def times(values: Sequence[float]) -> str:
    """Return ratios as factors."""
    return spread(values, ",.2f") + "x" if values else "-"
