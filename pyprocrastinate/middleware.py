"""
Functions of the user's around a task: `middleware(call_next, context, worker)` returns what the job results in.

Those for tasks are of the task's kind: sync ones run in its thread. Those for the worker are async, surround each job
on the event loop, and are the outermost. What `call_next` raises must go on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from pyprocrastinate.exceptions import MiddlewareKindMismatch

Middleware: TypeAlias = Callable[[Callable[[], Any], Any, Any], Any]


def is_async(middleware: Middleware) -> bool:
    return inspect.iscoroutinefunction(middleware) or inspect.iscoroutinefunction(type(middleware).__call__)


def checked(middleware: Iterable[Middleware] | None, kind: bool | None = None) -> list[Middleware]:
    """Return a list of them; raises TypeError, and MiddlewareKindMismatch unless all are as async as `kind` says."""
    found = list(middleware or ())
    for each in found:
        if not callable(each):
            raise TypeError(f"middleware must be callable, and {type(each).__qualname__} is not")
        if kind not in (None, is_async(each)):
            raise MiddlewareKindMismatch(f"{each!r} must be {'async' if kind else 'sync'}, as what it surrounds")
    return found


def around(
    call: Callable[[], Any], middleware: Iterable[Middleware] | None, context: Any, worker: Any
) -> Callable[[], Any]:
    """Return the call with middleware around it, the first one outermost."""
    for each in reversed(list(middleware or ())):
        call = partial(each, call, context, worker)
    return call
