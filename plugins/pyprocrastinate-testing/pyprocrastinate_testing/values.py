"""
Values as PostgreSQL takes and gives them, and its errors.

Inside, a time is an aware `datetime`, an interval a `timedelta`, and JSON what `parse_json` returns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn, TypeAlias

import psycopg
from psycopg.pq import DiagnosticField
from psycopg.types.json import Json as JsonWrapper
from psycopg.types.json import Jsonb

Json: TypeAlias = Any

LARGEST_INT = 2**31 - 1
MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_SECONDS = {"microsecond": 1e-6, "millisecond": 1e-3, "second": 1, "minute": 60, "hour": 3600, "day": 86400}
_SECONDS |= {"week": 7 * 86400, "year": 365.25 * 86400, "s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_AMOUNT = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)\s*([a-z]+)|([+-]?)([0-9]+):([0-9]{2})(?::([0-9]{2}(?:\.[0-9]+)?))?")


def refuse(
    sqlstate: str, message: str, *, detail: str | None = None, hint: str | None = None, constraint: str | None = None
) -> NoReturn:
    """Raise what psycopg raises for an error of this SQLSTATE."""
    fields = {
        DiagnosticField.SQLSTATE: sqlstate,
        DiagnosticField.MESSAGE_PRIMARY: message,
        DiagnosticField.MESSAGE_DETAIL: detail,
        DiagnosticField.MESSAGE_HINT: hint,
        DiagnosticField.CONSTRAINT_NAME: constraint,
    }
    try:
        kind: type[psycopg.Error] = psycopg.errors.lookup(sqlstate)
    except KeyError:
        kind = psycopg.DatabaseError
    error = kind(message, info={field: text.encode() for field, text in fields.items() if text is not None})
    error.sqlstate = sqlstate
    raise error


# JSON, as jsonb keeps it


def parse_json(text: str) -> Json:
    """Return JSON with its numbers as exact as jsonb keeps them."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_constant)
    except ValueError:
        refuse("22P02", "invalid input syntax for type json")
    except RecursionError:
        refuse("54001", "stack depth limit exceeded")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def json_text(value: Json) -> str:
    """Return the text of a jsonb: keys by length, then by bytes."""
    if isinstance(value, Mapping):
        pairs = [(key, json_text(value[key])) for key in keys(value)]
        return f"{{{', '.join(f'{json.dumps(key, ensure_ascii=False)}: {item}' for key, item in pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(json_text, value))}]"
    if isinstance(value, Decimal):
        return format(value.copy_abs() if value.is_zero() else value, "f")
    return json.dumps(value, ensure_ascii=False)


def keys(value: Mapping[str, Json]) -> list[str]:
    """Return the keys in the order of jsonb."""
    return sorted(value, key=lambda key: (len(key.encode()), key.encode()))


def json_type(value: Json) -> str:
    """Do as jsonb_typeof."""
    if isinstance(value, bool):
        return "boolean"
    names = {dict: "object", list: "array", str: "string", type(None): "null"}
    return names.get(type(value), "number")


def field_text(value: Json, key: str) -> str | None:
    """Do as `value ->> key`."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if found is None or isinstance(found, str) else json_text(found)


def present(**fields: Json) -> dict[str, Json]:
    """Return an object without the fields that are null."""
    return {name: value for name, value in fields.items() if value is not None}


# What a call may be given


def to_json(value: Any) -> Json:
    if isinstance(value, Jsonb | JsonWrapper):
        value = json.dumps(value.obj)
    return parse_json(value) if isinstance(value, str) else value


def to_text(value: Any) -> str:
    if "\0" in value:
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    value.encode()  # as psycopg does, which raises for half a surrogate pair
    return str(value)


def to_int(value: Any) -> int:
    try:
        number = int(value)
    except ValueError:
        refuse("22P02", "invalid input syntax for type integer")
    if not -LARGEST_INT - 1 <= number <= LARGEST_INT:
        refuse("22003", "integer out of range")
    return number


def to_time(value: Any) -> datetime:
    if isinstance(value, str):
        if value in ("infinity", "-infinity"):
            return (datetime.max if value == "infinity" else datetime.min).replace(tzinfo=UTC)
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            refuse("22007", "invalid input syntax for type timestamp with time zone")
    found: datetime = value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        return found.astimezone(UTC)
    except OverflowError:
        return found.replace(tzinfo=UTC)


def to_interval(value: Any) -> timedelta:
    """Read an interval: seconds, or words such as '1 day 2 hours'; not months, whose length depends."""
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower()
    seconds = float(text) if _NUMBER.fullmatch(text) else _in_words(text)
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        refuse("22008", "interval out of range")


def _in_words(text: str) -> float:
    seconds, rest = 0.0, _AMOUNT.sub("", text).strip()
    for amount, unit, sign, hours, minutes, second in _AMOUNT.findall(text):
        if unit:
            factor = _SECONDS.get(unit.removesuffix("s") or unit)
            if factor is None:
                rest = unit
                break
            seconds += float(amount) * factor
        else:
            seconds += (-1 if sign == "-" else 1) * (int(hours) * 3600 + int(minutes) * 60 + float(second or 0))
    if rest or not text:
        refuse("22007", "invalid input syntax for type interval")
    return seconds


def to_array(item: Callable[[Any], Any], value: Any) -> list[Any]:
    if isinstance(value, str):
        value = [part for part in value.strip("{}").split(",") if part]
    return [None if part is None else item(part) for part in value]


# What a call gives


def iso(at: datetime | None) -> str | None:
    """Return a time as it stands in JSON."""
    return None if at is None else at.isoformat()


def microseconds(at: datetime) -> int:
    """Return a time as a worker's connection gives it."""
    return (at - _EPOCH) // MICROSECOND
