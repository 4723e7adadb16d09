"""The schema alone, in a bare loop, by the size of its batches."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.systems import find
from benchmarks.workloads import COSTS, Measured, Plan, Table, costs, percent, spread

FLOORS = {"core": "minq:archive", "core:delete": "minq:delete"}


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything."""
    for number in range(plan.rounds):
        for size, count in (1, 5_000), (10, 40_000), (100, 100_000):
            for name in (*FLOORS.values(), *FLOORS):
                measured.add(f"{name}/{size}", harness.drain(find(name), Drain(size, Load(plan.scaled(count)))))
        plan.progress(f"batches: round {number + 1} of {plan.rounds} done")
    rows = []
    for key in measured.results:
        name, batch = key.split("/")
        of_floor = percent(measured.ratios(key, f"{FLOORS[name]}/{batch}")) if name in FLOORS else ""
        rows.append([batch, find(name).label, spread(measured.rates(key)), of_floor, *costs(measured, key)])
    columns = ["batch", "system", "jobs/s", "of the floor", *COSTS]
    return [Table("The schema in a bare loop, per job", columns, rows)]
