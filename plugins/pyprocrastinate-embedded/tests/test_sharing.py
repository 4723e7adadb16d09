"""
A server is there for as long as a process uses it, however the processes end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from pyprocrastinate import embedded
from pyprocrastinate_embedded import _supervisor

from .conftest import DEADLINE, User, parent_of, wait_for_end

Use = Callable[..., User]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process together with its parent")


def query(conninfo: str, statement: str) -> object:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        cursor = conn.execute(statement)
        return cursor.fetchone() if cursor.description else None


def server_of(folder: Path) -> int:
    pid = _supervisor.ready_pid(_supervisor.data_of(folder))
    assert pid
    return pid


def test_data_are_kept_from_one_server_to_the_next(folder: Path) -> None:
    dsn = f"embedded:{folder}"
    with embedded.resolve(dsn) as resolved:
        query(resolved.conninfo, "create table kept as select 7 as number")
    with embedded.resolve(dsn) as resolved:
        assert query(resolved.conninfo, "select number from kept") == (7,)


def test_processes_share_one_server_until_the_last_one_leaves(folder: Path, use: Use) -> None:
    dsn = f"embedded:{folder}"
    first = use(dsn)
    conninfo = first.conninfo()
    with embedded.resolve(dsn) as second:
        assert second.conninfo == conninfo
        first.leave()
        assert query(second.conninfo, "select 1") == (1,)
        server = server_of(folder)
        supervisor = parent_of(server)
    with pytest.raises(ProcessLookupError):  # without a wait: the last to leave has waited
        os.kill(server, 0)
    wait_for_end(supervisor)
    with pytest.raises(psycopg.OperationalError):
        query(conninfo, "select 1")


def test_leaving_twice_is_leaving_once(folder: Path, use: Use) -> None:
    dsn = f"embedded:{folder}"
    other = use(dsn)
    other.conninfo()
    resolved = embedded.resolve(dsn)
    resolved.close()
    resolved.close()
    with embedded.resolve(dsn) as again:
        assert query(again.conninfo, "select 1") == (1,)
    other.leave()


def test_a_process_that_joins_twice_counts_twice(folder: Path) -> None:
    dsn = f"embedded:{folder}"
    with embedded.resolve(dsn) as outer:
        embedded.resolve(dsn).close()
        assert query(outer.conninfo, "select 1") == (1,)


def test_a_database_that_the_dsn_names_is_made(folder: Path) -> None:
    with embedded.resolve(f"embedded:{folder}?dbname=My%20data") as resolved:
        assert query(resolved.conninfo, "select current_database()") == ("My data",)
        with embedded.resolve(f"embedded:{folder}?dbname=My%20data") as again:
            assert again.conninfo == resolved.conninfo


def test_a_relative_folder_is_the_same_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    with embedded.resolve("embedded:db") as one, embedded.resolve(f"embedded:{folder}") as other:
        assert one.conninfo == other.conninfo


def test_the_server_stops_when_its_only_user_is_killed(folder: Path, use: Use) -> None:
    user = use(f"embedded:{folder}")
    user.conninfo()
    server = server_of(folder)
    supervisor = parent_of(server)
    user.kill()
    wait_for_end(server)
    wait_for_end(supervisor)
    # It has stopped in order: there is nothing to recover from.
    assert "database system is shut down" in (folder / "server.log").read_text()


def test_the_server_survives_the_death_of_the_process_that_started_it(folder: Path, use: Use) -> None:
    dsn = f"embedded:{folder}"
    starter = use(dsn)
    starter.conninfo()
    with embedded.resolve(dsn) as resolved:
        starter.kill()
        assert query(resolved.conninfo, "select 1") == (1,)


@linux_only
def test_the_server_dies_with_its_supervisor_and_comes_back_where_it_was(folder: Path, use: Use) -> None:
    dsn = f"embedded:{folder}"
    with embedded.resolve(dsn) as old:
        query(old.conninfo, "create table before_death as select 7 as number")
        server = server_of(folder)
        os.kill(parent_of(server), signal.SIGKILL)
        wait_for_end(server)
        newcomer = use(dsn)
        assert newcomer.conninfo() == old.conninfo
        assert query(old.conninfo, "select number from before_death") == (7,)
        newcomer.leave()
        assert query(old.conninfo, "select number from before_death") == (7,)


@linux_only
def test_a_start_right_after_the_supervisor_was_killed_waits_for_the_old_server(folder: Path, use: Use) -> None:
    dsn = f"embedded:{folder}"
    user = use(dsn)
    user.conninfo()
    server = server_of(folder)
    supervisor = parent_of(server)
    os.kill(server, signal.SIGSTOP)  # it cannot follow its parent yet
    user.kill()
    os.kill(supervisor, signal.SIGKILL)
    wait_for_end(supervisor)
    newcomer = use(dsn)
    wait_until(lambda: not (folder / "socket").exists())  # its supervisor is about to start one
    os.kill(server, signal.SIGCONT)
    assert query(newcomer.conninfo(), "select 1") == (1,)
    assert server_of(folder) != server
    newcomer.leave()


def test_a_crashed_server_is_started_again_where_it_was(folder: Path) -> None:
    with embedded.resolve(f"embedded:{folder}") as resolved:
        query(resolved.conninfo, "create table before_crash as select 7 as number")
        crashed = server_of(folder)
        os.kill(crashed, signal.SIGKILL)
        data = _supervisor.data_of(folder)
        wait_until(lambda: _supervisor.ready_pid(data) not in (0, crashed))
        assert query(resolved.conninfo, "select number from before_crash") == (7,)


def test_a_supervisor_that_is_told_to_end_stops_the_server_in_order(folder: Path) -> None:
    with embedded.resolve(f"embedded:{folder}"):
        server = server_of(folder)
        supervisor = parent_of(server)
        os.kill(supervisor, signal.SIGTERM)
        wait_for_end(supervisor)
        wait_for_end(server)
        assert "database system is shut down" in (folder / "server.log").read_text()
    with embedded.resolve(f"embedded:{folder}") as resolved:
        assert query(resolved.conninfo, "select 1") == (1,)


def test_processes_that_start_at_the_same_instant_get_one_server(home: Path, use: Use) -> None:
    code = """
import sys
import psycopg
from pyprocrastinate import embedded
print("here", flush=True)
sys.stdin.readline()
with embedded.resolve(sys.argv[1]) as resolved, psycopg.connect(resolved.conninfo) as conn:
    print(conn.execute("select pg_postmaster_start_time()").fetchone()[0], flush=True)
    sys.stdin.read()
"""
    users = [use(f"embedded:{home}/db?dbname=app", code) for _ in range(3)]
    for user in users:
        assert user.conninfo() == "here"
    for user in users:
        assert user.process.stdin
        user.process.stdin.write("\n")
        user.process.stdin.flush()
    starts = {user.conninfo() for user in users}
    assert len(starts) == 1
    assert starts != {""}
    for user in users:
        user.leave()


@pytest.mark.long
def test_whoever_comes_while_the_last_one_leaves_finds_a_server(folder: Path, use: Use) -> None:
    code = """
import sys
import psycopg
from pyprocrastinate import embedded
for _ in range(5):
    with embedded.resolve(sys.argv[1]) as resolved, psycopg.connect(resolved.conninfo) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
"""
    users = [use(f"embedded:{folder}", code) for _ in range(3)]
    for user in users:
        user.leave()


@pytest.mark.long
@pytest.mark.parametrize("moment", ["supervisor.lock", "pgdata.new"])
def test_a_starter_that_is_killed_leaves_nothing_that_the_next_one_trips_over(
    home: Path, use: Use, moment: str
) -> None:
    dsn = f"embedded:{home}/db"
    starter = use(dsn)
    wait_until((home / "db" / moment).exists)
    starter.kill()
    newcomer = use(dsn)
    assert query(newcomer.conninfo(), "select 1") == (1,)
    newcomer.leave()


@linux_only
def test_data_that_were_being_made_when_everybody_was_killed_are_made_anew(home: Path, use: Use) -> None:
    dsn = f"embedded:{home}/db"
    starter = use(dsn, TMPDIR=str(home))  # where what it cannot tidy away is found
    wait_until((home / "db" / "pgdata.new" / "global").exists)
    lines = {process.pid: " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])}
    supervisor = [pid for pid, line in lines.items() if "_supervisor.py" in line and f'"{home}/db"' in line]
    starter.kill()
    for pid in supervisor:
        os.kill(pid, signal.SIGKILL)
    assert supervisor
    assert not (home / "db" / "pgdata").exists()
    with embedded.resolve(dsn) as resolved:
        assert query(resolved.conninfo, "select 1") == (1,)


def test_a_forked_copy_that_leaves_takes_the_server_from_nobody(folder: Path, use: Use) -> None:
    code = """
import os, sys
import psycopg
from pyprocrastinate import embedded
resolved = embedded.resolve(sys.argv[1])
child = os.fork()
if not child:
    resolved.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
with psycopg.connect(resolved.conninfo) as conn:
    print(conn.execute("select 1").fetchone()[0])
resolved.close()
"""
    user = use(f"embedded:{folder}", code)
    assert user.conninfo() == "1"
    user.leave()


@pytest.mark.long
def test_a_folder_that_is_deleted_under_its_server_still_lets_it_stop(home: Path, use: Use) -> None:
    import shutil

    user = use(f"embedded:{home}/db")
    user.conninfo()
    server = server_of(home / "db")
    supervisor = parent_of(server)
    shutil.rmtree(home / "db")
    user.leave()
    wait_for_end(server)
    wait_for_end(supervisor)


def wait_until(condition: Callable[[], object]) -> None:
    """Return when something is so that nothing tells of."""
    import time

    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
