"""
The worker as its user sees it: options, start and stop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import socket
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from pyprocrastinate import exceptions, operations, payload, periodic
from pyprocrastinate.job_context import JobContext
from pyprocrastinate.jobs import DeleteJobCondition, plain
from pyprocrastinate.middleware import Middleware, checked, is_async
from pyprocrastinate.protocol import PROTOCOL
from pyprocrastinate.shift import Shift
from pyprocrastinate.signals import stop_on_signals
from pyprocrastinate.wires import WorkerConnector
from pyprocrastinate_hooks import observers

if TYPE_CHECKING:
    from pyprocrastinate.app import App
    from pyprocrastinate.execution import Run
    from pyprocrastinate.tasks import Task


@dataclasses.dataclass(eq=False)
class Worker:
    """
    Runs jobs until it is stopped; it can be run again then.

    Args:
        queues: Names of queues; None means all, an empty list none.
        name: What it is called in logs and in the view `procrastinate.workers`.
        concurrency: How many tasks run at a time.
        wait: Whether to go on when nothing is ready.
        fetch_job_polling_interval: How long to sleep at most with nothing to do, in seconds as all times.
        abort_job_polling_interval: How soon a request to abort is noticed without a notification.
        shutdown_graceful_timeout: How long, after `stop`, tasks may go on before they are asked to stop; None: for
            ever.
        listen_notify: Whether to listen; behind a pooler in transaction mode, notifications never arrive.
        delete_jobs: Which finished jobs are not kept: never, which None means, successful or always.
        additional_context: Passed to tasks as `context.additional_context`, each time as a copy.
        install_signal_handlers: Whether SIGINT and SIGTERM stop the worker; the second one kills the process.
        update_heartbeat_interval: How often it tells that it lives.
        stalled_worker_timeout: After how long without a heartbeat its jobs go to others.
        task_middleware: Around the run of each task of the same kind, sync or async; see `middleware`.
        worker_middleware: Async, around each job.
        prefetch: Whether to fetch ahead of free slots while tasks are shorter than a round trip.
        log_args: Whether logs may hold arguments of jobs.
    """

    app: App
    _: dataclasses.KW_ONLY
    queues: Iterable[str] | None = None
    name: str | None = "worker"
    concurrency: int = 1
    wait: bool = True
    fetch_job_polling_interval: float = 5.0
    abort_job_polling_interval: float = 5.0
    shutdown_graceful_timeout: float | None = None
    listen_notify: bool = True
    delete_jobs: str | DeleteJobCondition | None = None
    additional_context: dict[str, Any] | None = None
    install_signal_handlers: bool = True
    update_heartbeat_interval: float = 10.0
    stalled_worker_timeout: float = 30.0
    task_middleware: Iterable[Middleware] | None = None
    worker_middleware: Iterable[Middleware] | None = None
    prefetch: bool = True
    log_args: bool = True

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        if not 0 < self.update_heartbeat_interval <= self.stalled_worker_timeout / 2:
            raise ValueError("update_heartbeat_interval must be at most half of stalled_worker_timeout")
        if not isinstance(self.app.connector, WorkerConnector):
            raise exceptions.SyncConnectorConfigurationError
        self.connector = self.app.connector
        self.queues = None if self.queues is None else list(self.queues)
        self.worker_name = self.name or "worker"
        self.task_middleware = checked(self.task_middleware)
        self.worker_middleware: list[Middleware] = checked(self.worker_middleware, kind=True)
        self.delete_jobs = DeleteJobCondition(self.delete_jobs or "never")
        self.logger = logging.getLogger(f"{__name__}.{plain(self.worker_name)}")
        self._shift: Shift | None = None
        self._stop_requested = False

    @property
    def worker_id(self) -> int | None:
        """The id under which the worker is registered; it may change while it runs."""
        return self._shift.worker_id if self._shift else None

    def find_task(self, task_name: str) -> Task[..., Any, ...]:
        """Return the task of this name or alias; raises TaskNotFound."""
        if task := self.app.tasks.get(task_name):
            return task
        raise exceptions.TaskNotFound(f"there is no task {task_name}")

    def registration(self) -> operations.Call[int]:
        """Return the call that makes the worker, its tasks and its schedules known."""
        max_delay = self.app.periodic_defaults.get("max_delay", periodic.DEFAULT_MAX_DELAY)
        schedules = [schedule.as_schedule(max_delay) for schedule in self.app.periodic_registry.periodic_tasks.values()]
        return operations.register(
            name=self.worker_name,
            queues=self.queues,
            tasks=payload.encode({name: task.as_registered() for name, task in self.app.tasks.items()}),
            schedules=payload.encode(schedules, self.connector.json_dumps),
            protocol=PROTOCOL,
            stalled_after=self.stalled_worker_timeout,
            info=json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "concurrency": self.concurrency}),
        )

    def middleware_of(self, task: Task[..., Any, ...]) -> list[Middleware]:
        """Return what goes around a task's function: the worker's middleware of its kind, then its own."""
        return [each for each in self.task_middleware or () if is_async(each) == task.is_async] + task.task_middleware

    def make_context(self, run: Run) -> JobContext:
        return JobContext(
            app=self.app,
            worker_name=self.worker_name,
            worker_queues=self.queues,
            job=run.job,
            token=run.token,
            start_timestamp=run.timestamp,
            additional_context=dict(self.additional_context or {}),
            abort_reason=lambda: run.reason,
        )

    def stop(self) -> None:
        """
        Begin no more jobs, and end when the running ones have; from any thread, any number of times.

        Said before the worker runs, it holds for the next run.
        """
        self._stop_requested = True
        if shift := self._shift:
            shift.stop()

    async def run(self) -> None:
        """
        Work until stopped.

        Cancelled, it stops gracefully and then raises CancelledError; cancelled again, it asks the running tasks to
        stop.
        """
        shift = self._shift = Shift(self)
        work = asyncio.create_task(shift.work())
        signals = stop_on_signals(self.stop, self.logger) if self.install_signal_handlers else nullcontext()
        try:
            with signals:
                if self._stop_requested:
                    shift.stop()
                try:
                    await asyncio.wait({work})
                except asyncio.CancelledError:
                    await self._wind_up(shift, work)
                    raise
                await work
        finally:
            self._shift = None
            self._stop_requested = False
            error = None if work.cancelled() else work.exception()
            self.app.hooks.observe("worker_stopped", worker=self, error=error)
            await asyncio.to_thread(observers.flush)

    async def _wind_up(self, shift: Shift, work: asyncio.Task[None]) -> None:
        shift.stop()
        while not work.done():
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError:
                shift.abort_running()
        if error := work.exception():
            extra = {"action": "stop_worker_error"}
            self.logger.error("The worker failed while it stopped", exc_info=error, extra=extra)
