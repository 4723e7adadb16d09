"""
The plugin: the metrics of jobs, an endpoint in the worker, and the command `pyprocrastinate metrics`.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

import click
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, start_http_server

from pyprocrastinate import hookimpl
from pyprocrastinate_prometheus._jobs import JobMetrics
from pyprocrastinate_prometheus._queues import QueueCollector

if TYPE_CHECKING:
    from pyprocrastinate.worker import Worker

PORT, HOST = "PROCRASTINATE_METRICS_PORT", "PROCRASTINATE_METRICS_HOST"
DASHBOARD = Path(__file__).with_name("dashboard.json")
# Scraped from elsewhere, as a rule.
_EVERYWHERE = "0.0.0.0"  # noqa: S104


class Plugin(JobMetrics):
    """
    The hooks.

    Where $PROCRASTINATE_METRICS_PORT is set, a process with a worker serves `registry` there, with the gauges of the
    database of its first worker, until its last worker has stopped.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, **limits: int) -> None:
        super().__init__(registry, **limits)
        self._registry = registry
        self._lock = threading.Lock()
        self._workers = 0
        self._endpoint: Endpoint | None = None

    @property
    def port(self) -> int | None:
        """The port that is served, if one is."""
        return self._endpoint.port if self._endpoint else None

    @hookimpl
    def worker_started(self, worker: Worker) -> None:
        with self._lock:
            self._workers += 1
            port = os.environ.get(PORT)
            if port and self._endpoint is None:
                queues = QueueCollector(worker.connector.address, shared=worker.listen_notify)
                self._endpoint = Endpoint(self._registry, queues, os.environ.get(HOST) or _EVERYWHERE, int(port))

    @hookimpl
    def worker_stopped(self) -> None:
        with self._lock:
            self._workers -= 1
            if not self._workers and self._endpoint:
                self._endpoint.close()
                self._endpoint = None

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        cli.add_command(metrics)


class Endpoint:
    """A server of one registry and the gauges, in threads of its own; raises OSError where the port is taken."""

    def __init__(self, registry: CollectorRegistry, queues: QueueCollector, host: str, port: int) -> None:
        self._server: WSGIServer
        try:
            self._server, self.thread = start_http_server(port, host, registry)
        except OSError as error:
            where = f"metrics cannot be served at {host}:{port}: {error.strerror}"
            raise OSError(f"{where}. Choose another host or port") from None
        self._registry, self._queues = registry, queues
        registry.register(queues)

    @property
    def port(self) -> int:
        return self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.thread.join()
        self._registry.unregister(self._queues)
        self._queues.close()


@click.command()
@click.option("--host", default=_EVERYWHERE, help="Address to serve them at.")
@click.option("--port", default=9464, type=click.IntRange(0, 65535))
@click.option("--once", "how", flag_value="once", help="Print them, and end.")
@click.option("--dashboard", "how", flag_value="dashboard", help="Print a dashboard for Grafana, and end.")
@click.pass_obj
def metrics(app: str | None, host: str, port: int, how: str | None) -> None:
    """Serve metrics of the queues and workers for Prometheus."""
    from pyprocrastinate.cli import load_app

    if how == "dashboard":
        click.echo(DASHBOARD.read_text("utf-8"), nl=False)
        return
    connector = load_app(app, bare=True).connector
    registry = CollectorRegistry()
    queues = QueueCollector(connector.address)
    with closing(connector):
        if how == "once":
            with closing(queues):
                registry.register(queues)
                click.echo(generate_latest(registry).decode(), nl=False)
            return
        with closing(Endpoint(registry, queues, host, port)) as endpoint, suppress(KeyboardInterrupt):
            click.echo(f"serving http://{host}:{endpoint.port}/metrics", err=True)
            while endpoint.thread.is_alive():
                time.sleep(1)
