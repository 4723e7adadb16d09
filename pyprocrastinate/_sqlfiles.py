"""
Where the SQL files are.

The wheel carries `sql/` inside the package; a checkout, installed editable or not, has it at its
root.
"""

from __future__ import annotations

from pathlib import Path


def sql_dir() -> Path:
    """Return the folder that holds `functions/` and `migrations/`."""
    package = Path(__file__).resolve().parent
    packaged = package / "sql"
    return packaged if packaged.is_dir() else package.parent / "sql"


def function_files() -> list[Path]:
    """Return the files of `sql/functions/` in the order in which they are loaded."""
    return sorted((sql_dir() / "functions").glob("*.sql"))


def migration_files(stage: str) -> list[Path]:
    """Return the files of `sql/migrations/<stage>/` (`pre` or `post`) in their order."""
    return sorted((sql_dir() / "migrations" / stage).glob("*.sql"))
