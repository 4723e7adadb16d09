"""Print what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
