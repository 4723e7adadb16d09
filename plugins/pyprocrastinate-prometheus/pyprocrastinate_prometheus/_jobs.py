"""
Counters and histograms of the jobs that this process defers and runs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram

from pyprocrastinate import hookimpl

if TYPE_CHECKING:
    from pyprocrastinate import AbortReason, App
    from pyprocrastinate.hookspecs import RescuedJob
    from pyprocrastinate.jobs import Job
    from pyprocrastinate.worker import Worker

OTHER = "(other)"
_PAIR = ("task", "queue")
_OUTCOMES = ("succeeded", "failed", "aborted")
# Seconds: from a wake-up that is as quick as it can be, to an hour.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class JobMetrics:
    """
    The metrics, and the hooks that feed them.

    Names of tasks and queues can come from anybody who may defer a job, so only the first `max_pairs` pairs of them
    get series of their own; the rest share those of "(other)".
    """

    def __init__(self, registry: CollectorRegistry, max_pairs: int = 200) -> None:
        self._max_pairs = max_pairs
        self._series: dict[tuple[str, str], _Series] = {}

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"procrastinate_jobs_{name}", documentation, (*_PAIR, *labels), registry=registry)

        def histogram(name: str, documentation: str) -> Histogram:
            return Histogram(f"procrastinate_job_{name}", documentation, _PAIR, registry=registry, buckets=_BUCKETS)

        self.deferred = counter("deferred", "Jobs deferred by this process.")
        self.started = counter("started", "Runs begun.")
        self.finished = counter("finished", "Jobs that ended with a run here, by outcome.", "outcome")
        self.retried = counter("retried", "Runs that ended with the job waiting for another one.")
        self.stale = counter("stale", "Runs that no longer counted: the job had been given to another worker.")
        self.abort_requests = counter("abort_requests", "Running jobs asked to stop.", "reason")
        self.rescued = counter("rescued", "Jobs taken from dead workers: put back (todo) or ended (failed).", "status")
        self.wait = histogram("wait_seconds", "From when a job was due to its first start.")
        self.run = histogram("run_seconds", "How long runs lasted.")

    @hookimpl
    def jobs_deferred(self, app: App, jobs: list[Job]) -> None:
        for job in jobs:
            self._of(job.task_name, job.queue).deferred.inc()

    @hookimpl
    def job_started(self, job: Job) -> None:
        series = self._of(job.task_name, job.queue)
        series.started.inc()
        due = job.scheduled_at or job.deferred_at
        # Of a retry nobody knows since when it was due.
        if due and not job.attempts:
            series.wait.observe(max(0.0, time.time() - due.timestamp()))

    @hookimpl
    def job_finished(self, job: Job, status: str | None, duration: float) -> None:
        series = self._of(job.task_name, job.queue)
        series.ended[status].inc()
        series.run.observe(duration)

    @hookimpl
    def job_abort_requested(self, job: Job, reason: AbortReason) -> None:
        pair = self._of(job.task_name, job.queue).pair
        self.abort_requests.labels(*pair, reason.value).inc()

    @hookimpl
    def jobs_rescued(self, worker: Worker, jobs: list[RescuedJob]) -> None:
        for job in jobs:
            pair = self._of(job.task_name, job.queue).pair
            self.rescued.labels(*pair, job.status).inc()

    def _of(self, task: str, queue: str) -> _Series:
        pair = (task, queue)
        series = self._series.get(pair)
        if series is None:
            if len(self._series) >= self._max_pairs:
                pair = (OTHER, OTHER)
            series = self._series.get(pair) or self._series.setdefault(pair, _Series(self, pair))
        return series


class _Series:
    """What one pair of task and queue has, looked up once; from the start, so that a rate sees the first event."""

    def __init__(self, metrics: JobMetrics, pair: tuple[str, str]) -> None:
        self.pair = pair
        self.deferred = metrics.deferred.labels(*pair)
        self.started = metrics.started.labels(*pair)
        self.ended: dict[str | None, Counter] = {
            outcome: metrics.finished.labels(*pair, outcome) for outcome in _OUTCOMES
        }
        self.ended["todo"] = metrics.retried.labels(*pair)
        self.ended[None] = metrics.stale.labels(*pair)
        self.wait = metrics.wait.labels(*pair)
        self.run = metrics.run.labels(*pair)
