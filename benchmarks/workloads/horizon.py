"""Half a million jobs run while an old transaction keeps the server from clearing anything away."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, cpu, middle, percent, spread

OURS = ["minq:archive", "minq:archive-cursor", "core", "pyprocrastinate"]


def measure(harness: Harness, plan: Plan) -> list[Table]:
    """Measure everything; who cannot do so many in half a minute is stopped then."""
    systems = [*map(find, OURS), *plan.peers]
    measured = Measured()
    for number in range(plan.rounds):
        for system in systems:
            load = Load(plan.scaled(500_000))
            measured.add(system.name, harness.drain(system, Drain(100, load, hold=True, seconds=30)))
            plan.progress(f"horizon: round {number + 1} of {plan.rounds}, {system.label} done")
    rows = [
        [
            system.label,
            spread(measured.rates(system.name)),
            spread([result.jobs for result in measured.results[system.name]]),
            spread(measured.figures(system.name, "first_quarter")),
            spread(measured.figures(system.name, "last_quarter")),
            percent(measured.quarters(system.name)),
            middle(measured.figures(system.name, "wal")),
            cpu(measured, system.name),
        ]
        for system in systems
    ]
    columns = ["system", "jobs/s", "jobs done", "first quarter", "last quarter", "last of first"]
    columns += ["WAL bytes", "server CPU µs"]
    return [Table("Horizon held, 500,000 jobs at concurrency 100", columns, rows, measured.raw)]
