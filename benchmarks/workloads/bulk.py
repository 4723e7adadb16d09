"""Defers of 1,000 jobs a call, by one connection."""

from __future__ import annotations

from benchmarks.harness import Harness
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, cpu, middle, percent, spread, times

FLOOR = "minq:archive"
SIZE = 1_000


def measure(harness: Harness, plan: Plan) -> list[Table]:
    """Measure everything."""
    systems = [*map(find, (FLOOR, "core", "pyprocrastinate")), *plan.peers]
    measured = Measured()
    for number in range(plan.rounds):
        for system in systems:
            count = 40_000 if system in plan.peers else 200_000
            measured.add(system.name, harness.bulk(system, plan.scaled(count), SIZE))
        plan.progress(f"bulk: round {number + 1} of {plan.rounds} done")
    rows = [
        [
            system.label,
            spread(measured.rates(system.name)),
            *(times(measured.ratios(system.name, peer.name)) for peer in plan.peers),
            percent(measured.ratios(system.name, FLOOR)),
            middle(measured.figures(system.name, "wal")),
            cpu(measured, system.name),
        ]
        for system in systems
    ]
    columns = ["system", "jobs/s", *(f"beside {p.label}" for p in plan.peers)]
    columns += ["of the floor", "WAL bytes", "server CPU µs"]
    return [Table("Defer 1,000 a call", columns, rows, measured.raw)]
