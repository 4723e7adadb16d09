from django.db import migrations, models
from django.db.migrations.operations.base import Operation

from pyprocrastinate_django.schema import MigrateSchema


def view(model: str, name: str, table: str, key: models.Field, **options: str) -> Operation:
    """Return a model as far as migrations need to know it; Django does not look at the other fields of a view."""
    options = {"db_table": f'"procrastinate"."{table}"', "verbose_name": name, **options}
    return migrations.CreateModel(model, [key], {"managed": False, **options})


ID = ("id", models.BigAutoField(primary_key=True, serialize=False))
NAME = ("name", models.TextField(primary_key=True, serialize=False))


class Migration(migrations.Migration):
    release = "0.1.0"
    atomic = False
    initial = True
    operations = [
        MigrateSchema("pre"),
        view("ProcrastinateWorker", "worker", "workers", ID),
        view("ProcrastinateJob", "job", "jobs", ID),
        view("ProcrastinateEvent", "event", "events", ID, get_latest_by="at"),
        view("ProcrastinatePeriodicDefer", "periodic defer", "schedules", NAME),
    ]
