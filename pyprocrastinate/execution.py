"""
Running what was fetched: at most `concurrency` tasks at a time, coroutines on the event loop, functions in threads.

This is the one place where a job starts, ends, or is asked to stop.
Python only tells how the user's code ended; what that makes of the job is up to the schema.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic, time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyprocrastinate import exceptions, operations, payload
from pyprocrastinate.job_context import AbortReason
from pyprocrastinate.jobs import Job, plain, printed
from pyprocrastinate.middleware import around

if TYPE_CHECKING:
    from pyprocrastinate.tasks import Task
    from pyprocrastinate.worker import Worker
    from pyprocrastinate_hooks import Implementation

# How much a new duration counts in the running average.
_WEIGHT = 0.05


@dataclasses.dataclass(slots=True, eq=False)
class Run:
    """One claim of a job, from its fetch to its verdict."""

    claim: operations.Row
    task: Task[..., Any, ...] | None
    worker_id: int
    fetched_at: float
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    headers: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: AbortReason | None = None
    cancellable: bool = False
    lost: bool = False
    refused: bool = False
    handle: asyncio.Task[None] | None = None
    error: BaseException | None = None
    result: Any = None
    outcome: str = "released"
    described: str | None = None
    # A plugin's, if there is one: who it is, and the retry as an outcome has it.
    decision: tuple[Implementation, Any] | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    timestamp: float = 0.0
    id: int = dataclasses.field(init=False)
    token: int = dataclasses.field(init=False)
    _job: Job | None = None

    def __post_init__(self) -> None:
        self.id, self.token = self.claim[:2]
        if self.claim[12]:
            self.reason = AbortReason.USER_REQUEST

    @classmethod
    def unseen(cls, job_id: int, token: int, worker_id: int) -> Run:
        """Return a claim of which nothing but this is known."""
        row = (job_id, token, "", "", "{}", None, 0, 0, None, None, None, None, False)
        return cls(row, None, worker_id, 0.0)

    @property
    def job(self) -> Job:
        if self._job is None:
            job_id, _, task, queue, _, _, attempts, priority, lock, queueing_lock, due, deferred, abort, *_ = self.claim
            self._job = Job(
                id=job_id,
                status="doing",
                queue=queue,
                priority=priority,
                lock=lock,
                queueing_lock=queueing_lock,
                task_name=task,
                task_kwargs=self.kwargs,
                scheduled_at=operations.moment(due),
                attempts=attempts,
                abort_requested=abort,
                worker_id=self.worker_id,
                headers=self.headers,
                deferred_at=operations.moment(deferred),
            )
        return self._job

    def abort(self, reason: AbortReason) -> None:
        """Ask the task to stop, once; a coroutine is cancelled, a function has to look at its context."""
        if self.reason is None:
            self.reason = reason
            if self.cancellable and self.handle:
                self.handle.cancel()
        elif reason is AbortReason.USER_REQUEST:
            self.reason = reason

    def conclude(self) -> None:
        """Name how the user's code ended."""
        cancelled = self.reason and isinstance(self.error, asyncio.CancelledError)
        if self.error is None:
            self.outcome = "succeeded"
        elif cancelled or isinstance(self.error, exceptions.JobAborted):
            self.outcome = "aborted"
        else:
            self.outcome = "failed"

    @property
    def is_open(self) -> bool:
        """Tell whether the job may run again, and its task has not said whether it shall."""
        decided = isinstance(self.error, exceptions.JobRetry) or self.reason is AbortReason.USER_REQUEST
        return self.error is not None and not decided and (self.outcome == "failed" or self.reason is not None)


class Execution:
    """The slots of a worker."""

    def __init__(self, worker: Worker, started: Callable[[Run], None], ended: Callable[[Run], None]) -> None:
        self.concurrency = worker.concurrency
        self.running: dict[int, Run] = {}
        # Still running, but the jobs are no longer this worker's.
        self.lost: set[Run] = set()
        # Fetched, not begun.
        self.waiting: deque[Run] = deque()
        self.duration: float | None = None
        self._worker = worker
        self._hooks = worker.app.hooks
        self._started = started
        self._ended = ended
        self._executor: ThreadPoolExecutor | None = None
        self._context = contextvars.copy_context()

    @property
    def free(self) -> int:
        """The slots for which nothing was fetched yet."""
        return self.concurrency - len(self.running) - len(self.lost) - len(self.waiting)

    def all(self) -> list[Run]:
        """Return the claims that have not ended."""
        return [*self.running.values(), *self.lost, *self.waiting]

    @property
    def busy(self) -> bool:
        return bool(self.running or self.lost)

    def offer(self, runs: Iterable[Run]) -> None:
        """Begin these, in order, as slots are free."""
        self.waiting.extend(runs)
        self.fill()

    def fill(self) -> None:
        """Begin what waits, as slots are free."""
        waiting = self.waiting
        while waiting and len(self.running) + len(self.lost) < self.concurrency:
            self._begin(waiting.popleft())

    def withdraw(self, fetched_before: float) -> None:
        """Give back what was fetched before then and has not begun."""
        now = monotonic()
        while self.waiting and self.waiting[0].fetched_at < fetched_before:
            run = self.waiting.popleft()
            # Tasks have turned out to be longer than they seemed.
            self.duration = max(self.duration or 0.0, now - run.fetched_at)
            self._ended(run)

    def abort(self, job_ids: Iterable[int], reason: AbortReason) -> list[Run]:
        """Ask these to stop, where they run here; return those that had not been asked before."""
        wanted = set(job_ids)
        fresh = [run for run in self.all() if run.id in wanted and run.reason is None]
        for run in self.all():
            if run.id in wanted:
                run.abort(reason)
        for run in [run for run in self.waiting if run.reason]:
            self.waiting.remove(run)
            self._begin(run)
        return fresh

    def lose(self) -> list[Run]:
        """The jobs are no longer this worker's: ask all to stop, and never begin the rest; return as `abort`."""
        self.waiting.clear()
        fresh = self.abort(list(self.running), AbortReason.SHUTDOWN)
        self.lost.update(self.running.values())
        for run in self.lost:
            run.lost = True
        self.running.clear()
        return fresh

    def close(self) -> None:
        if self._executor:
            self._executor.shutdown(wait=False)
            self._executor = None

    def _begin(self, run: Run) -> None:
        if run.task is None or run.reason:
            # Asked to stop before it began, or not to be begun here at all.
            run.outcome = "aborted" if run.reason else "unknown_task"
            self._ended(run)
            return
        self.running[run.id] = run
        # Not in the context of the job that happens to make room for this one.
        context = self._context.copy()
        run.handle = asyncio.create_task(self._run(run, run.task), context=context)

    async def _run(self, run: Run, task: Task[..., Any, ...]) -> None:
        run.timestamp = time()
        run.started_at = monotonic()
        left: Sequence[Callable[..., Any]] = ()
        try:
            run.kwargs = payload.decode_object(run.claim[4], self._worker.connector.json_loads)
            if run.claim[5]:
                run.headers = payload.decode_object(run.claim[5], payload.loads)
            self._started(run)
            worker = self._worker
            outer, inner, wraps = worker.worker_middleware, worker.middleware_of(task), self._hooks.has("wrap_job")
            context = worker.make_context(run) if task.pass_context or outer or inner or wraps else None
            if wraps:
                left = await self._hooks.wrap_job(worker=worker, job=run.job, context=context)
            args = (context,) if task.pass_context else ()
            call = around(partial(task.func, *args, **run.kwargs), inner, context, worker)
            run.result = await around(partial(self._perform, run, task, call), outer, context, worker)()
        except BaseException as error:  # noqa: BLE001  # whatever user code raises ends this run only
            # A coroutine cannot raise StopIteration.
            stopped = isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration)
            run.error = error.__cause__ if stopped else error
            if type(error) is TypeError and not all(printed(key, str).isprintable() for key in run.kwargs):
                # Python quotes a keyword that a function does not take as it is, and whoever defers chooses it.
                error.args = (plain(printed(error, str)),)
        run.ended_at = monotonic()
        if run.error is not None:
            run.error.__traceback__ = _of_user(run.error.__traceback__)
        run.conclude()
        if left or (self._hooks.has("decide_retry") and run.is_open):
            # In a task of its own: whatever was yet to cancel this one is over.
            run.cancellable = False
            run.handle = asyncio.create_task(self._consult(run, left))
        else:
            self._end(run)

    async def _consult(self, run: Run, left: Sequence[Callable[..., Any]]) -> None:
        """Tell plugins how the code ended, and let them decide."""
        error = run.error
        for leave in left:
            await leave(*(None, None, None) if error is None else (type(error), error, error.__traceback__))
        if run.is_open:
            run.decision = await self._hooks.decide_retry(worker=self._worker, job=run.job, exception=error)
        self._end(run)

    async def _perform(self, run: Run, task: Task[..., Any, ...], call: Callable[[], Any]) -> Any:
        if task.is_async:
            self._make_cancellable(run)
            return await call()
        result, error = await self._in_thread(call)
        if error is not None:
            raise error
        if inspect.isawaitable(result):
            self._make_cancellable(run)
            return await result
        return result

    def _make_cancellable(self, run: Run) -> None:
        run.cancellable = True
        if run.reason and run.handle:
            run.handle.cancel()

    async def _in_thread(self, call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.concurrency, "pyprocrastinate")
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, contextvars.copy_context().run, _attempt, call
        )

    def _end(self, run: Run) -> None:
        duration = monotonic() - run.started_at
        self.duration = duration if self.duration is None else self.duration + _WEIGHT * (duration - self.duration)
        if self.running.get(run.id) is run:
            del self.running[run.id]
        self.lost.discard(run)
        self._ended(run)
        self.fill()


def _of_user(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the user's first frame on, or whole if there is none."""
    inner = traceback
    while inner and inner.tb_frame.f_code.co_filename == __file__:
        inner = inner.tb_next
    return inner or traceback


def _attempt(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001  # a future cannot carry StopIteration
        return None, error
