"""Whatever is wrong with what holds values of a job, no error repeats a value."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest


def nested(levels: int, secret: str) -> Any:
    value: Any = secret
    for _ in range(levels):
        value = [value]
    return {"a": value}


# What could be sent as any JSON parameter: of the wrong type, too deep, too large, with a key that nobody knows, or
# with values of types that are not expected behind each key that somebody knows.
_WORDS = """
task args queue priority lock queueing_lock schedule_at schedule_in retry headers timestamp max_attempts wait
linear_wait
exponential_wait rescues retry_exceptions name cron timezone max_delay id token outcome error class ancestors message
traceback result reason in at keep succeeded store_result
"""
KEYS = _WORDS.split()
VALUES = {
    "text": lambda secret: secret,
    "number": lambda secret: 5,
    "list": lambda secret: [secret],
    "list of objects": lambda secret: [{key: secret} for key in KEYS],
    "unknown key": lambda secret: {"unknown": secret},
    "deep": lambda secret: nested(70, secret),
    "large": lambda secret: {"a": secret * 200_000},
    "texts": lambda secret: dict.fromkeys(KEYS, secret),
    "lists": lambda secret: {key: [secret] for key in KEYS},
    "objects": lambda secret: {key: {"a": secret} for key in KEYS},
    **{
        f"{what} in {key}": lambda secret, key=key, value=value: [{"task": "t", key: value(secret)}]
        for key in ("args", "headers", "retry")
        for what, value in {
            "text": lambda secret: secret,
            "list": lambda secret: [secret],
            "unknown key": lambda secret: {"unknown": secret, "a": nested(70, secret)},
        }.items()
    },
}
# What is said of a setting may tell its value.
NOT_OF_A_JOB = {"set_setting"}


def parameters(db: Any) -> dict[str, list[tuple[str, str]]]:
    """Return names and types of the parameters of each public function that takes JSON."""
    rows = db.rows(r"""
        select p.proname, a.name, format_type(a.type, null) as type
          from pg_proc as p
         cross join unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) with ordinality as a (name, type, n)
         where p.pronamespace = 'procrastinate'::regnamespace and p.proname not like '\_%'
         order by p.proname, a.n
    """)
    found: dict[str, list[tuple[str, str]]] = {}
    for function, name, kind in rows:
        found.setdefault(function, []).append((name, kind))
    return {function: names for function, names in found.items() if any(kind == "jsonb" for _, kind in names)}


FITTING = {
    "text": "t",
    "integer": 1,
    "bigint": 1,
    "boolean": True,
    "text[]": ["default"],
    "bigint[]": [],
    "interval": "1 minute",
    "timestamp with time zone": "2030-01-01 00:00Z",
    "jsonb": "{}",
}
NAMED = {"cron": "* * * * *", "timezone": "UTC", "on_conflict": "raise", "catch_up": "all", "schedule_in": None}


@pytest.mark.parametrize("kind", VALUES)
def test_no_error_repeats_a_value(db: Any, secret: str, worker: Any, kind: str) -> None:
    refused = 0
    value = json.dumps(VALUES[kind](secret))
    functions = parameters(db)
    assert len(functions) > 8
    for function, names in functions.items():
        if function in NOT_OF_A_JOB:
            continue
        for wrong in (name for name, type_ in names if type_ == "jsonb"):
            given = {name: NAMED.get(name, FITTING[type_]) for name, type_ in names} | {wrong: value}
            for name in ("jobs", "outcomes", "schedules"):
                if name in given and name != wrong:
                    given[name] = "[]"
            arguments = ", ".join(f"{name} => %({name})s" for name in given)
            try:
                db.conn.execute(f"select * from procrastinate.{function}({arguments})".encode(), given)
            except psycopg.Error as error:
                refused += 1
                diag = error.diag
                parts = [diag.message_primary, diag.message_detail, diag.message_hint, diag.context]
                assert not any(secret in (part or "") for part in parts), (function, wrong, parts)
    assert refused, "nothing was refused"
    # nor does what a finish says of an outcome that it refuses
    db.defer()
    job = worker.take()
    for outcome in (
        VALUES[kind](secret),
        {"id": job.id, "token": job.token, "outcome": "failed", "error": VALUES[kind](secret)},
        {"id": job.id, "token": job.token, "outcome": "failed", "retry": VALUES[kind](secret)},
    ):
        said: Any
        try:
            said = [verdict.message for verdict in worker.finish(outcomes=[outcome])]
        except psycopg.Error as error:
            said = error
        assert secret not in str(said)
