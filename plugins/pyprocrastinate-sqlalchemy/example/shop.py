"""
A shop whose orders and jobs are one transaction.

    ./run python plugins/pyprocrastinate-sqlalchemy/example/shop.py

The database is a private PostgreSQL whose data are in the folder `queue`; put the address of a server of your own into
PROCRASTINATE_DSN, and it is there.
"""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pyprocrastinate import App, JobContext, embedded
from pyprocrastinate.contrib.sqlalchemy import SQLAlchemyConnector
from pyprocrastinate.migrate import migrate

DSN = os.environ.get("PROCRASTINATE_DSN", "embedded:queue")
server = embedded.resolve(DSN)
# Of a server of your own, its URL is enough.
engine = create_engine("postgresql+psycopg://", connect_args=conninfo_to_dict(server.conninfo))
app = App(connector=SQLAlchemyConnector(DSN))


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    confirmed: Mapped[bool] = mapped_column(default=False)


@app.task(name="confirm", pass_context=True)
def confirm(context: JobContext, number: int) -> None:
    with Session(engine) as session, session.begin():
        order = session.get_one(Order, number)
        order.confirmed = True
        print(f"Thank you, {order.customer}!")
        # The order is confirmed and the job is done, or neither is, whatever happens to the worker.
        context.complete(session)


def buy(session: Session, customer: str) -> None:
    order = Order(customer=customer)
    session.add(order)
    session.flush()  # gives the order its number
    confirm.configure(connection=session).defer(number=order.number)


if __name__ == "__main__":
    migrate(DSN)
    Base.metadata.create_all(engine)
    with app.open(), Session(engine) as session:
        buy(session, "Ada")
        session.commit()
        buy(session, "Mallory")
        session.rollback()
    app.run_worker(wait=False)
    with Session(engine) as session:
        for order in session.query(Order).order_by(Order.number):
            print(f"{order.number}: {order.customer}, {'confirmed' if order.confirmed else 'not confirmed'}")
    engine.dispose()
    server.close()
