"""What happened, written where no crash of the database or of the writer can touch it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class History:
    """
    A file of JSON lines, one `write(2)` each, which survives the death of whoever writes it.

    Times are of the monotonic clock, which all processes of a machine share.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._file = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: str, **what: Any) -> None:
        """Append an event."""
        event = {"kind": kind, "at": time.monotonic(), "by": self.name, **what}
        os.write(self._file, json.dumps(event).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(folder: Path) -> list[Event]:
    """Return all events of a folder, by time."""
    events: list[Event] = []
    for path in folder.glob("*.jsonl"):
        # The last line may be half a line, if the disk was full or the machine fell.
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        # All at once, so that equal keys are one object.
        events += json.loads(f"[{','.join(lines)}]")
    return sorted(events, key=lambda event: event["at"])
