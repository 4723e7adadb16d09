"""Retry policies: 31_retry_policy.sql."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from pyprocrastinate_testing.tables import Tables
from pyprocrastinate_testing.values import LARGEST_INT, Json, field_text, json_type, keys, refuse

_WAITS = {"max_attempts", "wait", "linear_wait", "exponential_wait", "retry_exceptions"}
_NUMBERS = {"max_attempts", "wait", "linear_wait", "exponential_wait", "max_wait", "jitter", "rescues"}
_LONGEST = 2e11  # seconds: past the year 8000
_NEWEST = datetime(9000, 1, 1, tzinfo=UTC)


def check_policy(policy: Json) -> None:
    """Raise JQ017 for what is no retry policy."""
    bad = _fault(policy)
    if bad is not None:
        refuse(
            "JQ017",
            "bad retry policy",
            detail=f'The fault is in "{bad[:100]}".',
            hint="Use true, false, a number of retries, or an object with max_attempts, wait, linear_wait, "
            "exponential_wait, max_wait (seconds), jitter (0 to 1), retry_exceptions (class names) and rescues.",
        )


def _fault(policy: Json) -> str | None:
    match json_type(policy):
        case "null" | "boolean":
            return None
        case "number":
            return None if _is_count(policy) else "retry"
        case "object":
            faults = (key for key in keys(policy) if policy[key] is not None and not _is_right(key, policy[key]))
            return next(faults, None)
        case _:
            return "retry"


def _is_right(key: str, value: Json) -> bool:
    if key == "retry_exceptions":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    if key not in _NUMBERS or json_type(value) != "number":
        return False
    if not 0 <= value <= (1 if key == "jitter" else 10**12):
        return False
    return key not in ("max_attempts", "rescues") or _is_count(value)


def _is_count(value: int | Decimal) -> bool:
    return value == int(value) and 0 <= value <= LARGEST_INT


def retry_at(policy: Json, attempts: int, error: Json, at: datetime) -> datetime | None:
    """Tell when a run that failed is retried, None for never; attempts: runs before this one."""
    match json_type(policy):
        case "boolean":
            return at if policy else None
        case "number":
            return at if attempts < policy else None
        case "object":
            pass
        case _:
            return None
    # None of the waits is given: an object that only says how often a job may be rescued.
    if not _WAITS & policy.keys():
        return None
    if 0 < (policy.get("max_attempts") or 0) <= attempts:
        return None
    if not _wants(policy.get("retry_exceptions"), error):
        return None
    delay = _number(policy, "wait") + _number(policy, "linear_wait") * attempts
    delay += _power(_number(policy, "exponential_wait"), attempts + 1)
    delay = min(delay, _number(policy, "max_wait", _LONGEST), _LONGEST)
    delay *= 1 - _number(policy, "jitter") * random.random()  # noqa: S311
    try:
        return min(at + timedelta(seconds=delay), _NEWEST)
    except OverflowError:
        return _NEWEST


def _number(policy: Json, key: str, default: float = 0.0) -> float:
    value = policy.get(key)
    return default if value is None else float(value)


def _power(base: float, exponent: int) -> float:
    if base > 1 and exponent * math.log(base) > math.log(_LONGEST):
        return _LONGEST
    return math.pow(base, exponent) if base > 0 else 0.0


def _wants(names: list[str] | None, error: Json) -> bool:
    if not names:  # no names, no filter
        return True
    ancestors = error.get("ancestors") if isinstance(error, dict) else None
    return field_text(error, "class") in names or not set(names).isdisjoint(ancestors or [])


def policy_of(tables: Tables, own: Json, task: str, worker_id: int | None) -> Json:
    """Return the policy of a run: the job's own, else what its worker registered, else what is in tasks."""
    if own is not None:
        return own
    worker = tables.worker.get(worker_id or 0)
    by_worker = (worker.tasks.get(task) or {}).get("retry") if worker else None
    if by_worker is not None:
        return by_worker
    registered = tables.task.get(task)
    return registered.retry if registered else None
