"""Forgetting finished jobs, and the settings: 60_purge.sql and 61_settings.sql."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import psycopg

from pyprocrastinate_testing.functions import Row, function
from pyprocrastinate_testing.limits import check_keys
from pyprocrastinate_testing.tables import Config, Tables
from pyprocrastinate_testing.values import Json, field_text, keys, present, refuse, to_int, to_interval

_SETTINGS = {field.name for field in dataclasses.fields(Config)}
_STATUSES = ("succeeded", "failed", "aborted", "cancelled")


@function
def purge(
    tables: Tables, older_than: timedelta, statuses: list[str] | None, queue: str | None = None, max_rows: int = 10000
) -> int:
    """Delete jobs of these statuses that ended longer ago, and return how many."""
    if statuses is None or not set(statuses) <= set(_STATUSES):
        refuse("22023", "not a status of finished jobs", hint="Use succeeded, failed, aborted or cancelled.")
    before = tables.now() - older_than
    gone = [
        job.id
        for job in tables.done.values()
        if job.finished_at and job.finished_at < before and job.status in statuses and queue in (None, job.queue)
    ][:max_rows]
    for job_id in gone:
        del tables.done[job_id]
    tables.forget_events(gone)
    return len(gone)


def retain(tables: Tables) -> list[Row]:
    """Purge what the setting retention says."""
    retention = tables.config.retention
    counts = [(key, purge(tables, to_interval(retention[key]), [key])) for key in keys(retention)]
    return [("purged", None, {"status": status, "jobs": count}) for status, count in counts if count]


@function
def set_setting(tables: Tables, name: str, value: Json) -> None:
    """Change a setting; JQ018 for one that there is not, or a value that it does not take."""
    try:
        changes = _setting(name, value)
    except (psycopg.DataError, ValueError, TypeError) as error:
        if getattr(error, "sqlstate", None) == "JQ018":
            raise
        refuse(
            "JQ018",
            f"bad value for the setting {name}",
            detail=str(error),
            hint="select * from procrastinate.settings shows what each takes.",
        )
    tables.config = dataclasses.replace(tables.config, **changes)


def _setting(name: str, value: Json) -> dict[str, Any]:
    if name not in _SETTINGS:
        refuse(
            "JQ018",
            "unknown setting",
            detail=f'Its name is "{name[:100]}".',
            hint="select * from procrastinate.settings lists them.",
        )
    text = field_text({"": value}, "") or ""
    match name:
        case "max_args_bytes":
            return {name: _within(to_int(value), 2, 67108864)}
        case "max_rescues":
            return {name: _within(to_int(value), 0, 1000000)}
        case "stalled_after":
            return {name: _within(to_interval(text), timedelta(seconds=1), timedelta(days=3652.5))}
        case "notify" | "store_errors":
            if not isinstance(value, bool):
                raise TypeError("not a boolean")
            return {name: value}
        case _:
            check_keys("retention", value, _STATUSES)
            kept = present(**{key: field_text(value, key) for key in keys(value)})
            for age in kept.values():
                _within(to_interval(age), timedelta(), timedelta(days=365250))
            return {name: kept}


def _within(value: Any, least: Any, most: Any) -> Any:
    if not least <= value <= most:
        raise ValueError(f"not within {least} to {most}")
    return value
