"""Jobs with locks beside jobs without, with a free horizon and with a held one."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.workloads import Plan, Table, situations
from benchmarks.workloads.situations import Situation

SYSTEMS = ["core", "pyprocrastinate"]


def measure(harness: Harness, plan: Plan) -> list[Table]:
    """Measure everything."""
    n = plan.scaled
    none = Drain(10, Load(n(10_000)))

    def over(locks: int, jobs: int = 10_000, hold: bool = False) -> Drain:
        return Drain(10, Load(n(jobs), lock=f"'lock ' || g % {locks}"), hold=hold, seconds=40)

    many = n(10_000)
    return [
        situations.measure(
            harness,
            plan,
            "Locks, at concurrency 10",
            [
                Situation("10,000 jobs on 10 locks", over(10), none),
                Situation("10,000 jobs on 10,000 locks", over(many), none),
                Situation("on 10 locks, horizon held", over(10, hold=True), over(10)),
                Situation("on 10,000 locks, horizon held", over(many, hold=True), over(many)),
                Situation("40,000 on 10 locks, horizon held", over(10, 40_000, hold=True), over(10)),
            ],
            SYSTEMS,
        )
    ]
