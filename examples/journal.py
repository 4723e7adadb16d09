"""
A plugin that writes every start, abort and shutdown to a file.

    ./run python examples/journal.py [journal.txt]

It watches from the worker's process, on a thread of its own: a slow disk holds no job up.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from pyprocrastinate import AbortReason, App, PsycopgConnector, hookimpl
from pyprocrastinate.jobs import Job
from pyprocrastinate.migrate import migrate
from pyprocrastinate.worker import Worker

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")

    @hookimpl
    def job_started(self, job: Job) -> None:
        self.write(f"start {job.call_string}")

    @hookimpl
    def job_abort_requested(self, job: Job, reason: AbortReason) -> None:
        self.write(f"abort {job.call_string}: {reason.value}")

    @hookimpl
    def worker_stopping(self, worker: Worker, running: list[Job]) -> None:
        names = ", ".join(job.call_string for job in running) or "nothing"
        self.write(f"shutdown of {worker.worker_name}; running: {names}")


journal = Journal(Path(sys.argv[1] if len(sys.argv) > 1 else "journal.txt"))
app = App(connector=PsycopgConnector(DSN), plugins=[journal])


@app.task(name="wait")
async def wait(seconds: int) -> None:
    await asyncio.sleep(seconds)


if __name__ == "__main__":
    with app.open():
        migrate(DSN)
        wait.defer(seconds=0)
        wait.defer(seconds=3600)
    # Ends by SIGINT or SIGTERM, as any worker; tasks then get a second.
    app.run_worker(concurrency=2, shutdown_graceful_timeout=1)
