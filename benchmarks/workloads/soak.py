"""A steady stream of jobs for ten minutes, for eight of which somebody holds a transaction open."""

from __future__ import annotations

from statistics import median

from benchmarks import BenchmarkError
from benchmarks.harness import Harness, Soak
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, spread

SYSTEM = "pyprocrastinate"
BEFORE, LAST, AFTER = "before the transaction", "its last tenth", "after it"


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure once, whatever the rounds: it is long enough."""
    seconds = plan.either(600.0, 30.0)
    soak = Soak(rate=2_000, seconds=seconds, hold=(seconds / 10, seconds * 9 / 10), every=seconds / 60)
    result = harness.soak(find(SYSTEM), soak)
    measured.add(SYSTEM, result)
    course = result.course
    parts = {
        BEFORE: [at for at in course if at["at"] < soak.hold[0]],
        "its first tenth": [at for at in course if 0.1 * seconds <= at["at"] < 0.2 * seconds],
        LAST: [at for at in course if 0.8 * seconds <= at["at"] < 0.9 * seconds],
        AFTER: [at for at in course if at["at"] >= soak.hold[1]],
    }
    if empty := [title for title, part in parts.items() if not part]:
        raise BenchmarkError(f"{SYSTEM} ran no jobs {', '.join(empty)}")

    def cell(part: list[dict[str, float]], name: str, form: str = ",.1f") -> str:
        return spread([at[name] for at in part], form)

    rows = [
        [
            title,
            cell(part, "rate", ",.0f"),
            cell(part, "p50"),
            cell(part, "p99"),
            cell(part, "buffers"),
            cell(part, "megabytes"),
        ]
        for title, part in parts.items()
    ]
    columns = ["while", "jobs/s", "p50 ms", "p99 ms", "buffers a call", "MB of tables and indexes, but history"]

    def growth(name: str) -> float:
        return median(at[name] for at in parts[LAST]) / median(at[name] for at in parts[BEFORE])

    result.figures |= {
        "p99_growth": growth("p99"),
        "buffers_growth": growth("buffers"),
        "size_after": max(at["megabytes"] for at in parts[AFTER]) / parts[LAST][-1]["megabytes"],
    }
    grown = result.figures
    sentence = (
        f"From before the transaction to its last tenth, latency p99 grows {grown['p99_growth']:.2f}x and buffers a "
        f"call {grown['buffers_growth']:.2f}x. A vacuum later, tables and indexes but for history have "
        f"{grown['megabytes_after']:.1f} MB."
    )
    title = (
        f"Soak: {soak.rate:,} jobs/s for {seconds:.0f} s, a transaction open for {soak.hold[1] - soak.hold[0]:.0f} s"
    )
    return [Table(title, columns, rows, [sentence])]
