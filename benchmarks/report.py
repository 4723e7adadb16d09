"""Print what was measured."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.workloads import Table


def markdown(table: Table) -> str:
    """Return a table as it goes into a page."""
    cells = [table.columns, *table.rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(table.columns))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = [f"### {table.title}", "", line(cells[0]), rule, *map(line, cells[1:])]
    return "\n".join([*lines, *([""] if table.sentences else []), *table.sentences])


def footer(figures: dict[str, Any]) -> str:
    """Return what was measured with what, when, and how long it took."""
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    command = " ".join(["python -m benchmarks", *figures["command"]])
    return f"{versions}; {platform.system()}, {figures['at']}, `{command}` in {figures['seconds']} s"
