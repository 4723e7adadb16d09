"""Who uses the queue during the soak: python -m tests.faults.clients OPTIONS."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from pyprocrastinate import App, SyncPsycopgConnector
from pyprocrastinate.exceptions import AlreadyEnqueued, ProcrastinateException
from tests.faults.history import History
from tests.faults.tasks import CRASH_RUNS, FLAKY_RETRIES, QUEUES, WAKE
from tests.faults.worker import end_with_parent

_ROLLED_BACK = "rolled back"


class Client:
    """Draws jobs and defers them in batches at an even rate, whatever befalls its connection."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.name: str = options["name"]
        self.dsn: str = options["dsn"]
        self.seconds: float = options["seconds"]
        self.rate: float = options["rate"]
        self.random = random.Random(f"{options['seed']} {self.name}")
        self.history = History(Path(options["folder"]), self.name)
        self.hold = Path(options["hold"])
        self.count = 0

    def draw(self) -> dict[str, Any]:
        """Draw a job."""
        rnd = self.random
        self.count += 1
        job: dict[str, Any] = {
            "queue": rnd.choice([*QUEUES, WAKE]),
            "priority": rnd.choice([0, 0, 0, 0, 1, 2, -1]),
            "args": {"key": f"{self.name} {self.count}"},
        }
        chance = rnd.random()
        if chance < 0.6:
            job["task"] = "quick"
        elif chance < 0.75:
            job["task"] = rnd.choice(["work", "thread"])
            job["args"]["seconds"] = round(rnd.uniform(0.02, 0.3), 3)
        elif chance < 0.85:
            job["task"] = "flaky"
            job["args"]["fails"] = rnd.choice([1, 2, 9])
        elif chance < 0.92:
            job |= {"task": "work", "lock": f"lock {rnd.randrange(8)}"}
            job["args"]["seconds"] = round(rnd.uniform(0.0, 0.2), 3)
        elif chance < 0.95:
            job |= {"task": "quick", "queueing_lock": f"unique {rnd.randrange(20)}"}
        elif chance < 0.97:
            job |= {"task": "quick", "schedule_in": round(rnd.uniform(0.2, 3.0), 1)}
        elif chance < 0.98:
            job["task"] = rnd.choice(["work", "patient"])
            job["args"]["seconds"] = round(rnd.uniform(2.0, 5.0), 1)
        else:
            job["task"] = "complete"
        return job

    def run(self) -> None:
        """Defer until the time is over, and never more than a moment late unless too many jobs wait."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self.seconds:
            due = int(passed * self.rate) - self.count
            if due <= 0 or self.hold.exists():
                time.sleep(0.005)
                continue
            batch = [self.draw() for _ in range(min(due, self.random.choice([1, 1, 1, 5, 20])))]
            # Those of one transaction in one order, for each keeps others with the same queueing lock waiting.
            batch.sort(key=lambda job: job.get("queueing_lock") or "")
            self.defer(batch)

    def defer(self, batch: list[dict[str, Any]]) -> None:
        raise NotImplementedError

    @contextmanager
    def told(self, batch: list[dict[str, Any]]) -> Iterator[list[int | None]]:
        """Write down what becomes of a defer; the body fills in ids, None for jobs that were there already."""
        keys = [job["args"]["key"] for job in batch]
        self.history.write("invoke", jobs=batch)
        ids: list[int | None] = []
        try:
            yield ids
        except (psycopg.Error, ProcrastinateException) as error:
            # Whether it was committed is not known.
            sqlstate = getattr(error if isinstance(error, psycopg.Error) else error.__cause__, "sqlstate", None)
            self.history.write("info", keys=keys, error=f"{type(error).__name__}: {error}"[:200], sqlstate=sqlstate)
            time.sleep(0.05)
        except RuntimeError as error:
            if str(error) != _ROLLED_BACK:
                raise
            self.history.write("fail", keys=keys)
        else:
            self.history.write("ok", keys=keys, ids=ids)


class PythonClient(Client):
    """Defers through the Python API, one by one or in a batch."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.app = App(connector=SyncPsycopgConnector(self.dsn, min_size=1, max_size=1, timeout=2))
        self.opened = False

    def defer(self, batch: list[dict[str, Any]]) -> None:
        for job in batch:
            with self.told([job]) as ids:
                if not self.opened:
                    self.app.open()
                    self.opened = True
                options: dict[str, Any] = {
                    k: job[k] for k in ("queue", "priority", "lock", "queueing_lock") if k in job
                }
                if "schedule_in" in job:
                    options["schedule_in"] = {"seconds": job["schedule_in"]}
                try:
                    ids.append(self.app.configure_task(job["task"], **options).defer(**job["args"]))
                except AlreadyEnqueued:
                    ids.append(None)


class SqlClient(Client):
    """Defers with plain SQL, sometimes in a transaction that commits late or rolls back."""

    conn: psycopg.Connection[Any] | None = None

    def draw(self) -> dict[str, Any]:
        job = super().draw()
        if job["task"] == "flaky":
            job["retry"] = {"max_attempts": FLAKY_RETRIES, "wait": 0.2}
        elif job["task"] == "complete" and self.random.random() < 0.01:
            job |= {"task": "crash", "retry": {"rescues": CRASH_RUNS - 1}}
        return job

    def defer(self, batch: list[dict[str, Any]]) -> None:
        with self.told(batch) as ids:
            try:
                if self.conn is None or self.conn.closed:
                    self.conn = psycopg.connect(self.dsn, connect_timeout=3)
                with self.conn.transaction():
                    rows = self.conn.execute(
                        "select id, created from procrastinate.defer_many(%s, 'ignore') order by ord",
                        [json.dumps(batch)],
                    ).fetchall()
                    ids += [row[0] if row[1] else None for row in rows]
                    if self.random.random() < 0.1:
                        time.sleep(self.random.uniform(0, 0.2))
                    if self.random.random() < 0.05:
                        raise RuntimeError(_ROLLED_BACK)
            except psycopg.Error:
                # A link that is dead behind the proxy would otherwise be waited for again.
                if self.conn is not None:
                    self.conn.close()
                raise


class Operator(Client):
    """Aborts running jobs and cancels waiting ones, as somebody who looks at the queue would."""

    conn: psycopg.Connection[Any] | None = None

    def run(self) -> None:
        began = time.monotonic()
        while time.monotonic() - began < self.seconds:
            try:
                if self.conn is None or self.conn.closed:
                    self.conn = psycopg.connect(self.dsn, autocommit=True, connect_timeout=3)
                self._act(self.conn)
            except psycopg.Error:
                if self.conn is not None:
                    self.conn.close()
            time.sleep(self.random.uniform(0.1, 0.5))

    def _act(self, conn: psycopg.Connection[Any]) -> None:
        abort = self.random.random() < 0.7
        found = conn.execute(
            "select id from procrastinate.jobs where status = %s and task = any (%s) limit 1",
            ["doing", ["work", "patient"]] if abort else ["todo", ["quick"]],
        ).fetchone()
        if found is None:
            return
        self.history.write("cancel", job=found[0], abort=abort)
        row = conn.execute("select procrastinate.cancel(%s, abort => %s)", [found[0], abort]).fetchone()
        assert row is not None
        self.history.write("cancelled", job=found[0], answer=row[0])


CLIENTS = {"python": PythonClient, "sql": SqlClient, "operator": Operator}


def main() -> None:
    options = json.loads(sys.argv[1])
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    CLIENTS[options["name"]](options).run()


if __name__ == "__main__":
    main()
