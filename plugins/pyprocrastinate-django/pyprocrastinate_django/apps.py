"""
What INSTALLED_APPS names.
"""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.db import connections

from pyprocrastinate_django import conf
from pyprocrastinate_django.app import app


class ProcrastinateConfig(AppConfig):
    name = "pyprocrastinate_django"
    label = "procrastinate"
    verbose_name = "Procrastinate"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        checks.register(check_settings)
        app.get_ready()


def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """Check what the settings say of the queue."""
    found: list[checks.CheckMessage] = []
    alias = conf.database_alias()
    if alias not in connections or connections[alias].vendor != "postgresql":
        hint = "Name one of PostgreSQL in PROCRASTINATE_DATABASE_ALIAS."
        message = f"The queue needs PostgreSQL, and DATABASES has no such database called {alias!r}."
        found.append(checks.Error(message, hint=hint, id="procrastinate.E001"))
    if not conf.setting("PROCRASTINATE_READONLY_MODELS"):
        hint = "To make jobs for tests, defer them; to finish them, run a worker."
        message = "PROCRASTINATE_READONLY_MODELS = False has no effect: behind the models are views."
        found.append(checks.Warning(message, hint=hint, id="procrastinate.W001"))
    return found
