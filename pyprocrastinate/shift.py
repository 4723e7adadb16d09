"""
One run of a worker, from registering to taking leave.

Its loop makes one call a round: what ended goes out and what fits comes in, in one statement and one round trip.
What must go on whatever the event loop does is in `pulse`; how user code runs is in `execution`.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import psycopg

from pyprocrastinate import exceptions, operations
from pyprocrastinate.execution import Execution, Run
from pyprocrastinate.job_context import AbortReason
from pyprocrastinate.joblog import JobLog
from pyprocrastinate.jobs import DeleteJobCondition, plain
from pyprocrastinate.link import Link, Unreachable
from pyprocrastinate.outcomes import Describer, Outbox
from pyprocrastinate.protocol import check_protocol
from pyprocrastinate.pulse import Pulse

if TYPE_CHECKING:
    from pyprocrastinate.worker import Worker

P = ParamSpec("P")

# When an idle worker looks again, in seconds after its last look: a defer that was committing as it went idle may have
# taken it for busy and notified nobody.
_LOOKS = (0.05, 0.2, 0.75)
# How much work, by the clock, may be fetched before there is a slot for it, how many jobs, and how long they may lie.
_AHEAD_SECONDS = 0.1
_AHEAD_JOBS = 900
_AHEAD_LIES = 0.5
# How long a worker with nothing left to run goes on telling a database that does not answer.
_PARTING_SECONDS = 3.0
_DUE_JITTER = 0.01
NOT_REGISTERED = "JQ004"


def _in_loop(method: Callable[Concatenate[Shift, P], None]) -> Callable[Concatenate[Shift, P], None]:
    """Let a method be called from any thread: it runs in the event loop, a little later, unless that is closed."""

    def send(self: Shift, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(functools.partial(method, self, *args, **kwargs))

    return send


class Shift:
    """
    The loop and all that changes while a worker runs.

    Everything but `stop` and the methods for the pulse belongs to the event loop's thread.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.worker_id: int | None = None
        self.logger = worker.logger
        self.loop = asyncio.get_running_loop()
        self._hooks = worker.app.hooks
        self._log = JobLog(worker)
        self._link = Link(worker.connector, worker.logger, worker.stalled_worker_timeout)
        self._pulse = Pulse(worker, self)
        self._execution = Execution(worker, self._log.started, self._ended)
        self._woken = asyncio.Event()
        describer = Describer(DeleteJobCondition(worker.delete_jobs), worker.connector.json_dumps, worker.logger)
        self._outbox = Outbox(describer, self._link, self._log, self._woken)
        self._stopping = False
        self._failure: psycopg.Error | None = None
        self._alive_at = 0.0
        self._scan: Sequence[int] | None = None
        # Whether a job of the last fetch had a lock of either kind.
        self._locked = False
        # Whether a fetch may find something; if not, when to look, and how often that was in vain.
        self._hungry = True
        self._look_at = 0.0
        self._looks = 0
        self._drained = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def work(self) -> None:
        """
        Work until stopped or drained.

        Raises ConnectorException when the database refuses the worker, or could not be told how jobs ended; those are
        run again by others.
        """
        with operations.translated():
            try:
                await self._start()
                await self._serve()
                self._begin_to_stop()
                await self._leave()
            except Unreachable as error:
                self._take_loss(error)
            finally:
                for timer in self._timers.values():
                    timer.cancel()
                # A database that has been given up on one connection is not waited for on the other one.
                await asyncio.to_thread(self._pulse.stop, 0.0 if self._link.expired else 2.0)
                await self._link.close()
                self._execution.close()
        self._log.worker("stop_worker", "Stopped worker")

    @_in_loop
    def stop(self) -> None:
        """Begin to stop; from any thread, and from a signal handler."""
        self._begin_to_stop()

    def abort_running(self) -> None:
        """Ask all running tasks to stop."""
        for run in self._execution.abort(list(self._execution.running), AbortReason.SHUTDOWN):
            self._log.abort_requested(run)

    # Coming and going

    async def _start(self) -> None:
        await self._link.open()
        check_protocol(*await self._link.call(operations.protocol()))
        await self._register()
        self._pulse.start()
        self._watch()
        self._hooks.observe("worker_started", worker=self.worker)

    async def _register(self) -> None:
        sent_at = monotonic()
        self.worker_id = self._log.worker_id = await self._link.call(self.worker.registration())
        self._alive_at = sent_at
        self._pulse.worker_id = self.worker_id
        self._pulse.poke()
        self._hungry, self._scan = True, None
        on = "all queues" if self.worker.queues is None else plain(", ".join(self.worker.queues))
        self._log.worker("start_worker", "Started worker %s on %s", self.worker_id, on)

    async def _leave(self) -> None:
        if self.worker_id is not None:
            # No heartbeat shall find the worker gone.
            worker_id = self.worker_id
            self.worker_id = self._pulse.worker_id = None
            await self._link.call(operations.unregister(worker_id))
        if self._failure:
            raise self._failure

    def _take_loss(self, error: Unreachable) -> None:
        text = "The database could not be told how %s jobs ended; they will be run again: %s"
        self.logger.error(text, len(self._outbox), error, extra={"action": "stop_worker_error"})
        if self._outbox:
            raise exceptions.ConnectorException(str(error)) from error

    # The loop

    async def _serve(self) -> None:
        execution = self._execution
        while True:
            self._woken.clear()
            execution.withdraw(float("inf") if self._stopping else monotonic() - _AHEAD_LIES)
            try:
                if self.worker_id is None and not self._stopping:
                    await self._register()
                if self._link.interrupted and self.worker_id is not None:
                    await self._reconcile(self.worker_id)
            except psycopg.Error as error:
                # What still runs ends first, and is told.
                self._fail(error)
            fetches = self._hungry and execution.free > 0 and not self._stopping
            if self._outbox.runs or fetches:
                await self._exchange()
            elif self._has_ended():
                return
            else:
                await self._rest()

    def _has_ended(self) -> bool:
        idle = not (self._execution.busy or self._execution.waiting or len(self._outbox))
        return idle and (self._stopping or self._drained)

    async def _exchange(self) -> None:
        """Tell what ended and fetch what fits."""
        batch = self._outbox.take()
        self._drained = False
        worker_id, (capacity, extra) = self.worker_id, self._room()
        outcomes = self._outbox.describer.gather(batch)
        try:
            if self._stopping or worker_id is None:
                verdicts = await self._link.call(operations.finish(worker_id or 0, outcomes))
                claims: Sequence[operations.Row] = ()
            else:
                call = operations.work(worker_id, outcomes, capacity=capacity, extra=extra, scan=self._scan)
                work = await self._link.call(call)
                claims, verdicts, self._scan = work.claims, work.verdicts, work.scan_next
        except Unreachable:
            self._outbox.put_back(batch)
            raise
        except psycopg.Error as error:
            await self._on_refusal(error, batch)
            return
        self._outbox.settle(batch, verdicts)
        if claims and worker_id is not None:
            self._accept(worker_id, claims)
        if capacity > len(claims):
            self._hungry = False
            if batch or claims:
                self._looks, self._look_at = 0, 0.0

    async def _on_refusal(self, error: psycopg.Error, batch: list[Run]) -> None:
        if error.sqlstate == NOT_REGISTERED:
            self._outbox.put_back(batch)
            self._lose("it is no longer registered")
        elif batch:
            # One of them, or the fetch, is to blame: whoever is, the others shall not suffer.
            for run in batch:
                await self._outbox.tell_alone(run, error, self.worker_id or 0)
        else:
            self._fail(error)

    def _room(self) -> tuple[int, int]:
        """Return how many jobs to fetch for free slots, and how many beyond them."""
        free, duration = max(0, self._execution.free), self._execution.duration
        # Where jobs have locks, a fetch ahead would hold many that it may not take.
        if not self.worker.prefetch or self._locked or duration is None or duration >= self._link.round_trip:
            return free, 0
        # As if one ran after the other: what keeps the event loop busy does.
        ahead = int(min(_AHEAD_JOBS, _AHEAD_SECONDS / max(duration, 1e-6)))
        # One half runs while the database is told of the other; unequal halves would wait for each other for ever.
        half = (self.worker.concurrency + ahead + 1) // 2
        capacity = min(free, half)
        return capacity, min(max(0, ahead - len(self._execution.waiting)), half - capacity)

    def _accept(self, worker_id: int, claims: Iterable[operations.Row]) -> None:
        now, tasks = monotonic(), self.worker.app.tasks
        runs = [Run(claim, tasks.get(claim[2]), worker_id, now) for claim in claims]
        self._locked = any(claim[8] is not None or claim[9] is not None for claim in claims)
        if self._stopping or worker_id != self.worker_id:
            for run in runs:
                self._ended(run)
        else:
            self._execution.offer(runs)

    async def _rest(self) -> None:
        """Look whether there is something to do, and if not, sleep until there may be."""
        seconds: float | None = None
        # What has just been begun may end at once, and is then told first.
        await asyncio.sleep(0)
        if self._outbox.runs:
            return
        if self._execution.free > 0 and not self._stopping:
            if monotonic() >= self._look_at:
                await self._look()
            if self._hungry or self._drained or self.worker_id is None:
                return
            seconds = max(0.0, self._look_at - monotonic())
        if self._execution.waiting:
            lies = self._execution.waiting[0].fetched_at + _AHEAD_LIES - monotonic()
            seconds = max(0.0, lies if seconds is None else min(lies, seconds))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    async def _look(self) -> None:
        assert self.worker_id is not None
        try:
            ready, due_in = await self._link.call(operations.idle(self.worker_id, self._scan))
        except psycopg.Error as error:
            await self._on_refusal(error, [])
            return
        pause = self.worker.fetch_job_polling_interval
        if self._looks < len(_LOOKS):
            pause = min(pause, _LOOKS[self._looks])
        if due_in is not None and due_in > 0:
            # Not all workers at the same instant, and not always the same one first.
            pause = min(pause, due_in + random.uniform(0, _DUE_JITTER))  # noqa: S311
        self._look_at = monotonic() + pause
        # What looks ready may be behind a lock that another worker holds.
        in_vain = not ready or self._looks > 0
        self._looks += 1
        self._hungry = ready
        busy = self._execution.busy or len(self._outbox)
        self._drained = in_vain and not self.worker.wait and not busy

    # Outcomes

    def _ended(self, run: Run) -> None:
        """A run has ended, or a claim is given back without one."""
        if run.lost and run.outcome == "aborted":
            self._log.void(run, "job_lost", "has stopped; others will run it")
        else:
            self._outbox.put(run)
        self._woken.set()
        self._part()

    async def _reconcile(self, worker_id: int) -> None:
        """Give back what was fetched by a call whose answer never came."""
        known = {run.token for run in (*self._execution.all(), *self._outbox)}
        self._link.interrupted = False
        held = await self._link.call(operations.held(worker_id))
        for job_id, token in held:
            if token not in known:
                run = Run.unseen(job_id, token, worker_id)
                self._ended(run)

    # Being told to stop, and losing touch

    def _begin_to_stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        running = [run.job for run in self._execution.running.values()]
        self._hooks.observe("worker_stopping", worker=self.worker, running=running)
        self._log.worker("stopping_worker", "Stopping worker; %s jobs are running", len(running))
        if (seconds := self.worker.shutdown_graceful_timeout) is not None:
            self._timers["stop"] = self.loop.call_later(seconds, self.abort_running)
        self._part()
        self._woken.set()

    def _part(self) -> None:
        if self._stopping and not self._execution.busy:
            self._link.limit(_PARTING_SECONDS)

    def _fail(self, error: psycopg.Error) -> None:
        self.logger.error("The database refuses the worker: %s", error, extra={"action": "worker_error"})
        self._failure = error
        self._begin_to_stop()

    def _lose(self, why: str) -> None:
        """Give the jobs up: others have them, or soon will."""
        if self.worker_id is None:
            return
        self.worker_id = self._pulse.worker_id = None
        text = "The worker has lost its jobs, because %s; %s running ones are asked to stop"
        self.logger.error(text, why, len(self._execution.running), extra={"action": "worker_lost"})
        for run in self._execution.lose():
            self._log.abort_requested(run)
        self._woken.set()

    def _watch(self) -> None:
        """Stop the tasks in time when no heartbeat gets through."""
        timeout = self.worker.stalled_worker_timeout
        if monotonic() - self._alive_at > timeout * 2 / 3:
            self._lose("it is cut off from the database")
            self._pulse.sever()
        self._timers["watch"] = self.loop.call_later(timeout / 30, self._watch)

    # What the pulse tells, from its thread

    def beat(self, sent_at: float) -> None:
        self._alive_at = sent_at

    @_in_loop
    def lost(self, worker_id: int) -> None:
        if worker_id == self.worker_id:
            self._lose("it gave no heartbeat for too long")

    @_in_loop
    def abort(self, job_ids: list[int]) -> None:
        for run in self._execution.abort(job_ids, AbortReason.USER_REQUEST):
            self._log.abort_requested(run)

    @_in_loop
    def wake(self) -> None:
        self._hungry, self._looks, self._look_at = True, 0, 0.0
        self._woken.set()

    @_in_loop
    def ticked(self, events: list[operations.Row]) -> None:
        self._log.ticked(events)
        self.wake()
