"""The spans and metrics of jobs, as the SDK gets them."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

import pyprocrastinate_opentelemetry
from pyprocrastinate.exceptions import AlreadyEnqueued
from pyprocrastinate.jobs import Job

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
SECRET = "correct horse battery staple"


@pytest.fixture
async def app(open_app):
    app = await open_app(pyprocrastinate_opentelemetry)

    @app.task(name="greet", queue="hall")
    def greet(name="Ada"):
        with trace.get_tracer("test").start_as_current_span("inner"):
            pass

    @app.task(name="fail", queue="hall")
    async def fail(name="Ada"):
        raise ValueError(f"no {name}")

    return app


def make_job(**fields):
    return Job(id=1, task_name="greet", queue="hall", lock=None, queueing_lock=None, **fields)


def names(spans):
    return [span.name for span in spans]


async def test_a_defer_and_its_run_are_one_trace(app, drain, spans):
    with trace.get_tracer("test").start_as_current_span("caller"):
        job_id = await app.tasks["greet"].defer_async()
    await drain(app)
    caller, defer, run, inner = spans()
    assert names([caller, defer, run, inner]) == ["caller", "defer hall", "run hall", "inner"]
    assert (defer.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert defer.parent.span_id == caller.context.span_id
    assert run.parent.span_id == defer.context.span_id
    assert run.context.trace_id == caller.context.trace_id
    assert [link.context.span_id for link in run.links] == [defer.context.span_id]
    # In the task's thread, too.
    assert inner.parent.span_id == run.context.span_id
    common = {
        "messaging.system": "pyprocrastinate",
        "messaging.destination.name": "hall",
        "pyprocrastinate.task": "greet",
    }
    assert dict(defer.attributes) == common | {"messaging.operation.name": "defer", "messaging.operation.type": "send"}
    assert dict(run.attributes) == common | {
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.message.id": str(job_id),
        "pyprocrastinate.attempt": 1,
    }
    assert {span.status.status_code for span in (defer, run)} == {StatusCode.UNSET}


async def test_jobs_of_a_batch_are_linked_to_its_one_span(app, drain, spans):
    await app.tasks["greet"].batch_defer_async({"name": "Ada"}, {"name": "Grace"})
    await drain(app)
    (defer,) = (span for span in spans() if span.kind is SpanKind.PRODUCER)
    runs = [span for span in spans() if span.kind is SpanKind.CONSUMER]
    assert defer.attributes["messaging.batch.message_count"] == 2
    assert [[link.context.span_id for link in run.links] for run in runs] == [[defer.context.span_id]] * 2


async def test_a_job_deferred_with_plain_sql_brings_its_trace(app, drain, conn, spans):
    conn.execute(
        "select procrastinate.defer('greet', headers => jsonb_build_object('traceparent', %s::text))", [TRACEPARENT]
    )
    await drain(app)
    run = next(span for span in spans() if span.kind is SpanKind.CONSUMER)
    assert f"{run.context.trace_id:032x}" == TRACE_ID
    assert [f"{link.context.span_id:016x}" for link in run.links] == [SPAN_ID]


@pytest.mark.parametrize("headers", [None, "{}", '{"traceparent": "?"}', '{"traceparent": 17, "tracestate": [1]}'])
async def test_a_job_without_a_trace_begins_one(app, drain, conn, spans, headers):
    conn.execute("select procrastinate.defer('greet', headers => %s)", [headers])
    await drain(app)
    run = next(span for span in spans() if span.kind is SpanKind.CONSUMER)
    assert run.parent is None
    assert run.links == ()


async def test_an_error_is_told_without_what_it_says(app, drain, spans):
    await app.tasks["fail"].defer_async(name=SECRET)
    await drain(app)
    run = next(span for span in spans() if span.kind is SpanKind.CONSUMER)
    assert run.status.status_code is StatusCode.ERROR
    assert run.attributes["error.type"] == "ValueError"
    (event,) = run.events
    assert event.attributes["exception.type"] == "ValueError"
    assert 'raise ValueError(f"no {name}")' in event.attributes["exception.stacktrace"]
    assert SECRET not in "".join(span.to_json() for span in spans())


async def test_a_defer_that_is_refused_is_an_error(app, spans, points):
    task = app.tasks["greet"].configure(queueing_lock="one")
    await task.defer_async()
    with pytest.raises(AlreadyEnqueued):
        await task.defer_async()
    first, second = spans()
    assert (first.status.status_code, second.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert second.attributes["error.type"] == "pyprocrastinate.exceptions.AlreadyEnqueued"
    sent = points()["messaging.client.sent.messages"]
    assert sorted(point.attributes.get("error.type", "") for point in sent) == ["", second.attributes["error.type"]]


async def test_metrics(app, drain, points):
    await app.tasks["greet"].batch_defer_async({}, {}, {})
    await app.tasks["fail"].defer_async()
    await drain(app)
    found = points()

    def told(name, value):
        return {
            (p.attributes["pyprocrastinate.task"], p.attributes.get("error.type")): getattr(p, value)
            for p in found[name]
        }

    assert told("messaging.client.sent.messages", "value") == {("greet", None): 3, ("fail", None): 1}
    assert told("messaging.client.consumed.messages", "value") == {("greet", None): 3, ("fail", None): 1}
    assert told("messaging.client.operation.duration", "count") == {("greet", None): 1, ("fail", None): 1}
    assert told("messaging.process.duration", "count") == {("greet", None): 3, ("fail", "ValueError"): 1}
    for points_of in found.values():
        for point in points_of:
            assert {"messaging.system", "messaging.operation.name"} <= point.attributes.keys()
            assert not hasattr(point, "explicit_bounds") or point.explicit_bounds[:2] == (0.005, 0.01)


def test_no_jobs_are_no_defer(spans):
    headers = {}
    with pyprocrastinate_opentelemetry.wrap_defer([], headers):
        pass
    assert (spans(), headers) == ([], {})


def test_a_retry_says_which_attempt_it_is(spans):
    with pyprocrastinate_opentelemetry.wrap_job(make_job(attempts=2)):
        pass
    assert spans()[0].attributes["pyprocrastinate.attempt"] == 3
