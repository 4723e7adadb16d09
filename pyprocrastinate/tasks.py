"""
A task: the user's function, and how jobs of it are deferred and run.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, cast

from pyprocrastinate import exceptions
from pyprocrastinate.jobs import Job, JobDeferrer
from pyprocrastinate.middleware import Middleware, checked
from pyprocrastinate.retry import RetryDecision, RetryValue, get_retry_strategy
from pyprocrastinate.types import ConfigureTaskOptions, JSONDict

if TYPE_CHECKING:
    from pyprocrastinate.blueprints import Blueprint

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
D = ParamSpec("D")


class Task(Generic[P, R, D]):
    """
    What `@app.task` makes of a function.

    Called, it runs the function right here; deferred, it runs in a worker.
    `P` are the function's parameters, `D` those that a job is deferred with.
    """

    def __init__(
        self,
        func: Callable[P, R],
        *,
        blueprint: Blueprint,
        name: str | None = None,
        aliases: list[str] | None = None,
        retry: RetryValue = False,
        pass_context: bool = False,
        queue: str = "default",
        priority: int = 0,
        lock: str | None = None,
        queueing_lock: str | None = None,
        store_result: bool = False,
        task_middleware: Iterable[Middleware] | None = None,
    ) -> None:
        self.func = func
        self.blueprint = blueprint
        self.name = name or full_path(func)
        if not name and func.__module__ == "__main__":
            logger.warning(
                "Task %s is named after the script that defines it. A worker that imports the "
                "script under another name will not find it: pass name=",
                self.name,
                extra={"action": "app_defined_in___main__"},
            )
        self.aliases = aliases or []
        self.retry_strategy = get_retry_strategy(retry)
        self.pass_context = pass_context
        self.queue = queue
        self.priority = priority
        self.lock = lock
        self.queueing_lock = queueing_lock
        self.store_result = store_result
        self.is_async = inspect.iscoroutinefunction(func)
        self.task_middleware = checked(task_middleware, kind=self.is_async)
        functools.update_wrapper(self, func, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.func(*args, **kwargs)

    @property
    def full_path(self) -> str:
        return full_path(self.func)

    def add_namespace(self, namespace: str) -> None:
        self.name = add_namespace(self.name, namespace)
        self.aliases = [add_namespace(alias, namespace) for alias in self.aliases]

    def options(self, **options: Unpack[ConfigureTaskOptions]) -> ConfigureTaskOptions:
        """Return these options, with the task's own where nothing is given."""
        own = {name: getattr(self, name) for name in ("queue", "priority", "lock", "queueing_lock")}
        given = {key: value for key, value in options.items() if value is not None}
        return cast(ConfigureTaskOptions, own | given)

    def as_registered(self) -> dict[str, Any]:
        """Return what a worker tells the schema of the task."""
        policy = self.retry_strategy.policy() if self.retry_strategy else None
        return {**self.options(), "retry": policy}

    def configure(self, **options: Unpack[ConfigureTaskOptions]) -> JobDeferrer:
        """Return a pattern that defers jobs with these options; None means what the task says."""
        return self.blueprint.deferrer(self.name, self.options(**options))

    def defer(self, *args: D.args, **kwargs: D.kwargs) -> int:
        """Defer a job, to be called with these arguments, and return its id; raise as `JobDeferrer`."""
        return self.configure().defer(**self._by_name(*args, **kwargs))

    async def defer_async(self, *args: D.args, **kwargs: D.kwargs) -> int:
        """Do as `defer`."""
        return await self.configure().defer_async(**self._by_name(*args, **kwargs))

    def batch_defer(self, *task_kwargs: JSONDict) -> list[int]:
        """Defer a job for each dict, all or none, and return their ids in this order."""
        return self.configure().batch_defer(*task_kwargs)

    async def batch_defer_async(self, *task_kwargs: JSONDict) -> list[int]:
        """Do as `batch_defer`."""
        return await self.configure().batch_defer_async(*task_kwargs)

    def get_retry_exception(self, exception: BaseException, job: Job) -> exceptions.JobRetry | None:
        """Return the retry that a strategy of the user's own decides on."""
        decision: RetryDecision | None = None
        if self.retry_strategy:
            decision = self.retry_strategy.get_retry_decision(exception=exception, job=job)
        return exceptions.JobRetry(decision) if decision else None

    def _by_name(self, *args: Any, **kwargs: Any) -> Any:
        if not args:
            return kwargs
        bound = inspect.signature(self.func).bind_partial(*[None] * self.pass_context, *args).arguments
        by_name = dict(list(bound.items())[self.pass_context :])
        if twice := by_name.keys() & kwargs.keys():
            raise TypeError(f"{self.name} got several values for {', '.join(sorted(twice))}")
        return by_name | kwargs


def add_namespace(name: str, namespace: str) -> str:
    return f"{namespace}:{name}" if namespace else name


def full_path(func: Callable[..., Any]) -> str:
    """Return `module.function`; for a script, the module that its file would be if it were imported from here."""
    if not (name := getattr(func, "__name__", None)):
        raise exceptions.FunctionPathError(
            f"{type(func).__name__} object has no __name__: give the task a name with name="
        )
    module = func.__module__
    if module == "__main__" and (file := getattr(sys.modules["__main__"], "__file__", None)):
        path = Path(file).with_suffix("")
        if path.is_absolute() and path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        module = ".".join(path.parts) if not path.is_absolute() else path.name
    return f"{module}.{name}"
