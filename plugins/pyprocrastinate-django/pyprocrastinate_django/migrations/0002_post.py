from django.db import migrations

from pyprocrastinate_django.schema import MigrateSchema


class Migration(migrations.Migration):
    release = "0.1.0"
    atomic = False
    dependencies = [("procrastinate", "0001_pre")]
    operations = [MigrateSchema("post")]
