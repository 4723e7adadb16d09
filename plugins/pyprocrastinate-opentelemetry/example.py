"""
A defer and its run, as spans of one trace, sent to a collector.

    ./run python plugins/pyprocrastinate-opentelemetry/example.py

It wants opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http, and a collector at
http://localhost:4318 or where OTEL_EXPORTER_OTLP_ENDPOINT says. The queue is in a private
PostgreSQL whose data are in the folder `queue`; put the address of a server of your own into
PROCRASTINATE_DSN, and it is there.
"""

import os

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.migrate import migrate

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
app = App(connector=PsycopgConnector(DSN))
tracer = trace.get_tracer("shop")


@app.task(name="charge")
def charge(order: int) -> None:
    with tracer.start_as_current_span("bank"):
        print(f"order {order} is paid")


if __name__ == "__main__":
    spans = TracerProvider()
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(spans)
    numbers = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
    metrics.set_meter_provider(numbers)
    with app.open():
        migrate(DSN)
        with tracer.start_as_current_span("checkout"):
            charge.defer(order=17)
    app.run_worker(wait=False)
    spans.shutdown()
    numbers.shutdown()
