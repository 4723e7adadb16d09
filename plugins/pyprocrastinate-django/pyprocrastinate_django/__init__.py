"""
Jobs in a Django project: with Django's connection, settings, migrations, admin and commands.

`INSTALLED_APPS = ["pyprocrastinate.contrib.django", ...]`, then `from pyprocrastinate.contrib.django import app`.
"""

from pyprocrastinate_django.app import DjangoApp, app
from pyprocrastinate_django.connector import DjangoConnector, connector_params

__all__ = ["DjangoApp", "DjangoConnector", "app", "connector_params"]
