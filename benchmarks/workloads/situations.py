"""What may slow a drain down: each is measured beside the same drain without it, in the same round."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness import Drain, Harness
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, costs, percent, spread

SHOWN = ["WAL bytes", "server CPU µs", "client CPU µs"]


@dataclass(frozen=True)
class Situation:
    """A drain, and the one that it is compared with; the same drain is measured once a round."""

    title: str
    drain: Drain
    beside: str | None = None  # another's title


def measure(
    harness: Harness, plan: Plan, measured: Measured, title: str, situations: list[Situation], systems: list[str]
) -> Table:
    """Measure all situations with all systems."""
    for number in range(plan.rounds):
        for situation in situations:
            for name in systems:
                measured.add(f"{situation.title}/{name}", harness.drain(find(name), situation.drain))
        plan.progress(f"{title}: round {number + 1} of {plan.rounds} done")
    harness.forget()
    rows = []
    for situation in situations:
        for name in systems:
            key = f"{situation.title}/{name}"
            rows.append(
                [
                    situation.title,
                    find(name).label,
                    spread(measured.rates(key)),
                    percent(measured.ratios(key, f"{situation.beside}/{name}")) if situation.beside else "",
                    situation.beside or "",
                    percent(measured.quarters(key)),
                    *costs(measured, key, SHOWN),
                ]
            )
    columns = ["situation", "system", "jobs/s", "of the speed", "of", "last quarter of first", *SHOWN]
    return Table(title, columns, rows)
