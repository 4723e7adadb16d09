"""
The app: tasks, and the database that their jobs are in.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from pyprocrastinate import builtin_tasks, exceptions, removed
from pyprocrastinate.blueprints import Blueprint
from pyprocrastinate.hooks import Hooks
from pyprocrastinate.jobs import JobDeferrer
from pyprocrastinate.manager import JobManager
from pyprocrastinate.schema import SchemaManager
from pyprocrastinate.types import ConfigureTaskOptions, WorkerOptions
from pyprocrastinate.worker import Worker

if TYPE_CHECKING:
    from pyprocrastinate.connector import BaseConnector

logger = logging.getLogger(__name__)


class PeriodicDefaults(TypedDict, total=False):
    """How late, in seconds, a schedule may still fire after a gap without workers."""

    max_delay: float


class App(Blueprint):
    """
    Tasks and a connector.

    Args:
        connector: Where the jobs are.
        import_paths: Modules that register tasks, imported when a worker starts or a task is looked up by name.
        worker_defaults: Options that `run_worker` and `run_worker_async` start from.
        periodic_defaults: `max_delay` of schedules, 600 seconds by default.
        log_args: Whether logs may hold arguments of jobs.
        plugins: Modules or objects with hooks, in addition to the installed plugins; see `hookspecs`.
    """

    def __init__(
        self,
        *,
        connector: BaseConnector,
        import_paths: Iterable[str] | None = None,
        worker_defaults: WorkerOptions | None = None,
        periodic_defaults: PeriodicDefaults | None = None,
        log_args: bool = True,
        plugins: Iterable[object] = (),
    ) -> None:
        super().__init__()
        self.connector = connector
        self.import_paths = list(import_paths or [])
        self.worker_defaults = worker_defaults or WorkerOptions()
        self.periodic_defaults = periodic_defaults or PeriodicDefaults()
        self.log_args = log_args
        builtin_tasks.register(self)
        self._plugins = list(plugins)
        self._tasks_registered = False

    @classmethod
    def from_path(cls, dotted_path: str) -> App:
        """Return the app at a path like `package.module.app`; raises LoadFromPathError."""
        module, _, name = dotted_path.rpartition(".")
        if not module:
            raise exceptions.LoadFromPathError(f"{dotted_path} cannot be loaded: write MODULE.NAME, as in shop.app")
        try:
            app = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise exceptions.LoadFromPathError(f"{dotted_path} cannot be loaded: {error}") from error
        if not isinstance(app, cls):
            raise exceptions.LoadFromPathError(f"{dotted_path} is a {type(app).__qualname__}, not an app")
        return app

    @functools.cached_property
    def hooks(self) -> Hooks:
        """The plugins, which the first use loads; raises PluginError, with the name of the one that is wrong."""
        return Hooks(self._plugins)

    @property
    def job_manager(self) -> JobManager:
        return JobManager(self.connector)

    @property
    def schema_manager(self) -> SchemaManager:
        return SchemaManager(self.connector)

    def with_connector(self, connector: BaseConnector) -> App:
        """Return another app with the same tasks and schedules. Deprecated: use `replace_connector`."""
        warnings.warn("with_connector is deprecated: use replace_connector", DeprecationWarning, stacklevel=2)
        other = copy.copy(self)
        other.connector = connector
        return other

    @contextmanager
    def replace_connector(self, connector: BaseConnector) -> Iterator[App]:
        """Use another connector within the `with` block."""
        previous, self.connector = self.connector, connector
        try:
            yield self
        finally:
            self.connector = previous

    def open(self, pool_or_engine: Any = None) -> App:
        """Open the app for sync calls, with a pool of your own if you like; also a context manager."""
        _ = self.hooks
        self.connector.open(pool_or_engine)
        return self

    def close(self) -> None:
        self.connector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_async(self, pool: Any = None) -> _Opening:
        """Open the app for async and sync calls: await it, or use it as an async context manager."""
        return _Opening(self, pool)

    async def close_async(self) -> None:
        await self.connector.close_async()

    def check_connection(self) -> bool:
        """Tell whether the database has the schema; raises ConnectorException if it cannot be asked."""
        return self.job_manager.check_connection()

    async def check_connection_async(self) -> bool:
        """Do as `check_connection`."""
        return await self.job_manager.check_connection_async()

    def configure_task(
        self, name: str, *, allow_unknown: bool = True, **options: Unpack[ConfigureTaskOptions]
    ) -> JobDeferrer:
        """
        Return a pattern for jobs of a task given by its name, which this process need not know.

        Raises TaskNotFound for an unknown one unless `allow_unknown`.
        """
        self.perform_import_paths()
        if task := self.tasks.get(name):
            return self.deferrer(task.name, task.options(**options))
        if not allow_unknown:
            raise exceptions.TaskNotFound(f"there is no task {name}")
        return self.deferrer(name, options)

    def deferrer(self, task_name: str, options: ConfigureTaskOptions) -> JobDeferrer:
        return JobDeferrer(self, task_name, options)

    def perform_import_paths(self) -> None:
        """Import the modules of `import_paths`, and take over the tasks of plugins."""
        for path in self.import_paths:
            importlib.import_module(path)
        if not self._tasks_registered:
            hooks, self._tasks_registered = self.hooks, True
            hooks.register_tasks(self)

    def make_worker(self, **options: Unpack[WorkerOptions]) -> Worker:
        """Return a worker with these options, `worker_defaults` and the defaults of `Worker`, in this order."""
        self.perform_import_paths()
        merged: dict[str, Any] = {"log_args": self.log_args, **self.worker_defaults, **options}
        removed.refuse(merged.keys() & removed.SUCCESSORS.keys())
        return Worker(self, **merged)

    async def run_worker_async(self, **options: Unpack[WorkerOptions]) -> None:
        """
        Run a worker until it is stopped, or with `wait=False` until nothing is ready.

        Cancelling it is a graceful stop; cancelling it again also asks the running tasks to stop.
        The options are those of `Worker`.
        """
        await self.make_worker(**options).run()

    def run_worker(self, **options: Unpack[WorkerOptions]) -> None:
        """Open the app and run a worker in an event loop of its own."""

        async def run() -> None:
            async with self.open_async():
                await self.run_worker_async(**options)

        # On Windows the loop that Python takes by default has no use for psycopg.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if sys.platform == "win32" else None) as runner:
            runner.run(run())


class _Opening:
    def __init__(self, app: App, pool: Any) -> None:
        self._app = app
        self._open = functools.partial(app.connector.open_async, pool)

    def __await__(self) -> Generator[Any, Any, App]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> App:
        _ = self._app.hooks
        await self._open()
        return self._app

    async def __aexit__(self, *_: object) -> None:
        await self._app.close_async()
