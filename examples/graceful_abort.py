"""
A task that is asked to stop puts its things in order first.

    ./run python examples/graceful_abort.py

An async task is cancelled where it awaits; a sync one has to look from time to time.
Both end `aborted`, when they have cleaned up.
"""

import asyncio
import os
import time

from pyprocrastinate import App, JobContext, PsycopgConnector
from pyprocrastinate.exceptions import JobAborted
from pyprocrastinate.migrate import migrate

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
app = App(connector=PsycopgConnector(DSN))


@app.task(name="listen")
async def listen() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        print("listen: hangs up")


@app.task(name="dig", pass_context=True)
def dig(context: JobContext) -> None:
    for _ in range(36_000):
        if context.should_abort():
            print("dig: fills the hole in")
            raise JobAborted
        time.sleep(0.1)


@app.task(name="interrupt")
async def interrupt(job_ids: list[int]) -> None:
    # Anybody may, at any time; in SQL it is: select procrastinate.cancel(17, abort => true)
    for job_id in job_ids:
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)


if __name__ == "__main__":
    with app.open():
        migrate(DSN)
        jobs = [listen.defer(), dig.defer()]
        interrupt.defer(job_ids=jobs)
    app.run_worker(concurrency=3, wait=False)
    with app.open():
        for job in jobs:
            print(f"job {job}: {app.job_manager.get_job_status(job).value}")
