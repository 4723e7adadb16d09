"""
Print what was measured.

`python -m benchmarks.report PAGE FIGURES.json ...` writes tables of what --json has written into a page,
between `<!-- figures: NAME -->` and `<!-- end -->`, where NAME is a workload, or `targets`.
Before them goes the workload's chart, if --charts has drawn one into the folder `charts` beside the page.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.charts import CHARTS


def markdown(table: dict[str, Any]) -> str:
    """Return a table as it goes into a page."""
    cells = [table["columns"], *table["rows"]]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = [f"### {table['title']}", "", line(cells[0]), rule, *map(line, cells[1:])]
    return "\n".join([*lines, *([""] if table["sentences"] else []), *table["sentences"]])


def footer(figures: dict[str, Any]) -> str:
    """Return what was measured with what, when, how long it took, and how busy the machine was before it began."""
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    # where it has written to does not matter
    given = re.sub(r" --(json|charts)[ =]\S+", "", " ".join(["", *(each or "''" for each in figures["command"])]))
    command = f"python -m benchmarks{given}"
    when = f"{platform.system()}, {figures['at']}, load average before it {figures['load']:.1f}"
    return f"`{command}` in {figures['seconds']} s; {versions}; {when}"


def fill(page: str, runs: list[dict[str, Any]], drawn: Collection[str] = ()) -> str:
    """Return the page with the tables that there are figures for, and with the targets of all runs in one."""
    blocks = {name: (each, [footer(run)]) for run in runs for name, each in run["tables"].items()}
    targets = {**runs[0]["targets"], "rows": [row for run in runs for row in run["targets"]["rows"]]}
    blocks["targets"] = ([targets], [footer(run) for run in runs])
    for name, (tables, footers) in blocks.items():
        chart = [f"![{CHARTS[name].__doc__}](charts/{name}.svg)"] if name in drawn else []
        text = "\n\n".join([*chart, *map(markdown, tables), *footers])
        begin, end = f"<!-- figures: {name} -->", "<!-- end -->"
        before, found, after = page.partition(begin)
        if found:
            page = f"{before}{begin}\n\n{text}\n\n{end}{after.partition(end)[2]}"
    return page


def main(page: str, *sources: str) -> None:
    """Fill a page."""
    path = Path(page)
    runs = [json.loads(Path(source).read_text("utf-8")) for source in sources]
    drawn = [chart.stem for chart in path.with_name("charts").glob("*.svg")]
    path.write_text(fill(path.read_text("utf-8"), runs, drawn), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
