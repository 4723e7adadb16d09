"""What a hundred workers with nothing to do cost the server."""

from __future__ import annotations

from benchmarks.harness import Harness
from benchmarks.systems import find
from benchmarks.workloads import Measured, Plan, Table, spread

SYSTEM = "pyprocrastinate"
WORKERS = 100


def measure(harness: Harness, plan: Plan, measured: Measured) -> list[Table]:
    """Measure once, whatever the rounds: nothing happens."""
    measured.add(SYSTEM, harness.idle(find(SYSTEM), WORKERS, plan.either(30.0, 6.0)))
    plan.progress("idle: done")

    def share(name: str) -> str:
        return spread([100 * cores for cores in measured.figures(SYSTEM, name)], ".2f") + " %"

    row = [
        str(WORKERS),
        share("server_cores"),
        share("alone_cores"),
        share("client_cores"),
        spread(measured.figures(SYSTEM, "statements"), ".2f"),
    ]
    columns = [
        "idle workers",
        "server, of a core, for them",
        "server without them",
        "workers, of a core",
        "statements per worker and second",
    ]
    return [Table("At rest: workers with default intervals, settled", columns, [row])]
