"""
An embedded server opens nothing to others and changes nothing of the machine, root or not.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyprocrastinate import embedded
from pyprocrastinate.embedded import EmbeddedError
from pyprocrastinate_embedded import _supervisor

from .conftest import User, parent_of

IS_ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not IS_ROOT, reason="for root")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def modes(place: Path) -> list[tuple[str, int, int, int]]:
    found = [(place, place.stat()) for place in (place, *place.parents)]
    return [(str(place), stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid) for place, s in found]


def ordinary_account() -> tuple[int, int]:
    """Return an account that is not the one of the tests."""
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def test_no_mode_and_no_owner_of_another_folder_changes(home: Path) -> None:
    (home / "db").mkdir(mode=0o700)
    before = [modes(home / "db"), modes(embedded.find_bindir())]
    accounts = Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes()
    with embedded.resolve(f"embedded:{home}/db") as resolved, psycopg.connect(resolved.conninfo):
        pass
    assert [modes(home / "db"), modes(embedded.find_bindir())] == before
    assert accounts == (Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes())


def test_nothing_is_open_to_others_whatever_the_umask(home: Path, use: Callable[..., User]) -> None:
    code = (
        "import os; os.umask(0)\n"
        + """
import sys
from pyprocrastinate import embedded
with embedded.resolve(sys.argv[1]) as resolved:
    print(resolved.conninfo, flush=True)
    sys.stdin.read()
"""
    )
    user = use(f"embedded:{home}/db", code)
    assert user.conninfo()
    host = Path((home / "db" / "socket").read_text())
    data = _supervisor.data_of(home / "db")
    assert stat.S_IMODE(host.stat().st_mode) == 0o700
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    for place in (home / "db").rglob("*"):
        mode = place.lstat().st_mode
        assert stat.S_ISLNK(mode) or not mode & 0o007, place
    # Where the account of the server differs, it has to pass through, but may not look.
    assert stat.S_IMODE((home / "db").stat().st_mode) == (0o711 if IS_ROOT else 0o700)
    user.leave()


@linux_only
def test_the_server_sees_no_secret_of_the_program_and_runs_as_no_root(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "hush")
    with embedded.resolve(f"embedded:{folder}"):
        pid = _supervisor.ready_pid(_supervisor.data_of(folder))
        process = Path(f"/proc/{pid}")
        assert b"hush" not in (process / "environ").read_bytes()
        assert process.stat().st_uid != 0
        assert process.stat().st_uid == (folder / "pgdata").stat().st_uid
        assert Path(f"/proc/{parent_of(pid)}").stat().st_uid == os.geteuid()


def test_a_folder_that_everybody_may_write_to_is_refused(home: Path) -> None:
    (home / "db").mkdir()
    (home / "db").chmod(0o1777)
    with pytest.raises(EmbeddedError, match="name another folder"):
        embedded.resolve(f"embedded:{home}/db")
    assert not list((home / "db").iterdir())


@root_only
def test_a_folder_that_somebody_else_has_prepared_is_refused(home: Path) -> None:
    (home / "db").mkdir(mode=0o700)
    (home / "db" / "pgdata.new").symlink_to("/etc")
    os.chown(home / "db", *ordinary_account())
    owner = Path("/etc").stat().st_uid
    with pytest.raises(EmbeddedError, match="name another folder"):
        embedded.resolve(f"embedded:{home}/db")
    assert Path("/etc").stat().st_uid == owner


def test_a_socket_folder_that_is_not_the_servers_own_is_not_used_again(home: Path, folder: Path) -> None:
    trap = home / "trap"
    trap.mkdir(mode=0o755)
    (folder / "socket").write_text(str(trap))  # as a supervisor leaves it that is killed
    with embedded.resolve(f"embedded:{folder}") as resolved:
        assert str(trap) not in resolved.conninfo
    assert not list(trap.iterdir())


@root_only
def test_data_live_elsewhere_where_the_account_cannot_reach_the_folder(home: Path) -> None:
    private = home / "private"
    private.mkdir(mode=0o700)
    dsn = f"embedded:{private}/db"
    with embedded.resolve(dsn) as resolved, psycopg.connect(resolved.conninfo, autocommit=True) as conn:
        conn.execute("create table kept as select 7 as number")
    elsewhere = Path((private / "db" / "location").read_text())
    assert elsewhere.parent == Path("/var/lib/pyprocrastinate")
    assert [mode for _, mode, *_ in modes(elsewhere)][:2] == [0o711, 0o711]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    with embedded.resolve(dsn) as resolved, psycopg.connect(resolved.conninfo) as conn:
        assert conn.execute("select number from kept").fetchone() == (7,)
    assert Path((private / "db" / "location").read_text()) == elsewhere


@pytest.fixture
def private_binaries(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the binaries where only root can reach them; forget what is made of them."""
    bindir = embedded.find_bindir()
    root, package = bindir.parent, bindir.parents[1]
    private = home / "private"
    private.mkdir(mode=0o700)
    for source in (root, package.with_name(f"{package.name}.libs")):
        if source.is_dir():
            copy = private / source.relative_to(package.parent)
            copy.parent.mkdir(exist_ok=True)
            subprocess.run(["cp", "-a", source, copy], check=True)
    monkeypatch.setenv("PROCRASTINATE_PG_BIN", str(private / bindir.relative_to(package.parent)))
    cache = Path("/var/cache/pyprocrastinate")
    before = set(cache.glob("*"))
    yield private
    for copy in set(cache.glob("*")) - before:
        shutil.rmtree(copy)


@pytest.mark.long
@root_only
def test_binaries_that_the_account_cannot_reach_are_copied_once(folder: Path, private_binaries: Path) -> None:
    cache = Path("/var/cache/pyprocrastinate")
    before = set(cache.glob("*"))
    for _ in range(2):
        with embedded.resolve(f"embedded:{folder}") as resolved, psycopg.connect(resolved.conninfo):
            pass
    (copy,) = set(cache.glob("*")) - before
    for place in (cache, copy, *copy.rglob("*")):
        found = place.lstat()
        assert found.st_uid == 0
        assert stat.S_ISLNK(found.st_mode) or not found.st_mode & 0o022, place
    assert stat.S_IMODE(private_binaries.stat().st_mode) == 0o700


def reachable_python(how: dict[str, Any]) -> str:
    """Return a Python of this version that another account can run, too."""
    name = f"python3.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/local/bin/{name}", f"/usr/bin/{name}"):
        with contextlib.suppress(OSError):
            if subprocess.run([python, "-c", ""], check=False, **how).returncode == 0:
                return python
    pytest.skip(f"needs a {name} that every account can run")


@root_only
@pytest.mark.parametrize("selection", ["only_user or umask", pytest.param("not ordinary_user", marks=pytest.mark.long)])
def test_an_ordinary_user_is_served_as_well(home: Path, selection: str) -> None:
    """Run the other tests of this folder as one."""
    here = Path(__file__).parent
    home.chmod(0o1777)
    user, group = ordinary_account()
    how: dict[str, Any] = {"user": user, "group": group, "extra_groups": [], "cwd": "/"}
    path = [*os.environ.get("PYTHONPATH", "").split(":"), sysconfig.get_path("purelib")]
    # What is installed in place is in no list there.
    path += [str(here.parents[2]), *map(str, here.parents[1].glob("pyprocrastinate-*"))]
    pytest_here = ["-m", "pytest", str(here), "-k", selection, "-q", "-p", "no:cacheprovider"]
    tests = subprocess.run(
        [reachable_python(how), *pytest_here],
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ":".join(path), "TMPDIR": str(home)},
        capture_output=True,
        text=True,
        check=False,
        **how,
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr
