"""
What the tests of the SQL core share.

That is a database, emptied before each test, and short names for calls.
Nothing here knows a rule of the queue: `Database` and `Worker` send the call that the name says and
return its rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[Any]

# Stands in args wherever a call is refused: no error may repeat it.
SECRET = "s3cr3t"

JSON = {"args", "headers", "retry", "options", "jobs", "tasks", "schedules", "info", "outcomes", "result", "value"}

EMPTY = """
do $$
declare
  t regclass;
begin
  for t in select c.oid from pg_class as c
            where c.relnamespace = 'procrastinate'::regnamespace and c.relkind = 'r'
              and c.relname not in ('migration', 'protocol_range', 'config', 'tick', 'tick_turn') loop
    if pg_relation_size(t) > 1000000 then
      execute format('truncate %s cascade', t);
    else
      execute format('delete from %s', t);
    end if;
  end loop;
  for t in select c.oid from pg_class as c
            where c.relnamespace = 'procrastinate'::regnamespace and c.relkind = 'S' loop
    execute format('alter sequence %s restart', t);
  end loop;
  delete from procrastinate.config;
  insert into procrastinate.config default values;
  delete from procrastinate.tick;
  insert into procrastinate.tick (next_at) values (clock_timestamp());
end $$
"""


class Database:
    """The schema, as somebody sees it who types its functions in psql."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        """Return the rows of a query, as named tuples."""
        return self.conn.cursor(row_factory=namedtuple_row).execute(query, parameters or None).fetchall()

    def one(self, query: str, *parameters: Any) -> Any:
        """Return the only value of a query."""
        ((value,),) = self.rows(query, *parameters)
        return value

    def call(self, function: str, /, **arguments: Any) -> list[Any]:
        """Return the rows of `select * from procrastinate.<function>(name => value, …)`."""
        for name in JSON & arguments.keys():
            if arguments[name] is not None:
                arguments[name] = Jsonb(arguments[name])
        query = sql.SQL("select * from procrastinate.{}({})").format(
            sql.Identifier(function),
            sql.SQL(", ").join(sql.SQL("{} => {}").format(sql.Identifier(a), sql.Placeholder(a)) for a in arguments),
        )
        return self.conn.cursor(row_factory=namedtuple_row).execute(query, arguments).fetchall()

    def value(self, function: str, /, **arguments: Any) -> Any:
        """Return what a function that returns one value returns."""
        ((value,),) = self.call(function, **arguments)
        return value

    def defer(self, task: str | None = "task", **options: Any) -> int:
        return self.value("defer", task=task, **options)

    def defer_many(self, *jobs: Any, **options: Any) -> list[Any]:
        return self.call("defer_many", jobs=[{"task": "task"} | job for job in jobs], **options)

    def worker(self, name: str = "worker", **options: Any) -> Worker:
        """Register a worker."""
        return Worker(self, self.value("register_worker_v1", name=name, **options))

    def cancel(self, job_id: int, **options: Any) -> str | None:
        return self.value("cancel", job_id=job_id, **options)

    def retry(self, job_id: int, **options: Any) -> bool:
        return self.value("retry", job_id=job_id, **options)

    def set(self, name: str, value: Any) -> None:
        self.value("set_setting", name=name, value=value)

    def job(self, job_id: int) -> Any:
        """Return a job as the view shows it; None if there is none."""
        rows = self.rows("select * from procrastinate.jobs where id = %s", job_id)
        assert len(rows) <= 1
        return rows[0] if rows else None

    def status(self, *job_ids: int) -> Any:
        """Return the status of a job, or the list of those of several."""
        found = dict(self.rows("select id, status from procrastinate.jobs where id = any (%s)", list(job_ids)))
        return found.get(job_ids[0]) if len(job_ids) == 1 else [found.get(job_id) for job_id in job_ids]

    def events(self, job_id: int) -> list[str]:
        """Return the types of a job's events, in the order of their times."""
        found = self.rows(
            "select type from procrastinate.events where job_id = %s and type <> 'scheduled' order by at, id", job_id
        )
        return [row.type for row in found]

    def lock(self, name: str) -> Any:
        """Return what the view says about a lock; None if nothing waits or runs under it."""
        rows = self.rows("select * from procrastinate.locks where lock = %s", name)
        assert len(rows) <= 1
        return rows[0] if rows else None

    def advance(self, duration: str) -> None:
        """Move the time of the queue on."""
        self.conn.execute("select procrastinate.enable_test_clock(), procrastinate.advance(%s)", [duration])

    def now(self) -> Any:
        return self.one("select procrastinate.now_()")

    def tick(self) -> list[tuple[str, int | None]]:
        """Do what is due by the clock, whenever it was done last, and return what that was."""
        self.conn.execute("update procrastinate.tick set next_at = '2000-01-01'")
        return [(row.kind, row.job_id) for row in self.call("tick_v1")[:-1]]

    @contextmanager
    def refused(self, sqlstate: str, message: str = "", **diagnostics: str) -> Iterator[None]:
        """
        Assert that a call is refused with this SQLSTATE, message and parts of detail and hint.

        Every error of ours says what to do, and none repeats a value of args.
        """
        with pytest.raises(psycopg.Error) as raised:
            yield
        diag = raised.value.diag
        assert (diag.sqlstate, diag.message_primary) == (sqlstate, message or diag.message_primary)
        for name, part in diagnostics.items():
            assert part in (getattr(diag, "message_" + name) or "")
        parts = [diag.message_primary, diag.message_detail, diag.message_hint, diag.context]
        assert not any(SECRET in (part or "") for part in parts)
        if sqlstate.startswith("JQ"):
            assert diag.message_hint
            assert diag.message_hint.endswith(".")
            assert diag.message_primary
            assert not diag.message_primary.endswith(".")
            assert not diag.message_primary[0].isupper()


class Worker:
    """A registered worker."""

    def __init__(self, db: Database, worker_id: int) -> None:
        self.db = db
        self.id = worker_id

    def on(self, db: Database) -> Worker:
        """Return the same worker on another connection."""
        return Worker(db, self.id)

    def fetch(self, capacity: int = 1) -> list[Any]:
        return self.db.call("fetch_v1", worker_id=self.id, capacity=capacity)

    def take(self) -> Any:
        """Fetch the next job, which must be there."""
        (job,) = self.fetch()
        return job

    def ids(self, capacity: int = 1) -> list[int]:
        """Fetch jobs and return their ids."""
        return [job.id for job in self.fetch(capacity)]

    def finish(self, *succeeded: Any, outcomes: Any = (), keep: bool = True) -> list[Any]:
        """Return the verdicts on these plain successes and on these outcomes."""
        return self.db.call(
            "finish_v1",
            worker_id=self.id,
            succeeded=[job.id for job in succeeded],
            tokens=[job.token for job in succeeded],
            outcomes=list(outcomes),
            keep=keep,
        )

    def end(self, job: Any, kind: str, **more: Any) -> Any:
        """Return the verdict on one run that ended so."""
        (verdict,) = self.finish(outcomes=[outcome(job, kind, **more)])
        return verdict

    def succeed(self, job: Any, **more: Any) -> Any:
        return self.end(job, "succeeded", **more)

    def fail(self, job: Any, error: str = "ValueError", **more: Any) -> Any:
        return self.end(job, "failed", error={"class": error, "message": "no"}, **more)

    def work(
        self,
        *succeeded: Any,
        outcomes: Any = (),
        keep: bool = True,
        capacity: int = 0,
        extra: int = 0,
        scan_from: list[int] | None = None,
    ) -> tuple[list[Any], Any]:
        """Return the fetched jobs, and the last row."""
        *jobs, last = self.db.call(
            "work_v1",
            worker_id=self.id,
            succeeded=[job.id for job in succeeded],
            tokens=[job.token for job in succeeded],
            outcomes=list(outcomes),
            keep=keep,
            capacity=capacity,
            extra=extra,
            scan_from=scan_from,
        )
        assert last.id is None
        return jobs, last

    def heartbeat(self) -> Any:
        (row,) = self.db.call("heartbeat_v1", worker_id=self.id)
        return row

    def idle(self) -> Any:
        (row,) = self.db.call("idle_v1", worker_id=self.id)
        return row

    def unregister(self) -> int:
        return self.db.value("unregister_worker_v1", worker_id=self.id)


def outcome(job: Any, kind: str, **more: Any) -> dict[str, Any]:
    """Return the JSON object that tells how a run ended."""
    return {"id": job.id, "token": job.token, "outcome": kind} | more


class Listener:
    """Somebody who listens to the channel of the queue."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.payloads: list[str] = []
        self.fences = itertools.count()
        conn.add_notify_handler(lambda notify: self.payloads.append(notify.payload))
        conn.execute("listen procrastinate_v1")

    def heard(self) -> list[str]:
        """Return what was sent since the last call, by transactions that have committed by now."""
        fence = f"fence {next(self.fences)}"
        self.conn.execute(f"notify procrastinate_v1, '{fence}'")
        while fence not in self.payloads:
            self.conn.execute("select")
        heard = self.payloads[: self.payloads.index(fence)]
        self.payloads.clear()
        return heard


@pytest.fixture(name="outcome")
def _outcome() -> Callable[..., dict[str, Any]]:
    """Return the function that makes the JSON object of an outcome."""
    return outcome


@pytest.fixture
def secret() -> str:
    """Return a value that no error may repeat."""
    return SECRET


@dataclass
class Shared:
    """A database for all these tests; a new one, or new sessions, for each take far longer."""

    dsn: str
    conn: Connection

    @staticmethod
    def connect(dsn: str) -> Connection:
        return psycopg.connect(dsn, autocommit=True, prepare_threshold=None)

    def empty(self) -> None:
        """Leave nothing but the schema, and ids that start at 1."""
        if self.conn.closed:
            self.conn = self.connect(self.dsn)
        self.conn.execute("reset session authorization; reset all; unlisten *; discard temp")
        self.conn.execute(EMPTY)


@pytest.fixture(scope="package")
def shared(pg_server: Any, pg_template: Any) -> Iterator[Shared]:
    """Make the database of these tests."""
    name = f"{pg_template.template_dbname}_sql"
    with psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True) as admin:
        create, template = sql.SQL("create database {} template {}"), pg_template.template_dbname
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        shared = Shared(pg_server.dsn(name), Shared.connect(pg_server.dsn(name)))
        yield shared
        shared.conn.close()
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def direct_dsn(shared: Shared) -> str:
    """Return the DSN of a database with nothing in it but the schema."""
    shared.empty()
    return shared.dsn


@pytest.fixture
def conn(direct_dsn: str, shared: Shared) -> Connection:
    """Return a connection in autocommit to a database with nothing in it but the schema."""
    return shared.conn


@pytest.fixture
def db(conn: Connection) -> Database:
    """Return the database of the test, in autocommit."""
    return Database(conn)


@pytest.fixture
def session(connect: Callable[..., Connection]) -> Callable[..., Database]:
    """Return a function that opens another session; with autocommit=False one in a transaction."""
    return lambda **parameters: Database(connect(**parameters))


@pytest.fixture
def worker(db: Database) -> Worker:
    """Return a worker of all queues that knows no task."""
    return db.worker()


@pytest.fixture
def listener(connect: Callable[..., Connection]) -> Listener:
    """Return somebody who listens from now on."""
    return Listener(connect())
