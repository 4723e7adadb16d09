"""One worker process drains a queue of no-op jobs, at three concurrencies."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, cpu, middle, percent, spread, times

OURS = ("pyprocrastinate", "pyprocrastinate:delete")
FLOORS = {"pyprocrastinate": "minq:archive", "pyprocrastinate:delete": "minq:delete"}


def measure(harness: Harness, plan: Plan) -> list[Table]:
    """Measure everything."""
    systems = [*(find(name) for name in (*FLOORS.values(), *OURS)), *plan.peers]
    measured = Measured()
    for number in range(plan.rounds):
        for concurrency in 1, 10, 100:
            for system in systems:
                load = Load(plan.scaled(system.drained[concurrency]))
                result = harness.drain(system, Drain(concurrency, load))
                measured.add(f"{system.name}/{concurrency}", result)
            plan.progress(f"drain: round {number + 1} of {plan.rounds}, concurrency {concurrency} done")
    rows = []
    for concurrency in 1, 10, 100:
        for system in systems:
            key = f"{system.name}/{concurrency}"
            floor = FLOORS.get(system.name)
            beside_peers = [times(measured.ratios(key, f"{peer.name}/{concurrency}")) for peer in plan.peers]
            rows.append(
                [
                    str(concurrency),
                    system.label,
                    spread(measured.rates(key)),
                    *beside_peers,
                    percent(measured.ratios(key, f"{floor}/{concurrency}")) if floor else "-",
                    middle(measured.figures(key, "statements"), ".3f"),
                    middle(measured.figures(key, "transactions"), ".3f"),
                    middle(measured.figures(key, "wal")),
                    cpu(measured, key),
                    cpu(measured, key, "client_cpu"),
                ]
            )
    columns = ["concurrency", "system", "jobs/s", *(f"beside {p.label}" for p in plan.peers)]
    columns += ["of the floor", "statements", "transactions", "WAL bytes"]
    columns += ["server CPU µs", "client CPU µs"]
    title = "Drain: one worker process, no-op async task; costs per job"
    sentences = [
        f"At concurrency 100, {OURS[0]} does {times(measured.ratios(f'{OURS[0]}/100', key))} the jobs of {peer.label}."
        for peer in plan.peers
        if (key := f"{peer.name}/100")
    ]
    return [Table(title, columns, rows, measured.raw, sentences)]
