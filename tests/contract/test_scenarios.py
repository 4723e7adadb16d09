"""Each behaviour that users of Procrastinate count on is shown by a test that carries its number."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "from-procrastinate.md"
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
    assert {number for numbers in by_test().values() for number in numbers} == SCENARIOS


def rows() -> list[list[str]]:
    """Return the cells of each row of the tables of the page, without heads and rules."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "shown by" not in line]


def test_every_row_of_the_page_names_tests_that_there_are() -> None:
    known = by_test()
    for row in rows():
        named = re.findall(r"`([^`]+)`", row[-1])
        assert [name for name in named if name not in known] == [], row
        assert named or row[-2].startswith("left out"), row


def test_every_scenario_has_a_row_that_names_tests_marked_with_it() -> None:
    marked = by_test()
    found: set[int | str] = set()
    for number, *_, shown in rows():
        if re.fullmatch(r"R?\d+", number):
            scenario = int(number) if number.isdigit() else number
            assert all(scenario in marked[name] for name in re.findall(r"`([^`]+)`", shown)), number
            found.add(scenario)
    assert found == SCENARIOS


def test_every_row_says_what_became_of_it() -> None:
    for row in rows():
        assert re.match("same|mended: |left out: ", row[-2]) or re.fullmatch(r"R\d+", row[0]), row


def test_marks_are_found() -> None:
    source = (
        "@pytest.mark.scenario(1, 'R2')\n@pytest.mark.long\ndef test_a(): ...\nasync def test_b(): ...\ndef c(): ..."
    )
    assert list(marks(source)) == [("test_a", [1, "R2"]), ("test_b", [])]
