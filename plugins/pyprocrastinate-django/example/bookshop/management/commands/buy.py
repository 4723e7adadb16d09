from django.core.management.base import BaseCommand

from bookshop.models import Order


class Command(BaseCommand):
    help = "Order a book."

    def add_arguments(self, parser):
        parser.add_argument("customer")
        parser.add_argument("title")

    def handle(self, *, customer, title, **_):
        self.stdout.write(f"ordered: {Order.place(customer, title)}")
