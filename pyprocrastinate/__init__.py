"""
A PostgreSQL task queue whose database is the queue.

`import pyprocrastinate as procrastinate` replaces Procrastinate 3.
"""

from typing import Any

from pyprocrastinate import exceptions, removed
from pyprocrastinate.app import App
from pyprocrastinate.blueprints import Blueprint
from pyprocrastinate.connector import BaseConnector, PsycopgConnector, SyncPsycopgConnector
from pyprocrastinate.hookspecs import hookimpl, hookspec
from pyprocrastinate.job_context import AbortReason, JobContext
from pyprocrastinate.retry import BaseRetryStrategy, RetryDecision, RetryStrategy

__all__ = [
    "AbortReason",
    "App",
    "BaseConnector",
    "BaseRetryStrategy",
    "Blueprint",
    "JobContext",
    "PsycopgConnector",
    "RetryDecision",
    "RetryStrategy",
    "SyncPsycopgConnector",
    "hookimpl",
    "hookspec",
]


def __getattr__(name: str) -> Any:
    if name in removed.SUCCESSORS:
        raise exceptions.MovedElsewhere(removed.sentence(name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
