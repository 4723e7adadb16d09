"""Python sends nothing but calls of the schema's public functions, and reads its public views."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyprocrastinate
from pyprocrastinate import _sqlfiles

PACKAGE = Path(pyprocrastinate.__file__).parent

STATEMENT = re.compile(
    r"\s*(select|table|values|listen|unlisten|notify|explain)\s"
    r"|\s*(with)\s[^(]*\bas\s*(not\s+|materialized\s*)?\("
    r"|\s*(insert|merge)\s+into\s|\s*delete\s+from\s|\s*update\s[^;]*\sset\s"
    r"|\s*(create|alter|drop|truncate|copy|grant|revoke|lock|call|do)\s"
    r"|\s*set\s+(local|session)\s|\s*set\s+\w+\s*(=|to)\s"
    r"|\s*(begin|commit|rollback)\s*;?\s*$",
    re.IGNORECASE,
)
VIEWS = {
    name
    for path in _sqlfiles.function_files()
    for name in re.findall(r"create or replace view procrastinate\.(\w+)", path.read_text("utf-8"))
}
FUNCTIONS = {
    name
    for path in _sqlfiles.function_files()
    for name in re.findall(r"create or replace function procrastinate\.(\w+)", path.read_text("utf-8"))
}


def literals(source: str) -> Iterator[str]:
    """Yield the strings of a module but for its docstrings; what is filled in becomes `{}`, or is
    known: a constant of the module."""
    tree = ast.parse(source)
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }

    def filled_in(part: ast.expr) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        name = getattr(getattr(part, "value", None), "id", None)
        return str(constants.get(str(name), "{}"))

    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.JoinedStr):
            skipped.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in skipped:
            skipped.update(id(part) for part in node.values)
            yield "".join(filled_in(part) for part in node.values)
        elif isinstance(node, ast.Constant) and id(node) not in skipped:
            yield node.value if isinstance(node.value, str) else ""


def complaint(text: str) -> str | None:
    """Return what is wrong with a string that is an SQL statement, None for any other string."""
    if not STATEMENT.match(text):
        return None
    text = re.sub(r"\s+", " ", text.strip()).lower()
    if text in ("listen procrastinate_v1", "set default_transaction_isolation = 'read committed'"):
        return None
    if not re.match(r"select\b.*\bprocrastinate\.", text):
        return "calls nothing of ours"
    for relation in re.findall(r"\b(?:from|join) ([^ ,;]+)", text):
        name = re.fullmatch(r"procrastinate\.([\w{}]+)(\(.*)?", relation)
        if name is None:
            return f"reads {relation}"
        if not name[2] and name[1] not in VIEWS | {"{}"}:  # those are looked at below
            return f"reads {relation}, which is no public view"
    for name in re.findall(r"\bprocrastinate\.(\w+)\(", text):
        if name not in FUNCTIONS or name.startswith("_"):
            return f"calls {name}, which is no public function"
    return None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_sends_calls_only(path: Path) -> None:
    found = {text: complaint(text) for text in literals(path.read_text("utf-8"))}
    assert {text: wrong for text, wrong in found.items() if wrong} == {}


def test_every_operation_is_one_of_the_schemas() -> None:
    trees = [ast.parse((PACKAGE / name).read_text("utf-8")) for name in ("operations.py", "manager.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Call"]
    # `Call.then` makes one of another
    calls = [call for call in calls if ast.unparse(call.args[0]) != "self.source"]
    assert len(calls) > 15
    for call in calls:
        assert isinstance(call.args[0], ast.Constant)
        name = str(call.args[0].value)
        reads_view = len(call.args) > 3 or any(keyword.arg == "view" for keyword in call.keywords)
        assert name in (VIEWS if reads_view else FUNCTIONS), name
        assert not name.startswith("_")


@pytest.mark.parametrize(
    "text",
    [
        "select * from procrastinate.fetch_v1(%s)",
        "select * from procrastinate.{}({})",
        "select id, token from procrastinate.work_v1({})",
        "select status from procrastinate.jobs where id = %s",
        "select procrastinate.cancel(%s)",
        "listen procrastinate_v1",
        "set default_transaction_isolation = 'read committed'",
        "Deferred jobs: %s",
        "selected",
        "update the worker",
        "with a retry",
    ],
)
def test_what_is_allowed(text: str) -> None:
    assert complaint(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "select 1",
        "SELECT * FROM procrastinate.job",
        "select * from procrastinate._ready(1)",
        "select * from procrastinate.gone_v1(1)",
        "select * from procrastinate.jobs join other on true",
        "select * from (select 1) as x, procrastinate.jobs",
        "with x as (select 1) select * from x",
        "insert into procrastinate.job values (1)",
        "update procrastinate.job set lock = null",
        "delete from procrastinate.done",
        "set local lock_timeout = 1",
        "begin",
        "notify procrastinate_v1",
        "listen something",
        "create table x ()",
    ],
)
def test_what_is_not_allowed(text: str) -> None:
    assert complaint(text)


def test_literals_are_found() -> None:
    source = 'T = "t"\ndef f(x):\n  """select 1"""\n  return f"select {x} from {T}", "select 2", 3'
    assert sorted(literals(source)) == ["", "select 2", "select {} from t", "t"]


def test_there_is_something_to_call() -> None:
    assert "jobs" in VIEWS
    assert "defer" in FUNCTIONS
