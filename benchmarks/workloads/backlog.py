"""A drain while a million other jobs lie about."""

from __future__ import annotations

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.workloads import Measured, Plan, Table, situations
from benchmarks.workloads.situations import Situation

SYSTEMS = ["pyprocrastinate"]
EMPTY = "nothing else there"


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure everything."""
    million, jobs, seconds = plan.scaled(1_000_000), plan.scaled(100_000), plan.either(10.0, 3.0)

    def beside(rest: Load, queues: tuple[str, ...] | None = None, occupied: str | None = None) -> Drain:
        return Drain(100, Load(jobs), (rest,), occupied, queues=queues, seconds=seconds)

    rows = [
        Situation(EMPTY, Drain(100, Load(jobs), seconds=seconds)),
        Situation("1,000,000 waiting", beside(Load(million)), EMPTY),
        Situation("1,000,000 scheduled a year ahead", beside(Load(million, scheduled=True)), EMPTY),
        Situation("1,000,000 in another queue", beside(Load(million, queue="'other'"), ("default",)), EMPTY),
        Situation("1,000,000 finished", beside(Load(million, finished=True)), EMPTY),
        Situation("100,000 blocked behind a lock", beside(Load(jobs, lock="'l'"), occupied="l"), EMPTY),
        Situation("the same, deferred singly", beside(Load(jobs, lock="'l'", singly=True), occupied="l"), EMPTY),
    ]
    title = "Backlog: a drain at concurrency 100 beside many other jobs"
    return [situations.measure(harness, plan, measured, title, rows, SYSTEMS)]
