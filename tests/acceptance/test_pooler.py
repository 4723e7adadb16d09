"""What the command finds out about a pooler. The whole suite goes through one with --through-pgbouncer."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from pyprocrastinate_cli import _pooler
from tests.pooler import pgbouncer

pytestmark = [pytest.mark.needs_tool("pgbouncer"), pytest.mark.not_pooled("brings its own")]


@pytest.mark.parametrize(
    ("mode", "size", "found"),
    [
        ("transaction", 1, _pooler.TRANSACTION),
        ("transaction", 5, _pooler.TRANSACTION),
        ("session", 5, _pooler.SESSION),
        ("session", 1, _pooler.SESSION),
    ],
)
def test_healthchecks_tell_the_mode(
    direct_dsn: str, monkeypatch: pytest.MonkeyPatch, mode: str, size: int, found: str
) -> None:
    monkeypatch.setattr(_pooler, "_PATIENCE", 0.3)
    with pgbouncer(direct_dsn, mode=mode, size=size) as pooled:
        assert _pooler.find(pooled) == found
    assert _pooler.find(direct_dsn) == _pooler.NONE


@pytest.mark.parametrize(("mode", "found"), [("transaction", _pooler.TRANSACTION), ("session", _pooler.SESSION)])
def test_a_pool_that_others_use_is_told_too(
    direct_dsn: str, monkeypatch: pytest.MonkeyPatch, mode: str, found: str
) -> None:
    """Between the first two questions somebody takes the connection that answered, and another one is free again."""
    backend, asked = _pooler._backend, 0

    async def and_others_come_and_go(connection: psycopg.AsyncConnection[Any]) -> int:
        nonlocal asked
        asked += 1
        if asked == 2:
            later.execute("select")
            early.close()
        return await backend(connection)

    monkeypatch.setattr(_pooler, "_backend", and_others_come_and_go)
    size = 2 if mode == "transaction" else 3
    with pgbouncer(direct_dsn, mode=mode, size=size) as pooled, psycopg.connect(pooled) as early:
        early.execute("select")
        with psycopg.connect(pooled) as later:
            assert _pooler.find(pooled) == found
    assert asked >= 2


def test_the_command_says_so(direct_dsn: str) -> None:
    def healthchecks(dsn: str) -> Any:
        environ = os.environ | {"PROCRASTINATE_DSN": dsn}
        command = [sys.executable, "-m", "pyprocrastinate", "healthchecks"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.splitlines()[-1]

    with pgbouncer(direct_dsn) as pooled:
        assert healthchecks(pooled).startswith("Pooler: one in transaction mode. It swallows notifications")
    assert healthchecks(direct_dsn) == "Pooler: none"
