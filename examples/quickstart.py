"""
The smallest complete program: a task, two jobs, a worker.

    ./run python examples/quickstart.py

The queue is in a private PostgreSQL whose data are in the folder `queue`; put the address of a
server of your own into PROCRASTINATE_DSN, and it is there.
"""

import os

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.migrate import migrate

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
app = App(connector=PsycopgConnector(DSN))


@app.task(name="greet")
async def greet(name: str) -> None:
    print(f"Hello {name}!")


if __name__ == "__main__":
    with app.open():
        migrate(DSN)
        greet.defer(name="Ada")
        greet.configure(priority=1).defer(name="Grace")
    app.run_worker(wait=False)
