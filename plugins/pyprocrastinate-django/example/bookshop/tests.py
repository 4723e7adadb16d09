from django.test import TestCase, TransactionTestCase

from bookshop.models import Order
from bookshop.tasks import report
from pyprocrastinate.contrib.django import app
from pyprocrastinate.contrib.django.models import ProcrastinateJob


class OrderTest(TestCase):
    """What is deferred is gone with the test, as all that it has written."""

    def test_an_order_is_to_be_sent(self):
        order = Order.place("Ada", "The Elements")
        job = ProcrastinateJob.objects.get(task_name="bookshop.tasks.send")
        self.assertEqual((job.args, job.queue_name, job.status), ({"order": order.pk}, "parcels", "todo"))

    def test_a_task_is_a_function(self):
        Order.place("Ada", "The Elements")
        report(timestamp=0)


class SendTest(TransactionTestCase):
    """A worker sees only what is committed."""

    def test_an_order_is_sent(self):
        order = Order.place("Ada", "The Elements")
        app.run_worker(wait=False, install_signal_handlers=False)
        order.refresh_from_db()
        self.assertTrue(order.sent)
