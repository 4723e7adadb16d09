"""
A job that runs for long, and the plugin's warning.

    ./run python plugins/pyprocrastinate-template/example.py

The queue is in a private PostgreSQL whose data are in the folder `queue`; put the address of a
server of your own into PROCRASTINATE_DSN, and it is there.
"""

import logging
import os
import time

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.migrate import migrate

os.environ.setdefault("PROCRASTINATE_TEMPLATE_SECONDS", "0.1")
DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
app = App(connector=PsycopgConnector(DSN))


@app.task(name="dig")
def dig(depth: float) -> None:
    time.sleep(depth)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with app.open():
        migrate(DSN)
        dig.defer(depth=0.0)
        dig.defer(depth=0.2)
    app.run_worker(wait=False)
