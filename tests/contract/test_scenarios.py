"""Each behaviour that users of Procrastinate count on is shown by a test that carries its number."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# to come with what they need
AWAITED: set[int | str] = {29, 64, 70, 74, 77, 78}
SCENARIOS: set[int | str] = {*range(1, 79), *(f"R{n}" for n in range(1, 19))}


def marks(source: str) -> Iterator[tuple[str, list[int | str]]]:
    """Yield the name of each test of a module, with the numbers of the scenarios that it is marked with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            calls = [each for each in node.decorator_list if isinstance(each, ast.Call)]
            found = [each for each in calls if ast.unparse(each.func) == "pytest.mark.scenario"]
            yield node.name, [ast.literal_eval(arg) for call in found for arg in call.args]


def by_test() -> dict[str, list[int | str]]:
    """Return the scenarios of each test, by `path::name`; the path leaves out `tests/` at its beginning."""
    paths = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "plugins").glob("*/tests/**/test_*.py")]
    return {
        f"{path.relative_to(ROOT).as_posix().removeprefix('tests/')}::{name}": numbers
        for path in paths
        for name, numbers in marks(path.read_text(encoding="utf-8"))
    }


def test_every_scenario_has_a_test() -> None:
    assert {number for numbers in by_test().values() for number in numbers} == SCENARIOS - AWAITED


def test_marks_are_found() -> None:
    source = (
        "@pytest.mark.scenario(1, 'R2')\n@pytest.mark.long\ndef test_a(): ...\nasync def test_b(): ...\ndef c(): ..."
    )
    assert list(marks(source)) == [("test_a", [1, "R2"]), ("test_b", [])]
