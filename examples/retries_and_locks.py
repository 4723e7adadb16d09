"""
What goes wrong is tried again, and what must not meet does not.

    ./run python examples/retries_and_locks.py

The payments of one account share a lock: they run one at a time and in order, even where the first
of them fails and is retried.
Other accounts do not wait for them.
"""

import os

from pyprocrastinate import App, JobContext, PsycopgConnector, RetryStrategy
from pyprocrastinate.migrate import migrate

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
app = App(connector=PsycopgConnector(DSN))


class BankIsBusyError(Exception):
    """It may work a moment later."""


# With wait=60 it would be retried a minute later; exponential_wait=2 waits 2, 4, 8 … seconds.
patient = RetryStrategy(max_attempts=5, retry_exceptions=[BankIsBusyError])


@app.task(name="pay", pass_context=True, retry=patient)
async def pay(context: JobContext, account: str, amount: int) -> None:
    if amount > 1000 and context.job.attempts < 2:
        print(f"{account} pays {amount}: the bank is busy")
        raise BankIsBusyError
    print(f"{account} pays {amount}: done")


if __name__ == "__main__":
    with app.open():
        migrate(DSN)
        for account, amount in [("Ada", 5000), ("Ada", 20), ("Ada", 30), ("Bob", 7)]:
            pay.configure(lock=f"account {account}").defer(account=account, amount=amount)
    app.run_worker(concurrency=4, wait=False)
