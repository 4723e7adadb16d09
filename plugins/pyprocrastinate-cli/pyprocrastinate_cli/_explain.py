"""
Turn an exception into the sentence that a person at a terminal needs.

No password gets through: a malformed DSN comes back from libpq word for word.
"""

from __future__ import annotations

import re

import psycopg

from pyprocrastinate.embedded import EmbeddedError
from pyprocrastinate.exceptions import ProcrastinateException
from pyprocrastinate.jobs import plain

_ADVICE = {
    "3F000 42883 42P01": "Run `pyprocrastinate migrate`",
    "42501": "Connect as another role, or have the owner of the schema grant this one its rights",
    "none 08001 08006 28000 28P01 3D000": "Check --dsn, PROCRASTINATE_DSN or the app's conninfo",
}
_SECRETS = (
    # scheme://user:secret@host, and the same with a slash or the scheme forgotten
    (re.compile(r"(//[^\s:/@\"']*:)\S*@"), r"\1***@"),
    (re.compile(r"\b([\w.%+-]+:)(?!//)[^\s:@]+@"), r"\1***@"),
    # what libpq takes for the host, where the secret has an unescaped @
    (re.compile(r"(['\"])[^\s'\":/]*@(?=[^\s'\":/@]+\1)"), r"\1***@"),
    # the word at which libpq gives up, which a blank, a % or a & in a secret makes a part of it
    (re.compile(r'((?:percent-encoded \w+: |found in |parameter: |"=" after )")(?!\w+://)[^"]*'), r"\1***"),
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
    sentences = [" ".join(part.split()).rstrip(".:?") for part in parts if part.strip()]
    return plain(mask(". ".join(sentences))) or type(error).__name__


def explain(error: BaseException) -> str:
    """Return what `error` and its causes say, each thing once, and what to do about it."""
    said: list[str] = []
    advice: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        for sentence in describe(cause).split(". "):
            if not any(sentence in earlier for earlier in said):
                said = [earlier for earlier in said if earlier not in sentence] + [sentence]
        if isinstance(cause, psycopg.Error):
            sqlstate = cause.sqlstate or "none"
            advice = [what for sqlstates, what in _ADVICE.items() if sqlstate in sqlstates]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    if not isinstance(error, (ProcrastinateException, psycopg.Error, EmbeddedError, OSError)):
        said[0] = f"{type(error).__name__}: {said[0]}" if str(error) else said[0]
    return ". ".join(said + advice)
