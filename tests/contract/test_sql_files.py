"""Rules that every SQL file keeps, and that the catalog cannot tell."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pyprocrastinate import _sqlfiles, exceptions

ROOT = Path(__file__).parents[2]
FUNCTIONS = _sqlfiles.function_files()
MIGRATIONS = [*_sqlfiles.migration_files("pre"), *_sqlfiles.migration_files("post")]

# An exception block is a subtransaction. On the hot path each one needs its reason here.
EXCEPTION_BLOCKS = {
    "_put_back": "only for a queueing lock, which only the index can tell to be taken",
    "_call_hooks": "the owner's code, and only where a hook is registered",
    "_hook_ran": "to take a note may fail at REPEATABLE READ, where a hook is registered",
    "_decide_retry": "user code wrote the decision or the policy, and only its job may suffer",
}
# The queue's own time is procrastinate.now_(); these ask about the transaction, not about a row.
READS_TRANSACTION_TIME = {"_wake"}

TIME = re.compile(r"\b(now|clock_timestamp|statement_timestamp|procrastinate\.now_)\(\)")
END_OF_WHERE = re.compile(
    r"(;|\bgroup by\b|\border by\b|\blimit\b|\breturning\b|\bunion\b|\bloop\b|\bthen\b|\bwindow\b"
    r"|\bon conflict\b|\bfor (?:no key )?(?:update|share)\b)"
)


def code(text: str) -> str:
    """Return SQL without its comments and without what is in its strings."""
    text = re.sub(r"--[^\n]*", "", text)
    return re.sub(r"'(?:[^']|'')*'", "''", text).lower()


def bodies(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the code of each function in a file."""
    parts = re.split(r"create or replace function procrastinate\.(\w+)", code(path.read_text("utf-8")))
    yield from zip(parts[1::2], parts[2::2], strict=True)


def where_clauses(text: str) -> Iterator[str]:
    """Yield what is looked at for each row; a scalar subquery is looked at once."""
    for match in re.finditer(r"\bwhere\b", text):
        depth, position, kept = 0, match.end(), []
        while position < len(text) and depth >= 0:
            if text.startswith("(select", position):
                inner = 0
                while True:
                    inner += {"(": 1, ")": -1}.get(text[position], 0)
                    position += 1
                    if inner == 0:
                        break
                continue
            if depth == 0 and END_OF_WHERE.match(text, position):
                break
            depth += {"(": 1, ")": -1}.get(text[position], 0)
            kept.append(text[position])
            position += 1
        yield "".join(kept)


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.name)
def test_every_raise_has_its_sqlstate(path: Path) -> None:
    for statement in re.findall(r"\braise\b[^;]*;", code(path.read_text("utf-8"))):
        if not re.match(r"raise\s*(;|notice|warning|log|debug|info)", statement):
            assert "errcode" in statement, statement


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.name)
def test_the_hot_path_has_no_subtransactions(path: Path) -> None:
    if "10" <= path.name < "40":
        for name, body in bodies(path):
            if re.search(r"\bexception\s+when\b", body):
                assert EXCEPTION_BLOCKS.get(name), f"{name} has an exception block"


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.name)
def test_time_is_read_once_not_for_each_row(path: Path) -> None:
    for name, body in bodies(path):
        found = [clause for clause in where_clauses(body) if TIME.search(clause)]
        assert not found or name in READS_TRANSACTION_TIME, (name, found)


def test_the_search_for_time_finds_it() -> None:
    found = [
        bool(TIME.search(clause))
        for text in (
            "select 1 from a where x < now() order by 1",
            "select 1 from a where x < (select now()) order by 1",
            "select (select 1 from a where x = 1), now()",
            "select 1 from a where f(x, clock_timestamp());",
            "update a set x = now() where y = 1 returning now()",
        )
        for clause in where_clauses(text)
    ]
    assert found == [True, False, False, True, False]


@pytest.mark.scenario(75)
@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.name)
def test_a_migration_has_a_name_and_no_function(path: Path) -> None:
    assert re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", path.name)
    text = path.read_text("utf-8")
    made = re.findall(r"\bcreate\s+(?:or\s+replace\s+)?(\w+)", code(text))
    assert not {"function", "procedure", "trigger", "view"} & set(made)
    # the runner splits such a file into its statements
    if text.startswith("-- no-transaction"):
        assert "$$" not in text


def test_no_two_migrations_share_a_number() -> None:
    for stage in ("pre", "post"):
        numbers = [path.name[:4] for path in _sqlfiles.migration_files(stage)]
        assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.name)
def test_a_function_file_can_be_loaded_again(path: Path) -> None:
    text = code(path.read_text("utf-8"))
    assert re.fullmatch(r"\d\d_[a-z_]+\.sql", path.name)
    assert not re.search(r"\bcreate\s+(?!or\s+replace)(function|procedure|trigger|view|table)", text)


@pytest.mark.parametrize("path", [*FUNCTIONS, *MIGRATIONS], ids=lambda path: path.name)
def test_the_form_of_a_file(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.endswith("\n")
    assert "\t" not in text
    assert [line for line in text.splitlines() if len(line) > 140] == []
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


# SQLSTATEs


def raised() -> set[str]:
    return {
        state
        for path in (*FUNCTIONS, *MIGRATIONS)
        for state in re.findall(r"errcode = '(JQ\w{3})'", path.read_text("utf-8"))
    }


def documented() -> dict[str, str]:
    """Return the class that the table in docs/errors.md gives for each SQLSTATE."""
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    return dict(re.findall(r"^\| `(JQ\w{3})` \| `(\w+)` \|", text, re.MULTILINE))


def test_every_sqlstate_that_is_raised_is_documented() -> None:
    assert raised() - documented().keys() == set()


def test_every_documented_sqlstate_is_raised() -> None:
    # SQL says null or false where there is no such job; Python makes an exception of it
    assert documented().keys() - raised() == {"JQ001"}


def test_every_sqlstate_has_the_class_that_the_documentation_says() -> None:
    classes = {state: cls.__name__ for state, cls in exceptions.REFUSALS.items()}
    assert documented() == {state: name for state, name in classes.items() if state[:2] == "JQ"}


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.name)
def test_a_comment_promises_no_unknown_sqlstate(path: Path) -> None:
    mentioned = re.findall(r"\bJQ\d{3}\b", path.read_text("utf-8"))
    assert set(mentioned) <= documented().keys()


# Packaging


def test_the_wheel_holds_every_sql_file(tmp_path: Path) -> None:
    if find_spec("hatchling"):
        command = ["hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    else:
        command = ["pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), "."]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for path in (*FUNCTIONS, *MIGRATIONS):
        assert f"pyprocrastinate/sql/{path.relative_to(ROOT / 'sql').as_posix()}" in held
