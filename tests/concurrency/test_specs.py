"""The specs of `specs/`, run by PostgreSQL's own tool for tests of this kind."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pyprocrastinate import embedded

pytestmark = pytest.mark.usefixtures("patient")

SPECS = sorted((Path(__file__).parent / "specs").glob("*.spec"))


def _tool() -> str:
    try:
        lib = embedded.find_bindir().parent / "lib"
    except embedded.EmbeddedError:
        return "isolationtester"
    return str(lib / "pgxs" / "src" / "test" / "isolation" / "isolationtester")


TOOL = _tool()


def test_there_are_specs() -> None:
    assert len(SPECS) >= 4


@pytest.mark.needs_tool(TOOL)
@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_spec(dsn: str, spec: Path) -> None:
    done = subprocess.run([TOOL, dsn], check=False, input=spec.read_text(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    # an id depends on what ran before in the same database
    assert re.sub(r"job \d+", "job N", done.stdout) == spec.with_suffix(".out").read_text()
