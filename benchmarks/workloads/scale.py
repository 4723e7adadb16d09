"""From one to eight worker processes on one machine, directly and through PgBouncer in transaction mode."""

from __future__ import annotations

from benchmarks import BenchmarkError
from benchmarks.harness import Harness
from benchmarks.servers import program
from benchmarks.systems import find
from benchmarks.workloads import COSTS, Measured, Plan, Table, costs, middle, percent, spread

SYSTEM = "pyprocrastinate"
WAYS = {"direct": "directly", "pooled": "through PgBouncer"}


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything in one round, for it is about the shape."""
    ways = ["direct"]
    try:
        program("pgbouncer")
        ways.append("pooled")
    except BenchmarkError as error:
        plan.problems.append(f"missing: scale through PgBouncer: {error}")
    system = find(SYSTEM)
    processes = plan.either((1, 2, 4, 8), (1, 2))
    for workers in processes:
        for way in ways:
            key, pooled = f"{workers}/{way}", way == "pooled"
            count, seconds = plan.scaled(300_000), plan.either(6.0, 1.5)
            measured.add(key, harness.fleet(system, workers, count, seconds, pooled))
            measured.add(f"{key}/latency", harness.fleet_latency(system, workers, plan.either(150, 30), pooled))
        plan.progress(f"scale: {workers} processes done")
    rows = [
        [
            str(workers),
            WAYS[way],
            spread(measured.rates(key)),
            percent(measured.ratios(key, f"1/{way}")),
            percent(measured.figures(key, "fairness")),
            *(spread(measured.figures(f"{key}/latency", name), ".1f") for name in ("p50", "p99")),
            *costs(measured, key),
            middle([1e6 * each for each in measured.figures(key, "pooler_cpu")]) if way == "pooled" else "",
        ]
        for way in ways
        for workers in processes
        if (key := f"{workers}/{way}")
    ]
    columns = ["processes", "connected", "jobs/s", "of one's", "least busy of busiest", "p50 ms", "p99 ms", *COSTS]
    title = "Scale: worker processes of concurrency 100 on one machine; costs per job"
    sentence = (
        "Latency is from a defer to the start of its job on one of so many idle workers; "
        "through PgBouncer they poll, here every 100 ms."
    )
    return [Table(title, [*columns, "PgBouncer CPU µs"], rows, [sentence])]
