"""
The demo: a queue at work on real files.

One statement of plain SQL defers a job for each file; a worker in this process hashes and counts
them.
Meanwhile a job fails and is retried, one is aborted as it runs, some share a lock, and a schedule
ticks.
What is told at the end is read from the schema's public views, and stays there to be looked at.

Each demo has a queue of its own, so that several may run on one database.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import re
import secrets
import shlex
import shutil
import stat
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import namedtuple_row
from rich import progress
from rich.console import Console
from rich.table import Table

from pyprocrastinate import App, Blueprint, JobContext, PsycopgConnector, RetryStrategy, embedded
from pyprocrastinate._explain import explain
from pyprocrastinate.exceptions import ProcrastinateException
from pyprocrastinate.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from pyprocrastinate.types import JSONDict

HOME = "embedded:.pyprocrastinate/demo"
CONCURRENCY = 8
SHARING = 5
TICKS = 2
PATIENCE = 60.0
DEFER = """\
select procrastinate.defer('demo.count_file', jsonb_build_object('path', path), queue => %s)
  from unnest(%s::text[]) as path"""

tasks = Blueprint()
console = Console(markup=False, highlight=False, soft_wrap=True)


@tasks.task(name="demo.count_file", store_result=True)
def count_file(path: str) -> JSONDict:
    """Hash a file and count its lines."""
    digest, size, lines = hashlib.sha256(), 0, 0
    with open(from_text(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
            lines += block.count(b"\n")
    return {"sha256": digest.hexdigest(), "bytes": size, "lines": lines}


@tasks.task(name="demo.unlucky", pass_context=True, retry=RetryStrategy(max_attempts=3, wait=0.3))
async def unlucky(context: JobContext) -> None:
    """Fail at the first run."""
    if context.job.attempts == 0:
        raise ConnectionError("the first run always fails")


@tasks.task(name="demo.endless")
async def endless() -> None:
    """Run until somebody aborts it."""
    await asyncio.Event().wait()


@tasks.task(name="demo.in_turn")
async def in_turn(number: int) -> None:
    """Take a while, in which others with the same lock have to wait."""
    await asyncio.sleep(0.1)


@tasks.task(name="demo.tick")
async def tick(timestamp: int) -> None:
    """Do nothing, on time."""


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def main(folder: str | None = None, dsn: str | None = None) -> int:
    """Run the demo and return its exit code: 1 after a message that says what is in the way."""
    for stream in (sys.stdout, sys.stderr):  # a name may have letters that the terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not dsn and embedded.from_environment() is None:
        dsn = HOME
    try:
        files = find_files(folder)
        with embedded.resolve(dsn or "") as resolved:
            demo = Demo(resolved.conninfo, files)
            demo.run()
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (embedded.EmbeddedError, ProcrastinateException, psycopg.Error, OSError) as error:
        print(f"demo: {explain(error)}", file=sys.stderr)
        if isinstance(error, OSError):
            print("Run it where you may write, or with --dsn embedded:FOLDER", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    place = dsn.removeprefix(embedded.PREFIX) if dsn == HOME else f"queue {demo.queue}"
    console.print(f"\nAll of it is kept, in {place}. To look inside:\n\n  {psql_command(dsn)}")
    return 0


def psql_command(dsn: str | None) -> str:
    """Return the command that opens psql where the demo was; a password is left for psql to ask."""
    if dsn and not dsn.startswith(embedded.PREFIX):
        address = {k: v for k, v in conninfo_to_dict(dsn).items() if k != "password"}
        return shlex.join(["psql", make_conninfo("", **address)])
    program = shutil.which("pyprocrastinate", path=Path(sys.executable).parent)
    argv = [from_here(program)] if program else [sys.executable, "-m", "pyprocrastinate"]
    return shlex.join([*argv, *(["--dsn", dsn] if dsn else []), "psql"])


def from_here(path: str) -> str:
    """Return the path of a program as one calls it from the current folder."""
    with contextlib.suppress(ValueError):  # it is on another drive
        here = os.path.relpath(path)
        return path if os.pardir in here or os.sep not in here else here
    return path


# Files and their names


def find_files(folder: str | None) -> list[str]:
    """
    Return the files of a folder, as `as_text` writes them.

    By default they are the sources of Python and, because some systems leave half of those out, of
    the packages beside it.
    """
    roots = [folder] if folder else [sysconfig.get_path(name) for name in ("stdlib", "purelib")]
    shown = " and ".join(as_text(os.path.abspath(root)) for root in roots)
    if folder and not os.path.isdir(folder):
        raise DemoError(f"{shown} is not a folder")
    closed: list[OSError] = []
    found: list[str] = []
    for root in roots:
        for place, folders, names in os.walk(os.path.abspath(root), onerror=closed.append):
            folders[:] = [name for name in folders if is_wanted(name)]
            names = [name for name in names if folder or name.endswith(".py")]
            found += [as_text(path) for name in names if is_file(path := os.path.join(place, name))]
    if closed:
        console.print(f"left out what cannot be read: {as_text(closed[0].filename)}", end="")
        console.print(f" and {len(closed) - 1:,} more folders" if len(closed) > 1 else "")
    if not found:
        raise DemoError(f"there are no files in {shown}: name another folder")
    console.print(f"{len(found):,} files in {shown}")
    return sorted(found)


def is_wanted(folder: str) -> bool:
    """Leave out hidden folders, and what Python has compiled or keeps elsewhere."""
    return not folder.startswith(".") and folder not in ("__pycache__", "site-packages")


def is_file(path: str) -> bool:
    """Tell a file from a link, and from a pipe, whose reader would wait."""
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def as_text(path: str) -> str:
    """Write a path as a line of text: with %XX for %, control characters and what is not UTF-8."""
    return re.sub(
        "[%\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda found: quote(os.fsencode(found[0]), safe=""),
        path,
    )


def from_text(text: str) -> str:
    """Return the path that `as_text` wrote."""
    return unquote(text, sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


# What happens


class Demo:
    """One demo on one database."""

    def __init__(self, conninfo: str, files: list[str]) -> None:
        self.conninfo = conninfo
        self.files = files
        self.queue = f"demo-{secrets.token_hex(3)}"
        self.app = App(connector=PsycopgConnector(conninfo))
        self.app.add_tasks_from(tasks, namespace="")
        every_second = self.app.periodic(
            cron="* * * * * *", periodic_id=self.queue, queue=self.queue, priority=2
        )
        every_second(tick)
        self.worker = self.app.make_worker(
            queues=[self.queue],
            name="demo",
            concurrency=CONCURRENCY,
            shutdown_graceful_timeout=1,
            install_signal_handlers=False,
        )
        self.first = self.unlucky = self.endless = 0
        self.in_turn: list[int] = []

    def run(self) -> None:
        """Defer the jobs, have them run, and tell what became of them."""
        connect = psycopg.Connection[Any].connect
        with connect(self.conninfo, autocommit=True, row_factory=namedtuple_row) as self.conn:
            with self.app.open():
                self.prepare()
                self.defer()
            with self.working() as working, progressing(self.jobs) as show:
                self.watch(working, show)
            # A tick that came as the worker stopped would wait for ever.
            self.ask("select procrastinate.cancel(id, delete => true) {mine} and status = 'todo'")
            self.tell_of_special_jobs()
            self.tell_of_all_jobs()

    @property
    def jobs(self) -> int:
        """The number of jobs, without the ticks."""
        return len(self.files) + 2 + SHARING

    def ask(self, query: str, *args: Any) -> list[Any]:
        """Return the rows of a query; `{mine}` in it stands for the jobs of this demo."""
        mine = "from procrastinate.jobs where queue = %s and id >= %s"
        mine_args = [self.queue, self.first] * query.count("{mine}")
        statement = query.replace("{mine}", mine).encode()
        return self.conn.execute(statement, [*mine_args, *args]).fetchall()

    def prepare(self) -> None:
        """Install the schema where there is none."""
        info = self.conn.info
        server = info.parameter_status("server_version")
        console.print(f"PostgreSQL {server} at {info.host}, database {info.dbname}")
        if not self.app.check_connection():
            migrate(self.conninfo)
            console.print("installed the schema procrastinate")

    def defer(self) -> None:
        """Defer a job for each file, with one statement, and then some that behave otherwise."""
        began = time.monotonic()
        ids = self.ask(DEFER, self.queue, self.files)
        seconds = time.monotonic() - began
        self.first = ids[0][0]
        statement = DEFER.replace("%s", "$1", 1).replace("%s", "$2", 1)
        console.print(f"deferred {len(ids):,} jobs in {seconds:.2f} s with one statement:\n")
        console.print("".join(f"  {line}\n" for line in statement.splitlines()))
        self.unlucky = unlucky.configure(queue=self.queue, priority=1).defer()
        self.endless = endless.configure(queue=self.queue, priority=1).defer()
        numbers: list[JSONDict] = [{"number": number} for number in range(SHARING)]
        in_turn_pattern = in_turn.configure(queue=self.queue, priority=1, lock=self.queue)
        self.in_turn = in_turn_pattern.batch_defer(*numbers)

    @contextlib.contextmanager
    def working(self) -> Iterator[Future[None]]:
        """Run the worker in a thread; it has ended at the end."""

        async def work() -> None:
            async with self.app.open_async():
                await self.worker.run()

        with ThreadPoolExecutor(1) as thread:
            working = thread.submit(asyncio.run, work())
            try:
                yield working
            finally:
                self.worker.stop()
        working.result()

    def watch(self, working: Future[None], show: Callable[[int], None]) -> None:
        """Wait for the end of all jobs and some ticks, and abort the endless job as it runs."""
        seen: tuple[int, int] = (-1, -1)
        last_change = time.monotonic()
        while not working.done():
            asked_at = time.monotonic()
            left = self.ask(
                "select ready + blocked + scheduled + doing from procrastinate.queues "
                "where name = %s",
                self.queue,
            )
            waiting = left[0][0] if left else 0
            self.ask(
                "select procrastinate.cancel(id, abort => true) {mine} and id = %s "
                "and status = 'doing' and not abort_requested",
                self.endless,
            )
            ticks = 0
            if not waiting:
                ticks = len(self.ask("select id {mine} and task = 'demo.tick'"))
                if ticks >= TICKS:
                    show(self.jobs)
                    return
            show(max(0, self.jobs - waiting))
            now = time.monotonic()
            if seen != (seen := (waiting, ticks)):
                last_change = now
            elif now - last_change > PATIENCE:
                raise DemoError(f"nothing has happened for {PATIENCE:.0f} s: {waiting:,} jobs wait")
            time.sleep(max(0.05, 2 * (now - asked_at)))
        working.result()
        raise DemoError("the worker has stopped")

    def tell_of_special_jobs(self) -> None:
        """Tell what happened to the jobs that behave otherwise."""
        console.print("\nalong the way")
        for row in self.ask(
            "select j.status, j.attempts, e.detail -> 'error' ->> 'class' as error, "
            "       extract(epoch from j.started_at - e.at) as pause "
            "  from procrastinate.events as e, procrastinate.jobs as j "
            " where e.job_id = %s and j.id = e.job_id and e.type = 'deferred_for_retry'",
            self.unlucky,
        ):
            console.print(
                f"  retried   job {self.unlucky} failed with {row.error}, ran again "
                f"{row.pause:.2f} s later: {row.status} after {row.attempts} runs"
            )
        for row in self.ask(
            "select j.status, extract(epoch from e.at - j.started_at) as run, "
            "       extract(epoch from j.finished_at - e.at) * 1000 as delay "
            "  from procrastinate.events as e, procrastinate.jobs as j "
            " where e.job_id = %s and j.id = e.job_id and e.type = 'abort_requested'",
            self.endless,
        ):
            console.print(
                f"  aborted   job {self.endless} was told to stop after {row.run:.2f} s: "
                f"{row.status} {row.delay:.0f} ms later"
            )
        for row in self.ask(
            "select count(*) as jobs, max(a.at_once) as at_once "
            "  from (select (select count(*) from procrastinate.jobs as other "
            "                 where other.id = any (%s) and other.started_at <= job.started_at "
            "                   and other.finished_at > job.started_at) as at_once "
            "          from procrastinate.jobs as job where job.id = any (%s)) as a",
            self.in_turn,
            self.in_turn,
        ):
            console.print(f"  in turn   {row.jobs} jobs shared a lock: {row.at_once} ran at a time")
        ticks = self.ask(
            "select extract(epoch from started_at) - (args ->> 'timestamp')::int as delay "
            "  {mine} and task = 'demo.tick' order by id"
        )
        console.print(
            f"  schedule  every second: {len(ticks)} times so far, "
            f"the last one {ticks[-1].delay * 1000:.0f} ms late"
        )

    def tell_of_all_jobs(self) -> None:
        """Tell how many jobs ended how, what failed, and how fast the files were."""
        table = Table(box=None, pad_edge=False)
        table.add_column("status")
        for title in ("jobs", "runs", "longest run"):
            table.add_column(title, justify="right")
        for row in self.ask(
            "select status, count(*) as jobs, sum(attempts) as runs, "
            "       extract(epoch from max(finished_at - started_at)) as longest "
            "  {mine} group by status order by jobs desc, status"
        ):
            table.add_row(row.status, f"{row.jobs:,}", f"{row.runs:,}", f"{row.longest:.3f} s")
        console.print()
        console.print(table)
        failed = self.ask(
            "select args ->> 'path' as path, error_class {mine} and status = 'failed' order by id"
        )
        for row in failed[:3]:
            console.print(f"failed with {row.error_class}: {row.path}")
        if len(failed) > 3:
            console.print(f"and {len(failed) - 3:,} more failed")
        for row in self.ask(
            "select count(*) as files, sum((result ->> 'bytes')::bigint) as bytes, "
            "       sum((result ->> 'lines')::bigint) as lines, "
            "       extract(epoch from max(finished_at) - min(started_at)) as seconds "
            "  {mine} and task = 'demo.count_file' and status = 'succeeded'"
        ):
            if row.files:
                console.print(
                    f"\n{row.files:,} files with {row.bytes:,} bytes in {row.lines:,} lines: "
                    f"{row.seconds:.2f} s, {row.files / max(row.seconds, 1e-6):,.0f} files a second"
                )


@contextlib.contextmanager
def progressing(total: int) -> Iterator[Callable[[int], None]]:
    """Show how many jobs are done: as a bar on a terminal, else a line now and then."""
    console.print(f"a worker runs them, {CONCURRENCY} at a time")
    if not console.is_terminal:
        last = 0
        next_at = time.monotonic() + 1

        def show(done: int) -> None:
            nonlocal last, next_at
            if done != last and (done == total or time.monotonic() >= next_at):
                console.print(f"  {done:,} of {total:,} jobs done")
                last, next_at = done, time.monotonic() + 1

        yield show
        return
    columns = (
        progress.BarColumn(None),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("jobs", total=total)
        yield lambda done: bar.update(task, completed=done)
