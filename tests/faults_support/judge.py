"""
Read the history of a load and say what was wrong with it.

Order. While a job waits, is due and committed, no fetch that serves its queue and begins after that
may take a worse one and leave it. Under a lock this holds without exception. Else two things are
allowed, and counted apart:

- Somebody else holds the job's row while the fetch runs: a fetch that sees it and does not take it,
  or a cancel that is rolled back. A fetch passes such a row over and does not wait (SKIP LOCKED).
  So a job may be missed by a call that another one overlaps, for as long as those take. A lone
  worker misses none.
- With lanes in use, as they are once scans have been slow, a job may lie in a stretch that is not
  scanned again before the next full scan,
  which is due within 900 ms, if it became ready late (its commit came after that of a greater id of
  its priority; it was retried, rescued or released), or was once passed over as above. So
  a job that was neither is in the very next fetch here, too.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

Interval = tuple[float, float]


@dataclass
class Report:
    """What was counted, and what must not be: `wrong` has a sentence for each fault."""

    jobs: int = 0
    runs: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    rescued: int = 0
    stale: int = 0
    again_refused: int = 0
    overlapped: int = 0
    overlapped_for: float = 0
    late: int = 0
    late_for: float = 0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return the figures in one line."""
        return (
            f"{self.jobs} jobs, {self.runs} runs, {self.statuses}, rescued {self.rescued},"
            f" stale {self.stale}, old tokens refused {self.again_refused},"
            f" passed over while held: {self.overlapped} for <= {self.overlapped_for * 1e3:.0f} ms,"
            f" late ones found: {self.late} after <= {self.late_for * 1e3:.0f} ms,"
            f" wrong: {len(self.wrong)}"
        )


@dataclass
class Run:
    """A claim, from the call that made it to the call that ended it."""

    job: int
    token: int
    sent: float
    got: float
    client: str
    ends: float = float("inf")
    told: float = float("inf")
    verdict: str | None = None
    outcome: str | None = None
    status: str | None = None


@dataclass
class Wait:
    """A stretch of time in which a job could have been fetched."""

    job: int
    since: float
    until: float
    late: bool


def judge(dsn: str, folder: Path) -> Report:
    """Judge the load whose history is in this folder, and what it left in the database."""
    return _Judge(dsn, folder).report


class _Judge:
    def __init__(self, dsn: str, folder: Path) -> None:
        self.report = Report()
        self.jobs: dict[int, dict[str, Any]] = {}
        self.calls: list[dict[str, Any]] = []
        self.runs: dict[int, Run] = {}
        self.cancels: list[dict[str, Any]] = []
        self.unsure: set[int] = set()
        self.completed: Counter[int] = Counter()
        self.killed: dict[str, float] = {}
        self.unanswered: list[Interval] = []
        for event in _events(folder / "run.jsonl"):
            self.killed[event["name"]] = event["at"]
            # in the middle of something, it may be, that held rows until the server noticed
            self.unanswered.append((event["at"] - 1, event["gone"]))
        # told to be completed, and not heard of again, by token
        self.completing: dict[int, int] = {}
        for path in sorted(folder.glob("*.jsonl")):
            self._read(path)
        self.unsure |= {*self.completing.values()}
        self.calls.sort(key=lambda call: call["sent"])
        with psycopg.connect(dsn) as conn:
            self.done = {
                row[0]: row[1:]
                for row in conn.execute("select id, status, attempts, error_class from procrastinate.jobs").fetchall()
            }
            self.rescues = Counter(
                row[0]
                for row in conn.execute("select job_id from procrastinate.events where type = 'rescued'").fetchall()
            )
            self.effects = Counter(r[0] for r in conn.execute("select id from effect").fetchall())
            left = conn.execute("select count(*) from procrastinate.job").fetchone()
            self._expect(left == (0,), f"jobs left in the queue: {left}")
        self._once()
        self._locks()
        self._order()

    def _expect(self, fine: bool, sentence: str) -> None:
        if not fine:
            self.report.wrong.append(sentence)

    def _read(self, path: Path) -> None:
        client = path.stem
        pending: dict[str, Any] | None = None
        for event in _events(path):
            match event["kind"]:
                case "deferred":
                    for job in event["jobs"]:
                        self._expect(job["id"] not in self.jobs, f"id {job['id']} given twice")
                        self.jobs[job["id"]] = dict(job, at=event["at"])
                case "send":
                    pending = event
                case "call":
                    pending = None
                    self._read_call(client, event)
                case "cancel":
                    self.cancels.append(event)
                case "completing":
                    self.runs[event["token"]].ends = event["at"]
                    self.completing[event["token"]] = event["id"]
                case "completed":
                    del self.completing[event["token"]]
                    self.completed[event["id"]] += 1
                    run = self.runs[event["token"]]
                    run.outcome, run.verdict = "succeeded", "ok"
                case "again":
                    self.report.again_refused += 1
                    self._expect(
                        event["verdict"] in ("already", "stale"), f"job {event['id']}: an old token was accepted"
                    )
                case "rolled back":
                    self.cancels.append({"began": 0, "ended": 0, "answers": [], "gone": event["ids"]})
        if pending is not None:
            # sent and never answered: whether it counted is not known
            for id_, token, _ in pending["told"]:
                self.unsure.add(id_)
                self.runs[token].ends = min(self.runs[token].ends, pending["at"])
        if client in self.killed:
            for run in self.runs.values():
                if run.client == client and run.ends == float("inf"):
                    run.ends = self.killed[client]

    def _read_call(self, client: str, call: dict[str, Any]) -> None:
        self.calls.append(dict(call, client=client))
        verdicts = {v["token"]: v for v in call["verdicts"]}
        for id_, token, outcome in call["told"]:
            run = self.runs[token]
            verdict = verdicts.get(token, {"verdict": "ok"})
            run.ends = min(run.ends, call["sent"])
            if verdict["verdict"] == "refused":
                # an open transaction holds the job, or may take its queueing lock
                self._expect(verdict["sqlstate"] == "55P03", f"job {id_}: {verdict}")
            elif run.verdict == "ok":  # by complete_v1, earlier
                self._expect(verdict["verdict"] == "already", f"job {id_}: completed, then {verdict}")
            else:
                run.verdict, run.outcome, run.told = verdict["verdict"], outcome, call["got"]
                run.status = verdict.get("status")
                if outcome == "released" and run.status == "aborted":
                    run.outcome = "aborted"
        rows = call["rows"]
        self._expect(rows == sorted(rows, key=lambda row: (-row[3], row[0])), "a fetch is out of order")
        self._expect(len(rows) <= call["capacity"] + call["extra"], "a fetch brought too many")
        self._expect(
            sum(row[4] is not None or row[5] is not None for row in rows) <= call["capacity"],
            "a fetch brought locks beyond the free slots",
        )
        for row in rows:
            self._expect(row[1] not in self.runs, f"token {row[1]} was given twice")
            self.runs[row[1]] = Run(row[0], row[1], call["sent"], call["got"], client)

    def _once(self) -> None:
        report = self.report
        report.jobs, report.runs = len(self.jobs), len(self.runs)
        report.statuses = dict(Counter(row[0] for row in self.done.values()))
        report.rescued = sum(self.rescues.values())
        lost = sum(row[0] == "failed" and row[2] == "WorkerLost" for row in self.done.values())
        by_job: dict[int, list[Run]] = defaultdict(list)
        for run in self.runs.values():
            by_job[run.job].append(run)
        never = [i for c in self.cancels for i in c.get("gone", [])]
        self._expect(not {*never} & {*by_job}, "a job ran whose defer was rolled back")
        self._expect({*by_job} <= {*self.jobs}, "a job ran that nobody deferred")
        self._expect({*self.done} == {*self.jobs}, "jobs are lost, or nobody's")
        report.rescued += lost
        cancelled = {
            i: c["ended"]
            for c in self.cancels
            if c.get("committed")
            for i, answer in c["answers"]
            if answer == "cancelled"
        }
        for id_, (status, attempts, error) in self.done.items():
            runs = by_job[id_]
            accepted = [r for r in runs if r.verdict == "ok"]
            report.stale += sum(r.verdict == "stale" for r in runs)
            if any(r.verdict == "stale" for r in runs):
                self._expect(self.rescues[id_] > 0 or error == "WorkerLost", f"job {id_}: stale, but was never rescued")
            successes = sum(r.outcome == "succeeded" for r in accepted)
            self._expect(successes <= 1, f"job {id_} succeeded {successes} times")
            self._expect(
                self.effects[id_] == self.completed[id_] or id_ in self.unsure,
                f"job {id_}: {self.effects[id_]} effects",
            )
            if id_ in cancelled:
                # else it had been put back, so that its cancel came after its runs
                self._expect(status == "cancelled", f"job {id_}: cancelled, but {status}")
                self._expect(all(r.sent < cancelled[id_] for r in runs), f"job {id_} ran after its cancel")
            if id_ in self.unsure:
                continue
            self._expect((successes == 1) == (status == "succeeded"), f"job {id_}: {successes} successes, but {status}")
            ended = sum(r.outcome != "released" for r in accepted)
            ended += self.rescues[id_] + (status == "failed" and error == "WorkerLost")
            # lost with its worker, and its place was taken when it should have gone back
            last = max(runs, key=lambda r: r.token, default=None)
            unseen = last is None or last.verdict is None or last.status == "todo"
            ended += status == "failed" and error == "Superseded" and unseen
            self._expect(
                attempts == ended, f"job {id_}: {attempts} attempts, but {ended} ended: {status}, {error}, {runs}"
            )

    def _locks(self) -> None:
        held: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
        for run in self.runs.values():
            job = self.jobs.get(run.job)
            # a stale run has lost its lock at a time that it does not know
            if job and job.get("lock") and run.verdict != "stale":
                held[job["lock"]].append((run.got, run.ends, run.job))
        for lock, spans in held.items():
            spans.sort()
            for (_, end, a), (begin, _, b) in itertools.pairwise(spans):
                self._expect(end <= begin, f"jobs {a} and {b} ran at once under {lock}")

    def _waits(self) -> Iterator[Wait]:
        by_job: dict[int, list[Run]] = defaultdict(list)
        for run in self.runs.values():
            by_job[run.job].append(run)
        greatest: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for job in sorted(self.jobs.values(), key=lambda job: job["at"]):
            seen = greatest[job["priority"]]
            if not seen or seen[-1][1] < job["id"]:
                seen.append((job["at"], job["id"]))
        touched = {i for c in self.cancels for i, _ in c["answers"]}
        for id_, job in self.jobs.items():
            # where these stand at which time is not for the clients to know
            if job.get("queueing_lock") or id_ in touched or id_ in self.unsure:
                continue
            runs = sorted(by_job[id_], key=lambda r: r.token)
            if self.rescues[id_] or not runs:
                continue
            if "schedule_in" not in job:
                seen = greatest[job["priority"]]
                # a commit is seen some time before its client knows
                k = bisect.bisect(seen, (job["at"] + 0.05, 1 << 60))
                late = k > 0 and seen[k - 1][1] > id_
                yield Wait(id_, job["at"], runs[0].sent, late)
            for run, following in itertools.pairwise(runs):
                waits = run.outcome == "failed" and job["retry"]["wait"] > 0
                if run.verdict == "ok" and (not waits or job.get("lock")):
                    yield Wait(id_, run.told, following.sent, True)

    def _order(self) -> None:
        locked: dict[str, list[Wait]] = defaultdict(list)
        free: list[Wait] = []
        for wait in self._waits():
            lock = self.jobs[wait.job].get("lock")
            (locked[lock] if lock else free).append(wait)
        self._order_of_locks(locked)
        missed: dict[int, list[Interval]] = defaultdict(list)
        late: set[int] = set()
        events: list[tuple[float, int, Any]] = []
        for wait in free:
            events += [(wait.since, 1, wait), (wait.until, 0, wait)]
        events += [(c["sent"], 2, c) for c in self.calls]
        waiting: list[tuple[int, int, int, Wait]] = []
        for _, kind, what in sorted(events, key=lambda e: (e[0], e[1])):
            if kind < 2:
                entry = (-self.jobs[what.job]["priority"], what.job, id(what), what)
                if kind:
                    bisect.insort(waiting, entry)
                elif (k := bisect.bisect_left(waiting, entry)) < len(waiting):
                    del waiting[k : k + (waiting[k] is not None and waiting[k][2] == id(what))]
                continue
            for wait in self._left_behind(what, waiting):
                if what["lanes"] and (wait.late or wait.job in missed):
                    late.add(wait.job)
                elif not self._overlaps(what):
                    self._expect(False, f"job {wait.job} was passed over by {what['client']}")
                missed[wait.job].append((what["sent"], what["got"]))
        for job, spans in missed.items():
            lasted = self._longest(job, spans)
            if job in late:
                self.report.late += 1
                self.report.late_for = max(self.report.late_for, lasted)
            else:
                self.report.overlapped += 1
                self.report.overlapped_for = max(self.report.overlapped_for, lasted)

    def _longest(self, job: int, missed_by: list[Interval]) -> float:
        """Return for how long a job was passed over without a call that was full before it."""
        longest, (begin, end) = 0.0, missed_by[0]
        for sent, got in missed_by:
            k = bisect.bisect_right(self.calls, end, key=lambda c: c["sent"])
            between = itertools.takewhile(lambda c: c["sent"] < sent, self.calls[k:])  # noqa: B023
            if any(c["got"] < sent and (c["sent"], c["got"]) not in missed_by for c in between):
                begin = sent
            end = max(end, got)
            longest = max(longest, end - begin)
        return longest

    def _left_behind(self, call: dict[str, Any], waiting: list[tuple[int, int, int, Wait]]) -> Iterator[Wait]:
        rows = call["rows"]
        room = len(rows) < call["capacity"]
        worst = (1 << 60, 0) if room else (-rows[-1][3], rows[-1][0])
        for rank, job, _, wait in waiting:
            if (rank, job) > worst:
                break
            serves = call["queues"] is None or self.jobs[job]["queue"] in call["queues"]
            if serves and wait.until >= call["got"]:
                yield wait

    def _overlaps(self, call: dict[str, Any]) -> bool:
        k = bisect.bisect_left(self.calls, call["got"], key=lambda c: c["sent"])
        return any(
            c["client"] != call["client"] and c["got"] > call["sent"] for c in self.calls[max(0, k - 50) : k]
        ) or any(a < call["got"] and b > call["sent"] for a, b in self.unanswered)

    def _order_of_locks(self, locked: dict[str, list[Wait]]) -> None:
        for lock, waits in locked.items():
            runs = sorted((r for r in self.runs.values() if self.jobs[r.job].get("lock") == lock), key=lambda r: r.sent)
            for wait in waits:
                place = (-self.jobs[wait.job]["priority"], wait.job)
                k = bisect.bisect_left(runs, wait.since, key=lambda r: r.sent)
                for run in runs[k:]:
                    if run.sent >= wait.until:
                        break
                    job = self.jobs[run.job]
                    worse = (-job["priority"], run.job) > place
                    if worse and run.got <= wait.until and not job.get("queueing_lock"):
                        self._expect(False, f"job {run.job} jumped {wait.job} under {lock}")


def _events(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)
