"""Defers one by one, each its own transaction, by one connection and by ten."""

from __future__ import annotations

from benchmarks.harness import Harness
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, cpu, middle, percent, spread, times

FLOOR = "minq:archive"


def measure(harness: Harness, plan: Plan) -> list[Table]:
    """Measure everything."""
    systems = [*map(find, (FLOOR, "core", "pyprocrastinate")), *plan.peers]
    measured = Measured()
    for number in range(plan.rounds):
        for connections, count in (1, 5_000), (10, 10_000):
            for system in systems:
                result = harness.defer(system, plan.scaled(count), connections)
                measured.add(f"{system.name}/{connections}", result)
        plan.progress(f"defer: round {number + 1} of {plan.rounds} done")
    rows = []
    for connections in 1, 10:
        for system in systems:
            key = f"{system.name}/{connections}"
            rows.append(
                [
                    str(connections),
                    system.label,
                    spread(measured.rates(key)),
                    *(times(measured.ratios(key, f"{p.name}/{connections}")) for p in plan.peers),
                    percent(measured.ratios(key, f"{FLOOR}/{connections}")),
                    middle(measured.figures(key, "statements"), ".3f"),
                    middle(measured.figures(key, "wal")),
                    cpu(measured, key),
                ]
            )
    columns = ["connections", "system", "jobs/s", *(f"beside {p.label}" for p in plan.peers)]
    columns += ["of the floor", "statements", "WAL bytes", "server CPU µs"]
    return [Table("Defer one by one, all workers busy", columns, rows, measured.raw)]
