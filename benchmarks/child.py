"""
Run one part of a benchmark in a process of its own: `python -m benchmarks.child SYSTEM PART JSON`.

It may be another interpreter than the harness's, so this needs nothing but psycopg.
The end of standard input asks it to stop: that comes from the harness, or from its death.
What is `gated` prints a line when it is ready, and goes on when a line comes in.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.load import Tally, Work, cpu_seconds
from benchmarks.systems import System, find

GRACE = 20.0


def main() -> None:
    """Run it, and print what came out as one line of JSON."""
    name, part, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    print(json.dumps(asyncio.run(_run(find(name), part, options))), flush=True)
    os._exit(0)  # a thread may still wait for standard input


async def _run(system: System, part: str, options: dict[str, Any]) -> Any:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    system.load()
    if options.pop("gated", False):
        print("ready", flush=True)
        os.read(0, 1)

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin: Python may end while this waits
            pass
        loop.call_soon_threadsafe(stop.set)
        time.sleep(GRACE)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()
    if "tally" in options:
        options["tally"] = Tally(Path(options["tally"]))
    if "others" in options:
        options["others"] = [Tally(Path(each)) for each in options["others"]]
    before = cpu_seconds()
    if part in ("work", "rest"):
        value = await getattr(system, part)(Work(**options, stop=stop))
    elif part == "install":
        value = await asyncio.to_thread(system.install, **options)
    else:
        value = await getattr(system, part)(**options)
    return {"value": value, "cpu": cpu_seconds() - before}


if __name__ == "__main__":
    main()
