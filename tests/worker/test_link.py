"""The connection of a worker's loop, when the worker is to stop and the database is away."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import psycopg
import pytest

from pyprocrastinate import link as module
from pyprocrastinate.link import Link, Unreachable
from pyprocrastinate.wires import WorkerConnector

SOON = 3.0


class Wire:
    closed = False

    def __init__(self, refusals: list[str]) -> None:
        self.refusals = refusals

    async def call(self, call: str) -> str:
        if self.refusals:
            raise psycopg.errors.lookup(self.refusals.pop())
        return f"done: {call}"

    async def close(self) -> None: ...

    def sever(self) -> None: ...


class Connector:
    """
    Refuses to connect until `there` is set; with `silent`, it does not answer at all.

    Once connected, it answers first calls with the SQLSTATEs in `refusals`.
    """

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.there = self.silent = False
        self.tried = asyncio.Event()

    async def open_wire(self) -> Wire:
        self.tried.set()
        if self.silent:
            await asyncio.Event().wait()
        if not self.there:
            raise psycopg.OperationalError("the database is away")
        return Wire(self.refusals)


@pytest.fixture
async def connector(monkeypatch: pytest.MonkeyPatch) -> Connector:
    monkeypatch.setattr(module, "backoff", lambda _: 3600.0)
    return Connector()


@pytest.fixture
def link(connector: Connector) -> Link:
    return Link(cast(WorkerConnector, connector), logging.getLogger(), 3600.0)


def calling(link: Link) -> asyncio.Task[Any]:
    return asyncio.create_task(link.call(cast(Any, "finish")))


async def paused(connector: Connector) -> None:
    """Wait until an attempt has failed and the next one is an hour away."""
    await connector.tried.wait()
    # What the failed attempt does until it sleeps takes no more than a turn of the loop each.
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_is_to_stop_does_not_sleep_until_the_next_attempt(link: Link, connector: Connector) -> None:
    call = calling(link)
    await paused(connector)
    connector.there = True
    link.limit(3600.0)
    assert await asyncio.wait_for(call, SOON) == "done: finish"


async def test_no_attempt_begun_before_the_limit_outlasts_it(link: Link, connector: Connector) -> None:
    connector.silent = True
    call = calling(link)
    await connector.tried.wait()
    link.limit(0.1)
    with pytest.raises(Unreachable):
        await asyncio.wait_for(call, SOON)


async def test_no_attempt_begun_after_the_limit_is_set_outlasts_it(link: Link, connector: Connector) -> None:
    call = calling(link)
    await paused(connector)
    connector.silent = True
    link.limit(0.1)
    with pytest.raises(Unreachable):
        await asyncio.wait_for(call, SOON)


async def test_a_database_that_is_away_is_given_up_at_the_limit(link: Link, connector: Connector) -> None:
    call = calling(link)
    await paused(connector)
    link.limit(0.1)
    with pytest.raises(Unreachable):
        await asyncio.wait_for(call, SOON)


@pytest.mark.parametrize("sqlstate", ["08006", "25006", "40001", "40P01", "53300", "54000", "55P03", "57P03", "58030"])
async def test_what_passes_is_tried_again(
    link: Link, connector: Connector, monkeypatch: pytest.MonkeyPatch, sqlstate: str
) -> None:
    monkeypatch.setattr(module, "backoff", lambda _: 0.0)
    connector.there, connector.refusals = True, [sqlstate]
    assert await asyncio.wait_for(calling(link), SOON) == "done: finish"


@pytest.mark.parametrize("sqlstate", ["22023", "42501", "42883", "54001", "XX000"])
async def test_what_does_not_pass_is_raised(link: Link, connector: Connector, sqlstate: str) -> None:
    connector.there, connector.refusals = True, [sqlstate]
    with pytest.raises(psycopg.Error) as raised:
        await asyncio.wait_for(calling(link), SOON)
    assert raised.value.sqlstate == sqlstate
