"""Half a million jobs run while an old transaction keeps the server from clearing anything away."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, costs, percent, spread

OURS = ["minq:archive", "minq:archive-cursor", "core", "pyprocrastinate"]
SHOWN = ["WAL bytes", "dead rows", "server CPU µs"]


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything, the peers in the first round only; who cannot do so many in half a minute is stopped then."""
    ours = list(map(find, OURS))
    systems = [*ours, *plan.postgres_peers]
    drain = Drain(100, Load(plan.scaled(500_000)), hold=True, seconds=plan.either(30.0, 5.0))
    for number in range(plan.rounds):
        for system in ours if number else systems:
            measured.add(system.name, harness.drain(system, drain))
            plan.progress(f"horizon: round {number + 1} of {plan.rounds}, {system.label} done")
    rows = [
        [
            system.label,
            spread(measured.rates(system.name)),
            spread([result.jobs for result in measured.results[system.name]]),
            spread(measured.figures(system.name, "first_quarter")),
            spread(measured.figures(system.name, "last_quarter")),
            percent(measured.quarters(system.name)),
            *costs(measured, system.name, SHOWN),
        ]
        for system in systems
    ]
    columns = ["system", "jobs/s", "jobs done", "first quarter", "last quarter", "last of first", *SHOWN]
    return [Table("Horizon held, 500,000 jobs at concurrency 100", columns, rows)]
