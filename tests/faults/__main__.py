"""The command line: python -m tests.faults --minutes 3 --seed 1."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from pathlib import Path

from tests.faults import soak
from tests.faults.account import Report
from tests.faults.checker import check
from tests.faults.nemesis import FAULTS
from tests.faults.record import Record, load
from tests.faults.tasks import LEASE


def main() -> int:
    """Run what the command line asks for; return 1 if anything was wrong."""
    options = _options()
    if options.judge:
        return judge(load(options.judge), f"python -m tests.faults --judge {options.judge}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kinds = [fault for fault in FAULTS if options.long or not fault.long]
    if options.only:
        kinds = [fault for fault in kinds if fault.name.split()[0] in options.only.split(",")]
    plan = soak.Soak(
        seed=options.seed,
        seconds=options.minutes * 60,
        rate=options.rate,
        kinds=tuple(kinds),
        keep=options.keep,
        quiet=False,
    )
    repeat = f"python -m tests.faults --minutes {options.minutes:g} --seed {options.seed} --rate {options.rate:g}"
    repeat += " --long" * options.long + (f" --only {options.only}" if options.only else "")
    print(f"seed {options.seed}; to have the same faults again: {repeat}", flush=True)
    return judge(soak.record(plan), repeat)


def judge(record: Record, repeat: str) -> int:
    """Say what a record shows; return 1 if anything was wrong."""
    report = check(record)
    print(summary(report))
    if impossible := record.facts["impossible"]:
        print(f"not possible on this machine: {', '.join(impossible)}")
    for sentence in report.wrong[:50]:
        print(f"WRONG {sentence}")
    if report.wrong:
        print(f"{len(report.wrong)} times wrong; again: {repeat}")
    return 1 if report.wrong else 0


def summary(report: Report) -> str:
    """Return what was counted, for people."""
    faults = "\n".join(f"  {count:5} {name}" for name, count in sorted(report.faults.items()))
    figures = {
        "jobs": f"{report.jobs}, runs begun: {report.starts}",
        "faults": f"{report.faults.total()} of {len(report.faults)} kinds\n{faults}",
        "running jobs that a fault hit": report.exposed,
        "of a worker's time, without any fault that might touch it": f"{report.unexcused:.0%}",
        "times that the machine itself stood still": report.stalls,
        "answers to commits lost": report.lost_replies,
        "deferred, though the answer was lost": report.recovered,
        "rolled back": report.rolled_back,
        "lost": report.count("I1"),
        "unexpected": report.count("I2"),
        "run again after a fault": report.duplicates,
        "run again without one": report.count("I3"),
        "late outcomes accepted": f"{report.accepted} of {report.zombies}",
        "at once under a lock, after a fault": report.overlaps,
        "leftovers": report.count("I13"),
        f"rescues of the jobs of killed workers, with a lease of {LEASE:.0f} s": len(report.rescues),
        "  all": _quantiles(report, served=False),
        "  without an outage meanwhile": _quantiles(report, served=True),
        "wrong in all": len(report.wrong),
    }
    return "\n".join(f"{name}: {figure}" for name, figure in figures.items())


def _quantiles(report: Report, *, served: bool) -> str:
    p50, p99 = (report.rescued_within(share, served=served) for share in (0.5, 0.99))
    return f"p50 {p50:.1f} s, p99 {p99:.1f} s"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="A soak under faults, and its judge.")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long there are faults (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a random one")
    parser.add_argument("--rate", type=float, default=200.0, help="jobs deferred a second (default: %(default)g)")
    parser.add_argument("--only", metavar="F1,F6", help="only faults of these kinds")
    parser.add_argument("--long", action="store_true", help="rarer faults, too")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the record and the logs there")
    parser.add_argument("--judge", type=Path, metavar="FOLDER", help="only judge again what was kept there")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
