"""
JSON as PostgreSQL will take it, and text cut to what it stores.

What `jsonb` would refuse is refused here first, because PostgreSQL's own message quotes the value.
Size and nesting are left to the schema, whose limits can be set.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from pyprocrastinate import exceptions

JsonDumps = Callable[[Any], str]
JsonLoads = Callable[[str], Any]

MESSAGE_BYTES = 8 * 1024
TRACEBACK_BYTES = 64 * 1024
RESULT_BYTES = 64 * 1024
_ELLIPSIS = "[...]\n"

# Every escape is consumed whole, so that an escaped backslash before "u0000" is not mistaken for one.
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<bad>u0000|u[dD][89a-fA-F]..)|.)", re.DOTALL)
_MAYBE_BAD = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


_ENCODER = json.JSONEncoder(allow_nan=False)


def dumps(value: Any) -> str:
    """Encode as JSON; raise ValueError for NaN and infinity."""
    return _ENCODER.encode(value)


loads: JsonLoads = json.loads


def encode(value: Any, dumps: JsonDumps = dumps, what: str = "args") -> str:
    """
    Return `value` as JSON that `jsonb` accepts.

    Raises InvalidText for NUL, half a surrogate pair, NaN and infinity, ArgsTooDeep for nesting that Python itself
    cannot walk, and whatever `dumps` raises for an object it does not know. No message quotes the value.
    """
    try:
        text = dumps(value)
    except RecursionError:
        raise exceptions.ArgsTooDeep(f"{what} are nested too deep") from None
    except ValueError:
        raise exceptions.InvalidText(
            f"{what} cannot be written as JSON", detail="They hold NaN, infinity, an endless number or themselves."
        ) from None
    bad = _MAYBE_BAD.search(text) and any(match["bad"] for match in _ESCAPE.finditer(text))
    if bad or not _encodable(text):
        raise exceptions.InvalidText(
            f"{what} hold text that PostgreSQL cannot store",
            detail="A NUL character or half a surrogate pair is in it.",
            hint="Encode binary data, for example as base64.",
        )
    return text


def encode_result(value: Any, dumps: JsonDumps) -> str:
    """Return a task's result as JSON that can be stored; raise as `encode`, and ArgsTooLarge over 64 KiB."""
    text = encode(value, dumps, "the result")
    if len(text) > RESULT_BYTES or len(text.encode()) > RESULT_BYTES:
        raise exceptions.ArgsTooLarge(f"the result is larger than {RESULT_BYTES} bytes")
    return text


def decode_object(text: str, loads: JsonLoads) -> dict[str, Any]:
    """Return args or headers; what cannot be decoded raises, and is this job's failure only."""
    decoded = loads(text)
    if not isinstance(decoded, dict):
        raise exceptions.ArgsNotAnObject("args or headers are not a JSON object")
    return decoded


def show_object(text: str | None, loads: JsonLoads) -> dict[str, Any]:
    """Return args or headers to look at; of those that cannot be decoded, only why."""
    try:
        return decode_object(text, loads) if text else {}
    except Exception as error:  # noqa: BLE001  # a user's codec, or a row from elsewhere
        return {"<cannot be decoded>": type(error).__name__}


def error_report(error: BaseException, matching: Iterable[type] = ()) -> dict[str, Any]:
    """
    Describe an exception for the schema: class, ancestors, message and traceback, without any local variable.

    `matching` are further classes that it counts as an instance of, such as ABCs of a retry strategy.
    """
    ancestors = [qualified(cls) for cls in type(error).__mro__[1:-1]]
    ancestors += [qualified(cls) for cls in matching if isinstance(error, cls)]
    return {
        "class": qualified(type(error)),
        "ancestors": list(dict.fromkeys(ancestors)),
        "message": clip(_read(str, error, "message"), MESSAGE_BYTES),
        "traceback": clip(_read(_traceback, error, "traceback"), TRACEBACK_BYTES, tail=True),
    }


def qualified(cls: type) -> str:
    """Return the name by which a retry policy knows a class: built-in ones go by their bare name."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def clip(text: str, size: int, *, tail: bool = False) -> str:
    """Return `text` as PostgreSQL can store it, cut to `size` bytes at its end, or at its start to keep the tail."""
    data = text.replace("\0", "\ufffd").encode("utf-8", "replace")
    if len(data) <= size:
        return data.decode()
    size -= len(_ELLIPSIS)
    if tail:
        return _ELLIPSIS + data[-size:].decode("utf-8", "ignore")
    return data[:size].decode("utf-8", "ignore") + _ELLIPSIS.rstrip()


def _encodable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _read(how: Callable[[BaseException], str], error: BaseException, what: str) -> str:
    try:
        return how(error)
    except BaseException as broken:  # noqa: BLE001  # user code
        return f"<the {what} of this error cannot be read: {type(broken).__name__}>"


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
