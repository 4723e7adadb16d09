"""
Where the files are that are not Python modules of the package.

The wheel carries `sql/` and `examples/` inside the package; a checkout, installed editable or not,
has them at its root.
"""

from __future__ import annotations

from pathlib import Path


def shipped(folder: str) -> Path:
    """Return a folder that comes with the package."""
    package = Path(__file__).resolve().parent
    packaged = package / folder
    return packaged if packaged.is_dir() else package.parent / folder


def sql_dir() -> Path:
    """Return the folder that holds `functions/` and `migrations/`."""
    return shipped("sql")


def function_files() -> list[Path]:
    """Return the files of `sql/functions/` in the order in which they are loaded."""
    return sorted((sql_dir() / "functions").glob("*.sql"))


def migration_files(stage: str) -> list[Path]:
    """Return the files of `sql/migrations/<stage>/` (`pre` or `post`) in their order."""
    return sorted((sql_dir() / "migrations" / stage).glob("*.sql"))
