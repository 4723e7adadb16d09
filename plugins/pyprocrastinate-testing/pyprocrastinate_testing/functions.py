"""
The functions that can be called, by the names that they have in the schema.

A function takes the tables and the parameters of its namesake, under their names; what they hold is read by their
annotations, and a default is written as in SQL.
It returns rows, or one value; None is the one row that holds null.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psycopg

from pyprocrastinate_testing.tables import Tables
from pyprocrastinate_testing.values import to_array, to_int, to_interval, to_json, to_text, to_time

F = TypeVar("F", bound=Callable[..., Any])
Row = tuple[Any, ...]

_READ: dict[str, Callable[[Any], Any]] = {
    "Json": to_json,
    "str": to_text,
    "int": to_int,
    "Id": int,
    "bool": bool,
    "datetime": to_time,
    "timedelta": to_interval,
    "list[int]": functools.partial(to_array, int),
    "list[str]": functools.partial(to_array, to_text),
}
# A bigint, where int is PostgreSQL's four bytes.
Id = int

_FUNCTIONS: dict[str, tuple[Callable[..., Any], inspect.Signature]] = {}


def function(body: F) -> F:
    """Let calls reach this function."""
    _FUNCTIONS[body.__name__] = body, inspect.signature(body)
    return body


def signatures() -> dict[str, inspect.Signature]:
    """Return what can be called, and with which parameters after the tables."""
    return {name: signature for name, (_, signature) in _FUNCTIONS.items()}


def call(tables: Tables, name: str, args: Mapping[str, Any]) -> list[Row]:
    """Return the rows of `select * from procrastinate.<name>(...)`."""
    try:
        body, signature = _FUNCTIONS[name]
        given = signature.bind(tables, **args)
    except (KeyError, TypeError):
        message = f"function procrastinate.{name}({', '.join(args)}) does not exist"
        raise psycopg.errors.UndefinedFunction(message) from None
    given.apply_defaults()
    for parameter in list(signature.parameters.values())[1:]:
        given.arguments[parameter.name] = _read(given.arguments[parameter.name], parameter.annotation)
    found = body(*given.args)
    return found if isinstance(found, list) else [(found,)]


def _read(value: Any, annotation: str) -> Any:
    return None if value is None else _READ[annotation.removesuffix(" | None")](value)
