"""
A folder to run programs in.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """
    Return an empty folder, gone after the test.

    Unlike tmp_path it can be entered by all, so that an embedded server that root starts has its
    data here, and not where they would stay.
    """
    place = Path(tempfile.mkdtemp(prefix="pyprocrastinate-test-"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)
