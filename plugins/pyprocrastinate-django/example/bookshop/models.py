from django.db import models, transaction


class Order(models.Model):
    customer = models.CharField(max_length=100)
    title = models.CharField(max_length=200)
    sent = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.title} for {self.customer}"

    @classmethod
    def place(cls, customer: str, title: str) -> "Order":
        """Order a book: the order is there and its job is, or neither."""
        from bookshop.tasks import send

        with transaction.atomic():
            order = cls.objects.create(customer=customer, title=title)
            send.defer(order=order.pk)
        return order
