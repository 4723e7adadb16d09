"""
The schema alone, in a bare loop: batches, locks, and whatever else may lie about in the tables.

A situation is measured beside the same drain without it, right before, in the same round.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from benchmarks.harness import Drain, Harness
from benchmarks.load import Load
from benchmarks.systems import System, find
from benchmarks.workloads import Measured, Plan, Table, cpu, middle, percent, spread

FLOOR = "minq:archive"
TEN_QUEUES = [f"q{n}" for n in range(10)]


@dataclass
class Situation:
    """Something that may slow a drain down."""

    title: str
    drain: Drain
    beside: Drain
    systems: tuple[str, ...] = ("core", "prototype")


def measure(harness: Harness, plan: Plan) -> list[Table]:
    """Measure everything."""
    names = ["minq:archive", "minq:delete", "core", "core:delete", "prototype"]
    systems = {name: find(name) for name in [*names, "minq:archive-cursor"] if _there(name)}
    batches, bulk, situations = Measured(), Measured(), Measured()
    for number in range(plan.rounds):
        for size, count in (1, 5_000), (10, 40_000), (100, 100_000):
            drain = Drain(size, Load(plan.scaled(count)))
            for name in filter(_there, names):
                batches.add(f"{name}/{size}", harness.drain(systems[name], drain))
        for name in "minq:archive", "core", "prototype":
            if _there(name):
                bulk.add(name, harness.bulk(systems[name], plan.scaled(200_000), 1000))
        plan.progress(f"storage: round {number + 1} of {plan.rounds}, batches done")
        for situation in _situations(plan):
            for name in filter(_there, situation.systems):
                for key, drain in ("beside", situation.beside), ("drain", situation.drain):
                    result = harness.drain(systems[name], drain)
                    situations.add(f"{situation.title}/{name}/{key}", result)
            plan.progress(f"storage: round {number + 1}, {situation.title} done")
    return [_batches(batches, systems), _bulk(bulk, systems), _situation_table(situations, systems, _situations(plan))]


def _there(name: str) -> bool:
    return name != "prototype" or "PROTOTYPE_SQL" in os.environ


def _situations(plan: Plan) -> list[Situation]:
    million, n = plan.scaled(1_000_000), plan.scaled
    empty = Drain(100, Load(n(100_000)))
    small = Drain(10, Load(n(10_000)))

    def over_locks(locks: int, hold: bool = False) -> Drain:
        return Drain(10, Load(n(10_000), lock=f"'lock ' || g % {locks}"), hold=hold)

    def with_rest(rest: Load, **options: object) -> Drain:
        return Drain(100, Load(n(100_000)), before=(rest,), **options)  # type: ignore[arg-type]

    blocked = Load(n(100_000), lock="'blocked'")
    singly = Load(n(100_000), lock="'blocked'", singly=True)
    churn = Load(n(500_000))
    return [
        Situation("waiting, same queue", Drain(100, Load(million), seconds=8), empty),
        Situation("waiting, another queue", with_rest(Load(million, queue="'other'"), queues=["default"]), empty),
        Situation("scheduled a year ahead", with_rest(Load(million, scheduled=True)), empty),
        Situation("finished", with_rest(Load(million, finished=True)), empty),
        Situation("blocked, one batch", with_rest(blocked, occupied="blocked"), empty),
        Situation("blocked, singly", with_rest(singly, occupied="blocked"), empty),
        Situation("10 locks", over_locks(10), small),
        Situation("10,000 locks", over_locks(n(10_000)), small),
        Situation("10 locks, horizon held", over_locks(10, hold=True), over_locks(10)),
        Situation("10,000 locks, horizon held", over_locks(n(10_000), hold=True), over_locks(n(10_000))),
        Situation(
            "40,000 on 10 locks, horizon held",
            Drain(10, Load(n(40_000), lock="'lock ' || g % 10"), hold=True, seconds=40),
            over_locks(10),
        ),
        Situation(
            "horizon held, 500,000 churn",
            Drain(100, churn, hold=True),
            empty,
            ("minq:archive-cursor", "core", "prototype"),
        ),
        Situation("list of 10 queues", Drain(100, Load(n(100_000), queue="'q' || g % 10"), queues=TEN_QUEUES), empty),
    ]


def _batches(measured: Measured, systems: dict[str, System]) -> Table:
    rows = []
    for key in measured.results:
        name, size = key.split("/")
        floor = "minq:delete" if name.endswith("delete") else FLOOR
        rows.append(
            [
                size,
                systems[name].label,
                spread(measured.rates(key)),
                percent(measured.ratios(key, f"{floor}/{size}")),
                middle(measured.figures(key, "statements"), ".3f"),
                middle(measured.figures(key, "wal")),
                cpu(measured, key),
                cpu(measured, key, "client_cpu"),
            ]
        )
    columns = ["batch", "system", "jobs/s", "of the floor", "statements", "WAL bytes"]
    columns += ["server CPU µs", "client CPU µs"]
    return Table("Storage: drain by batches, per job", columns, rows, measured.raw)


def _bulk(measured: Measured, systems: dict[str, System]) -> Table:
    rows = [
        [
            systems[key].label,
            spread(measured.rates(key)),
            percent(measured.ratios(key, FLOOR)),
            middle(measured.figures(key, "wal")),
        ]
        for key in measured.results
    ]
    columns = ["system", "jobs/s", "of the floor", "WAL bytes"]
    return Table("Storage: 1,000 defers a call", columns, rows, measured.raw)


def _situation_table(measured: Measured, systems: dict[str, System], situations: list[Situation]) -> Table:
    rows = []
    for situation in situations:
        for name in filter(_there, situation.systems):
            key = f"{situation.title}/{name}/drain"
            beside = f"{situation.title}/{name}/beside"
            first = measured.figures(key, "first_quarter")
            last = measured.figures(key, "last_quarter")
            rows.append(
                [
                    situation.title,
                    systems[name].label,
                    spread(measured.rates(key)),
                    spread(measured.rates(beside)),
                    percent(measured.ratios(key, beside)),
                    percent([b / a for a, b in zip(first, last, strict=True)]),
                    middle(measured.figures(key, "wal")),
                    cpu(measured, key),
                    cpu(measured, beside),
                ]
            )
    columns = ["situation", "system", "jobs/s", "without it", "of that"]
    columns += ["last quarter of first", "WAL bytes", "server CPU µs", "without it"]
    return Table("Storage: situations", columns, rows, measured.raw)
