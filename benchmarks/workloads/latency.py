"""How long after its defer a job starts on a worker that waits; the defer itself included."""

from __future__ import annotations

from benchmarks.harness import Harness
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, spread, times

OURS = "pyprocrastinate"
FLOOR = "minq:archive-listen"


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything."""
    ours = list(map(find, (FLOOR, OURS)))
    for number in range(plan.rounds):
        for system in [*ours, *plan.peers_in(number)]:
            count = 300 if system in ours else 200
            measured.add(system.name, harness.latency(system, plan.either(count, 60)))
        plan.progress(f"latency: round {number + 1} of {plan.rounds} done")

    def beside(name: str) -> list[float]:
        p50 = measured.figures(name, "p50"), measured.figures(OURS, "p50")
        return [theirs / ours for theirs, ours in zip(*p50, strict=False)]

    rows = [
        [
            system.label,
            *(spread(measured.figures(system.name, name), ".2f") for name in ("p50", "p95", "p99")),
            times(beside(system.name)) if system.name != OURS else "",
        ]
        for system in [*ours, *plan.peers]
    ]
    columns = ["system", "p50 ms", "p95 ms", "p99 ms", f"p50 beside {OURS}"]
    return [Table("Latency: defer to start on an idle worker", columns, rows)]
