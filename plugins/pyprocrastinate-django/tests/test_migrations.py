"""`manage.py migrate`, a stage at a time, and the databases of Django's test runner."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.loader import MigrationLoader
from django.test.utils import override_settings

import pyprocrastinate_django
from pyprocrastinate import migrate

MIGRATIONS = sorted(
    path.stem for path in (Path(pyprocrastinate_django.__file__).parent / "migrations").glob("[0-9]*.py")
)


@pytest.fixture
def empty(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the DSN of an empty database, which is Django's during the test."""
    monkeypatch.setitem(connection.settings_dict, "NAME", psycopg.conninfo.conninfo_to_dict(empty_dsn)["dbname"])
    connection.close()
    yield empty_dsn
    connection.close()


def pending(dsn: str) -> set[str]:
    return {step.stage for step in migrate.plan(dsn)}


def test_each_stage_is_a_migration(dsn: str, empty: str, post_file: str) -> None:
    assert pending(empty) == {"pre", "functions", "post"}
    call_command("migrate", "procrastinate", "0001_pre", verbosity=0)
    assert pending(empty) == {"post"}
    call_command("migrate", verbosity=0)
    assert pending(empty) == set()


@pytest.fixture
def post_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the SQL of a file of the post stage, which there need not be one of."""
    from pyprocrastinate import _sqlfiles

    file = tmp_path / "9999_x.sql"
    file.write_text("create table procrastinate.made_by_post ();\n")
    real = _sqlfiles.migration_files
    monkeypatch.setattr(_sqlfiles, "migration_files", lambda stage: real(stage) + [file] * (stage == "post"))
    return file.read_text()


def test_it_can_be_read_first(dsn: str, empty: str, post_file: str) -> None:
    printed = []
    for name in MIGRATIONS:
        with redirect_stdout(io.StringIO()) as out:
            call_command("sqlmigrate", "procrastinate", name)
        printed.append(out.getvalue())
    first, last = printed
    assert "create or replace function procrastinate.defer(" in first
    assert post_file in last
    assert post_file not in first
    assert pending(empty) == {"pre", "functions", "post"}


def test_a_schema_that_is_there_already_is_taken_over(dsn: str, empty: str) -> None:
    migrate.migrate(empty)
    call_command("migrate", "procrastinate", verbosity=0)
    with psycopg.connect(empty) as conn:
        assert conn.execute("select count(*) from django_migrations where app = 'procrastinate'").fetchone() == (2,)


def test_nothing_goes_back(dsn: str) -> None:
    with pytest.raises(IrreversibleError):
        call_command("migrate", "procrastinate", "zero", verbosity=0)


def test_other_databases_get_nothing(dsn: str) -> None:
    call_command("migrate", "procrastinate", database="other", verbosity=0)
    assert "procrastinate" not in str(connections["other"].introspection.table_names())
    connections["other"].close()


def test_a_router_can_keep_it_out(dsn: str, empty: str) -> None:
    with override_settings(DATABASE_ROUTERS=[Keep()]):
        call_command("migrate", "procrastinate", verbosity=0)
    assert pending(empty) >= {"pre", "functions"}


class Keep:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return app_label != "procrastinate"


@pytest.mark.scenario(75)
def test_models_and_migrations_agree(dsn: str) -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


def test_there_is_a_pair_for_each_release(dsn: str) -> None:
    stages = [name.partition("_")[2] for name in MIGRATIONS]
    assert stages == ["pre", "post"] * (len(MIGRATIONS) // 2)
    modules = [import_module(f"pyprocrastinate_django.migrations.{name}").Migration for name in MIGRATIONS]
    releases = [module.release for module in modules]
    assert releases[::2] == releases[1::2]
    assert releases[-1] == version("pyprocrastinate").partition(".dev")[0], "the release has no migrations yet"
    assert [bool(module.operations) for module in modules[1:-1:2]] == [False] * (len(modules) // 2 - 1)
    assert not any(module.atomic for module in modules)
    assert MigrationLoader(connection).graph.leaf_nodes("procrastinate") == [("procrastinate", MIGRATIONS[-1])]
