"""The demo: on real files, on any server, for anybody; and what it says is so."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from demo import files as demofiles
from demo import program as demo

NOBODY = 65534
ODD_NAMES = [b"plain", b'it\'s "quoted"', b"a\nb", b"100%", b"%41", b"\xff\xfe", "gr\u00fcn".encode()]


@pytest.fixture
def start(folder, monkeypatch):
    """Return a function that starts the demo as a process, in an empty folder."""
    for name in [*os.environ]:
        if name.startswith(("PG", "PROCRASTINATE_")):
            monkeypatch.delenv(name)

    def start(*arguments, **options):
        argv = [sys.executable, "-m", "pyprocrastinate", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(argv, **{"cwd": folder, **pipes, **options})

    return start


@pytest.fixture
def run(start):
    """Return a function that runs the demo and returns its exit code, output and errors."""

    def run(*arguments, **options):
        process = start(*arguments, **options)
        out, err = process.communicate()
        return process.returncode, out, err

    return run


@pytest.fixture
def files(tmp_path):
    """Return a folder with files whose names are hard to pass on, and things that are no files."""
    place = tmp_path / "files"
    (place / "sub" / "deep").mkdir(parents=True)
    (place / ".hidden").mkdir()
    (place / ".hidden" / "no").touch()
    (place / "empty").mkdir()
    for number, name in enumerate(ODD_NAMES):
        with open(os.fsencode(place / "sub" / "deep") + b"/" + name, "wb") as file:
            file.write(b"line\n" * number)
    (place / "link").symlink_to("sub")
    (place / "loop").symlink_to(".")
    os.mkfifo(place / "pipe")
    return place


def test_without_anything_it_shows_the_sources_of_python(run, folder, pg_server):
    pg_server.tool("psql")
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    found = re.search(r"^([\d,]+) files in (.+)$", out, re.MULTILINE)
    count = int(found[1].replace(",", ""))
    assert count > 1000
    assert f"deferred {count:,} jobs in " in out
    assert f"{count:,} files with " in out
    assert " after 2 runs\n" in out
    assert re.search(r"aborted   job \d+ .*: aborted \d+ ms later$", out, re.MULTILINE)
    assert f"{demo.SHARING} jobs shared a lock: 1 ran at a time\n" in out
    # nothing runs any more, and yet the command that it prints works
    assert not (folder / demo.HOME.partition(":")[2] / "socket").exists()
    printed = out.splitlines()[-1]
    query = "select status, count(*) from procrastinate.jobs group by status"
    argv = [*shlex.split(printed), "-XAt", "-c", query]
    looked = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    by_status = dict(line.split("|") for line in looked.stdout.splitlines())
    assert {status: f"{int(n):,}" for status, n in by_status.items()} == dict(
        re.findall(r"^(\w+) +([\d,]+) +[\d,]+ +[\d.]+ s$", out, re.MULTILINE)
    )
    assert by_status["aborted"] == "1"


def test_names_of_files_reach_the_worker_as_they_are(run, files, dsn, conn):
    code, out, err = run("--dsn", dsn, "demo", str(files))
    assert (code, err) == (0, "")
    assert f"{len(ODD_NAMES)} files in {files}\n" in out
    results = conn.execute(
        "select result from procrastinate.jobs where task = 'demo.count_file' order by id"
    ).fetchall()
    expected = [
        {"sha256": hashlib.sha256(b"line\n" * n).hexdigest(), "bytes": 5 * n, "lines": n} for n in range(len(ODD_NAMES))
    ]
    assert sorted((row[0] for row in results), key=lambda r: r["lines"]) == expected
    lines = sum(range(len(ODD_NAMES)))
    assert f"{len(ODD_NAMES)} files with {lines * 5} bytes in {lines} lines: " in out


@pytest.mark.parametrize("path", ["/a/b c", "%", "%41", "a\nb", "\udcff", "gr\u00fcn", "\u2028"])
def test_a_path_as_text_is_one_line_and_finds_the_way_back(path):
    text = demofiles.as_text(path)
    assert text.encode().decode().splitlines() == [text]
    assert demofiles.from_text(text) == path


def test_it_leaves_a_database_as_it_was_but_for_its_own_queue(run, files, dsn, conn):
    conn.execute("select procrastinate.defer('other', queue => 'mine')")
    other = conn.execute("select * from procrastinate.jobs").fetchall()
    code, out, _ = run("demo", str(files), env=os.environ | {"PROCRASTINATE_DSN": dsn})
    assert code == 0
    (queue,) = re.findall(r"kept, in queue (demo-\w+)\.", out)
    left = conn.execute("select * from procrastinate.jobs where queue <> %s", [queue]).fetchall()
    assert left == other
    waiting = "select count(*) from procrastinate.jobs where queue = %s and status = 'todo'"
    assert conn.execute(waiting, [queue]).fetchone() == (0,)
    assert conn.execute("select count(*) from procrastinate.workers").fetchone() == (0,)
    assert "installed the schema" not in out


def test_it_installs_the_schema_where_there_is_none(run, files, empty_dsn):
    code, out, _ = run("--dsn", empty_dsn, "demo", str(files))
    assert code == 0
    assert "installed the schema procrastinate\n" in out


def test_a_job_that_fails_is_told_and_counted(files, dsn, capsys, monkeypatch):
    find_files = demo.find_files

    def and_lose_one(folder):
        found = find_files(folder)
        (files / "sub" / "deep" / "plain").unlink()
        return found

    monkeypatch.setattr(demo, "find_files", and_lose_one)
    assert demo.main(str(files), dsn) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f" failed with FileNotFoundError: {files}/sub/deep/plain\n" in out
    assert re.search(r"^failed +1 +1 ", out, re.MULTILINE)
    assert f"{len(ODD_NAMES) - 1} files with " in out


@pytest.mark.parametrize("name", ["empty", "nowhere", "link/deep/plain"])
def test_what_is_no_folder_of_files_is_one_clear_line(files, dsn, name, capsys):
    assert demo.main(str(files / name), dsn) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err in {
        f"demo: there are no files in {files / 'empty'}: name another folder\n",
        f"demo: {files / 'nowhere'} is not a folder\n",
        f"demo: {files / 'link' / 'deep' / 'plain'} is not a folder\n",
    }


def test_a_server_that_is_not_there_is_one_clear_line(files, capsys):
    assert demo.main(str(files), "host=/nowhere dbname=x") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("demo: ")
    assert "/nowhere" in line


def test_an_ordinary_user_can_run_it_and_is_told_what_could_not_be_read(run, folder, files):
    user = {}
    if os.geteuid() == 0:
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        os.chown(folder, NOBODY, NOBODY)
        try:
            subprocess.run([sys.executable, "-c", "import pyprocrastinate"], check=True, **user)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("an ordinary user cannot reach this Python or this checkout")
    place = folder / "files"
    shutil.copytree(files, place, symlinks=True, ignore=shutil.ignore_patterns("pipe"))
    (place / "sub" / "deep" / "plain").chmod(0)
    (place / "locked").mkdir(mode=0)
    code, out, err = run("demo", str(place), **user)
    (place / "locked").rmdir()
    assert (code, err) == (0, "")
    assert f"left out what cannot be read: {place}/locked\n" in out
    assert f" failed with PermissionError: {place}/sub/deep/plain\n" in out
    assert f"{len(ODD_NAMES) - 1} files with " in out


def test_where_nothing_can_be_written_it_says_so(start, folder, files):
    (folder / ".pyprocrastinate").touch()
    code = (process := start("demo", str(files))).wait()
    assert code == 1
    assert process.communicate()[1].splitlines()[1:] == ["Run it where you may write, or with --dsn embedded:FOLDER"]


def test_ctrl_c_stops_it_and_the_worker_takes_leave(start, folder, dsn, conn):
    for number in range(2_000):
        (folder / f"{number}").touch()
    process = start("--dsn", dsn, "demo", str(folder))
    for line in process.stdout:
        if line.startswith("a worker runs them"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "demo: interrupted\n")
    assert conn.execute("select count(*) from procrastinate.workers").fetchone() == (0,)
    running = "select count(*) from procrastinate.jobs where status = 'doing'"
    assert conn.execute(running).fetchone() == (0,)


def test_a_terminal_gets_a_progress_bar(files, dsn, monkeypatch, capsys):
    monkeypatch.setattr(demo.console, "_force_terminal", True)
    assert demo.main(str(files), dsn) == 0
    total = len(ODD_NAMES) + 2 + demo.SHARING
    assert f"{total}/{total}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dsn", "command"),
    [
        ("dbname=d host=h password=s3cr3t", "psql 'dbname=d host=h'"),
        ("postgresql://u:s3cr3t@h/d", "psql 'user=u dbname=d host=h'"),
        ("dbname=d host=h sslpassword=s3cr3t", "psql 'dbname=d host=h'"),
    ],
)
def test_the_command_for_psql_holds_no_password(dsn, command):
    assert demo.psql_command(dsn) == command


def test_the_command_for_psql_calls_this_very_installation(monkeypatch):
    program = str(Path(sys.executable).with_name("pyprocrastinate"))
    words = shlex.split(demo.psql_command("embedded:a b"))
    assert words == [program, "--dsn", "embedded:a b", "psql"]


def test_a_worker_that_stops_ends_the_demo(files, dsn, capsys, monkeypatch):
    monkeypatch.setattr(demo, "TICKS", 10**6)
    original = demo.Demo.ask

    def ask(self, query, *args):
        if "task = 'demo.tick'" in query:
            self.worker.stop()
        return original(self, query, *args)

    monkeypatch.setattr(demo.Demo, "ask", ask)
    assert demo.main(str(files), dsn) == 1
    assert capsys.readouterr().err == "demo: the worker has stopped\n"


def test_it_gives_up_where_nothing_happens(files, dsn, capsys, monkeypatch):
    monkeypatch.setattr(demo, "TICKS", 10**6)
    monkeypatch.setattr(demo, "PATIENCE", -1)
    assert demo.main(str(files), dsn) == 1
    assert re.fullmatch(r"demo: \d+ jobs wait, and nothing has happened for a minute\n", capsys.readouterr().err)


def test_no_file_is_missing_from_the_tables(files, dsn, conn):
    assert demo.main(str(files), dsn) == 0
    with psycopg.connect(dsn) as other:
        tasks = dict(other.execute("select task, count(*) from procrastinate.jobs group by task").fetchall())
    assert tasks.pop("demo.tick") >= demo.TICKS
    assert tasks == {
        "demo.count_file": len(ODD_NAMES),
        "demo.unlucky": 1,
        "demo.endless": 1,
        "demo.in_turn": demo.SHARING,
    }
