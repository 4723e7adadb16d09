"""
The judge of a soak: it compares what everybody saw with what the database did.

Each sentence in `Report.wrong` begins with the invariant that does not hold.

    I1   no job whose defer was acknowledged is lost: each has come to what those said who ran it, or who cancelled it
    I2   no job exists or runs that nobody deferred
    I3   no claim is taken from its worker, and so no job runs twice, before its lease is over or without a fault
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
import itertools
from collections import Counter, defaultdict

from tests.faults.account import FINAL, Account, Claim, Report, over_at, within
from tests.faults.record import Record, Step
from tests.faults.tasks import CRASH_RUNS, EVERY_SECONDS, FLAKY_RETRIES, GRACE, HEARTBEAT, LEASE

_TOLD = {"job_success": "succeeded", "job_error": "failed", "job_aborted": "aborted"}
_STOPS_WITHIN = 10.0 + GRACE
_DRAINS_WITHIN = 60.0
_THREADS, _FILES = 24, 48
# What a run says with which it has heeded an abort.
_HEEDED = ("CancelledError", "JobAborted")
# A client whose connection, transaction or time is over is told so, and so is one that finds no room; and nothing else.
_REFUSALS = ("08", "25", "53", "55P03", "57", "58")
# What psycopg's pool says while it cannot connect; the longer that has lasted, the longer it then pauses, each time up
# to twice as long.
_POOL_IS_EMPTY = "couldn't get a connection"
_POOL_PAUSES = 30.0


def check(record: Record) -> Report:
    """Judge a soak."""
    return _Checker(record).report


class _Checker(Account):
    def __init__(self, record: Record) -> None:
        super().__init__(record)
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
            patience = _POOL_PAUSES if _POOL_IS_EMPTY in event["error"] else 0.0
            broken = any(
                fault["began"] <= event["at"] and since <= over_at(fault) + patience
                for fault in self.faults
                if fault["touches"] is None or event["by"] in fault["touches"]
            )
            self._expect(broken, "I1", f"{event['keys']} were refused without any fault: {event['error']}")

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

    # I3, I4

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
        outages = [(float(f["began"]), over_at(f)) for f in self.faults if f["touches"] is None]
        for event in self.record.of("killed", "crash"):
            died = event["at"]
            for claim in by_slot[event["name"]]:
                assert claim.closed
                if not claim.opened.at <= died <= claim.closed.at:
                    continue
                took = claim.closed.at - died
                # While a fault befalls everybody, there is nobody to rescue it.
                away = within(outages, died, claim.closed.at)
                self.report.rescues.append((took, away))
                fine = took <= LEASE + 1 + GRACE + away
                self._expect(fine, "I10", f"job {claim.job} was rescued after {took:.1f} s, {away:.1f} s of outage")

    def _liveness(self) -> None:
        stop = min((float(e["at"]) for e in self.record.of("stop")), default=float("inf"))
        for id_, job in self.record.jobs.items():
            # Schedules go on until the last worker stops.
            late = any(step.at > stop - EVERY_SECONDS for step in self.steps.get(id_, [])[:1])
            last = job.task == "tick" and job.status == "todo" and late
            if job.status not in FINAL and not last:
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
            excused = [within(self._excuses(slot), began, ended) / (ended - began) for slot in slots]
            report.unexcused = 1 - sum(excused) / max(1, len(excused))
