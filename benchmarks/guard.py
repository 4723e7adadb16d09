"""
Run a program until standard input ends: `python guard.py USER PROGRAM [argument ...]`; USER is a number, or empty.

The other end of that pipe is the benchmark's, so the program does not outlive it, even where it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

GRACE = 20.0


def main() -> int:
    """Run it, and return its status."""
    user: dict[str, Any] = {"user": int(sys.argv[1]), "extra_groups": []} if sys.argv[1] else {}
    process: subprocess.Popen[bytes] = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, cwd="/", **user)
    # From a terminal, an interrupt comes to all of its processes; this one waits for the end of its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin: Python may end while this waits
            pass
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()

    threading.Thread(target=watch, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    os._exit(main())
