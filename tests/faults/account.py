"""What happened in a soak, told as one: who claimed which job, how that ended, and what might explain it."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from tests.faults.history import Event
from tests.faults.record import Final, Record, Step
from tests.faults.tasks import GRACE, HEARTBEAT, LEASE, POISON_RANK, UNKNOWN

_Span = tuple[float, float]

# How long a worker waits at most between attempts to connect, in seconds.
LONGEST_PAUSE = 5.0
FINAL = ("succeeded", "failed", "aborted", "cancelled")
_EDGES = {("todo", "doing"), ("doing", "todo"), ("todo", "todo"), ("todo", "gone"), ("doing", "gone")}
# From a transition to when others see it, at most, while nothing holds its transaction up.
_COMMITS_WITHIN = 0.5


@dataclasses.dataclass
class Claim:
    """A claim of a job, from the transition that made it to the one that ended it."""

    job: int
    token: int | None
    slot: str
    opened: Step
    closed: Step | None = None
    # The row leaves "doing" with this one; where the job has ended with it, another one follows.
    left: Step | None = None
    # finished, retried, released, rescued or lost
    how: str = "open"


@dataclasses.dataclass
class Report:
    """What was counted, and what was wrong."""

    jobs: int = 0
    starts: int = 0
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    exposed: int = 0
    recovered: int = 0
    rolled_back: int = 0
    duplicates: int = 0
    overlaps: int = 0
    zombies: int = 0
    accepted: int = 0
    lost_replies: int = 0
    stalls: int = 0
    # The share of a worker's time in which no fault would explain that a claim is taken from it.
    unexcused: float = 0.0
    # Seconds from the death of a worker, and of those how many nobody could have rescued its jobs.
    rescues: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def count(self, invariant: str) -> int:
        """Return how many sentences there are of an invariant."""
        return sum(sentence.startswith(f"{invariant}:") for sentence in self.wrong)

    @property
    def broken(self) -> set[str]:
        """The invariants that do not hold."""
        return {sentence.partition(":")[0] for sentence in self.wrong}

    def rescued_within(self, share: float, *, served: bool = False) -> float:
        """
        Return a quantile of the seconds from the death of a worker to the rescue of its jobs.

        With `served`, only of those during which no fault befell everybody.
        """
        times = sorted(took for took, away in self.rescues if not (served and away))
        return times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def over_at(fault: Event) -> float:
    """Return when a fault is over for a worker: for as long as it lasted, one may wait until it connects again."""
    began, ended = float(fault["began"]), float(fault["ended"])
    return ended + min(LONGEST_PAUSE, ended - began) + GRACE


def within(spans: Iterable[_Span], began: float, ended: float) -> float:
    """Return how many seconds of a time are in any of these spans."""
    seconds, until = 0.0, began
    for begin, end in sorted(spans):
        seconds += max(0.0, min(end, ended) - max(begin, until))
        until = max(until, end)
    return seconds


class Account:
    """A record, read in the order in which it happened; transitions that cannot be are wrong."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.report = Report()
        self.slots: dict[int, str] = {e["worker"]: e["by"] for e in record.of("registered")}
        self.started: dict[tuple[int, int], Event] = {}
        self.ended: dict[tuple[int, int], list[Event]] = defaultdict(list)
        self.steps: dict[int, list[Step]] = defaultdict(list)
        self.claims: dict[int, list[Claim]] = defaultdict(list)
        # Under each queueing lock: from when on, and until when, which job waited.
        self.waits: dict[str, list[tuple[Step, Step | None, int]]] = defaultdict(list)
        # The machine itself is one that nobody injects.
        self.faults = sorted(
            (e for e in record.of("fault", "stall") if not (e.get("missed") or "").startswith("Missed")),
            key=lambda e: float(e["began"]),
        )
        self.stalls = [(float(e["began"]), float(e["ended"])) for e in record.of("stall")]
        self.ends = record.of("killed", "crash", "exit", "stopped")
        self.lives: dict[str, list[Event]] = defaultdict(list)
        for event in record.of("up", "registered", "crash", "killed", "stopped"):
            self.lives[str(event.get("name") or event["by"])].append(event)
        for step in record.steps:
            mine = self.steps[step.job]
            mine.append(step)
            # One statement takes a job from one table and puts it into the other, in either order.
            if step.now == "gone" and len(mine) > 1 and mine[-2].was is None and mine[-2].now in FINAL:
                mine[-2:] = [mine[-1], mine[-2]]
        # Those that were put there, and those of which that was never heard.
        self.poison = {id_ for e in record.of("poison") for id_ in e["ids"]}
        self.poison |= {id_ for id_, job in record.jobs.items() if job.key is None and self._is_poison(job)}
        self._runs()
        self._transitions()
        self._waiting()

    def _wrong(self, invariant: str, sentence: str) -> None:
        self.report.wrong.append(f"{invariant}: {sentence}")

    def _expect(self, fine: bool, invariant: str, sentence: str) -> None:
        if not fine:
            self._wrong(invariant, sentence)

    def _all_claims(self) -> Iterator[Claim]:
        return itertools.chain.from_iterable(self.claims.values())

    def _is_poison(self, job: Final) -> bool:
        steps = self.steps.get(job.id)
        return job.task == UNKNOWN or bool(steps and steps[0].rank == POISON_RANK)

    # What happened

    def _runs(self) -> None:
        for event in self.record.of("start", "end", "completing"):
            run = (event["job"], event["token"])
            if event["kind"] != "start":
                self.ended[run].append(event)
                continue
            self._expect(run not in self.started, "I4", f"job {run[0]} began twice under token {run[1]}")
            self._expect(run[0] in self.record.jobs, "I2", f"job {run[0]} ran, and is not known")
            self.started[run] = event

    def _transitions(self) -> None:
        for job, steps in self.steps.items():
            current: Claim | None = None
            over = False
            for step in steps:
                self._expect(not over, "I5", f"job {job} went on after it had ended: {step.was} to {step.now}")
                if step.was is None:
                    over = step.now in FINAL
                    self._expect(over or step is steps[0], "I5", f"job {job} appeared twice")
                    if over:
                        self._end(steps, step)
                    continue
                self._expect((step.was, step.now) in _EDGES, "I5", f"job {job} went from {step.was} to {step.now}")
                if step.now == "doing":
                    self._expect(current is None, "I4", f"job {job} was claimed twice at once")
                    current = Claim(job, step.token, self.slots.get(step.worker or 0, "?"), step)
                    self.claims[job].append(current)
                elif step.was == "doing" and current:
                    current.closed = current.left = step
                    grown = step.attempts - current.opened.attempts
                    rescued = step.rescues > current.opened.rescues
                    current.how = "rescued" if rescued else "retried" if grown else "released"
                    self._expect(grown in (0, 1), "I8", f"job {job}: a run was counted {grown} times")
                    current = None
            final = self.record.jobs.get(job)
            status = steps[-1].now
            self._expect(final is not None, "I1", f"job {job} was deferred, and is gone")
            self._expect(final is None or final.status == status, "I5", f"job {job} is {final}, but became {status}")

    def _waiting(self) -> None:
        for job, steps in self.steps.items():
            begun: Step | None = None
            for step in [*steps, None]:
                if step and step.now == "todo":
                    begun = begun or step
                elif begun:
                    if begun.queueing_lock:
                        self.waits[begun.queueing_lock].append((begun, step, job))
                    begun = None

    def _end(self, steps: list[Step], end: Step) -> None:
        """A job has ended: if in a run, that run has ended so."""
        job = end.job
        claims = self.claims[job]
        gone = next((s for s in reversed(steps) if s.now == "gone"), None)
        if not claims or gone is None or gone.was != "doing":
            return
        claim = claims[-1]
        claim.closed, claim.left = end, gone
        final = self.record.jobs.get(job)
        if end.token == claim.token:
            claim.how = "finished"
        else:
            claim.how = "lost"
            by_nobody = end.token is None and final is not None and final.error in ("WorkerLost", "Superseded")
            if not by_nobody:
                self.report.accepted += 1
                self._wrong("I4", f"job {job} was ended under token {end.token}, and {claim.token} was the current one")
        # A place that was taken meanwhile is no end of the run.
        counted = 0 if final and final.error == "Superseded" and end.attempts == claim.opened.attempts else 1
        grown = end.attempts - claim.opened.attempts
        self._expect(grown == counted, "I8", f"job {job} ended, and its run was counted {grown} times")

    # What might explain it

    def _explained(self, claim: Claim, at: float) -> bool:
        """Tell whether a fault kept a worker silent in the middle of the lease that ended at this time."""
        if claim.slot == "ghost" or any(
            claim.opened.at <= e["at"] <= at and claim.slot in (e["by"], e.get("name")) for e in self.ends
        ):
            return True
        silent = at - LEASE / 2
        return any(began <= silent <= ended for began, ended in self._excuses(claim.slot))

    def _excuses(self, slot: str) -> list[_Span]:
        """Return when a worker may be silent for the whole of a lease, as far as one can tell from outside."""
        faults = (fault for fault in self.faults if fault["touches"] is None or slot in fault["touches"])
        return [(fault["began"] - HEARTBEAT, over_at(fault)) for fault in faults]

    def _delay(self, at: float) -> float:
        """Return how much later than this others may have seen a transition of this time."""
        held_up = any(fault["began"] <= at + _COMMITS_WITHIN and at <= over_at(fault) for fault in self.faults)
        return LONGEST_PAUSE if held_up else _COMMITS_WITHIN

    def _stalled(self, began: float, ended: float) -> float:
        """Return for how many of these seconds the machine stood still."""
        return within(self.stalls, began, ended)

    def _was_stopped(self, claim: Claim | None) -> bool:
        """Tell whether its worker was asked to stop in the middle of a claim."""
        assert claim
        assert claim.closed
        stopped = [e["at"] - e["seconds"] for e in self.record.of("stopped") if e["name"] == claim.slot]
        stopped += [e["at"] for e in self.record.of("stop")]
        return any(claim.opened.at <= at + GRACE and at <= claim.closed.at for at in stopped)

    def _began(self, end: Event) -> float:
        """Return when the process began that ended so; an earlier one may have had the same pid."""
        ups = [e["at"] for e in self.lives[end["name"]] if e["kind"] == "up" and e["pid"] == end["pid"]]
        return max((at for at in ups if at <= end["at"]), default=float(end["at"]))

    def _is_deaf(self, end: Event) -> bool:
        """Tell whether a process ended in the middle of a function that waits for the database and heeds no abort."""
        began = self._began(end)
        runs = [run for run, start in self.started.items() if start.get("pid") == end["pid"] and start["at"] >= began]
        deaf = {id_ for id_, job in self.record.jobs.items() if job.task == "complete"}
        return any(run[0] in deaf and all(e["kind"] != "end" for e in self.ended[run]) for run in runs)
