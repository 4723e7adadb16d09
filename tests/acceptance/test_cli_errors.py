"""What an exception becomes at the terminal."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pyprocrastinate.exceptions import AlreadyEnqueued, ConnectorException, JobNotFound
from pyprocrastinate_cli._explain import describe, explain, mask


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ada:S3CR3T@db/x",
        "postgres://ada:S3CR3T@db:5432/x?sslmode=require",
        "postgresql://ada:S3CR3T@db:1,two:2/x",
        "postgresql://ada:S3C@R3T@db/x",
        "postgresql://ada:/S3CR3T@db/x",
        "postgresql://ada:S3CR3T%zz@db/x",
        "postgresql://:S3CR3T@db/x",
        "postgresql+psycopg://ada:S3CR3T@db/x",
        "postgresql//ada:S3CR3T@db/x",
        "postgresql:ada:S3CR3T@db/x",
        "ada:S3CR3T@db/x",
        "postgresql://db/x?user=ada&password=S3CR3T&sslmode=require",
        "host=db password=S3CR3T user=ada",
        "host=db password = S3CR3T",
        "host=db password='S3CR3T with blanks' user=ada",
        "host=db password='S3CR3T without end",
        "host=db PASSWORD=S3CR3T",
        "host=db sslpassword=S3CR3T",
    ],
)
def test_no_password_is_printed(dsn: str) -> None:
    for text in (dsn, f'invalid dsn: "{dsn}"', f"{dsn!r} does not work", f"first {dsn}\nthen"):
        masked = mask(text)
        for part in ("S3C", "R3T", "blanks"):
            assert part not in masked
        assert "db" in masked
        assert "***" in masked
        assert "ada" not in dsn or "ada" in masked


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ada:S3CR3T%zz@db/x",
        "postgresql://ada:S3CR3T%00@db/x",
        "postgresql://ada:S3C R3T@db/x",
        "postgresql://db/x?password=S3CR3T%zz",
        "postgresql://db/x?password=S3C&R3T",
        "postgresql://ada:S3C@[R3T@db/x",
        "host=db password=S3C R3T",
        "host=db password=S3C' R3T'",
    ],
)
def test_no_piece_of_a_password_that_libpq_cannot_read_is_printed(dsn: str) -> None:
    with pytest.raises(psycopg.ProgrammingError) as caught:
        conninfo_to_dict(dsn)
    assert "S3C" in str(caught.value) or "R3T" in str(caught.value)
    told = explain(caught.value)
    assert "***" in told
    assert "S3C" not in told
    assert "R3T" not in told


def test_a_quote_in_a_password_does_not_end_it() -> None:
    assert mask(r"password='S3CR3T \' it is' host=db") == "password=*** host=db"


@pytest.mark.parametrize(
    "text",
    [
        "connection to server at 127.0.0.1, port 5432 failed: Connection refused",
        "postgresql://ada@db:5432/x",
        "postgresql://db:5432/x?user=ada",
        "see https://example.com:8000/a",
        'relation "procrastinate.jobs" does not exist at 12:30:01',
    ],
)
def test_what_is_no_password_stays(text: str) -> None:
    assert mask(text) == text


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


def test_a_cause_is_told_once() -> None:
    inner = ImportError("No module named 'x'")
    outer = "a.b cannot be loaded: No module named 'x'"
    assert explain(raised(ConnectorException(outer), inner)) == outer
    assert explain(raised(ConnectorException("outer"), inner)) == "outer. No module named 'x'"
    longer = psycopg.OperationalError("connection failed: the longer story")
    told = explain(raised(ConnectorException("connection failed"), longer))
    assert told.startswith("connection failed: the longer story. Check --dsn")


def test_a_taken_queueing_lock_is_told_once(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    conn.execute("select procrastinate.defer('x', queueing_lock => 'a')")
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        conn.execute("select procrastinate.defer('x', queueing_lock => 'a')")
    outer = "Job cannot be enqueued: job 1 with the same queueing lock is waiting"
    assert explain(raised(AlreadyEnqueued(outer), caught.value)) == (
        f"{outer}. Defer it later, or pass on_conflict => ignore or replace"
    )


def test_several_lines_become_one() -> None:
    assert describe(JobNotFound("no job 7", detail="It was purged.", hint="Look elsewhere.")) == (
        "no job 7. It was purged. Look elsewhere"
    )


def test_an_error_that_nobody_foresaw_is_named() -> None:
    assert explain(KeyError("x")) == "KeyError: 'x'"
    assert explain(RuntimeError()) == "RuntimeError"


def test_a_password_that_libpq_takes_for_the_host_is_masked() -> None:
    assert mask("failed to resolve host 'S3CR3T@db.invalid': no") == "failed to resolve host '***@db.invalid': no"


def test_who_lacks_a_right_is_told_whom_to_ask(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    conn.execute("create role nobody_at_all; set role nobody_at_all")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            conn.execute("select procrastinate.defer('x')")
    finally:
        conn.execute("reset role; drop role nobody_at_all")
    assert explain(caught.value) == (
        "permission denied for schema procrastinate. "
        "Connect as another role, or have the owner of the schema grant this one its rights"
    )
