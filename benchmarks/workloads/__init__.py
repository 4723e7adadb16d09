"""
What is measured, one module each.

A workload is a function that measures for some rounds and returns tables. In each round it goes
through all systems in turn, and a ratio compares figures of one round only: a machine that is
slower now than a minute ago slows both sides.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Harness, Result
from benchmarks.systems import System


@dataclass
class Plan:
    """What was asked for."""

    rounds: int
    quick: bool
    peers: Sequence[System]
    progress: Callable[[str], None] = field(default=lambda line: print(line, file=sys.stderr))

    def scaled(self, count: int) -> int:
        """Return fewer jobs for a quick look."""
        return max(count // 10, 1000) if self.quick else count


@dataclass
class Table:
    """One table of the report; cells are finished text."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    #: Everything that was measured, for --json.
    raw: dict[str, list[dict[str, Any]]]
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
        return [result.rate for result in self.results[key]]

    def figures(self, key: str, name: str) -> list[float]:
        """Return a figure of each round that has it."""
        return [r.figures[name] for r in self.results[key] if name in r.figures]

    def ratios(self, key: str, other: str) -> list[float]:
        """Return what the rates are beside those of another, round by round."""
        return [a / b for a, b in zip(self.rates(key), self.rates(other), strict=True)]

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


Workload = Callable[[Harness, Plan], list[Table]]


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
    return spread(values, ".2f") + "x" if values else "-"


def cpu(measured: Measured, key: str, name: str = "server_cpu") -> str:
    """Return processor time per job, in microseconds."""
    return middle([1e6 * seconds for seconds in measured.figures(key, name)])
