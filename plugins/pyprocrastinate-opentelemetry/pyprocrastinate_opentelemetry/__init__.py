"""
OpenTelemetry spans and metrics of jobs, by the semantic conventions for messaging.

A defer is a producer's span, and a run is a consumer's span that goes on with the same trace and is linked to the
defer. The trace travels in the job's headers, as the propagators of the process write it: by default `traceparent` of
W3C. So a job that was deferred with plain SQL can bring its own.

Neither arguments of jobs nor messages of exceptions, which may hold some, get into a span.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from pyprocrastinate import hookimpl

if TYPE_CHECKING:
    from pyprocrastinate.jobs import Job

_NAME = "pyprocrastinate"
# What the conventions advise for durations, in seconds.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

# Proxies: they follow the providers that the program sets, whenever it does so.
_tracer = trace.get_tracer(_NAME)
_meter = metrics.get_meter(_NAME)
_sent = _meter.create_counter("messaging.client.sent.messages", "{message}", "Jobs that were deferred.")
_consumed = _meter.create_counter("messaging.client.consumed.messages", "{message}", "Jobs that were begun.")
_operation = _meter.create_histogram(
    "messaging.client.operation.duration", "s", "How long a defer took.", explicit_bucket_boundaries_advisory=_BUCKETS
)
_process = _meter.create_histogram(
    "messaging.process.duration", "s", "How long a run took.", explicit_bucket_boundaries_advisory=_BUCKETS
)


class _Headers(Getter[dict[str, Any]]):
    """Reads headers that anybody may have written."""

    def get(self, carrier: dict[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: dict[str, Any]) -> list[str]:
        return list(carrier)


_headers = _Headers()


@hookimpl
@contextmanager
def wrap_defer(jobs: list[Job], headers: dict[str, Any]) -> Iterator[None]:
    """The span of a defer; what it puts into the headers goes with each of the jobs."""
    if not jobs:
        yield
        return
    common = _common("defer", "send", jobs[0])
    attributes = dict(common)
    if len(jobs) > 1:
        attributes["messaging.batch.message_count"] = len(jobs)
    # Never the current span: nothing begins within a defer.
    span = _tracer.start_span(f"defer {jobs[0].queue}", kind=SpanKind.PRODUCER, attributes=attributes)
    propagate.inject(headers, trace.set_span_in_context(span))
    start = time.monotonic()
    try:
        yield
    except BaseException as error:
        common |= _note(span, error)
        raise
    finally:
        span.end()
        _operation.record(time.monotonic() - start, common)
        _sent.add(len(jobs), common)


@hookimpl
@contextmanager
def wrap_job(job: Job) -> Iterator[None]:
    """The span of a run."""
    common = _common("run", "process", job)
    attributes = common | {"messaging.message.id": str(job.id), "pyprocrastinate.attempt": job.attempts + 1}
    parent = propagate.extract(job.headers, getter=_headers)
    deferred = trace.get_current_span(parent).get_span_context()
    with _tracer.start_as_current_span(
        f"run {job.queue}",
        context=parent,
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        links=[Link(deferred)] if deferred.is_valid else [],
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        _consumed.add(1, common)
        start = time.monotonic()
        try:
            yield
        except BaseException as error:
            common |= _note(span, error)
            raise
        finally:
            _process.record(time.monotonic() - start, common)


def _common(name: str, kind: str, job: Job) -> dict[str, AttributeValue]:
    """Return the attributes that spans and metrics share."""
    return {
        "messaging.system": _NAME,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": job.queue,
        "pyprocrastinate.task": job.task_name,
    }


def _note(span: Span, error: BaseException) -> dict[str, AttributeValue]:
    """Tell the span of an error; return its attribute."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    frames = "".join(traceback.format_tb(error.__traceback__))
    span.add_event("exception", {"exception.type": name, "exception.stacktrace": frames})
    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute("error.type", name)
    return {"error.type": name}
