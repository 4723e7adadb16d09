"""What is refused at the door: 02_limits.sql."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pyprocrastinate_testing.values import LARGEST_INT, Json, json_text, json_type, keys, refuse

_OLDEST, _NEWEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_INFINITE = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_LEVELS = 64


def check_job(
    *,
    task: str | None,
    queue: str | None = None,
    priority: int | None = None,
    lock: str | None = None,
    queueing_lock: str | None = None,
    scheduled_at: datetime | None = None,
    args: Json = None,
    headers: Json = None,
    max_bytes: int = 2,
) -> None:
    """Raise what is wrong with a job: JQ010 to JQ015."""
    check_name("task", task or "", 128)
    check_name("queue", queue, 128)
    check_name("lock", lock, 512)
    check_name("queueing lock", queueing_lock, 512)
    check_priority(priority)
    check_time(scheduled_at)
    check_object("args", args, max_bytes)
    check_object("headers", headers, max_bytes)


def check_name(what: str, value: str | None, longest: int) -> None:
    """Raise JQ014 for an empty or over-long name."""
    if value is not None and not 1 <= len(value) <= longest:
        refuse(
            "JQ014",
            f"{what} name is {'empty' if value == '' else 'too long'}",
            detail=f"It has {len(value)} characters.",
            hint=f"Use 1 to {longest} characters.",
        )


def check_priority(priority: int | None) -> None:
    """Raise JQ015 for a priority that has no negative."""
    if priority == -LARGEST_INT - 1:
        refuse("JQ015", "priority is out of range", hint="Use -2147483647 to 2147483647.")


def check_time(value: datetime | None) -> None:
    """Raise JQ013 for infinity and for years that no client can read back."""
    if value is not None and not _OLDEST <= value <= _NEWEST:
        detail = "It is infinite." if value in _INFINITE else "It is before the year 2000 or after 9000."
        refuse(
            "JQ013",
            "time is out of range",
            detail=detail,
            hint="Leave the time out to run the job as soon as possible.",
        )


def check_object(what: str, value: Json, max_bytes: int) -> None:
    """Raise JQ010 (not an object), JQ011 (more than 64 levels) or JQ012 (too large)."""
    if value is None:
        return
    if json_type(value) != "object":
        refuse(
            "JQ010",
            f"{what} must be a JSON object",
            detail=f"It is of type {json_type(value)}.",
            hint='Pass named values, as in {"to": "a@b.c"}.',
        )
    if _deeper(value):
        refuse(
            "JQ011",
            f"{what} are nested too deep",
            detail=f"There are more than {_LEVELS} levels.",
            hint="Flatten the data: not every client can read deeper values.",
        )
    size = len(json_text(value).encode())
    if size > max_bytes:
        refuse(
            "JQ012",
            f"{what} are too large",
            detail=f"They take {size} bytes as JSON text, the limit is {max_bytes}.",
            hint="Store the data elsewhere and pass a reference, or raise the setting max_args_bytes.",
        )


def _deeper(value: Json) -> bool:
    level: list[Any] = [value]
    for _ in range(_LEVELS):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    return bool(level)


def check_keys(what: str, value: Json, allowed: Iterable[str]) -> None:
    """Raise JQ016 for a key that nothing would read."""
    if value is None:
        return
    hint = f"Known keys: {', '.join(allowed) or 'none'}."
    if json_type(value) != "object":
        refuse("JQ016", f"{what} must be a JSON object", hint=hint)
    for key in keys(value):
        if key not in allowed:
            refuse("JQ016", f"unknown key in {what}", detail=f'The key is "{key[:100]}".', hint=hint)
