"""
A worker that writes down what its tasks do, in a file outside the database, one write a line.

    python crash_app.py DSN HISTORY '{"concurrency": 50, …}'
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from pyprocrastinate import App, JobContext, PsycopgConnector


def make_app(dsn: str, history: str) -> App:
    """Return the app; the worker that runs it, and whoever defers, make one each."""
    app = App(connector=PsycopgConnector(conninfo=dsn))
    file = os.open(history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(what: str, context: JobContext) -> None:
        event = [what, context.job.id, context.token, os.getpid(), time.monotonic()]
        os.write(file, json.dumps(event).encode() + b"\n")

    @app.task(name="work", pass_context=True)
    async def work(context: JobContext, seconds: float = 0.03) -> None:
        note("start", context)
        await asyncio.sleep(seconds)
        note("end", context)

    @app.task(name="die", queue="deadly", pass_context=True)
    async def die(context: JobContext) -> None:
        note("start", context)
        os.kill(os.getpid(), signal.SIGKILL)

    @app.task(name="hold", pass_context=True, store_result=True)
    def hold(context: JobContext, gate: str) -> int:
        """Wait for a file, in a thread that nothing can stop."""
        note("start", context)
        while not Path(gate).exists():
            time.sleep(0.01)
        note("end", context)
        return os.getpid()

    return app


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        job = getattr(record, "job", None) or {}
        return json.dumps([getattr(record, "action", None), job.get("id"), record.getMessage()])


def main() -> None:
    dsn, history, options = sys.argv[1:]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_AsJson())
    logging.getLogger("pyprocrastinate").addHandler(handler)
    logging.getLogger("pyprocrastinate").setLevel(logging.INFO)
    app = make_app(dsn, history)
    app.run_worker(**json.loads(options))


if __name__ == "__main__":
    main()
