from django.db import transaction

from bookshop.models import Order
from pyprocrastinate.contrib.django import app


@app.task(pass_context=True, queue="parcels")
def send(context, order: int) -> None:
    with transaction.atomic():
        parcel = Order.objects.select_for_update().get(pk=order)
        parcel.sent = True
        parcel.save()
        context.complete(transaction.get_connection())
    print(f"sent: {parcel}")


@app.task
async def count() -> None:
    print(f"{await Order.objects.filter(sent=True).acount()} of {await Order.objects.acount()} orders sent")


@app.periodic(cron="0 6 * * *")
@app.task
def report(timestamp: int) -> None:
    print(f"{Order.objects.filter(sent=False).count()} orders to send")
