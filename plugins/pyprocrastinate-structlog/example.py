"""
Two jobs whose tasks log with structlog: each line says of which job it is.

    ./run python plugins/pyprocrastinate-structlog/example.py

The queue is in a private PostgreSQL whose data are in the folder `queue`; put the address of a
server of your own into PROCRASTINATE_DSN, and it is there.
"""

import os

import structlog

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.migrate import migrate

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
app = App(connector=PsycopgConnector(DSN))
log = structlog.get_logger()


@app.task(name="greet")
def greet(name: str) -> None:
    log.info("greeting", name=name)


if __name__ == "__main__":
    with app.open():
        migrate(DSN)
        greet.defer(name="Ada")
        greet.configure(queue="slow").defer(name="Grace")
    app.run_worker(wait=False)
