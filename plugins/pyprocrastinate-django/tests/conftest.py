"""
The project of the example, set up in this process, with a database of its own for each test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import django
import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

EXAMPLE = Path(__file__).parents[1] / "example"
POSTGRESQL = "django.db.backends.postgresql"
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
TEMPLATES = {
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {
        "context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]
    },
}

sys.path.insert(0, str(EXAMPLE))
settings.configure(
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DATABASES={"default": {"ENGINE": POSTGRESQL, "NAME": "none"}, "other": SQLITE},
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "pyprocrastinate.contrib.django",
        "bookshop",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[TEMPLATES],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF="bookshop.urls",
    SECRET_KEY="x",
    STATIC_URL="static/",
    TASKS={
        "default": {"BACKEND": "pyprocrastinate_django.backend.ProcrastinateBackend", "QUEUES": ["default", "parcels"]}
    },
    USE_TZ=True,
    ALLOWED_HOSTS=["testserver"],
)
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402

_numbers = count()


@pytest.fixture(scope="session")
def shop_template(pg_server: Any) -> Iterator[str]:
    """Return the name of a database with the project's tables."""
    with _database(pg_server, "template0") as (name, dsn):
        _connect_to(dsn)
        call_command("migrate", verbosity=0)
        connections.close_all()
        yield name


@pytest.fixture
def direct_dsn(pg_server: Any, shop_template: str) -> Iterator[str]:
    """Return the DSN of a new database with the project's tables, which is Django's during the test."""
    with _database(pg_server, shop_template) as (_, dsn):
        _connect_to(dsn)
        yield dsn
        connections.close_all()


@pytest.fixture
async def threads(dsn: str) -> AsyncIterator[None]:
    """Close what Django opens for async code, in a thread of its own."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
def jobs(conn: psycopg.Connection[Any]) -> Callable[[], list[tuple[Any, ...]]]:
    """Return a function that reads task, arguments and status of the jobs that are committed, by id."""
    return lambda: conn.execute("select task, args, status from procrastinate.jobs order by id").fetchall()


def _connect_to(dsn: str) -> None:
    address = conninfo_to_dict(dsn)
    keys = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "NAME": "dbname"}
    connections.settings["default"].update({key: address.get(name) or "" for key, name in keys.items()})


class _database:
    """A new database, for as long as the `with` block."""

    def __init__(self, pg_server: Any, template: str) -> None:
        self.pg_server = pg_server
        self.template = template
        self.name = f"django_{os.getpid()}_{next(_numbers)}"

    def __enter__(self) -> tuple[str, str]:
        self._execute("create database {} template {}", self.name, self.template)
        return self.name, self.pg_server.dsn(self.name)

    def __exit__(self, *_: object) -> None:
        self._execute("drop database {} with (force)", self.name)

    def _execute(self, statement: Any, *names: str) -> None:
        with psycopg.connect(self.pg_server.dsn(self.pg_server.maintenance_dbname), autocommit=True) as admin:
            admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
