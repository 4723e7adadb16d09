"""Sessions that keep what PostgreSQL says it did, in every statement inside of the functions, too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

# The tables that grow with the number of jobs.
GROWING = {"job", "done", "event"}

SETTINGS = {
    "log_min_duration": "0",
    "log_analyze": "on",
    "log_buffers": "on",
    "log_timing": "off",
    "log_nested_statements": "on",
    "log_format": "json",
    "log_level": "notice",
}


@dataclass(frozen=True)
class Scan:
    """A node of a plan that reads a table."""

    table: str
    kind: str
    index: str | None
    rows: int
    """How many rows it returned or dropped, over all its loops, as far as is known."""
    buffers: int
    query: str

    @classmethod
    def of(cls, node: dict[str, Any], query: str) -> Scan:
        dropped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        loops, each = node["Actual Loops"], node["Actual Rows"]
        if isinstance(each, int) and loops > 1:
            # before PostgreSQL 18 it is rounded: at least this many
            each = max(0.0, each - 0.5)
        rows = round(loops * (each + dropped))
        index, query = node.get("Index Name"), " ".join(query.split())
        return cls(node["Relation Name"], node["Node Type"], index, rows, buffers(node), query)

    def __str__(self) -> str:
        return (
            f"{self.kind} on {self.table} ({self.index}), {self.rows} rows, {self.buffers} buffers: {self.query[:200]}"
        )


@dataclass
class Explained:
    """
    A session whose last call can be asked how it was executed.

    `scans` are those of all its statements, and `buffers` how many were read or found by all of them together.
    """

    conn: psycopg.Connection[Any]
    scans: list[Scan] = field(default_factory=list)
    buffers: int = 0

    def __post_init__(self) -> None:
        self._said: list[str] = []
        self.conn.add_notice_handler(lambda diag: self._said.append(diag.message_primary or ""))
        try:
            self.conn.execute("load 'auto_explain'")
        except psycopg.Error as error:
            pytest.skip(f"needs auto_explain: {error}")
        for name, value in SETTINGS.items():
            self.set(f"auto_explain.{name}", value)

    def set(self, name: str, value: str) -> None:
        self.conn.execute("select set_config(%s, %s, false)", [name, value])

    def explain(self, on: bool) -> None:
        """Explain the calls that follow, or spare the time."""
        self.set("auto_explain.log_min_duration", "0" if on else "-1")

    def call(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute a query and return its rows."""
        self._said.clear()
        rows = self.conn.execute(query, parameters or None).fetchall()
        plans = [json.loads(said.partition("plan:\n")[2]) for said in self._said if "plan:\n" in said]
        self.scans = [
            Scan.of(node, plan["Query Text"])
            for plan in plans
            for node in nodes(plan["Plan"])
            if "Relation Name" in node and node["Node Type"] != "ModifyTable"
        ]
        # the last is the call itself, which has those of the others in it
        self.buffers = buffers(plans[-1]["Plan"]) if plans else 0
        return rows

    def value(self, query: str, *parameters: Any) -> Any:
        """Return the only value of a query."""
        ((value,),) = self.call(query, *parameters)
        return value

    def careless(self, most: int) -> list[str]:
        """Return the scans of the last call that would grow with the number of jobs, or read more rows than this."""
        return [
            str(scan) for scan in self.scans if scan.table in GROWING and (scan.kind == "Seq Scan" or scan.rows > most)
        ]


def buffers(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.fixture(scope="package")
def explaining() -> Iterator[Callable[[str], Explained]]:
    """Return a function that opens a session that is explained, in autocommit."""
    with ExitStack() as sessions:
        yield lambda dsn: Explained(sessions.enter_context(psycopg.connect(dsn, autocommit=True)))
