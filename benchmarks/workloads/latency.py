"""How long after its defer a job starts on a worker that waits; the defer itself included."""

from __future__ import annotations

from benchmarks.harness import Harness
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, spread, times

FLOOR = "minq:archive-listen"


def measure(harness: Harness, plan: Plan) -> list[Table]:
    """Measure everything."""
    systems = [*map(find, (FLOOR, "pyprocrastinate")), *plan.peers]
    measured = Measured()
    for number in range(plan.rounds):
        for system in systems:
            measured.add(system.name, harness.latency(system, 100 if plan.quick else 500))
        plan.progress(f"latency: round {number + 1} of {plan.rounds} done")

    def beside(name: str, peer: str) -> list[float]:
        p50 = measured.figures(name, "p50"), measured.figures(peer, "p50")
        return [a / b for a, b in zip(*p50, strict=True)]

    rows = [
        [
            system.label,
            *(spread(measured.figures(system.name, name), ".2f") for name in ("p50", "p95", "p99")),
            *(times(beside(system.name, peer.name)) for peer in plan.peers),
        ]
        for system in systems
    ]
    columns = ["system", "p50 ms", "p95 ms", "p99 ms"]
    columns += [f"p50 beside {p.label}" for p in plan.peers]
    return [Table("Latency: defer to start on an idle worker", columns, rows, measured.raw)]
