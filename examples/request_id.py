"""
A plugin that gives each request an id, which travels with the jobs that it defers, and those that they defer.

    ./run python examples/request_id.py

It also brings a task with a schedule, and has what failed for want of a connection run again.
"""

import contextvars
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyprocrastinate import App, Blueprint, PsycopgConnector, hookimpl
from pyprocrastinate.hookspecs import Tick
from pyprocrastinate.jobs import Job
from pyprocrastinate.migrate import migrate

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
request_id = contextvars.ContextVar("request_id", default="none")


class RequestId:
    @hookimpl
    def wrap_defer(self, headers: dict[str, Any]) -> None:
        headers["request_id"] = request_id.get()

    @hookimpl
    @contextmanager
    def wrap_job(self, job: Job) -> Iterator[None]:
        request_id.set(job.headers.get("request_id", "none"))
        yield

    @hookimpl
    def decide_retry(self, exception: BaseException) -> bool | None:
        return True if isinstance(exception, ConnectionError) else None

    @hookimpl
    def register_tasks(self) -> Blueprint:
        blueprint = Blueprint()

        @blueprint.periodic(cron="0 3 * * *")
        @blueprint.task(name="report")
        def report(timestamp: int) -> None:
            print(f"report of {timestamp}")

        return blueprint

    @hookimpl
    def schedules_fired(self, ticks: list[Tick]) -> None:
        print(*(f"{tick.schedule} fired for {tick.at}" for tick in ticks))


app = App(connector=PsycopgConnector(DSN), plugins=[RequestId()])
lost: list[str] = []


@app.task(name="order")
async def order(item: str) -> None:
    print(f"order of {item}: request {request_id.get()}")
    await send.defer_async(item=item)


@app.task(name="send")
def send(item: str) -> None:
    if not lost:
        lost.append(item)
        raise ConnectionError(f"{item} is lost")
    print(f"{item} is sent: request {request_id.get()}")


if __name__ == "__main__":
    with app.open():
        migrate(DSN)
        for number, item in enumerate(("tea", "cake")):
            request_id.set(f"r{number}")
            order.defer(item=item)
    app.run_worker(wait=False)
