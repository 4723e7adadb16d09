"""
The schema of an app's database, by the names that Procrastinate gives to this; `migrate` does the work.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pyprocrastinate import _sqlfiles

if TYPE_CHECKING:
    from pyprocrastinate.connector import BaseConnector


class SchemaManager:
    def __init__(self, connector: BaseConnector) -> None:
        self.connector = connector

    @staticmethod
    def get_schema() -> str:
        """Return a script for an empty database; see `migrate.get_schema`."""
        from pyprocrastinate.migrate import get_schema

        return get_schema()

    @staticmethod
    def get_migrations_path() -> str:
        """Return the folder of the migrations, those of each stage in a folder of their own."""
        return str(_sqlfiles.sql_dir() / "migrations")

    def apply_schema(self) -> None:
        """Create the schema, or bring it to this release; done twice it is harmless. Raises as `migrate.migrate`."""
        from pyprocrastinate.migrate import migrate

        migrate(self.connector.address())

    async def apply_schema_async(self) -> None:
        """Do as `apply_schema`."""
        await asyncio.to_thread(self.apply_schema)
