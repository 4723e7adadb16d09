"""The app of Celery's workers; only its own interpreter imports this. What it runs on is in CELERY_BROKER_URL."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import threading
import time
from importlib import import_module
from typing import Any

celery: Any = import_module("celery")
app = celery.Celery("benchmark", broker=os.environ["CELERY_BROKER_URL"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)

_path = os.environ.get("BENCHMARK_STARTED")
_file = os.open(_path, os.O_WRONLY | os.O_APPEND) if _path else -1


@app.task(name="noop")  # type: ignore[untyped-decorator]
def noop(t: float = 0.0) -> None:
    """Say that it has started."""
    os.write(_file, struct.pack("dd", time.monotonic(), t))


@import_module("celery.signals").worker_init.connect  # type: ignore[untyped-decorator]
def watch(**_: Any) -> None:
    """Stop in order when whoever started the worker says so, or is gone; and whatever happens, a while later."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(15)
        with contextlib.suppress(OSError):
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
