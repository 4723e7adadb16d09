"""The example, and the collector that it sends its spans and metrics to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "example.py"


def test_the_example_is_seen_by_a_collector(dsn, collector, tmp_path):
    environ = os.environ | {
        "PROCRASTINATE_DSN": dsn,
        "PROCRASTINATE_PLUGINS": "opentelemetry",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "order 17 is paid\n", "")
    spans = {
        span.name: span
        for request in collector.traces
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert set(spans) == {"checkout", "defer default", "run default", "bank"}
    assert len({span.trace_id for span in spans.values()}) == 1
    run, defer = spans["run default"], spans["defer default"]
    assert (defer.kind, run.kind) == (defer.SPAN_KIND_PRODUCER, run.SPAN_KIND_CONSUMER)
    assert [link.span_id for link in run.links] == [defer.span_id]
    assert spans["bank"].parent_span_id == run.span_id
    metrics = {
        metric.name
        for request in collector.metrics
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert metrics >= {
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.client.operation.duration",
        "messaging.process.duration",
    }
