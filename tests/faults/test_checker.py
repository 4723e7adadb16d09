"""The checker finds nothing wrong with an honest record, and what is wrong with each that was doctored."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.account import Report
from tests.faults.checker import check
from tests.faults.history import Event
from tests.faults.record import Final, Record, Step


class Story:
    """Tells what happens, second by second, to the history and to the database alike."""

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[Event] = []
        self.steps: list[Step] = []
        self.jobs: dict[int, Final] = {}
        self.tokens = 0
        self.state: dict[int, dict[str, Any]] = {}
        self.effects: list[tuple[str, int, int]] = []
        self.facts: dict[str, Any] = {"schedules": (0, 3)}
        for worker in (1, 2):
            self.note("up", by=f"w{worker}", pid=worker)
            self.note("registered", by=f"w{worker}", worker=worker, pid=worker)

    def note(self, kind: str, **what: Any) -> None:
        self.now += 0.01
        self.events.append({"kind": kind, "at": self.now, **what})

    def step(self, job: int, was: str | None, now: str, **changed: Any) -> None:
        self.now += 0.01
        state = self.state[job]
        state |= changed
        known = {k: v for k, v in state.items() if k not in ("status", "task", "args")}
        self.steps.append(
            Step(seq=len(self.steps) + 1, at=self.now, began=self.now - 0.001, job=job, was=was, now=now, **known)
        )

    def defer(self, job: int, task: str = "quick", *, fails: int = 9, **more: Any) -> None:
        key = f"key {job}"
        self.note("invoke", by="sql", jobs=[{"args": {"key": key}}])
        self.state[job] = {"task": task, "attempts": 0, "rescues": 0, "key": key, "args": {"fails": fails}, **more}
        self.step(job, None, "todo")
        self.note("ok", by="sql", keys=[key], ids=[job])

    def claim(self, job: int, worker: int) -> int:
        self.tokens += 1
        token, what = self.tokens, {"job": job, "token": self.tokens, "key": self.state[job]["key"]}
        self.step(job, "todo", "doing", token=token, worker=worker)
        self.note("start", by=f"w{worker}", attempts=self.state[job]["attempts"], **what)
        return token

    def end(self, job: int, worker: int, token: int, outcome: str = "succeeded") -> None:
        self.note("end", by=f"w{worker}", job=job, token=token, key=self.state[job]["key"], outcome=outcome)

    def finish(self, job: int, status: str = "succeeded", token: int | None = None) -> None:
        state = self.state[job]
        self.step(job, "doing", "gone")
        self.step(job, None, status, attempts=state["attempts"] + 1, token=token or state["token"])
        self.final(job, status)

    def final(self, job: int, status: str, error: str | None = None) -> None:
        state = self.state[job]
        args = {"key": state["key"], **state.get("args", {})}
        self.jobs[job] = Final(job, status, state["task"], state["attempts"], args, error)

    def run(self, job: int, worker: int = 1, outcome: str = "succeeded") -> int:
        token = self.claim(job, worker)
        self.end(job, worker, token, outcome)
        self.finish(job, "succeeded" if outcome == "succeeded" else "failed")
        self.note(
            "told",
            by=f"w{worker}",
            job=job,
            worker=worker,
            action="job_success" if outcome == "succeeded" else "job_error",
        )
        return token

    def fire(self, job: int, schedule: str, timestamp: int) -> None:
        key = f"{schedule} {timestamp}"
        self.state[job] = {"task": "tick", "attempts": 0, "rescues": 0, "key": key}
        self.step(job, None, "todo")
        self.run(job)
        self.jobs[job] = dataclasses.replace(self.jobs[job], args={"schedule": schedule, "timestamp": timestamp})

    def put_back(self, job: int, *, rescued: int = 1, **more: Any) -> None:
        state = self.state[job]
        counts = {"attempts": state["attempts"] + 1, "rescues": state["rescues"] + rescued}
        self.step(job, "doing", "todo", **counts, **more)

    def kill(self, worker: int) -> None:
        self.note("killed", name=f"w{worker}", by="stage", pid=worker)
        self.note("fault", name="F1", touches=[f"w{worker}"], began=self.now - 0.02, ended=self.now, missed=None)

    def record(self) -> Record:
        events = sorted(self.events, key=lambda e: e["at"])
        return Record(events, list(self.steps), dict(self.jobs), list(self.effects), dict(self.facts))


def honest() -> Story:
    """A story with everything in it that may happen."""
    story = Story()
    story.defer(1)
    story.run(1)
    story.defer(2, lock="L")
    story.defer(3, lock="L")
    story.run(2)
    story.run(3, 2)
    # A worker is killed, its job is rescued and runs again; the dead one had nearly ended it.
    story.defer(4)
    token = story.claim(4, 1)
    story.kill(1)
    story.now += 3
    story.put_back(4)
    story.end(4, 1, token)
    story.run(4, 2)
    story.defer(5, queueing_lock="Q")
    story.run(5)
    story.defer(6, queueing_lock="Q")
    story.run(6)
    story.defer(7, "complete")
    story.effects.append(("key 7", 7, story.run(7)))
    story.defer(8, "flaky")
    for _ in range(2):
        token = story.claim(8, 1)
        story.end(8, 1, token, "ValueError")
        story.put_back(8, rescued=0)
    story.run(8)
    for n, (name, timestamp) in enumerate([("in sql", 0), ("in sql", 3), ("declared", 3)]):
        story.fire(90 + n, name, timestamp)
    story.defer(10)
    story.note("probe", key="key 10", job=10)
    story.run(10)
    return story


def test_an_honest_record_is_found_so() -> None:
    report = check(honest().record())
    assert report.wrong == []
    assert report.jobs == 12
    assert report.duplicates == 1
    assert report.zombies == 1
    assert report.accepted == 0
    assert len(report.rescues) == 1
    assert report.rescued_within(0.5) == pytest.approx(3, abs=0.2)


def lost(story: Story) -> None:
    del story.jobs[1]


def nobodys(story: Story) -> None:
    story.events = [e for e in story.events if e["kind"] != "invoke" or e["jobs"][0]["args"]["key"] != "key 1"]


def rolled_back(story: Story) -> None:
    story.note("invoke", by="sql", jobs=[{"args": {"key": "key 20"}}])
    story.note("fail", by="sql", keys=["key 20"])
    story.jobs[20] = Final(id=20, status="succeeded", task="quick", attempts=1, args={"key": "key 20"})


def taken_for_nothing(story: Story, after: float = 60) -> None:
    story.now += after
    story.defer(20)
    story.claim(20, 2)
    story.put_back(20)
    story.run(20)


def begun_and_released(story: Story) -> None:
    story.defer(20)
    story.claim(20, 2)
    story.step(20, "doing", "todo")
    story.run(20)


def zombie_accepted(story: Story) -> None:
    story.defer(20)
    late = story.claim(20, 1)
    story.kill(1)
    story.put_back(20)
    story.claim(20, 2)
    story.end(20, 1, late)
    story.finish(20)


def zombie_answered_ok(story: Story) -> None:
    story.note("zombie", by="ghost", job=1, token=1, outcome="failed", verdict="ok")


def ended_twice(story: Story) -> None:
    story.step(1, None, "failed")
    story.final(1, "failed")


def effect_twice(story: Story) -> None:
    story.effects += story.effects


def effect_of_a_lost_run(story: Story) -> None:
    story.defer(20, "complete")
    token = story.claim(20, 1)
    story.kill(1)
    story.put_back(20)
    story.run(20, 2)
    story.effects.append(("key 20", 20, token))


def acknowledged_and_forgotten(story: Story) -> None:
    story.defer(20)
    token = story.claim(20, 1)
    story.end(20, 1, token, "ValueError")
    story.finish(20, "failed")
    story.note("told", by="w1", job=20, worker=1, action="job_success")


def two_under_a_lock(story: Story) -> None:
    story.defer(20, lock="L")
    story.defer(21, lock="L")
    tokens = {job: story.claim(job, worker) for worker, job in enumerate((20, 21), 1)}
    for worker, job in enumerate((20, 21), 1):
        story.end(job, worker, tokens[job])
        story.state[job]["token"] = tokens[job]
        story.finish(job)


def out_of_order(story: Story) -> None:
    story.defer(20, lock="L")
    story.defer(21, lock="L")
    story.run(21)
    story.run(20)


def too_often(story: Story) -> None:
    story.defer(20, "crash")
    for _ in range(3):
        story.claim(20, 1)
        story.kill(1)
        story.put_back(20)
    story.step(20, "todo", "gone")
    story.step(20, None, "failed", token=None)
    story.final(20, "failed")


def not_counted(story: Story) -> None:
    story.defer(20)
    token = story.claim(20, 1)
    story.end(20, 1, token)
    story.step(20, "doing", "gone")
    story.step(20, None, "succeeded")
    story.final(20, "succeeded")


def two_waiting(story: Story) -> None:
    story.defer(20, queueing_lock="Q")
    story.defer(21, queueing_lock="Q")
    story.run(20)
    story.run(21)


def rescued_late(story: Story) -> None:
    story.defer(20)
    story.claim(20, 1)
    story.kill(1)
    story.now += 8
    story.put_back(20)
    story.run(20, 2)


def rescued_late_after_an_outage(story: Story) -> None:
    story.defer(20)
    story.claim(20, 1)
    story.kill(1)
    story.note("fault", name="F3", touches=None, began=story.now, ended=story.now + 0.5, missed=None)
    story.now += 12
    story.put_back(20)
    story.run(20, 2)


def left_running(story: Story) -> None:
    story.defer(20)
    story.claim(20, 1)
    story.final(20, "doing")


def poison_that_was_run(story: Story) -> None:
    story.note("poison", by="stage", ids=[1])


def worker_ended(story: Story) -> None:
    story.note("exit", name="w2", by="stage", pid=2, code=1)


def worker_ended_under_a_pid_that_was_asked_to_stop_before(story: Story) -> None:
    story.note("stopped", name="w2", by="stage", pid=2, code=0, seconds=1.0)
    story.note("up", by="w2", pid=2)
    story.note("registered", by="w2", worker=3, pid=2)
    story.note("exit", name="w2", by="stage", pid=2, code=1)


def stopped_late(story: Story) -> None:
    story.note("stopped", name="w2", by="stage", pid=2, code=0, seconds=30.0)


def not_woken(story: Story) -> None:
    story.defer(20)
    story.note("probe", key="key 20", job=20)
    story.now += 5
    story.run(20)


def not_woken_for_longer_than_the_machine_stood_still(story: Story) -> None:
    story.defer(20)
    story.note("probe", key="key 20", job=20)
    story.note("stall", touches=None, began=story.now, ended=story.now + 2)
    story.now += 5
    story.run(20)


def fired_twice(story: Story) -> None:
    story.jobs[99] = dataclasses.replace(story.jobs[91], id=99)


def never_fired(story: Story) -> None:
    story.facts["schedules"] = (0, 9)


def fired_no_more(story: Story) -> None:
    story.facts["schedules"] = (0, 9)
    for n, timestamp in enumerate((6, 9)):
        story.fire(96 + n, "in sql", timestamp)


def left_running_by_a_schedule(story: Story) -> None:
    story.fire(99, "in sql", 6)
    story.jobs[99] = dataclasses.replace(story.jobs[99], status="doing")


def never_run(story: Story) -> None:
    story.defer(20)
    story.step(20, "todo", "gone")
    story.step(20, None, "succeeded")
    story.final(20, "succeeded")


def never_begun(story: Story) -> None:
    story.defer(20)
    story.claim(20, 1)
    story.events.pop()
    story.finish(20, "failed")


def cancelled_by_nobody(story: Story) -> None:
    story.defer(20)
    story.step(20, "todo", "gone")
    story.step(20, None, "cancelled")
    story.final(20, "cancelled")


def aborted_by_nobody(story: Story) -> None:
    story.defer(20)
    story.end(20, 1, story.claim(20, 1), "CancelledError")
    story.finish(20, "aborted")


def failed_though_it_had_succeeded(story: Story) -> None:
    story.defer(20)
    story.end(20, 1, story.claim(20, 1))
    story.finish(20, "failed")


def not_retried(story: Story) -> None:
    story.defer(20, "flaky", fails=1)
    story.run(20, outcome="ValueError")


def failed_with_its_worker(story: Story) -> None:
    story.defer(20)
    story.claim(20, 1)
    story.kill(1)
    story.now += 3
    story.step(20, "doing", "gone", attempts=1)
    story.step(20, None, "failed", token=None)
    story.final(20, "failed", "WorkerLost")


def zombie_accepted_for_the_heir(story: Story) -> None:
    story.defer(20)
    late = story.claim(20, 1)
    story.kill(1)
    story.put_back(20)
    story.claim(20, 2)
    story.end(20, 1, late)
    story.finish(20, token=late)


def zombie_accepted_before_there_is_an_heir(story: Story) -> None:
    story.defer(20)
    late = story.claim(20, 1)
    story.kill(1)
    story.put_back(20)
    story.end(20, 1, late)
    story.step(20, "todo", "gone")
    story.step(20, None, "succeeded")
    story.final(20, "succeeded")


def rescued_before_its_lease_was_over(story: Story) -> None:
    story.defer(20)
    story.claim(20, 1)
    story.kill(1)
    story.put_back(20, overdue=-1.0)
    story.run(20)


def missed_and_yet_an_excuse(story: Story) -> None:
    story.now += 60
    story.note("fault", name="F3", touches=None, began=story.now, ended=story.now + 3, missed="Missed: not there")
    taken_for_nothing(story, after=2)


def outages_counted_twice(story: Story) -> None:
    story.defer(20)
    story.claim(20, 1)
    story.kill(1)
    for _ in range(4):
        story.note("fault", name="F8", touches=None, began=story.now, ended=story.now + 3, missed=None)
    story.now += 30
    story.put_back(20)
    story.run(20, 2)


def run_without_a_claim(story: Story) -> None:
    story.note("start", by="w1", job=1, token=77, key="key 1", attempts=0)


def run_by_another_worker(story: Story) -> None:
    story.defer(20)
    token = story.claim(20, 1)
    story.events[-1]["by"] = "w2"
    story.end(20, 2, token)
    story.finish(20)


def token_of_the_past(story: Story) -> None:
    story.defer(20, "flaky", fails=1)
    token = story.claim(20, 1)
    story.end(20, 1, token, "ValueError")
    story.put_back(20, rescued=0)
    story.tokens = token - 2
    story.run(20)


def nobodys_and_nameless(story: Story) -> None:
    story.jobs[20] = Final(id=20, status="failed", task="quick", attempts=0)


def swallowed(story: Story) -> None:
    story.note("invoke", by="sql", jobs=[{"args": {"key": "key 20"}, "queueing_lock": "R"}])
    story.note("ok", by="sql", keys=["key 20"], ids=[None])


def refused_in_peace(story: Story) -> None:
    story.now += 60
    story.note("invoke", by="sql", jobs=[{"args": {"key": "key 20"}}])
    story.note("info", by="sql", keys=["key 20"], error="OperationalError", sqlstate=None)


def told_of_a_deadlock(story: Story) -> None:
    story.note("fault", name="F2", touches=None, began=story.now, ended=story.now + 1, missed=None)
    story.note("invoke", by="sql", jobs=[{"args": {"key": "key 20"}}])
    story.note("info", by="sql", keys=["key 20"], error="DeadlockDetected", sqlstate="40P01")


def nobody_was_told(story: Story) -> None:
    story.events = [event for event in story.events if event["kind"] != "told"]


def nobody_was_woken(story: Story) -> None:
    story.facts["probes"] = 2


def no_abort_was_heard(story: Story) -> None:
    story.note("cancelled", by="stage", job=1, answer=None, calm=True)


def ran_after_its_abort(story: Story) -> None:
    story.defer(20, "flaky")
    token = story.claim(20, 1)
    story.note("cancelled", by="operator", job=20, answer="abort_requested")
    story.end(20, 1, token, "ValueError")
    story.put_back(20, rescued=0)
    story.run(20)


DOCTORED: dict[Callable[[Story], None], str] = {
    lost: "I1",
    nobodys: "I2",
    rolled_back: "I2",
    taken_for_nothing: "I3",
    begun_and_released: "I3",
    zombie_accepted: "I4",
    zombie_answered_ok: "I4",
    effect_twice: "I4",
    effect_of_a_lost_run: "I4",
    ended_twice: "I5",
    acknowledged_and_forgotten: "I5",
    two_under_a_lock: "I6",
    out_of_order: "I7",
    too_often: "I8",
    not_counted: "I8",
    two_waiting: "I9",
    rescued_late: "I10",
    rescued_late_after_an_outage: "I10",
    left_running: "I10",
    poison_that_was_run: "I10",
    worker_ended: "I10",
    worker_ended_under_a_pid_that_was_asked_to_stop_before: "I10",
    stopped_late: "I10",
    not_woken: "I11",
    not_woken_for_longer_than_the_machine_stood_still: "I11",
    nobody_was_woken: "I11",
    fired_twice: "I12",
    fired_no_more: "I12",
    left_running_by_a_schedule: "I10",
    never_run: "I1",
    never_begun: "I1",
    cancelled_by_nobody: "I1",
    aborted_by_nobody: "I1",
    failed_though_it_had_succeeded: "I1",
    not_retried: "I1",
    failed_with_its_worker: "I1",
    zombie_accepted_for_the_heir: "I4",
    zombie_accepted_before_there_is_an_heir: "I1",
    rescued_before_its_lease_was_over: "I3",
    missed_and_yet_an_excuse: "I3",
    outages_counted_twice: "I10",
    run_without_a_claim: "I4",
    run_by_another_worker: "I4",
    token_of_the_past: "I4",
    nobodys_and_nameless: "I2",
    swallowed: "I9",
    refused_in_peace: "I1",
    told_of_a_deadlock: "I13",
    nobody_was_told: "I5",
    no_abort_was_heard: "I15",
    never_fired: "I12",
    ran_after_its_abort: "I15",
}


@pytest.mark.parametrize(("doctor", "invariant"), DOCTORED.items(), ids=lambda p: getattr(p, "__name__", p))
def test_a_doctored_record_is_found_out(doctor: Callable[[Story], None], invariant: str) -> None:
    story = honest()
    doctor(story)
    assert invariant in check(story.record()).broken


@pytest.mark.parametrize(
    ("facts", "invariant"),
    [
        ({"session locks": 1}, "I13"),
        ({"idle in transaction": 1}, "I13"),
        ({"deadlocks": 1}, "I13"),
        ({"processes": {"w0": (900, 10)}}, "I13"),
        ({"corrupt": ["job_pkey: broken"]}, "I14"),
        ({"drained": 61.0}, "I10"),
        ({"late to stop": ["w0"]}, "I10"),
        ({"absent": ["w0"]}, "I10"),
    ],
)
def test_what_is_left_behind_is_found(facts: dict[str, Any], invariant: str) -> None:
    record = honest().record()
    record.facts |= facts
    assert check(record).broken == {invariant}


def test_every_invariant_has_a_record_that_breaks_it() -> None:
    assert {*DOCTORED.values()} | {"I13", "I14"} == {f"I{n}" for n in range(1, 16)}


def test_nothing_that_may_happen_is_held_against_the_queue() -> None:
    """An answer that was lost, an abort that came too late, a process that ended before it was a worker."""
    story = honest()
    base = copy.deepcopy(story)
    story.note("invoke", by="sql", jobs=[{"args": {"key": "key 30"}}])
    story.note("fault", name="F6", touches=["sql"], began=story.now, ended=story.now, missed=None)
    story.note("info", by="sql", keys=["key 30"], error="lost", sqlstate=None)
    # A pool that takes its time to connect again.
    story.note("fault", name="F3", touches=None, began=story.now, ended=story.now, missed=None)
    story.now += 12
    story.note("invoke", by="python", jobs=[{"args": {"key": "key 35"}}])
    story.note("info", by="python", keys=["key 35"], error="couldn't get a connection after 2.00 sec", sqlstate=None)
    story.state[30] = {"task": "quick", "attempts": 0, "rescues": 0, "key": "key 30"}
    story.step(30, None, "todo")
    story.run(30)
    story.defer(31)
    token = story.claim(31, 1)
    story.note("cancelled", by="operator", job=31, answer="abort_requested")
    story.end(31, 1, token)
    story.finish(31)
    # One that has not got as far as to register, while the server was away, under the pid of one that had.
    story.note("crash", name="w2", by="w2", job=31)
    story.note("exit", name="w2", by="stage", pid=2, code=-9)
    story.note("up", by="w2", pid=2)
    story.note("exit", name="w2", by="stage", pid=2, code=1)
    # Rows that cannot be run: one that nobody was told of, and one which somebody cancelled before anybody tried.
    story.state[34] = {"task": "quick", "attempts": 0, "rescues": 0, "rank": -9, "key": None}
    story.step(34, None, "todo")
    story.step(34, "todo", "doing", token=900, worker=2)
    story.finish(34, "failed")
    story.defer(33)
    story.note("poison", by="stage", ids=[33])
    story.note("cancel", by="operator", job=33, abort=False)
    story.step(33, "todo", "gone")
    story.step(33, None, "cancelled")
    story.final(33, "cancelled")
    story.defer(32)
    story.note("probe", key="key 32", job=32)
    story.note("stall", touches=None, began=story.now, ended=story.now + 2)
    story.now += 3
    story.run(32)
    report: Report = check(story.record())
    assert report.wrong == []
    assert report.stalls == 1
    assert report.recovered == 1
    assert check(base.record()).recovered == 0
