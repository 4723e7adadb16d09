"""The program in example/, run as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_shop(dsn: str, tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / "example" / "shop.py"
    environ = os.environ | {"PROCRASTINATE_DSN": dsn, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout.splitlines()) == ("", ["Thank you, Ada!", "1: Ada, confirmed"])
