"""The command line."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import BenchmarkError, charts, report, targets
from benchmarks.harness import Harness
from benchmarks.peers import Peers
from benchmarks.systems import find, variants_of
from benchmarks.workloads import Measured, Plan

WORKLOADS = ("drain", "defer", "latency", "locks", "backlog", "horizon", "scale", "idle")
#: Measured only when they are named: the one takes ten minutes, the other is for work on the schema.
APART = ("soak", "batches")
#: What --peers calls them, and their modules.
PEERS = {"procrastinate": "procrastinate", "pgqueuer": "pgqueuer", "graphile-worker": "graphile", "celery": "celery"}


def main() -> int:
    """Measure what the command line asks for."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    peers = Peers([PEERS[name] for name in _names(options.peers, tuple(PEERS))])
    systems = [find(name) for peer in peers.present for name in variants_of(peer)]
    if options.quick:
        systems = [system for system in systems if system.best]
    plan = Plan(options.rounds or (1 if options.quick else 3), options.quick, systems, list(peers.missing))
    workloads: dict[str, Measured] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    begin, started = time.strftime("%Y-%m-%d %H:%M"), time.monotonic()
    with Harness(peers.interpreters) as harness:
        for name in _names(options.only, WORKLOADS + APART):
            measured = Measured()
            since = time.monotonic()
            try:
                shown = import_module(f"benchmarks.workloads.{name}").measure(harness, plan, measured)
            except BenchmarkError as error:
                plan.problems.append(f"failed: {name}: {error}")
                continue
            plan.progress(f"{name}: {time.monotonic() - since:.0f} s")
            for table in shown:
                print(report.markdown(vars(table)), end="\n\n", flush=True)
            workloads[name], tables[name] = measured, [vars(table) for table in shown]
        summary = targets.table(workloads)
        if summary.rows:
            print(report.markdown(vars(summary)), end="\n\n")
        figures: dict[str, Any] = {
            "at": begin,
            "seconds": round(time.monotonic() - started),
            "command": sys.argv[1:],
            "versions": harness.versions() | peers.versions,
            "problems": plan.problems,
            "targets": vars(summary),
            "tables": tables,
            "measured": {name: measured.raw for name, measured in workloads.items()},
        }
    if options.charts:
        plan.problems += charts.draw_all(figures, Path(options.charts))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))
    print(report.footer(figures))
    for problem in plan.problems:
        print(problem)
    return 1 if plan.problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this queue beside others, on servers of its own. All takes under 30 minutes.",
        epilog="Not in a plain run: `--only soak`, a steady load for ten minutes, for eight of them with a transaction "
        "held open; and `--only batches`, the schema without Python's worker.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one round; under 3 minutes")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="of %(default)s, and of " + ",".join(APART))
    parser.add_argument("--peers", default=",".join(PEERS), help="of %(default)s; empty for none")
    parser.add_argument("--rounds", type=int, help="how often each is measured, 3 if not --quick")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there, too")
    parser.add_argument("--charts", metavar="FOLDER", help="draw the charts of docs/performance.md there")
    return parser.parse_args()


def _names(given: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in given.split(",") if name]
    if unknown := set(names) - set(known):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return names


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
