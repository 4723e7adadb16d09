"""
What a worker logs about itself and its jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pyprocrastinate import operations
from pyprocrastinate.execution import Run
from pyprocrastinate.hookspecs import RescuedJob, Tick
from pyprocrastinate.jobs import call_string, plain, printed

if TYPE_CHECKING:
    from pyprocrastinate.worker import Worker

_RESULT_LENGTH = 250
_TICKS = {
    "rescued": (logging.WARNING, "job_rescued", "Job {task}[{id}] lost its worker, and will run again"),
    "failed": (logging.ERROR, "job_lost", "Job {task}[{id}] lost its worker, and has failed"),
    "scheduled": (logging.INFO, "periodic_task_deferred", "Schedule {schedule} deferred job {id} for {tick}"),
    "skipped": (logging.DEBUG, "skip_periodic_task_queueing_lock", "Schedule {schedule} skipped {tick}: {reason}"),
    "purged": (logging.INFO, "jobs_purged", "Purged {jobs} jobs that were {status}"),
    "error": (logging.ERROR, "deferrer_error", "A tick could not do all: {detail}"),
}


class JobLog:
    """
    Logs starts and ends; an end only once the database knows of it.

    Only a final failure is an error, with its traceback.
    """

    def __init__(self, worker: Worker) -> None:
        self.logger = worker.logger
        self.worker_id: int | None = None
        self._worker = worker
        self._hooks = worker.app.hooks
        self._log_args = worker.log_args

    @property
    def wanted(self) -> bool:
        """Tell whether anybody wants to know of jobs that succeed."""
        return self.logger.isEnabledFor(logging.INFO) or self._hooks.has("job_finished")

    def worker(self, action: str, message: str, *args: Any) -> None:
        """The worker comes or goes."""
        extra = {"action": action, "worker": self._about_worker(self.worker_id), "queues": self._worker.queues}
        self.logger.info(message, *args, extra=extra)

    def started(self, run: Run) -> None:
        if self.logger.isEnabledFor(logging.INFO):
            self._log(logging.INFO, run, "start_job", "Starting job %s", self._name(run))
        if self._hooks.has("job_started"):
            self._hooks.observe("job_started", worker=self._worker, job=run.job)

    def ended(self, run: Run, status: str | None, retry_at: str | None) -> None:
        """The database has taken note: the job's status is now this."""
        self._finished(run, status, retry_at)
        if run.described is None and not self.logger.isEnabledFor(logging.INFO):
            return
        if status == "succeeded" and run.error is not None:
            self.warn(run, "job_error_after_completion", "was completed, then failed")
            return
        level, action, text = self._ending(run, status, retry_at)
        duration = run.ended_at - run.started_at
        result = f" - Result: {plain(printed(run.result, str))}"[:_RESULT_LENGTH] if run.outcome == "succeeded" else ""
        times = {"duration": duration, "end_timestamp": run.timestamp + duration}
        text = f"Job %s {text}, lasted %.3f s%s"
        self._log(level, run, action, text, self._name(run), duration, result, result=run.result, **times)

    def _ending(self, run: Run, status: str | None, retry_at: str | None) -> tuple[int, str, str]:
        """Return at which level, as which action and how an end is told."""
        aborted = run.outcome == "aborted"
        if run.outcome == "released":
            return logging.DEBUG, "job_released", "was not begun and is released"
        if run.outcome == "unknown_task":
            level = logging.WARNING if status == "todo" else logging.ERROR
            return level, "task_not_found", "has a task that is not known here"
        if status == "todo":
            again = f", to retry at {retry_at}" if retry_at else ", to retry"
            action = "job_aborted_retry" if aborted else "job_error_retry"
            return logging.INFO, action, ("was aborted" if aborted else "failed") + again
        if aborted and status != "failed":
            return logging.INFO, "job_aborted", "was aborted"
        if run.outcome == "succeeded":
            return logging.INFO, "job_success", "succeeded"
        return logging.ERROR, "job_error", "failed"

    def ticked(self, events: Sequence[operations.Row]) -> None:
        """The clock's work was done: jobs rescued, schedules fired, history purged."""
        for kind, job_id, detail in events:
            level, action, text = _TICKS.get(kind, (logging.INFO, kind, "Tick: {detail}"))
            told = plain(text.format(id=job_id, detail=detail, **detail))
            self.logger.log(level, "%s", told, extra={"action": action, "job_id": job_id})
        statuses = {"rescued": "todo", "failed": "failed"}
        rescued = [
            RescuedJob(job_id, detail["task"], detail["queue"], detail["worker_id"], statuses[kind])
            for kind, job_id, detail in events
            if kind in statuses
        ]
        ticks = [
            Tick(x["schedule"], datetime.fromisoformat(x["tick"]), i) for kind, i, x in events if kind == "scheduled"
        ]
        if rescued:
            self._hooks.observe("jobs_rescued", worker=self._worker, jobs=rescued)
        if ticks:
            self._hooks.observe("schedules_fired", worker=self._worker, ticks=ticks)

    def void(self, run: Run, action: str, message: str, *args: Any) -> None:
        """A run does not count."""
        self.warn(run, action, message, *args)
        self._finished(run, None, None)

    def _finished(self, run: Run, status: str | None, retry_at: str | None) -> None:
        begun = run.outcome != "released" and (run.outcome, status) != ("unknown_task", "todo")
        if begun and self._hooks.has("job_finished"):
            again, seconds = retry_at and _moment(retry_at), run.ended_at - run.started_at
            ending = {"status": status, "duration": seconds, "retry_at": again, "exception": run.error}
            self._hooks.observe("job_finished", worker=self._worker, job=run.job, **ending)

    def warn(self, run: Run, action: str, message: str, *args: Any) -> None:
        self._log(logging.WARNING, run, action, f"Job %s {message}", self._name(run), *args)

    def abort_requested(self, run: Run) -> None:
        self._log(logging.INFO, run, "abort_job", "Job %s is asked to stop", self._name(run))
        self._hooks.observe("job_abort_requested", worker=self._worker, job=run.job, reason=run.reason)

    def _name(self, run: Run) -> str:
        return call_string(run.claim[2], run.id, run.kwargs if self._log_args else None)

    def _log(self, level: int, run: Run, action: str, message: str, *args: Any, **extra: Any) -> None:
        if not self.logger.isEnabledFor(level):
            return
        error = run.error if action.startswith("job_") else None
        extra |= {"action": action, "worker": self._about_worker(run.worker_id, run.id)}
        extra |= {"job": run.job.log_context(log_args=self._log_args), "start_timestamp": run.timestamp}
        self.logger.log(level, message, *args, exc_info=error, extra=extra)

    def _about_worker(self, worker_id: int | None, job_id: int | None = None) -> dict[str, Any]:
        name, queues = self._worker.worker_name, self._worker.queues
        return {"name": name, "worker_id": worker_id, "job_id": job_id, "queues": queues}


def _moment(text: str) -> datetime | None:
    with suppress(ValueError):  # beyond what a datetime can hold
        return datetime.fromisoformat(text)
    return None
