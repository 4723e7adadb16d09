"""A soak of a build that breaks a promise says so: else one that says nothing would mean little."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import pytest

from tests.faults.nemesis import Fault, Ghost, Kill
from tests.faults.soak import Soak, run
from tests.faults.stage import Flaw

pytest.importorskip("pyprocrastinate_embedded")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and Unix sockets")


@dataclass(frozen=True)
class Mutant:
    """A change of one function, and what the checker must say of it."""

    flaw: Flaw
    verdict: str
    faults: tuple[type[Fault], ...] = ()


MUTANTS = {
    "old tokens accepted": Mutant(
        (
            "_finish",
            (
                "and (j.token in (select t from unnest(tokens) as t)) is true and j.token > 0\n"
                "        returning j.id, j.token, j.worker_id"
            ),
            "returning j.id, j.token, j.worker_id",
        ),
        "I4: .*whose holder did not say so",
        (Ghost,),
    ),
    "jobs lost": Mutant(
        ("_finish", "          from d)\n", "          from d where d.id % 97 > 0)\n"), "I1: .* is lost"
    ),
    "runs not counted": Mutant(("_finish", "d.attempts + 1", "d.attempts"), "I8: .*counted 0 times"),
    "aborts not told": Mutant(
        ("heartbeat_v1", "and j.abort_requested and j.state = 'x'", "and false"), "I15: .*after its abort"
    ),
    "nobody woken": Mutant(
        ("_wake", "return;\n  end if;\n  perform", "return;\n  end if;\n  return;\n  perform"), "I11"
    ),
    "rescued too early": Mutant(
        ("_rescue", "at - w.stalled_after order", "at - w.stalled_after / 30 order"), "I3: .*without any fault"
    ),
    "locks not looked at": Mutant(
        (
            "_settle",
            "where j.lock = l.lock and j.state = 'x' order by j.token desc limit 1",
            "where j.lock = l.lock and j.state = '-' order by j.token desc limit 1",
        ),
        "I6: .*at once under",
    ),
    "candidates not held": Mutant(
        (
            "_candidates_of_several",
            "where j.ctid = any (v_found) offset 0 for update skip locked",
            "where j.ctid = any (v_found) offset 0",
        ),
        "I4: .*claimed twice at once",
    ),
    "scheduled jobs too early": Mutant(
        ("_look_at_due", "and d.scheduled_at <= at\n", "and d.scheduled_at <= at + interval '1 second'\n"),
        "I7: .*before its time",
    ),
    "never rescued": Mutant(
        ("_rescue", "where w.heartbeat_at <= at - w.stalled_after", "where false"), "I10: .*still doing", (Kill,)
    ),
}
# Caught together in one soak that is as short as one of them alone.
TOGETHER = (
    ("old tokens accepted", "jobs lost", "runs not counted", "aborts not told"),
    ("rescued too early", "locks not looked at", "candidates not held", "scheduled jobs too early"),
)


def caught(names: tuple[str, ...], seconds: float) -> None:
    mutants = [MUTANTS[name] for name in names]
    faults = {fault for mutant in mutants for fault in mutant.faults}
    flaws = tuple(mutant.flaw for mutant in mutants)
    report = run(Soak(seed=1, seconds=seconds, kinds=tuple(sorted(faults, key=lambda f: f.name)), flaws=flaws))
    for name, mutant in zip(names, mutants, strict=True):
        assert any(re.match(mutant.verdict, sentence) for sentence in report.wrong), (name, report.wrong[:20])


@pytest.mark.parametrize("names", TOGETHER, ids=", ".join)
def test_flaws_are_caught(names: tuple[str, ...]) -> None:
    caught(names, 5)


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_each_flaw_is_caught(name: str) -> None:
    caught((name,), 15)


@pytest.mark.long
def test_nothing_is_wrong_without_a_flaw() -> None:
    assert run(Soak(seed=1, seconds=15, kinds=(Ghost, Kill))).wrong == []
