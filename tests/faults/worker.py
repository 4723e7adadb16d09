"""A worker process of the soak: python -m tests.faults.worker OPTIONS."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from tests.faults.history import History
from tests.faults.hooks import Misbehaving
from tests.faults.tasks import make_app


class _Notes(logging.Handler):
    """
    Writes down what the worker says of its jobs: each record that carries an `action`.

    `told` means that the database has taken note of the end.
    """

    def __init__(self, history: History) -> None:
        super().__init__(logging.INFO)
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        action = getattr(record, "action", None)
        job = getattr(record, "job", None)
        if action == "start_worker":
            self._history.write("registered", worker=record.worker["worker_id"], pid=os.getpid())  # type: ignore[attr-defined]
        elif action == "start_job":
            return
        elif job:
            worker = record.worker["worker_id"]  # type: ignore[attr-defined]
            self._history.write("told", action=action, job=job["id"], worker=worker)
        elif record.levelno >= logging.WARNING or action in ("reconnected", "stop_worker", "stopping_worker"):
            self._history.write("log", action=action, message=record.getMessage()[:300])


def end_with_parent() -> None:
    """End this process when its standard input does, which is the parent's to close."""

    def wait() -> None:
        # Not through Python's buffer, whose lock a thread must not hold when the interpreter ends.
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    end_with_parent()
    history = History(Path(options["folder"]), options["name"])
    history.write("up", pid=os.getpid())
    logger = logging.getLogger("pyprocrastinate")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Notes(history))
    logger.propagate = False
    plugins = [Misbehaving(Path(options["hooks"]))] if "hooks" in options else []
    app = make_app(options["dsn"], history, plugins)
    app.run_worker(name=options["name"], **options["worker"])


if __name__ == "__main__":
    main()
