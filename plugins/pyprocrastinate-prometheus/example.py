"""
A worker that always has something to do, with its metrics at http://localhost:9464/metrics.

    ./run python plugins/pyprocrastinate-prometheus/example.py

Ctrl-C ends it. The queue is in a private PostgreSQL whose data are in the folder `queue`; put the
address of a server of your own into PROCRASTINATE_DSN, and it is there. PROCRASTINATE_METRICS_PORT
is another port.
"""

import asyncio
import os
import random

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.migrate import migrate

os.environ.setdefault("PROCRASTINATE_METRICS_PORT", "9464")
DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
app = App(connector=PsycopgConnector(DSN))


@app.task(name="charge", queue="money", retry=2)
async def charge(order: int) -> None:
    await asyncio.sleep(random.expovariate(4))
    if random.random() < 0.2:
        raise ConnectionError("the bank is busy")
    await confirm.configure(schedule_in={"seconds": 1}).defer_async(order=order)


@app.task(name="confirm", queue="mail")
def confirm(order: int) -> None:
    print(f"order {order} is paid")


@app.periodic(cron="* * * * * *")
@app.task(name="sell")
async def sell(timestamp: int) -> None:
    await charge.batch_defer_async(*({"order": timestamp * 10 + number} for number in range(random.randrange(10))))


if __name__ == "__main__":
    migrate(DSN)
    app.run_worker(concurrency=10)
