"""
The judge of a soak: it compares what everybody saw with what the database did.

Each sentence in `Report.wrong` begins with the invariant that does not hold.

    I1   no job whose defer was acknowledged is lost
    I2   no job exists or runs that nobody deferred
    I3   no claim is taken from its worker, and so no job runs twice, without a fault that explains it
    I4   only the holder of the current token ends a run; an effect that is written with `complete` is there once
    I5   what was acknowledged is final, and no transition happens but legal ones
    I6   one job at a time under a lock
    I7   under a lock, in order; none before its time
    I8   no more runs than allowed, and each counted once
    I9   one waiting job for each queueing lock
    I10  jobs of dead workers are rescued in time, all jobs end once the faults have ended, workers live on
    I11  no ready job waits while a worker is free
    I12  each tick of a schedule fires once
    I13  nothing is left behind: sessions, locks, threads, files
    I14  tables and indexes are sound
    I15  a job that is to be aborted ends, in time, and never runs again
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from tests.faults.history import Event
from tests.faults.record import Final, Record, Step
from tests.faults.tasks import CRASH_RUNS, EVERY_SECONDS, FLAKY_RETRIES, GRACE, HEARTBEAT, LEASE, POISON_RANK, UNKNOWN

_Span = tuple[float, float]

# How long a worker waits at most between attempts to connect, in seconds.
_LONGEST_PAUSE = 5.0
_FINAL = ("succeeded", "failed", "aborted", "cancelled")
_EDGES = {("todo", "doing"), ("doing", "todo"), ("todo", "todo"), ("todo", "gone"), ("doing", "gone")}
_TOLD = {"job_success": "succeeded", "job_error": "failed", "job_aborted": "aborted"}
_STOPS_WITHIN = 10.0 + GRACE
_DRAINS_WITHIN = 60.0
_THREADS, _FILES = 24, 48
# What a run says with which it has heeded an abort.
_HEEDED = ("CancelledError", "JobAborted")
# A client whose connection, transaction or time is over is told so, and so is one that finds no room; and nothing else.
_REFUSALS = ("08", "25", "53", "55P03", "57", "58")
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


def check(record: Record) -> Report:
    """Judge a soak."""
    return _Checker(record).report


def _over(fault: Event) -> float:
    """Return when a fault is over for a worker: for as long as it lasted, one may wait until it connects again."""
    began, ended = float(fault["began"]), float(fault["ended"])
    return ended + min(_LONGEST_PAUSE, ended - began) + GRACE


def _within(spans: Iterable[_Span], began: float, ended: float) -> float:
    """Return how many seconds of a time are in any of these spans."""
    seconds, until = 0.0, began
    for begin, end in sorted(spans):
        seconds += max(0.0, min(end, ended) - max(begin, until))
        until = max(until, end)
    return seconds


class _Checker:
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
            if step.now == "gone" and len(mine) > 1 and mine[-2].was is None and mine[-2].now in _FINAL:
                mine[-2:] = [mine[-1], mine[-2]]
        # Those that were put there, and those of which that was never heard.
        self.poison = {id_ for e in record.of("poison") for id_ in e["ids"]}
        self.poison |= {id_ for id_, job in record.jobs.items() if job.key is None and self._is_poison(job)}
        self._runs()
        self._transitions()
        self._waiting()
        self._deferred()
        self._answered()
        self._outcomes()
        self._fenced()
        self._effects()
        self._told()
        self._locks()
        self._order()
        self._counts()
        self._queueing_locks()
        self._rescues()
        self._liveness()
        self._probes()
        self._ticks()
        self._facts()
        self._aborts()
        self._summary()

    def _is_poison(self, job: Final) -> bool:
        steps = self.steps.get(job.id)
        return job.task == UNKNOWN or bool(steps and steps[0].rank == POISON_RANK)

    def _wrong(self, invariant: str, sentence: str) -> None:
        self.report.wrong.append(f"{invariant}: {sentence}")

    def _expect(self, fine: bool, invariant: str, sentence: str) -> None:
        if not fine:
            self._wrong(invariant, sentence)

    def _all_claims(self) -> Iterator[Claim]:
        return itertools.chain.from_iterable(self.claims.values())

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
                    over = step.now in _FINAL
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

    # I1, I2

    def _deferred(self) -> None:
        by_key = {job.key: job for job in self.record.jobs.values() if job.key is not None}
        invoked = {job["args"]["key"] for e in self.record.of("invoke") for job in e["jobs"]}
        for event in self.record.of("ok"):
            for key, id_ in zip(event["keys"], event["ids"], strict=True):
                found = by_key.get(key)
                if id_ is not None:
                    self._expect(found is not None and found.id == id_, "I1", f"{key}, job {id_}, is lost")
        for event in self.record.of("fail"):
            self.report.rolled_back += len(event["keys"])
            for key in event["keys"]:
                self._expect(key not in by_key, "I2", f"{key} was rolled back, and is there")
        for event in self.record.of("info"):
            self.report.recovered += sum(key in by_key for key in event["keys"])
        for key in by_key.keys() - invoked:
            self._wrong("I2", f"{key} is there, and nobody deferred it")
        known = self.poison.union(*(e["ids"] for e in self.record.of("ok")))
        for job in self.record.jobs.values():
            if job.id not in known and job.key not in invoked and job.task != "tick":
                self._wrong("I2", f"job {job.id}, of {job.task}, is there, and nobody deferred it")
        keys = Counter(job.key for job in self.record.jobs.values() if job.key is not None)
        for key, count in keys.items():
            self._expect(count == 1, "I2", f"{key} is there {count} times")

    def _answered(self) -> None:
        """Whoever deferred was refused only what nobody can have, and only while something was broken."""
        invoked = {job["args"]["key"]: (e["at"], job) for e in self.record.of("invoke") for job in e["jobs"]}
        for event in self.record.of("ok"):
            for key, id_ in zip(event["keys"], event["ids"], strict=True):
                if id_ is None:
                    since, job = invoked[key]
                    waited = any(
                        begun.at <= event["at"] and (over is None or since <= over.at + self._delay(over.at))
                        for begun, over, _ in self.waits[job.get("queueing_lock") or ""]
                    )
                    self._expect(waited, "I9", f"{key} was not deferred, and none under its lock waited")
        for event in self.record.of("info"):
            since = min(invoked[key][0] for key in event["keys"])
            state = event.get("sqlstate") or ""
            self._expect(not state or state.startswith(_REFUSALS), "I13", f"a client was told {event['error']}")
            broken = any(
                fault["began"] <= event["at"] and since <= _over(fault)
                for fault in self.faults
                if fault["touches"] is None or event["by"] in fault["touches"]
            )
            self._expect(broken, "I1", f"{event['keys']} were refused without any fault: {event['error']}")

    def _delay(self, at: float) -> float:
        """Return how much later than this others may have seen a transition of this time."""
        held_up = any(fault["began"] <= at + _COMMITS_WITHIN and at <= _over(fault) for fault in self.faults)
        return _LONGEST_PAUSE if held_up else _COMMITS_WITHIN

    def _outcomes(self) -> None:
        """Each job has come to what those said who ran it, or who cancelled it."""
        asked = {e["job"] for e in self.record.of("cancel", "cancelled")}
        for id_, job in self.record.jobs.items():
            last = self.claims[id_][-1] if self.claims[id_] else None
            finished = last is not None and last.how == "finished"
            ends = self.ended.get((id_, last.token or 0), []) if last else []
            said = [e["outcome"] for e in ends if e["kind"] == "end"]
            replaced = job.error == "Superseded" and any(step.queueing_lock for step in self.steps.get(id_, [])[:1])
            fine = True
            if job.status == "succeeded":
                # That its holder said so is seen below.
                fine = finished
            elif job.status == "cancelled":
                fine = replaced or id_ in asked
            elif job.status == "aborted":
                heeded = any(o in _HEEDED for o in said) or (last and (id_, last.token or 0) not in self.started)
                fine = bool(finished and heeded) and (id_ in asked or self._was_stopped(last))
            elif job.status == "failed":
                given_up = job.error == "WorkerLost" and (id_ in asked or job.task == "crash")
                failed = finished and any(o != "succeeded" and o not in _HEEDED for o in said)
                mends = job.task == "flaky" and isinstance(job.args, dict) and job.args["fails"] <= FLAKY_RETRIES
                fine = replaced or id_ in self.poison or given_up or (failed and not mends)
            self._expect(fine, "I1", f"job {id_} is {job}, and the runs of {last} ended with {said}")

    def _was_stopped(self, claim: Claim | None) -> bool:
        """Tell whether its worker was asked to stop in the middle of a claim."""
        assert claim
        assert claim.closed
        stopped = [e["at"] - e["seconds"] for e in self.record.of("stopped") if e["name"] == claim.slot]
        stopped += [e["at"] for e in self.record.of("stop")]
        return any(claim.opened.at <= at + GRACE and at <= claim.closed.at for at in stopped)

    # I3, I4

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
        return [(fault["began"] - HEARTBEAT, _over(fault)) for fault in faults]

    def _fenced(self) -> None:
        for (job, token), event in self.started.items():
            held = next((c for c in self.claims[job] if c.token == token), None)
            fine = held is not None and held.slot in (event["by"], "?")
            self._expect(fine, "I4", f"{event['by']} ran job {job} under token {token}, which was not its claim")
        before: dict[int, list[Claim]] = {}
        for claim in self._all_claims():
            run = (claim.job, claim.token or 0)
            begun = run in self.started
            closed = claim.closed
            if closed is None:
                continue
            earlier = before.setdefault(claim.job, [])
            rises = not earlier or (earlier[-1].token or 0) < (claim.token or 0)
            self._expect(rises, "I4", f"job {claim.job} was claimed under token {claim.token} after a later one")
            if begun and any((c.job, c.token or 0) in self.started and c.how == "rescued" for c in earlier):
                self.report.duplicates += 1
            earlier.append(claim)
            if claim.how in ("rescued", "lost"):
                self._expect(
                    self._explained(claim, closed.at),
                    "I3",
                    f"job {claim.job} was taken from {claim.slot} without any fault",
                )
                overdue = claim.left.overdue if claim.left else None
                early = overdue is not None and overdue < 0
                self._expect(not early, "I3", f"job {claim.job} was taken {overdue} s after the end of its lease")
            elif claim.how == "released":
                self._expect(not begun, "I3", f"job {claim.job} was begun, and then put back as if it had not been")
            else:
                self._by_its_holder(claim, closed, begun)
        for (job, token), ends in self.ended.items():
            mine = next((c for c in self.claims[job] if c.token == token), None)
            if mine and mine.closed and mine.how in ("rescued", "lost") and mine.closed.at < ends[-1]["at"]:
                self.report.zombies += 1
        for event in self.record.of("zombie"):
            self.report.zombies += 1
            if event["verdict"] != "stale":
                self.report.accepted += 1
                self._wrong("I4", f"a zombie ended job {event['job']}: {event['verdict']}")

    def _by_its_holder(self, claim: Claim, closed: Step, begun: bool) -> None:
        """The end of a run counts only if who ran it had said so before."""
        ends = [e for e in self.ended[claim.job, claim.token or 0] if e["at"] <= closed.at + 0.05]
        if closed.now == "succeeded":
            fine = any(e["kind"] == "completing" or e["outcome"] == "succeeded" for e in ends)
        else:
            fine = not begun or any(e["kind"] == "end" for e in ends)
        if not fine:
            self.report.accepted += 1
            self._wrong(
                "I4", f"job {claim.job} became {closed.now} under token {claim.token}, whose holder did not say so"
            )

    def _effects(self) -> None:
        counts = Counter(key for key, _, _ in self.record.effects)
        done = {job.key: job for job in self.record.jobs.values() if job.task == "complete" and job.key}
        for key, job in done.items():
            wanted = int(job.status == "succeeded")
            self._expect(counts[key] == wanted, "I4", f"{key} is {job.status} and has {counts[key or '']} effects")
        for _, id_, token in self.record.effects:
            claim = next((c for c in self.claims[id_] if c.token == token), None)
            self._expect(claim is not None and claim.how == "finished", "I4", f"job {id_} has the effect of a lost run")

    # I5

    def _told(self) -> None:
        told = self.record.of("told")
        self._expect(len(told) >= len(self.started) / 2, "I5", f"only {len(told)} runs were acknowledged")
        for event in told:
            status = _TOLD.get(event["action"])
            job = self.record.jobs.get(event["job"])
            if status:
                fine = job is not None and job.status == status
                self._expect(fine, "I5", f"job {event['job']} was acknowledged as {status}, and is {job}")

    # I6, I7

    def _locks(self) -> None:
        held: dict[str, list[Claim]] = defaultdict(list)
        for claim in self._all_claims():
            if claim.opened.lock:
                held[claim.opened.lock].append(claim)
        for lock, claims in held.items():
            claims.sort(key=lambda c: c.opened.seq)
            for a, b in itertools.pairwise(claims):
                over = a.closed is not None and a.closed.seq < b.opened.seq
                self._expect(over, "I6", f"jobs {a.job} and {b.job} were held at once under {lock}")
            runs = []
            for claim in claims:
                run = (claim.job, claim.token or 0)
                ends = [e for e in self.ended[run] if e["kind"] == "end"]
                if run in self.started and ends:
                    runs.append((self.started[run]["at"], ends[-1]["at"], claim))
            runs.sort(key=lambda r: r[0])
            for (_, ended, a), (began, _, b) in itertools.pairwise(runs):
                if began < ended:
                    self.report.overlaps += 1
                    taken = a.how in ("rescued", "lost")
                    self._expect(taken, "I6", f"jobs {a.job} and {b.job} ran at once under {lock}")

    def _order(self) -> None:
        acknowledged = {
            key: e["at"] for e in self.record.of("ok") for key, id_ in zip(e["keys"], e["ids"], strict=True) if id_
        }
        waits: dict[str, list[tuple[int, int, float, int, float]]] = defaultdict(list)
        for job, steps in self.steps.items():
            for step, following in itertools.zip_longest(steps, steps[1:]):
                if step.now != "todo" or not step.lock:
                    continue
                # From when on everybody could see it; when a transaction of a worker ended is not known so well.
                seen = acknowledged.get(step.key or "") if step.was is None else step.at + self._delay(step.at)
                if seen is None:
                    continue
                # One that waits for its retry holds back what is worse; one that waits for its first run does not.
                since = max(seen, (step.due or 0) + 0.1) if step.attempts == 0 else seen
                until = following.seq if following else 1 << 62
                waits[step.lock].append((step.rank, job, since, step.seq, until))
        under: dict[str, list[Claim]] = defaultdict(list)
        for claim in self._all_claims():
            opened = claim.opened
            early = opened.due is not None and opened.due > opened.at + 0.001
            self._expect(not early, "I7", f"job {claim.job} was claimed before its time")
            if opened.lock:
                under[opened.lock].append(claim)
        for lock, claims in under.items():
            coming = sorted(waits[lock], key=lambda w: w[3], reverse=True)
            waiting: list[tuple[int, int, float, int, float]] = []
            for claim in sorted(claims, key=lambda c: c.opened.seq):
                opened = claim.opened
                while coming and coming[-1][3] < opened.seq:
                    waiting.append(coming.pop())
                waiting = [wait for wait in waiting if wait[4] > opened.seq]
                for rank, job, since, _, _ in waiting:
                    if (rank, job) < (opened.rank, claim.job) and since < opened.began:
                        self._wrong("I7", f"job {claim.job} was claimed before {job}, under {lock}")

    # I8

    def _counts(self) -> None:
        for id_, job in self.record.jobs.items():
            claims = self.claims[id_]
            runs = sum((id_, c.token or 0) in self.started for c in claims)
            rescued = sum(c.how == "rescued" for c in claims)
            if job.task == "crash":
                self._expect(runs <= CRASH_RUNS, "I8", f"job {id_} killed {runs} workers")
                continue
            allowed = 1 + rescued + (FLAKY_RETRIES if job.task == "flaky" else 0)
            self._expect(runs <= allowed, "I8", f"job {id_}, of {job.task}, ran {runs} times, {rescued} rescues")
            counted = sum(c.how in ("finished", "retried", "rescued", "lost") for c in claims)
            self._expect(
                job.attempts == counted or job.error == "Superseded",
                "I8",
                f"job {id_} has {job.attempts} attempts, and {counted} runs ended",
            )

    # I9

    def _queueing_locks(self) -> None:
        for lock, spans in self.waits.items():
            spans.sort(key=lambda span: span[0].seq)
            for (_, over, a), (begun, _, b) in itertools.pairwise(spans):
                fine = over is not None and over.seq < begun.seq
                self._expect(fine, "I9", f"jobs {a} and {b} waited at once under {lock}")

    # I10

    def _rescues(self) -> None:
        by_slot: dict[str, list[Claim]] = defaultdict(list)
        for claim in self._all_claims():
            if claim.how in ("rescued", "lost") and claim.closed:
                by_slot[claim.slot].append(claim)
        outages = [(float(f["began"]), _over(f)) for f in self.faults if f["touches"] is None]
        for event in self.record.of("killed", "crash"):
            died = event["at"]
            for claim in by_slot[event["name"]]:
                assert claim.closed
                if not claim.opened.at <= died <= claim.closed.at:
                    continue
                took = claim.closed.at - died
                # While a fault befalls everybody, there is nobody to rescue it.
                away = _within(outages, died, claim.closed.at)
                self.report.rescues.append((took, away))
                fine = took <= LEASE + 1 + GRACE + away
                self._expect(fine, "I10", f"job {claim.job} was rescued after {took:.1f} s, {away:.1f} s of outage")

    def _stalled(self, began: float, ended: float) -> float:
        """Return for how many of these seconds the machine stood still."""
        return _within(self.stalls, began, ended)

    def _liveness(self) -> None:
        stop = min((float(e["at"]) for e in self.record.of("stop")), default=float("inf"))
        for id_, job in self.record.jobs.items():
            # Schedules go on until the last worker stops.
            late = any(step.at > stop - EVERY_SECONDS for step in self.steps.get(id_, [])[:1])
            last = job.task == "tick" and job.status == "todo" and late
            if job.status not in _FINAL and not last:
                self._wrong("I10", f"job {id_}, of {job.task}, is still {job.status}")
        drained = self.record.facts.get("drained", 0.0)
        self._expect(drained <= _DRAINS_WITHIN, "I10", f"it took {drained:.0f} s until all jobs had ended")
        for event in self.record.of("stopped"):
            within = _STOPS_WITHIN + self._stalled(event["at"] - event["seconds"], event["at"])
            fine = event["seconds"] <= within or self._is_deaf(event)
            self._expect(fine, "I10", f"{event['name']} took {event['seconds']:.1f} s to stop")
        for event in self.record.of("exit"):
            life = [e for e in self.lives[event["name"]] if self._began(event) <= e["at"] <= event["at"]]
            kinds = {e["kind"] for e in life}
            by_itself = "registered" in kinds and not kinds & {"killed", "stopped"}
            fine = not by_itself or ("crash" in kinds and event["code"] == -9)
            self._expect(fine, "I10", f"worker {event['name']} ended by itself ({event['code']})")
        # The operator may have been faster, and the answer lost.
        cancelled = {e["job"] for e in self.record.of("cancel")}
        for id_ in self.poison:
            found = self.record.jobs.get(id_)
            fine = found is not None and found.status in ("failed", "cancelled" if id_ in cancelled else "failed")
            self._expect(fine, "I10", f"job {id_} cannot be run, and is {found}")

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

    # I11

    def _probes(self) -> None:
        started = {e["key"]: e["at"] for e in reversed(self.record.of("start"))}
        probes = self.record.of("probe")
        wanted = self.record.facts.get("probes", 0)
        self._expect(len(probes) >= wanted, "I11", f"{len(probes)} jobs were to wake a worker, and not {wanted}")
        for event in probes:
            at = started.get(event["key"], float("inf"))
            took = at - event["at"]
            # Whoever was not woken would look only after POLL seconds.
            fine = took < GRACE + self._stalled(event["at"], at)
            self._expect(fine, "I11", f"{event['key']} waited {took:.1f} s for a free worker")

    # I12

    def _ticks(self) -> None:
        fired: dict[str, list[int]] = defaultdict(list)
        for job in self.record.jobs.values():
            if job.task == "tick" and isinstance(job.args, dict):
                fired[job.args["schedule"]].append(job.args["timestamp"])
        for name, ticks in fired.items():
            for tick, count in Counter(ticks).items():
                self._expect(count == 1, "I12", f"{name} fired {count} times for {tick}")
        # The second in which the faults began may have been over when the schedule was made.
        since, until = self.record.facts.get("schedules", (0, 0))
        wanted = {tick for tick in range(since + 1, until + 1) if tick % EVERY_SECONDS == 0}
        missing = wanted - {*fired["in sql"]}
        self._expect(not missing, "I12", f"in sql never fired for {sorted(missing)}")
        # That one need not catch up, but goes on once there is peace.
        late = max(fired["declared"], default=0)
        self._expect(late >= until - EVERY_SECONDS, "I12", f"declared fired last for {late}, before {until}")

    # I13, I14

    def _facts(self) -> None:
        facts = self.record.facts
        for what in ("session locks", "idle in transaction", "prepared transactions", "deadlocks", "notifications"):
            self._expect(not facts.get(what), "I13", f"{what}: {facts.get(what)}")
        for name, (threads, files) in facts.get("processes", {}).items():
            fine = threads <= _THREADS and files <= _FILES
            self._expect(fine, "I13", f"{name} has {threads} threads and {files} open files")
        for sentence in facts.get("corrupt", []):
            self._wrong("I14", sentence)
        for name in facts.get("late to stop", []):
            self._wrong("I10", f"worker {name} did not stop at the end")
        for name in facts.get("absent", []):
            self._wrong("I10", f"worker {name} did not come back")

    # I15

    def _aborts(self) -> None:
        told = self.record.of("cancelled")
        in_peace = [e for e in told if e.get("calm")]
        wanted = self.record.facts.get("aborts", 0)
        fine = len(in_peace) >= wanted and all(e["answer"] == "abort_requested" for e in in_peace)
        self._expect(fine, "I15", f"{wanted} jobs were to be aborted in peace, and it was said: {in_peace}")
        requested = {e["job"]: e for e in told if e["answer"] == "abort_requested"}
        for id_, event in requested.items():
            again = [c for c in self.claims[id_] if c.opened.began > event["at"]]
            self._expect(not again, "I15", f"job {id_} was to be aborted, and was claimed again")
            end = self.steps[id_][-1] if self.steps[id_] else None
            if not event.get("calm") or end is None:
                continue
            took = end.at - event["at"]
            fine = end.now == "aborted" and took <= HEARTBEAT + 1 + GRACE + self._stalled(event["at"], end.at)
            self._expect(fine, "I15", f"job {id_} is {end.now} {took:.1f} s after its abort")
        for event in told:
            job = self.record.jobs.get(event["job"])
            if event["answer"] == "cancelled":
                self._expect(job is None or job.status == "cancelled", "I5", f"a cancelled job is {job}")

    def _summary(self) -> None:
        report = self.report
        report.jobs = len(self.record.jobs)
        report.starts = len(self.started)
        faults = [fault for fault in self.record.of("fault") if not fault.get("missed")]
        report.faults = Counter(fault["name"] for fault in faults)
        report.stalls = len(self.stalls)
        report.lost_replies = sum(e["count"] for e in self.record.of("lost replies"))
        opened: dict[str, list[float]] = defaultdict(list)
        closed: dict[str, list[float]] = defaultdict(list)
        for claim in self._all_claims():
            opened[claim.slot].append(claim.opened.at)
            if claim.closed:
                closed[claim.slot].append(claim.closed.at)
        for times in [*opened.values(), *closed.values()]:
            times.sort()
        for fault in faults:
            for slot in opened if fault["touches"] is None else fault["touches"]:
                begun, over = opened.get(slot, []), closed.get(slot, [])
                report.exposed += bisect.bisect(begun, fault["began"]) - bisect.bisect(over, fault["began"])
        if self.record.steps:
            began, ended = self.record.steps[0].at, self.record.steps[-1].at
            slots = {e["by"] for e in self.record.of("registered")} - {"ghost"}
            excused = [_within(self._excuses(slot), began, ended) / (ended - began) for slot in slots]
            report.unexcused = 1 - sum(excused) / max(1, len(excused))
