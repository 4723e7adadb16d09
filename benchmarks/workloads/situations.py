"""
What may slow a drain down: it is measured beside the same drain without it, right before, in the same round.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness import Drain, Harness
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, cpu, middle, percent, spread


@dataclass
class Situation:
    """A drain, and the one that it is compared with."""

    title: str
    drain: Drain
    beside: Drain


def measure(harness: Harness, plan: Plan, title: str, situations: list[Situation], systems: list[str]) -> Table:
    """Measure all situations with all systems."""
    measured = Measured()
    for number in range(plan.rounds):
        for situation in situations:
            for name in systems:
                for key, drain in ("beside", situation.beside), ("drain", situation.drain):
                    measured.add(f"{situation.title}/{name}/{key}", harness.drain(find(name), drain))
            plan.progress(f"{title}: round {number + 1} of {plan.rounds}, {situation.title} done")
    rows = []
    for situation in situations:
        for name in systems:
            key, beside = (f"{situation.title}/{name}/{which}" for which in ("drain", "beside"))
            rows.append(
                [
                    situation.title,
                    find(name).label,
                    spread(measured.rates(key)),
                    spread(measured.rates(beside)),
                    percent(measured.ratios(key, beside)),
                    percent(measured.quarters(key)),
                    middle(measured.figures(key, "wal")),
                    cpu(measured, key),
                    cpu(measured, beside),
                ]
            )
    columns = ["situation", "system", "jobs/s", "without it", "of that"]
    columns += ["last quarter of first", "WAL bytes", "server CPU µs", "without it"]
    return Table(title, columns, rows, measured.raw)
