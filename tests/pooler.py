"""A PgBouncer in front of the server under test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

PATIENCE = 20.0


def tool(name: str) -> str | None:
    """Return where a program is; Debian keeps PgBouncer where only root looks."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


@contextmanager
def pgbouncer(dsn: str, *, mode: str = "transaction", size: int = 2) -> Iterator[str]:
    """
    Run one in front of all databases of this server, and give the DSN of it, for the database of `dsn`.

    `size` is the number of its connections to each database.
    """
    address = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value}
    dbname = address.pop("dbname", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="pyprocrastinate-pooler-"))
    folder.chmod(0o711)
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"""
        [databases]
        * = {make_conninfo("", **address)}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        pool_mode = {mode}
        default_pool_size = {size}
        max_client_conn = 500
        """
    )
    # It refuses to run as root; and only the server's own account may be allowed to reach its socket.
    socket_folder = Path(address["host"])
    user = socket_folder.stat().st_uid if os.getuid() == 0 and socket_folder.is_dir() else None
    argv = [str(tool("pgbouncer")), str(config)]
    # Not a pipe: once it is full, and nobody reads it, PgBouncer stands still.
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(argv, stderr=log, user=user)
    try:
        pooled = make_conninfo(host="127.0.0.1", port=port, dbname=dbname, user=address.get("user", "anybody"))
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(pooled).close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield pooled
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
