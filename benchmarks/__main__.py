"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import BenchmarkError, charts, report, targets
from benchmarks.harness import Harness
from benchmarks.peers import Peers
from benchmarks.systems import find, variants_of
from benchmarks.workloads import Measured, Plan, Table

WORKLOADS = ("drain", "defer", "latency", "locks", "backlog", "horizon", "scale", "idle")
#: Measured only when they are named: the first takes ten minutes, the others are for work on one part.
APART = ("soak", "batches", "hooks")
#: What --peers calls them, and their modules.
PEERS = {"procrastinate": "procrastinate", "pgqueuer": "pgqueuer", "graphile-worker": "graphile", "celery": "celery"}


class Run:
    """What was asked for, and what has been measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.begin, self.started = time.strftime("%Y-%m-%d %H:%M"), time.monotonic()
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        self.workloads: dict[str, Measured] = {}
        self.tables: dict[str, list[Table]] = {}
        self.peers = Peers([PEERS[name] for name in _names(options.peers, tuple(PEERS))])
        systems = [find(name) for peer in self.peers.present for name in variants_of(peer)]
        if options.quick:
            systems = [system for system in systems if system.best]
        rounds = options.rounds or (1 if options.quick else 3)
        self.plan = Plan(rounds, options.quick, systems, list(self.peers.missing))

    def measure(self, harness: Harness, name: str) -> None:
        """Measure a workload, and print its tables."""
        measured, since = Measured(), time.monotonic()
        try:
            tables = import_module(f"benchmarks.workloads.{name}").measure(harness, self.plan, measured)
        except (BenchmarkError, psycopg.Error, OSError, subprocess.SubprocessError) as error:
            self.plan.problems.append(f"failed: {name}: {error}")
            return
        self.plan.progress(f"{name}: {time.monotonic() - since:.0f} s")
        for table in tables:
            print(report.markdown(vars(table)), end="\n\n", flush=True)
        self.workloads[name], self.tables[name] = measured, tables

    def figures(self, harness: Harness) -> dict[str, Any]:
        """Return all of it."""
        return {
            "at": self.begin,
            "load": self.load,
            "seconds": round(time.monotonic() - self.started),
            "command": sys.argv[1:],
            "versions": harness.versions() | self.peers.versions,
            "problems": self.plan.problems,
            "targets": vars(targets.table(self.workloads)),
            "tables": {name: list(map(vars, tables)) for name, tables in self.tables.items()},
            "measured": {name: measured.raw for name, measured in self.workloads.items()},
        }


def main() -> int:
    """Measure what the command line asks for."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    run = Run(options)
    with Harness(run.peers.interpreters) as harness:
        figures = run.figures(harness)
        for name in _names(options.only, WORKLOADS + APART):
            run.measure(harness, name)
            figures = run.figures(harness)
            if options.json:
                Path(options.json).write_text(json.dumps(figures, indent=1), "utf-8")
    if figures["targets"]["rows"]:
        print(report.markdown(figures["targets"]), end="\n\n")
    problems = run.plan.problems
    if options.charts:
        problems += charts.draw_all(figures, Path(options.charts))
    print(report.footer(figures))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this queue beside others, on servers of its own. All takes under 30 minutes.",
        epilog="Not in a plain run: `--only soak`, a steady load for ten minutes, for eight of them with a transaction "
        "held open; `--only batches`, the schema without Python's worker; and `--only hooks`, what hooks cost.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one round; under 3 minutes")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="of %(default)s, and of " + ",".join(APART))
    parser.add_argument("--peers", default=",".join(PEERS), help="of %(default)s; empty for none")
    parser.add_argument("--rounds", type=int, help="how often each is measured, 3 if not --quick")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there, too")
    parser.add_argument("--charts", metavar="FOLDER", help="draw charts there; docs/charts for those of the pages")
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
