"""
The files of the demo, and how a job carries the name of one.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import sysconfig
from urllib.parse import quote, unquote

from rich.console import Console

console = Console(markup=False, highlight=False, soft_wrap=True)


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def find_files(folder: str | None) -> list[str]:
    """
    Return the files of a folder, as `as_text` writes them.

    By default they are the sources of Python and, because some systems leave half of those out, of
    the packages beside it.
    """
    roots = [folder] if folder else [sysconfig.get_path(name) for name in ("stdlib", "purelib")]
    shown = " and ".join(as_text(os.path.abspath(root)) for root in roots)
    if folder and not os.path.isdir(folder):
        raise DemoError(f"{shown} is not a folder")
    closed: list[OSError] = []
    found: list[str] = []
    for root in roots:
        for place, folders, names in os.walk(os.path.abspath(root), onerror=closed.append):
            folders[:] = [name for name in folders if is_wanted(name)]
            names = [name for name in names if folder or name.endswith(".py")]
            found += [as_text(path) for name in names if is_file(path := os.path.join(place, name))]
    if closed:
        console.print(f"left out what cannot be read: {as_text(closed[0].filename)}", end="")
        console.print(f" and {len(closed) - 1:,} more folders" if len(closed) > 1 else "")
    if not found:
        raise DemoError(f"there are no files in {shown}: name another folder")
    console.print(f"{len(found):,} files in {shown}")
    return sorted(found)


def is_wanted(folder: str) -> bool:
    """Leave out hidden folders, and what Python has compiled or keeps elsewhere."""
    return not folder.startswith(".") and folder not in ("__pycache__", "site-packages")


def is_file(path: str) -> bool:
    """Tell a file from a link, and from a pipe, whose reader would wait."""
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def as_text(path: str) -> str:
    """Write a path as a line of text: with %XX for %, control characters and what is not UTF-8."""
    return re.sub(
        "[%\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda found: quote(os.fsencode(found[0]), safe=""), path
    )


def from_text(text: str) -> str:
    """Return the path that `as_text` wrote."""
    return unquote(text, sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
