"""Short soaks, by a seed that is always the same and by one that never is, and the parts that they are made of."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.faults.__main__ import summary
from tests.faults.nemesis import FAULTS, plan
from tests.faults.proxy import Proxy
from tests.faults.soak import Soak, run
from tests.faults.stage import ROOT

pytest.importorskip("pyprocrastinate_embedded")

# Long enough for each kind of fault.
SECONDS = 60

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and Unix sockets")


@pytest.mark.parametrize("seed", [7, random.randrange(10**6)], ids=["fixed", "random"])
def test_a_short_soak(seed: int) -> None:
    repeat = f"python -m tests.faults --minutes {SECONDS / 60:g} --seed {seed}"
    print(f"\n{repeat}")
    report = run(Soak(seed=seed, seconds=SECONDS))
    print(summary(report))
    assert report.wrong == [], f"to have the same faults again: {repeat}"
    assert report.jobs > 1000
    # Two of them may find nothing to befall.
    assert len(report.faults) >= 15
    assert report.rescues
    assert report.lost_replies
    assert report.zombies


def test_a_seed_has_always_the_same_in_store() -> None:
    def told(seed: int) -> list[tuple[float, str, object]]:
        lanes = plan(seed, 60, list(FAULTS))
        return [(p.at, p.fault.name, vars(p.fault)) for lane in lanes.values() for p in lane]

    assert told(1) == told(1)
    assert told(1) != told(2)
    # each kind once before any comes twice, in time for a few minutes to have all
    assert {name for _, name, _ in told(1)} == {fault.name for fault in FAULTS}


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_soak_that_is_stopped(how: signal.Signals) -> None:
    # Not pytest's folder, which the server's own account cannot enter.
    with tempfile.TemporaryDirectory(prefix="stopped-") as place:
        folder = Path(place)
        folder.chmod(0o755)
        environ = os.environ | {"TMPDIR": place, "FAULTS_TEST": place}
        command = [sys.executable, "-m", "tests.faults", "--minutes", "1", "--seed", "1"]
        with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            while "of faults" not in (line := process.stderr.readline()):
                assert line, "it ended by itself"
            # while faults are under way
            time.sleep(5)
            process.send_signal(how)
            process.stderr.read()
            assert process.wait(60) != 0
        left = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"FAULTS_TEST={place}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    left.append((entry / "cmdline").read_bytes())
        assert left == []
        assert [*folder.iterdir()] == []
        assert place not in Path("/proc/mounts").read_text()


class TestProxy:
    """What the network does on command."""

    @pytest.fixture
    def proxy(self, dsn: str) -> Proxy:
        info = psycopg.conninfo.conninfo_to_dict(dsn)
        host, port = str(info["host"]), info["port"]
        return Proxy(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(str(port))))

    @staticmethod
    def connect(proxy: Proxy, dsn: str, name: str, **more: object) -> psycopg.Connection[tuple[object, ...]]:
        address = {"host": "127.0.0.1", "port": proxy.port, "sslmode": "disable", "gssencmode": "disable"}
        return psycopg.connect(dsn, application_name=name, **(address | more))  # type: ignore[arg-type]

    def test_it_passes_everything_on(self, proxy: Proxy, dsn: str) -> None:
        with proxy, self.connect(proxy, dsn, "one") as conn:
            row = conn.execute("select current_setting('application_name'), repeat('x', 1000000)").fetchone()
            assert row == ("one", "x" * 1_000_000)
            assert proxy.connections("one") == 1

    def test_it_resets_the_connections_of_one_client(self, proxy: Proxy, dsn: str) -> None:
        with proxy, self.connect(proxy, dsn, "one") as one, self.connect(proxy, dsn, "two") as two:
            assert proxy.reset("one") == 1
            with pytest.raises(psycopg.OperationalError):
                one.execute("select 1")
            assert two.execute("select 1").fetchone() == (1,)

    def test_it_loses_the_answer_to_a_commit_that_has_happened(
        self, proxy: Proxy, dsn: str, conn: psycopg.Connection[tuple[object, ...]]
    ) -> None:
        conn.execute("create table t (n int)")
        with proxy, self.connect(proxy, dsn, "one") as one:
            one.execute("insert into t values (1)")
            proxy.change("one", lose_reply=True)
            # within the transaction answers still come
            assert one.execute("select n from t").fetchone() == (1,)
            assert conn.execute("select count(*) from t").fetchone() == (0,)
            with pytest.raises(psycopg.OperationalError):
                one.commit()
            assert proxy.lost_replies == 1
            assert conn.execute("select n from t").fetchone() == (1,)

    def test_it_falls_silent_and_speaks_again(self, proxy: Proxy, dsn: str) -> None:
        with proxy, self.connect(proxy, dsn, "one", autocommit=True) as one:
            proxy.change("one", frozen=True)
            with ThreadPoolExecutor(1) as thread:
                answer = thread.submit(one.execute, "select 1")
                with pytest.raises(TimeoutError):
                    answer.result(0.3)
                proxy.calm("one")
                assert answer.result(10).fetchone() == (1,)

    def test_it_cuts_in_the_middle_of_an_answer(self, proxy: Proxy, dsn: str) -> None:
        with proxy, self.connect(proxy, dsn, "one") as one:
            proxy.change("one", budget=1000)
            with pytest.raises(psycopg.OperationalError):
                one.execute("select repeat('x', 100000)")
