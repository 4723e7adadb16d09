"""
The hooks: what a plugin can add, watch, surround and decide.

A name tells the kind. `register_*` collects, past tense observes, `wrap_*` surrounds, `decide_*` decides.
A plugin is a module or an object with functions marked `@hookimpl`, sync or async, which take any of the arguments by
name. Later releases only add arguments and hooks.
Where a plugin raises, takes too long or returns what makes no sense, that is logged with its name, the rest goes on as
if it were not there, and so do the other plugins. Past its budget a call is abandoned: nobody waits for it any longer,
its thread is left behind, and after the third time the plugin is no longer called at this hook, in this process.
Several plugins are called in pluggy's order: those loaded last come first, but for `tryfirst` and `trylast`.

Observers are called one after the other, in the order in which things happened, on a thread of their own in the process
in which they happened: never in a task's thread, on the worker's event loop or in a transaction. What they return is
ignored. Coroutines run on that
thread's event loop, which stands still between calls. Their budget is 5 seconds. The thread is waited for at the end of
a worker's run and of the process, at most for this budget; with 100,000 calls waiting for it, further ones are
dropped.
What no Python did is not seen here; it is in the database's views.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pluggy

if TYPE_CHECKING:
    import click

    from pyprocrastinate.app import App
    from pyprocrastinate.blueprints import Blueprint
    from pyprocrastinate.job_context import AbortReason, JobContext
    from pyprocrastinate.jobs import Job
    from pyprocrastinate.retry import RetryDecision
    from pyprocrastinate.worker import Worker

hookspec = pluggy.HookspecMarker("pyprocrastinate")
hookimpl = pluggy.HookimplMarker("pyprocrastinate")


class RescuedJob(NamedTuple):
    """A job that was taken from a dead worker; its status now is `todo`, or `failed` after too many rescues."""

    id: int
    task_name: str
    queue: str
    worker_id: int
    status: str


class Tick(NamedTuple):
    """A schedule has fired: the job was deferred for the time `at`."""

    schedule: str
    at: datetime
    job_id: int


@hookspec
def register_commands(cli: click.Group) -> None:
    """
    Add commands to the command line.

    Called when the command `pyprocrastinate` prints its help, or is given a command that is not its own; not for
    plugins of `App(plugins=[...])`, since no app is loaded then.
    `cli` is a group of the plugin's own, whose commands are then taken over; a name that is taken stays what it was.
    The click context's `obj` is the dotted path of `--app`, for `pyprocrastinate.cli.load_app`.
    It has 5 seconds, in a thread of its own.
    """


@hookspec
def register_tasks(app: App) -> Blueprint | None:
    """
    Return tasks and schedules of the plugin's own.

    Called once for each app, in whatever process, when a worker is made or import paths are performed. The names then
    begin with the plugin's name and a colon; names that are taken are an error of the plugin's.
    It has 5 seconds, in a thread of its own.
    """


@hookspec
def worker_started(worker: Worker) -> None:
    """
    A worker is registered and about to fetch.

    Observes, in the worker's process; once a run, not again where the worker has to register anew.
    """


@hookspec
def worker_stopping(worker: Worker, running: list[Job]) -> None:
    """
    A worker has begun to stop, and these jobs still run.

    Observes, in the worker's process; once a run, also where nothing is left to do.
    """


@hookspec
def worker_stopped(worker: Worker, error: BaseException | None) -> None:
    """
    A worker's run has ended, because of this error if there is one; perhaps it never started.

    Observes, in the worker's process; the last call of the run, which a second signal cuts short.
    """


@hookspec
def jobs_deferred(app: App, jobs: list[Job], in_transaction: bool) -> None:
    """
    Jobs were deferred by this process: a program, the command line or a task.

    Observes, in that process. With `in_transaction` they are in a transaction of the caller's, which may still roll
    back: they may never exist.
    """


@hookspec
def job_started(worker: Worker, job: Job) -> None:
    """
    The run of a job is about to begin.

    Observes, in the worker's process; `job` has its arguments and headers, which are not to be changed.
    """


@hookspec
def job_finished(
    worker: Worker,
    job: Job,
    status: str | None,
    duration: float,
    retry_at: datetime | None,
    exception: BaseException | None,
) -> None:
    """
    A run has ended, and the database has taken note.

    Observes, in the worker's process. `status` is what the job is now: `succeeded`, `failed`, `aborted` or `todo`, to
    be run again at `retry_at`; None where the run did not count, because others have the job by now or its outcome
    could not be told. `duration` is in seconds.
    Not every end has had a start: a job whose task is unknown, or that was aborted before it began, fails or
    aborts without. Nor does every start have an end: a worker that loses the database for good cannot tell.
    """


@hookspec
def job_abort_requested(worker: Worker, job: Job, reason: AbortReason) -> None:
    """
    A running job is asked to stop, by a user or by the worker's shutdown.

    Observes, in the worker's process; how the job ends is up to its task.
    """


@hookspec
def jobs_rescued(worker: Worker, jobs: list[RescuedJob]) -> None:
    """
    This worker has taken jobs from workers that are dead.

    Observes, in the process of the worker that happened to look, after the commit. Each rescue is seen by one worker,
    or by none if somebody else called `tick_v1`.
    """


@hookspec
def schedules_fired(worker: Worker, ticks: list[Tick]) -> None:
    """
    This worker has deferred jobs of schedules that were due.

    Observes, in the process of the worker that happened to look, after the commit; see `jobs_rescued`.
    """


@hookspec
def wrap_defer(app: App, jobs: list[Job], headers: dict[str, Any]) -> AbstractContextManager[Any] | None:
    """
    Surround a defer from Python.

    Called before it, in the process that defers, with nothing sent yet; a context manager that is returned is entered
    then, and left after it with its error if there was one. It changes neither jobs nor error. `jobs` have no ids yet.
    What is in `headers` by the time it is entered goes with each of the jobs, as `Job.headers`; what is no JSON does
    not.
    Entering and leaving have 1 second each, while the defer waits, with the event loop if it is on one; they are called
    in other threads with a copy of the caller's context variables.
    """


@hookspec
def wrap_job(
    worker: Worker, job: Job, context: JobContext
) -> AbstractContextManager[Any] | AbstractAsyncContextManager[Any] | None:
    """
    Surround a task's code.

    Called in the worker's process when the job has begun, in no transaction; a context manager that is returned is
    entered before the code and left after it, with its exception if it raised one. It changes neither result nor
    exception, and one that takes too long is not left.
    A sync one is called, entered and left in other threads, an async one on the worker's event loop. Either way the
    task sees the context variables it sets, also in its thread.
    Entering and leaving have 1 second each, while the job's slot waits.
    """


@hookspec(firstresult=True)
def decide_retry(worker: Worker, job: Job, exception: BaseException) -> RetryDecision | bool | None:
    """
    Decide whether a failed job runs again.

    Called in the worker's process when a run has failed, or was aborted by the worker's shutdown, before the database
    knows; not where the task itself has decided (JobRetry, JobAborted) or a user has asked the job to stop.
    The first answer but None holds: False fails the job, True runs it again at once, a decision as it says. With None
    from all, the retry policy decides.
    It has 1 second, while the job's slot waits: sync in another thread, async on the worker's event loop.
    """
