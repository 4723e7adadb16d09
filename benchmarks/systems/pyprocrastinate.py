"""This project, as Python uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.systems import Connection, System
from benchmarks.systems.api import Api
from benchmarks.systems.core import Core

if TYPE_CHECKING:
    from benchmarks.load import Load


class Pyprocrastinate(Api):
    """Its worker; history kept, or `delete`: with delete_jobs="always"."""

    title = "pyprocrastinate"
    variants = ("", "delete")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.core = Core("core")

    def fill(self, conn: Connection, load: Load) -> None:
        """Do as for the bare loop."""
        self.core.fill(conn, load)

    def pending(self, conn: Connection) -> int:
        """Do as for the bare loop."""
        return self.core.pending(conn)

    def size(self, conn: Connection) -> int:
        """Do as for the bare loop."""
        return self.core.size(conn)

    def install(self, dsn: str) -> None:
        """Migrate."""
        self.core.install(dsn)


def system(name: str) -> System:
    """Return it."""
    return Pyprocrastinate(name)
