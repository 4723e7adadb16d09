"""What hooks cost: a plugin in the worker, and SQL-side hooks in the schema, of which nothing is registered or one."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, costs, percent, spread

SHOWN = ["statements", "WAL bytes", "server CPU µs", "client CPU µs"]
# What each is beside, of the same round.
PLUGINS = {"pyprocrastinate": "pyprocrastinate", "pyprocrastinate:prometheus": "pyprocrastinate"}
SCHEMA = {"core:hookless": "core:hookless", "core": "core:hookless", "core:hooked": "core:hookless"}


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything."""
    for number in range(plan.rounds):
        for name in PLUGINS:
            for concurrency, count in (10, 40_000), (100, 100_000):
                drain = Drain(concurrency, Load(plan.scaled(count)), seconds=plan.either(5.0, 2.0))
                measured.add(f"{name}/drain, concurrency {concurrency}", harness.drain(find(name), drain))
        for name in SCHEMA:
            for size, count in (1, 3_000), (100, 50_000):
                drain = Drain(size, Load(plan.scaled(count)))
                measured.add(f"{name}/drain, batches of {size}", harness.drain(find(name), drain))
            measured.add(f"{name}/defer one by one", harness.defer(find(name), plan.scaled(3_000), 1))
        plan.progress(f"hooks: round {number + 1} of {plan.rounds} done")

    def rows(floors: dict[str, str]) -> list[list[str]]:
        found = []
        for key in sorted(measured.results, key=lambda key: key.partition("/")[2]):
            name, _, what = key.partition("/")
            if name in floors:
                beside = percent(measured.ratios(key, f"{floors[name]}/{what}")) if floors[name] != name else ""
                rate = spread(measured.rates(key))
                found.append([what, find(name).label, rate, beside, *costs(measured, key, SHOWN)])
        return found

    return [
        Table("With a plugin in the worker; costs per job", ["", "system", "jobs/s", "of none", *SHOWN], rows(PLUGINS)),
        Table(
            "The schema without SQL-side hooks, with none registered, with one that does nothing; costs per job",
            ["", "system", "jobs/s", "of hookless", *SHOWN],
            rows(SCHEMA),
        ),
    ]
