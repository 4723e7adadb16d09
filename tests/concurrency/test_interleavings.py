"""
Two operations on one lock, with a switch between them at every statement of the queue's functions.

The first operation is halted behind its n-th statement, for n = 1, 2, … to its end; the second
runs until it has ended, or waits for the first; then the first goes on. Whatever the two are:
no deadlock, no error that is not documented, never two jobs under a lock, no job lost or doubled,
no lock forgotten, and what waits is then run in order.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import gates
import psycopg
import pytest
from scenes import EXPECTED, OPERATIONS, SCENES, STATE, Scene, check, value
from sessions import Row, Session

pytestmark = pytest.mark.usefixtures("patient")

Sessions = Callable[[], Session]


def _nothing(scene: Scene, rows: list[Row]) -> int:
    return 0


def _accepted(scene: Scene, rows: list[Row]) -> int:
    return sum(row[0] == "ok" for row in rows)


def _ticked(scene: Scene, rows: list[Row]) -> int:
    return sum(row[1] == scene.jobs["running"] for row in rows)


def _done(scene: Scene, rows: list[Row]) -> int:
    return 1


def _ended(scene: Scene, rows: list[Row]) -> int:
    return int(rows[0][0])


COUNTS = {
    "end by hand": _ended,
    "succeed": _accepted,
    "retry later": _accepted,
    "retry elsewhere": _accepted,
    "work": _accepted,
    "tick": _ticked,
    "complete": _done,
}


@pytest.fixture
def stage(conn: psycopg.Connection[Any], session: Sessions) -> Callable[[str, str, str], int]:
    assert gates.install(conn) > 200
    a, b, keeper = session(), session(), session()

    seen: set[Any] = set()
    scenes: dict[str, Scene] = {}

    def play(scene_name: str, first: str, second: str) -> int:
        if scene_name not in scenes:
            scenes.clear()
            scenes[scene_name] = SCENES[scene_name](conn)
            conn.execute(gates.SAVE)
        scene = scenes[scene_name]
        for stop in itertools.count(1):
            conn.execute(gates.RESTORE)
            keeper.run(gates.SHUT)
            a.run(f"set gates.count = 0; set gates.stop = {stop}")
            one = a.start(*_flat(OPERATIONS[first](scene)))
            while not (one.done() or a.waits()):
                pass
            passed = one.done()
            two = b.start(*_flat(OPERATIONS[second](scene)))
            while not (two.done() or b.waits()):
                pass
            keeper.run(gates.OPEN)
            where = f"{first} | {second} from {scene_name}, halted at {stop}"
            counted = scene.attempts
            for name, step in ((first, one), (second, two)):
                try:
                    counted += COUNTS.get(name, _nothing)(scene, step.rows())
                except psycopg.Error as error:
                    if error.sqlstate not in EXPECTED.get(name, set()):
                        error.add_note(where)
                        raise
            attempts = value(
                conn,
                # taken back by an operator; given back, but to be aborted
                "select attempts - (status = 'aborted')::int"
                "  - (select count(*) from procrastinate.event"
                "  where type = 'retried' and job_id = j.id and not detail ? 'finished_at')"
                "  from procrastinate.jobs as j where id = %s",
                scene.jobs["running"],
            )
            assert attempts in (counted, None), f"a run is lost, or counted twice: {where}"
            outcome = conn.execute(STATE).fetchone()
            if outcome not in seen:
                check(conn, where)
                seen.add(outcome)
            if passed:
                return stop
        raise AssertionError

    return play


def _flat(call: tuple[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    return call[0], *call[1]


PAIRS = [(scene, first, second) for scene in SCENES for first in OPERATIONS for second in OPERATIONS]


def test_a_choice_of_pairs(stage: Callable[[str, str, str], int]) -> None:
    for pair in random.Random(7).sample(PAIRS, 12):
        stage(*pair)


@pytest.mark.long
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("first", OPERATIONS)
def test_every_pair(stage: Callable[[str, str, str], int], scene: str, first: str) -> None:
    broken = []
    for second in OPERATIONS:
        try:
            stage(scene, first, second)
        except (AssertionError, psycopg.Error) as error:
            broken.append(f"{second}: {error}")
    assert not broken
