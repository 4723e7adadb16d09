"""
The app of a Django project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, cast

from asgiref.sync import sync_to_async
from django.apps import apps
from django.db import close_old_connections, reset_queries
from django.utils.module_loading import import_string, module_has_submodule

from pyprocrastinate.app import App, PeriodicDefaults
from pyprocrastinate.connector import BaseConnector
from pyprocrastinate.types import WorkerOptions
from pyprocrastinate.worker import Worker
from pyprocrastinate_django import conf
from pyprocrastinate_django.connector import DjangoConnector
from pyprocrastinate_django.exceptions import DjangoNotReady


class DjangoApp(App):
    """
    An app for Django: around each job, connections to databases are looked after as Django does around a request.

    Without a connector, tasks can be declared, and everything else raises DjangoNotReady. `app` has none until Django
    is ready; further apps, say of a test, can be given its connector.
    """

    def __init__(self, *, connector: BaseConnector | None = None, **options: Any) -> None:
        super().__init__(connector=cast(BaseConnector, connector), **options)

    @property
    def connector(self) -> BaseConnector:
        if self._connector is None:
            raise DjangoNotReady
        return self._connector

    @connector.setter
    def connector(self, connector: BaseConnector | None) -> None:
        self._connector = connector

    def get_ready(self) -> None:
        """Take over the settings; Django calls this once."""
        self.connector = DjangoConnector(conf.database_alias())
        self.import_paths = [*_autodiscovered(), *conf.setting("PROCRASTINATE_IMPORT_PATHS")]
        self.worker_defaults = conf.setting("PROCRASTINATE_WORKER_DEFAULTS") or WorkerOptions()
        self.periodic_defaults = conf.setting("PROCRASTINATE_PERIODIC_DEFAULTS") or PeriodicDefaults()
        self.log_args = conf.setting("PROCRASTINATE_LOG_ARGS")
        if path := conf.setting("PROCRASTINATE_ON_APP_READY"):
            import_string(path)(self)

    def perform_import_paths(self) -> None:
        if self._connector is None:
            raise DjangoNotReady
        super().perform_import_paths()

    def make_worker(self, **options: Unpack[WorkerOptions]) -> Worker:
        """Do as `App.make_worker`, with care for connections around all middleware for tasks."""
        worker = super().make_worker(**options)
        given = worker.task_middleware or ()
        worker.task_middleware = [_look_after_connections, _look_after_async_connections, *given]
        return worker


def _autodiscovered() -> list[str]:
    name = conf.setting("PROCRASTINATE_AUTODISCOVER_MODULE_NAME")
    if not name:
        return []
    return [f"{config.name}.{name}" for config in apps.get_app_configs() if module_has_submodule(config.module, name)]


def _before() -> None:
    reset_queries()
    close_old_connections()


def _look_after_connections(call_next: Callable[[], Any], context: Any, worker: Any) -> Any:
    _before()
    try:
        return call_next()
    finally:
        close_old_connections()


async def _look_after_async_connections(call_next: Callable[[], Any], context: Any, worker: Any) -> Any:
    # Async code makes its queries in a thread, which this reaches.
    await sync_to_async(_before)()
    try:
        return await call_next()
    finally:
        await sync_to_async(close_old_connections)()


app = DjangoApp()
