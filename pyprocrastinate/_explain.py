"""
Turn an exception into the sentence that a person at a terminal needs.

No password gets through: a malformed DSN comes back from libpq word for word.
"""

from __future__ import annotations

import re

import psycopg

_SECRETS = (
    # scheme://user:secret@host, and the same with a slash or the scheme forgotten
    (re.compile(r"(//[^\s:/@\"']*:)\S*@"), r"\1***@"),
    (re.compile(r"\b([\w.%+-]+:)(?!//)[^\s:@]+@"), r"\1***@"),
    # password=secret, password='a secret', ?sslpassword=secret&…
    (re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'?|[^\s&\"]+)", re.IGNORECASE), r"\1***"),
)


def mask(text: str) -> str:
    """Return `text` with the password of every connection string in it replaced by `***`."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def describe(error: BaseException) -> str:
    """Return what `error` says, on one line: PostgreSQL's message, detail and hint, or its text."""
    parts = str(error).splitlines()
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        diag = error.diag
        parts = [diag.message_primary or "", diag.message_detail or "", diag.message_hint or ""]
    sentences = [" ".join(part.split()).rstrip(".:") for part in parts if part.strip()]
    return mask(". ".join(sentences)) or type(error).__name__
