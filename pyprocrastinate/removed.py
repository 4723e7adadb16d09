"""
Names that Procrastinate 2 had, and what to use in their place.
"""

from __future__ import annotations

from collections.abc import Iterable

SUCCESSORS = {
    "AiopgConnector": "PsycopgConnector",
    "Psycopg2Connector": "SyncPsycopgConnector",
    "include_error": "include_failed",
    "job_result": "the job, whose result is stored with store_result=True",
    "remove_error": "remove_failed",
    "should_abort_async": "should_abort",
    "timeout": "fetch_job_polling_interval",
}


def sentence(name: str) -> str:
    """Return what is wrong with a name that is not there."""
    successor = SUCCESSORS.get(name)
    return f"{name} was removed in Procrastinate 3: use {successor}" if successor else f"there is no {name}"


def refuse(arguments: Iterable[str]) -> None:
    """Raise TypeError for the first of these arguments, if there is one."""
    for name in arguments:
        raise TypeError(sentence(name))
