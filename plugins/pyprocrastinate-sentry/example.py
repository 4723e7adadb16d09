"""
A job that fails twice and then succeeds, and one that fails; what would go to Sentry is printed.

    ./run python plugins/pyprocrastinate-sentry/example.py

The queue is in a private PostgreSQL whose data are in the folder `queue`; put the address of a
server of your own into PROCRASTINATE_DSN, and it is there. Put a DSN of Sentry's into SENTRY_DSN,
and it goes there, too.
"""

import os
from typing import Any

import sentry_sdk

from pyprocrastinate import App, JobContext, PsycopgConnector
from pyprocrastinate.migrate import migrate

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
app = App(connector=PsycopgConnector(DSN))


def show(event: Any, hint: Any) -> Any:
    error, job = event["exception"]["values"][-1], event["contexts"]["procrastinate"]
    print(f"{event['level']}: {job['task']}, attempt {job['attempt']}: {error['type']}: {error['value']}")
    return event


@app.task(name="call", pass_context=True, retry=3)
def call(context: JobContext, number: str) -> None:
    if context.job.attempts < 2:
        raise ConnectionError("the line is busy")


@app.task(name="send")
def send(to: str) -> None:
    raise ValueError("no such address")


if __name__ == "__main__":
    # Where SENTRY_DSN is not set, the events still are made, and go nowhere.
    sentry_sdk.init(os.environ.get("SENTRY_DSN", ""), before_send=show)
    with app.open():
        migrate(DSN)
        call.defer(number="555-0123")
        send.defer(to="ada")
    app.run_worker(wait=False)
