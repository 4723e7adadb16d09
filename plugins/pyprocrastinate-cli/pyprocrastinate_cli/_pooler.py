"""
Find out what stands between a client and the server.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import psycopg

from pyprocrastinate import embedded

Client: TypeAlias = psycopg.AsyncConnection[Any]

_BACKEND = b"select * from procrastinate.backend_v1()"
_LOOKS = 20
_PATIENCE = 2.0  # seconds; in session mode with no connection left, a second client waits for the first

NONE = "none"
SESSION = "one in session mode"
TRANSACTION = "one in transaction mode. It swallows notifications: start workers with --no-listen-notify, or past it"


def find(conninfo: str) -> str:
    """Say whether a pooler answers at this address, and in which mode."""
    # psycopg cannot do with the loop that is Windows' own
    with embedded.resolve(conninfo) as server, asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(_find(server.conninfo))


async def _find(conninfo: str) -> str:
    async with await _connect(conninfo) as one:
        if await _backend(one) == one.info.backend_pid:
            return NONE
        async with await _connect(conninfo) as two:
            return TRANSACTION if await _share(one, two) else SESSION


async def _share(one: Client, two: Client) -> bool:
    """Tell whether these clients use one backend, or one of them two: each has its own one in session mode."""
    ones, twos = set[int](), set[int]()
    answer: asyncio.Task[int] | None = None
    try:
        # One look proves nothing while others use the pool, too: they take a backend, and give back another one.
        for _ in range(_LOOKS):
            ones.add(await _backend(one))
            if answer is None:
                answer = asyncio.create_task(_backend(two))
                await asyncio.wait([answer], timeout=_PATIENCE)
            if answer.done():
                twos.add(answer.result())
                answer = None
            if ones & twos or len(ones) > 1 or len(twos) > 1:
                return True
        return False
    finally:
        if answer is not None:
            answer.cancel()
            await asyncio.wait([answer])


async def _connect(conninfo: str) -> Client:
    # Nothing prepared: a pooler has no memory for that.
    return await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)


async def _backend(connection: Client) -> int:
    ((backend,),) = await (await connection.execute(_BACKEND)).fetchall()
    return int(backend)
