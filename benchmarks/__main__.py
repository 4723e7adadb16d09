"""The command line."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks import report
from benchmarks.harness import BenchmarkError, Harness
from benchmarks.peers import Peers
from benchmarks.systems import find, variants_of
from benchmarks.workloads import Plan, Table

WORKLOADS = ("drain", "defer", "bulk", "latency", "locks", "backlog", "horizon", "batches", "soak")
PEERS = ("procrastinate", "pgqueuer", "graphile", "celery")


def main() -> int:
    """Measure what the command line asks for."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    peers = Peers(_names(options.peers, PEERS))
    # in their default configuration and in their best
    systems = [find(name) for peer in peers.present for name in variants_of(peer)]
    plan = Plan(options.rounds or (1 if options.quick else 3), options.quick, systems)
    tables: list[Table] = []
    problems = list(peers.missing)
    begin = time.strftime("%Y-%m-%d %H:%M")
    with Harness(peers.interpreters) as harness:
        versions = harness.versions() | peers.versions
        for name in _names(options.only, WORKLOADS):
            try:
                measured = import_module(f"benchmarks.workloads.{name}").measure(harness, plan)
            except BenchmarkError as error:
                problems.append(f"failed: {name}: {error}")
                continue
            for table in measured:
                print(report.markdown(table), end="\n\n", flush=True)
            tables += measured
            if options.json:
                written = {
                    "at": begin,
                    "versions": versions,
                    "command": sys.argv[1:],
                    "problems": problems,
                    "tables": [vars(table) for table in tables],
                }
                Path(options.json).write_text(json.dumps(written, indent=1))
    print(", ".join(f"{name} {version}" for name, version in versions.items()) + f"; {begin}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure this queue beside others, on a PostgreSQL of its own."
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one round")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="of %(default)s")
    parser.add_argument("--peers", default=",".join(PEERS), help="of %(default)s; empty for none")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there, too")
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
