"""
The worker's side of this example: tasks that SQL defers.

    . .venv/bin/activate && cd examples/plain_sql     (in the checkout, after any ./run python)
    export PROCRASTINATE_DSN=embedded:queue           (or 'postgresql://…')
    pyprocrastinate -a shop.app migrate
    pyprocrastinate psql -f shop.sql
    pyprocrastinate -a shop.app worker
"""

from pyprocrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector())  # where PROCRASTINATE_DSN says


@app.task(name="confirm_order", queue="mail", retry=3)
async def confirm_order(order_id: int, customer: str) -> None:
    print(f"order {order_id}: thank you, {customer}")


@app.task(name="daily_report")
async def daily_report(day: str) -> None:
    print(f"the report of {day} is written")
