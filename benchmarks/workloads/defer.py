"""Defers: one by one by one connection and by ten, each its own transaction, and 1,000 a call."""

from __future__ import annotations

from benchmarks.harness import Harness
from benchmarks.systems import System, find
from benchmarks.workloads import COSTS, Measured, Plan, Table, costs, percent, spread, times

OURS = "pyprocrastinate"
FLOOR = "minq:archive"
SIZE = 1_000
SHOWN = [column for column in COSTS if column != "dead rows"]


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything."""
    # Variants of a peer differ in how they work, not in how they defer.
    systems = [*map(find, (FLOOR, "core", OURS)), *(peer for peer in plan.peers if peer.best)]
    for number in range(plan.rounds):
        for connections, count in (1, 5_000), (10, 10_000):
            for system in systems:
                some = 5_000 if system in plan.peers else count
                result = harness.defer(system, plan.scaled(some), connections)
                measured.add(f"{system.name}/{connections}", result)
        for system in systems:
            count = 200_000 if system.name in (FLOOR, "core", OURS) else system.bulked
            measured.add(f"{system.name}/many", harness.bulk(system, plan.scaled(count), SIZE))
        plan.progress(f"defer: round {number + 1} of {plan.rounds} done")

    def row(system: System, how: str) -> list[str]:
        key = f"{system.name}/{how}"
        return [
            system.title if system in plan.peers else system.label,
            spread(measured.rates(key)),
            times(measured.ratios(f"{OURS}/{how}", key)) if system.name != OURS else "",
            percent(measured.ratios(key, f"{FLOOR}/{how}")) if system.name != FLOOR else "",
            *costs(measured, key, SHOWN),
        ]

    columns = ["system", "jobs/s", f"{OURS} is", "of the floor", *SHOWN]
    single = [[how, *row(system, how)] for how in ("1", "10") for system in systems]
    many = [row(system, "many") for system in systems]
    return [
        Table("Defer one by one, all workers busy; costs per job", ["connections", *columns], single),
        Table("Defer 1,000 a call, one connection; costs per job", columns, many),
    ]
