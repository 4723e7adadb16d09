"""
Find out what stands between a client and the server.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from pyprocrastinate import embedded

_BACKEND = b"select * from procrastinate.backend_v1()"
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
        backend = await _backend(one)
        if backend == one.info.backend_pid:
            return NONE
        async with await _connect(conninfo) as two:
            await two.set_autocommit(False)
            try:
                # Between its statements, only in transaction mode is a connection free for somebody else.
                other = await asyncio.wait_for(_backend(two), _PATIENCE)
            except TimeoutError:
                return SESSION
            return TRANSACTION if other == backend else SESSION


async def _connect(conninfo: str) -> psycopg.AsyncConnection[Any]:
    # Nothing prepared: a pooler has no memory for that.
    return await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)


async def _backend(connection: psycopg.AsyncConnection[Any]) -> int:
    ((backend,),) = await (await connection.execute(_BACKEND)).fetchall()
    return int(backend)
