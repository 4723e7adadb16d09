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
import secrets
import shlex
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import namedtuple_row
from rich import progress

from demo.files import DemoError, console, find_files, from_text
from pyprocrastinate import App, Blueprint, JobContext, PsycopgConnector, RetryStrategy, embedded
from pyprocrastinate.exceptions import ProcrastinateException
from pyprocrastinate.migrate import migrate
from pyprocrastinate_cli._explain import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from pyprocrastinate.types import JSONDict

HOME = "embedded:.pyprocrastinate/demo"
CONCURRENCY = 8
SHARING = 5
TICKS = 2
PATIENCE = 60.0
# It runs on any server, and the way there may be a pooler that has no memory for prepared statements.
PREPARE_NOTHING: dict[str, Any] = {"prepare_threshold": None}
DEFER = """\
select procrastinate.defer('demo.count_file', jsonb_build_object('path', path), queue => %s)
  from unnest(%s::text[]) as path"""

tasks = Blueprint()


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
        address = {k: v for k, v in conninfo_to_dict(dsn).items() if not k.endswith("password")}
        return shlex.join(["psql", make_conninfo("", **address)])
    program = shutil.which("pyprocrastinate", path=Path(sys.executable).parent)
    argv = [program] if program else [sys.executable, "-m", "pyprocrastinate"]
    return shlex.join([*argv, *(["--dsn", dsn] if dsn else []), "psql"])


# What happens


class Demo:
    """One demo on one database."""

    def __init__(self, conninfo: str, files: list[str]) -> None:
        self.conninfo = conninfo
        self.files = files
        self.queue = f"demo-{secrets.token_hex(3)}"
        self.app = App(connector=PsycopgConnector(conninfo, kwargs=PREPARE_NOTHING))
        self.app.add_tasks_from(tasks, namespace="")
        every_second = self.app.periodic(cron="* * * * * *", periodic_id=self.queue, queue=self.queue, priority=2)
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
        with connect(self.conninfo, autocommit=True, row_factory=namedtuple_row, **PREPARE_NOTHING) as self.conn:
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
        seen: Any = None
        last_change = time.monotonic()
        while not working.done():
            asked_at = time.monotonic()
            (left,) = self.ask(
                "select coalesce(sum(ready + blocked + scheduled + doing), 0) as jobs "
                "  from procrastinate.queues where name = %s",
                self.queue,
            )
            self.ask(
                "select procrastinate.cancel(id, abort => true) {mine} and id = %s "
                "and status = 'doing' and not abort_requested",
                self.endless,
            )
            ticks = [] if left.jobs else self.ask("select id {mine} and task = 'demo.tick'")
            show(int(max(0, self.jobs - left.jobs)))
            if len(ticks) >= TICKS:
                return
            now = time.monotonic()
            if seen != (seen := (left.jobs, len(ticks))):
                last_change = now
            elif now - last_change > PATIENCE:
                raise DemoError(f"{left.jobs:,} jobs wait, and nothing has happened for a minute")
            time.sleep(max(0.05, 2 * (now - asked_at)))
        working.result()
        raise DemoError("the worker has stopped")

    def tell(self, line: str, query: str, *args: Any) -> None:
        """Print a line for each row of a query."""
        for row in self.ask(query, *args):
            console.print(line.format(**row._asdict()))

    def tell_of_special_jobs(self) -> None:
        """Tell what happened to the jobs that behave otherwise."""
        console.print("\nalong the way")
        self.tell(
            "  retried   job {id} failed with {error}, ran again {pause:.2f} s later: {status} after {attempts} runs",
            "select j.id, j.status, j.attempts, e.detail -> 'error' ->> 'class' as error, "
            "       extract(epoch from j.started_at - e.at) as pause "
            "  from procrastinate.events as e, procrastinate.jobs as j "
            " where j.id = %s and e.job_id = j.id and e.type = 'deferred_for_retry'",
            self.unlucky,
        )
        self.tell(
            "  aborted   job {id} was asked to stop after {run:.2f} s: {status} {delay:.0f} ms later",
            "select j.id, j.status, extract(epoch from e.at - j.started_at) as run, "
            "       extract(epoch from j.finished_at - e.at) * 1000 as delay "
            "  from procrastinate.events as e, procrastinate.jobs as j "
            " where j.id = %s and e.job_id = j.id and e.type = 'abort_requested'",
            self.endless,
        )
        self.tell(
            "  in turn   {jobs} jobs shared a lock: {at_once} ran at a time",
            "select count(*) as jobs, max(a.at_once) as at_once "
            "  from (select (select count(*) from procrastinate.jobs as other "
            "                 where other.id = any (%s) and other.started_at <= job.started_at "
            "                   and other.finished_at > job.started_at) as at_once "
            "          from procrastinate.jobs as job where job.id = any (%s)) as a",
            self.in_turn,
            self.in_turn,
        )
        self.tell(
            "  schedule  every second: {ticks} times so far, the last one {late:.0f} ms late",
            "select count(*) as ticks, "
            "       1000 * (array_agg(extract(epoch from started_at) - (args ->> 'timestamp')::int "
            "                         order by id desc))[1] as late {mine} and task = 'demo.tick'",
        )

    def tell_of_all_jobs(self) -> None:
        """Tell how many jobs ended how, what failed, and how fast the files were."""
        console.print(f"\n{'status':10}{'jobs':>12}{'runs':>12}{'longest run':>16}")
        self.tell(
            "{status:10}{jobs:>12,}{runs:>12,}{longest:>14.3f} s",
            "select status, count(*) as jobs, sum(attempts) as runs, "
            "       extract(epoch from max(finished_at - started_at)) as longest "
            "  {mine} group by status order by jobs desc, status",
        )
        console.print()
        self.tell(
            "job {id} failed with {error_class}: {path}",
            "select id, args ->> 'path' as path, error_class   {mine} and status = 'failed' order by id limit 3",
        )
        self.tell(
            "{files:,} files with {bytes:,} bytes in {lines:,} lines: {seconds:.2f} s, {rate:,.0f} files a second",
            "select count(*) as files, sum((result ->> 'bytes')::bigint) as bytes, "
            "       sum((result ->> 'lines')::bigint) as lines, "
            "       seconds, count(*) / seconds as rate "
            "  from (select result, extract(epoch from max(finished_at) over () "
            "                                        - min(started_at) over ()) as seconds "
            "          {mine} and task = 'demo.count_file' and status = 'succeeded') as f "
            " group by seconds having seconds > 0",
        )


@contextlib.contextmanager
def progressing(total: int) -> Iterator[Callable[[int], None]]:
    """Show how many jobs are done: as a bar on a terminal, else a line now and then."""
    console.print(f"a worker runs them, {CONCURRENCY} at a time")
    columns = progress.BarColumn(None), progress.MofNCompleteColumn(), progress.TimeElapsedColumn()
    said = 0
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("jobs", total=total)

        def show(done: int) -> None:
            nonlocal said
            bar.update(task, completed=done)
            if bar.disable and done * 10 // total > said:
                said = done * 10 // total
                console.print(f"  {done:,} of {total:,} jobs done")

        yield show
