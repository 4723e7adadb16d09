"""
The settings, all of which may be left out.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings

DEFAULTS: dict[str, Any] = {
    # Dotted path to a function that is called with the app when it is ready.
    "PROCRASTINATE_ON_APP_READY": None,
    # The module that is looked for in each installed app; None looks for none.
    "PROCRASTINATE_AUTODISCOVER_MODULE_NAME": "tasks",
    # Further modules that register tasks.
    "PROCRASTINATE_IMPORT_PATHS": [],
    "PROCRASTINATE_DATABASE_ALIAS": "default",
    "PROCRASTINATE_WORKER_DEFAULTS": None,
    "PROCRASTINATE_PERIODIC_DEFAULTS": None,
    "PROCRASTINATE_READONLY_MODELS": True,
    # Whether logs may hold arguments of jobs.
    "PROCRASTINATE_LOG_ARGS": True,
}


def setting(name: str) -> Any:
    """Return what the project says, else the default."""
    return getattr(settings, name, DEFAULTS[name])


def database_alias() -> str:
    """Return the name that the queue's database has in DATABASES."""
    alias: str = setting("PROCRASTINATE_DATABASE_ALIAS")
    return alias
