"""Each query of the dashboard asks for what a scrape has."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NamedTuple

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyprocrastinate import AbortReason
from pyprocrastinate.hookspecs import RescuedJob
from pyprocrastinate.jobs import Job
from pyprocrastinate_prometheus import QueueCollector
from pyprocrastinate_prometheus._plugin import DASHBOARD, Endpoint

# What Prometheus puts on every series.
FROM_THE_SCRAPE = {"job", "instance"}
VARIABLES = {"$__rate_interval": "1m", "$task": ".*", "$queue": ".*"}
JOB = Job(id=1, task_name="pay", queue="money", lock=None, queueing_lock=None, deferred_at=datetime.now(UTC))
LABEL_VALUES = re.compile(r"label_values\((?P<metric>\w+), (?P<label>\w+)\)")


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text("utf-8"))


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


class Selector(NamedTuple):
    metric: str
    matchers: dict[str, str]


def selectors(expr: Any) -> Iterator[Selector]:
    """Yield what an expression selects."""
    if isinstance(expr, promql_parser.VectorSelector):
        yield Selector(expr.name, {matcher.name: matcher.value for matcher in expr.matchers.matchers})
    for part in ("expr", "lhs", "rhs", "vector_selector"):
        if (inner := getattr(expr, part, None)) is not None:
            yield from selectors(inner)
    for argument in getattr(expr, "args", None) or ():
        yield from selectors(argument)


def aggregations(expr: Any) -> Iterator[tuple[set[str], Any]]:
    """Yield the labels that aggregations keep, with what they aggregate."""
    if isinstance(expr, promql_parser.AggregateExpr) and expr.modifier:
        yield set(expr.modifier.labels), expr.expr
    for part in ("expr", "lhs", "rhs"):
        if (inner := getattr(expr, part, None)) is not None:
            yield from aggregations(inner)
    for argument in getattr(expr, "args", None) or ():
        yield from aggregations(argument)


def filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


def parse(query: str) -> Any:
    return promql_parser.parse(filled(query))


@pytest.fixture
def served(registry, plugin, dsn, conn) -> Iterator[Endpoint]:
    """Return an endpoint whose metrics have seen all that there is."""
    conn.execute("select procrastinate.defer('pay', queue => 'money')")
    plugin.job_started(JOB)
    plugin.job_abort_requested(JOB, AbortReason.SHUTDOWN)
    plugin.jobs_rescued(worker=None, jobs=[RescuedJob(1, "pay", "money", 7, "todo")])
    with closing(Endpoint(registry, QueueCollector(lambda: dsn), "127.0.0.1", 0)) as endpoint:
        yield endpoint


@pytest.fixture
def scraped(served) -> dict[str, list[dict[str, str]]]:
    """Return what a scrape has, as Prometheus reads it: the labels of each series, by its name."""
    series = defaultdict(list)
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/metrics", timeout=30) as answer:
        for metric in text_string_to_metric_families(answer.read().decode()):
            for sample in metric.samples:
                series[sample.name].append(sample.labels)
    return series


@pytest.fixture
def ask(served, tmp_path) -> Iterator[Callable[[str], list[Any]]]:
    """Return a function that asks a Prometheus, which scrapes that endpoint, and returns the series it answers."""
    config, port = tmp_path / "prometheus.yml", _free_port()
    targets = f"static_configs: [{{targets: ['127.0.0.1:{served.port}']}}]"
    config.write_text(f"scrape_configs: [{{job_name: test, scrape_interval: 100ms, scrape_timeout: 100ms, {targets}}}]")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}"]
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"])

    def ask(query: str) -> list[Any]:
        address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                found: list[Any] = json.load(answer)["data"]["result"]
                return found
        except urllib.error.URLError as error:
            assert process.poll() is None, "Prometheus has ended"
            # It does not answer yet, or says that it will.
            if not isinstance(error, urllib.error.HTTPError) or error.code == 503:
                return []
            raise AssertionError(error.read().decode()) from error

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


@pytest.mark.needs_tool("prometheus")
def test_prometheus_answers_each_query(ask, plugin):
    unanswered, deadline = set(queries()), time.monotonic() + 60
    while unanswered:
        plugin.job_finished(JOB, "failed", 0.1)
        unanswered = {query for query in unanswered if not ask(filled(query))}
        assert time.monotonic() < deadline, unanswered


@pytest.mark.parametrize("query", queries())
def test_a_query_finds_what_it_selects(query, scraped):
    parsed = parse(query)
    found = list(selectors(parsed))
    assert found
    for metric, matchers in found:
        # No matcher but one of a label may keep all series out: its value has to be one that occurs.
        matching = [
            labels
            for labels in scraped.get(metric, [])
            if all(re.fullmatch(value, labels.get(name, "")) for name, value in matchers.items())
        ]
        assert matching, f"{metric}{matchers} is nowhere"
        assert all(matchers.keys() <= labels.keys() for labels in matching)
    for kept, inner in aggregations(parsed):
        for metric, _ in selectors(inner):
            assert kept <= scraped[metric][0].keys(), f"{metric} has no {kept}"


@pytest.mark.parametrize("variable", [v for v in dashboard()["templating"]["list"] if v["type"] == "query"])
def test_a_variable_has_values(variable, scraped):
    asked = LABEL_VALUES.fullmatch(variable["query"]["query"])
    assert asked
    assert any(labels.get(asked["label"]) for labels in scraped[asked["metric"]])
    assert f"${variable['name']}" in VARIABLES


def test_a_legend_names_labels_that_are_left():
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = [labels for labels, _ in aggregations(parse(target["expr"]))]
            assert named <= (kept[0] if kept else FROM_THE_SCRAPE), target["expr"]


def test_every_metric_is_on_the_dashboard(scraped):
    asked = {re.sub("_(bucket|sum)$", "", s.metric) for query in queries() for s in selectors(parse(query))}
    there = {re.sub("_(bucket|sum|count|created)$", "", name) for name in scraped}
    ours = {name for name in there if name.startswith("procrastinate_")}
    assert {name for name in ours if f"{name}_total" not in ours} == asked


def test_panels_do_not_overlap():
    taken = [
        (x, y)
        for panel in dashboard()["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
