"""A drain while a million other jobs lie about."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.workloads import Plan, Table, situations
from benchmarks.workloads.situations import Situation

SYSTEMS = ["core", "pyprocrastinate"]
TEN_QUEUES = [f"q{n}" for n in range(10)]


def measure(harness: Harness, plan: Plan) -> list[Table]:
    """Measure everything."""
    million, n = plan.scaled(1_000_000), plan.scaled
    empty = Drain(100, Load(n(100_000)))

    def beside(rest: Load, **options: object) -> Drain:
        return Drain(100, Load(n(100_000)), before=(rest,), **options)  # type: ignore[arg-type]

    blocked = Load(n(100_000), lock="'blocked'")
    singly = Load(n(100_000), lock="'blocked'", singly=True)
    return [
        situations.measure(
            harness,
            plan,
            "Backlog: a drain beside a million other jobs",
            [
                Situation("waiting, same queue", Drain(100, Load(million), seconds=8), empty),
                Situation("waiting, another queue", beside(Load(million, queue="'other'"), queues=["default"]), empty),
                Situation("scheduled a year ahead", beside(Load(million, scheduled=True)), empty),
                Situation("finished", beside(Load(million, finished=True)), empty),
                Situation("100,000 blocked, one batch", beside(blocked, occupied="blocked"), empty),
                Situation("100,000 blocked, singly", beside(singly, occupied="blocked"), empty),
                Situation(
                    "in 10 queues", Drain(100, Load(n(100_000), queue="'q' || g % 10"), queues=TEN_QUEUES), empty
                ),
            ],
            SYSTEMS,
        )
    ]
