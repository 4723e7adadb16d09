"""
`Server`: a server for tests, of which nothing stays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pyprocrastinate import embedded
from pyprocrastinate_embedded import _supervisor

from .conftest import User, parent_of, wait_for_end

STARTED = "select pg_postmaster_start_time()"


def test_nothing_of_a_server_stays() -> None:
    with embedded.Server() as server:
        with psycopg.connect(server.conninfo()) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
        places = [server.folder, Path(server.host), _supervisor.data_of(server.folder)]
        assert all(place.is_dir() for place in places)
    assert not [place for place in places if place.exists()]
    server.stop()


def test_nothing_of_a_server_stays_when_its_process_is_killed(use: Callable[..., User]) -> None:
    code = """
import sys
from pyprocrastinate import embedded
server = embedded.Server().start()
print(server.folder, flush=True)
sys.stdin.read()
"""
    user = use("", code)
    folder = Path(user.conninfo())
    pid = _supervisor.ready_pid(_supervisor.data_of(folder))
    places = [folder, Path((folder / "socket").read_text()), _supervisor.data_of(folder)]
    assert all(place.is_dir() for place in places)
    supervisor = parent_of(pid)
    user.kill()
    wait_for_end(pid)
    wait_for_end(supervisor)
    assert not [place for place in places if place.exists()]


@pytest.mark.parametrize("immediate", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_restarted_server_is_where_it_was_and_has_what_was_committed(immediate: bool) -> None:
    with embedded.Server() as server:
        with psycopg.connect(server.conninfo(), autocommit=True) as conn:
            conn.execute("create table kept as select 7 as number")
            before = conn.execute(STARTED).fetchone()
            server.restart(immediate=immediate)
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")
        with psycopg.connect(server.conninfo()) as conn:
            assert conn.execute("select number from kept").fetchone() == (7,)
            assert conn.execute(STARTED).fetchone() != before


def test_settings_are_postgresqls_and_hold_over_a_restart() -> None:
    settings: dict[str, object] = {"work_mem": "7MB", "fsync": "on"}
    with embedded.Server(settings=settings) as server:
        server.restart()
        with psycopg.connect(server.conninfo()) as conn:
            for name, value in {"work_mem": "7MB", "fsync": "on", "jit": "off"}.items():
                assert conn.execute(f"show {name}").fetchone() == (value,)


def test_a_durable_server_keeps_postgresqls_own_settings() -> None:
    with embedded.Server(durable=True) as server, psycopg.connect(server.conninfo()) as conn:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert conn.execute(f"show {name}").fetchone() == ("on",)
