"""One worker process drains a queue of no-op jobs, at three concurrencies."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.systems import System, find
from benchmarks.workloads import COSTS, Measured, Plan, Table, costs, percent, spread, times

OURS = "pyprocrastinate"
FLOORS = {"pyprocrastinate": "minq:archive", "pyprocrastinate:delete": "minq:delete"}
CONCURRENCIES = (1, 10, 100)


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything."""
    ours = [find(name) for pair in FLOORS.items() for name in pair]
    for number in range(plan.rounds):
        for concurrency in CONCURRENCIES:
            for system in _capable([*ours, *plan.peers_in(number)], concurrency):
                load = Load(plan.scaled(system.drained[concurrency]))
                drain = Drain(concurrency, load, seconds=plan.either(8.0, 2.0))
                measured.add(f"{system.name}/{concurrency}", harness.drain(system, drain))
            plan.progress(f"drain: round {number + 1} of {plan.rounds}, concurrency {concurrency} done")
    rows = []
    for concurrency in CONCURRENCIES:
        for system in _capable([*ours, *plan.peers], concurrency):
            key = f"{system.name}/{concurrency}"
            floor = FLOORS.get(system.name)
            rows.append(
                [
                    str(concurrency),
                    system.label,
                    spread(measured.rates(key)),
                    times(measured.ratios(f"{OURS}/{concurrency}", key)) if system.name != OURS else "",
                    percent(measured.ratios(key, f"{floor}/{concurrency}")) if floor else "",
                    *costs(measured, key),
                ]
            )
    columns = ["concurrency", "system", "jobs/s", f"{OURS} is", "of the floor", *COSTS]
    return [Table("Drain: one worker process, no-op task; costs per job", columns, rows)]


def _capable(systems: list[System], concurrency: int) -> list[System]:
    return [system for system in systems if concurrency in system.drained]
