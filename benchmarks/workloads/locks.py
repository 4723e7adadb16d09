"""Jobs with locks beside jobs without, with a free horizon and with a held one."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.workloads import Measured, Plan, Table, situations
from benchmarks.workloads.situations import Situation

SYSTEMS = ["core", "pyprocrastinate"]
NONE = "no locks"


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything."""
    n = plan.scaled

    def over(locks: int, jobs: int = 10_000, hold: bool = False) -> Drain:
        load = Load(n(jobs), lock=f"'lock ' || g % {locks}")
        return Drain(10, load, hold=hold, seconds=plan.either(15.0, 5.0))

    many = n(10_000)
    rows = [
        Situation(NONE, Drain(10, Load(n(10_000)))),
        Situation("10,000 jobs on 10 locks", over(10), NONE),
        Situation("the same, horizon held", over(10, hold=True), "10,000 jobs on 10 locks"),
        Situation("10,000 jobs on 10,000 locks", over(many), NONE),
        Situation("those, horizon held", over(many, hold=True), "10,000 jobs on 10,000 locks"),
    ]
    return [situations.measure(harness, plan, measured, "Locks, at concurrency 10", rows, SYSTEMS)]
