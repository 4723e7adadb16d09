"""The reference says of each public function and view what the catalog says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

Connection = psycopg.Connection[Any]

ROOT = Path(__file__).parents[2]
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md"))}
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
DRAWING = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIGNATURE = re.compile(
    r"procrastinate\.(?P<name>\w+)\((?P<arguments>.*?)\)\s*→\s*"
    r"(?P<result>table\(.*?\)|\w+(\[\])?)\s*(?=procrastinate\.|\Z)",
    re.DOTALL,
)
SHORT = {"integer": "int", "timestamp with time zone": "timestamptz"}


def short(text: str) -> str:
    """Write what the catalog says as the reference does."""
    for long, name in SHORT.items():
        text = text.replace(long, name)
    # a default is followed by its type, which says nothing new
    text = re.sub(r" DEFAULT ('[^']*'|[\w.-]+)(::[\w\[\] ]+)?", r" = \1", text)
    return " ".join(text.replace("NULL", "null").replace("TABLE(", "table(").split())


def documented(pages: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Return the page and the signature of each function."""
    found = {}
    for page, text in pages.items():
        for drawing in DRAWING.findall(text):
            for match in SIGNATURE.finditer(drawing.strip()):
                arguments = " ".join(match["arguments"].split())
                result = " ".join(match["result"].split())
                result = result.replace("table( ", "table(").replace(" )", ")")
                assert match["name"] not in found, f"{match['name']} is documented twice"
                found[match["name"]] = (page, f"({arguments}) → {result}")
    return found


@pytest.fixture
def functions(conn: Connection) -> dict[str, str]:
    """Return the signature of each public function, by name."""
    rows = conn.execute("""
        select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid)
          from pg_proc as p
         where p.pronamespace = 'procrastinate'::regnamespace and p.proname not like '\\_%'
    """)
    return {name: f"({short(arguments)}) → {short(result)}" for name, arguments, result in rows}


def test_every_public_function_is_documented_with_its_signature(functions: dict[str, str]) -> None:
    assert {name: signature for name, (_, signature) in documented(PAGES).items()} == functions


def test_a_function_without_a_version_has_a_page_of_its_own(functions: dict[str, str]) -> None:
    pages = {name: page for name, (page, _) in documented(PAGES).items()}
    for name in functions:
        if re.search(r"_v\d+$", name) or name == "protocol":
            assert pages[name] == "worker-protocol.md"
        elif name in ("now_", "enable_test_clock", "advance"):
            assert pages[name] == "test-clock.md"
        else:
            assert pages[name] == f"{name}.md"


def test_every_parameter_is_explained() -> None:
    missing = []
    for name, (page, signature) in documented(PAGES).items():
        explained = PAGES[page]
        if page == "worker-protocol.md":
            (explained,) = re.findall(rf"^## {name}$(.*?)(?=^## |\Z)", explained, re.MULTILINE | re.DOTALL)
        arguments, _, result = signature.removeprefix("(").partition(") → ")
        # of a worker, a job and a token there is one meaning
        names = {part.split()[0] for part in arguments.split(", ") if part} - {"worker_id", "job_id", "token"}
        if not result.startswith("table(id bigint"):
            columns = re.findall(r"(?:table\(|, )(\w+)", result)
            names |= set(columns) - {"detail", "job_id", "oldest", "newest"}
        missing += [f"{name}: {what}" for what in sorted(names) if f"`{what}`" not in explained]
    assert missing == []


def test_every_sqlstate_of_the_reference_is_one_of_ours() -> None:
    ours = set(re.findall(r"^\| `(JQ\d{3})`", ERRORS, re.MULTILINE))
    for page, text in PAGES.items():
        assert set(re.findall(r"JQ\d{3}", text)) - ours == set(), page


def test_a_comment_names_no_error_that_the_reference_does_not(conn: Connection) -> None:
    comments = dict(
        conn.execute("""
            select proname, obj_description(oid, 'pg_proc') from pg_proc
             where pronamespace = 'procrastinate'::regnamespace and proname not like '\\_%'
        """).fetchall()
    )
    missing = {
        name: sorted(codes)
        for name, (page, _) in documented(PAGES).items()
        if (codes := set(re.findall(r"JQ\d{3}", comments[name])) - set_of(PAGES[page]))
    }
    assert missing == {}


def set_of(text: str) -> set[str]:
    """Return the SQLSTATEs that a text names, also those between two that a dash or "to" joins."""
    codes = set(re.findall(r"JQ\d{3}", text))
    for first, last in re.findall(r"JQ(\d{3})`?(?:\u2013| to )`?JQ(\d{3})", text):
        codes |= {f"JQ{n:03}" for n in range(int(first), int(last))}
    return codes


def test_every_view_is_documented_with_its_columns(conn: Connection) -> None:
    rows = conn.execute("""
        select c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
          from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
         where c.relnamespace = 'procrastinate'::regnamespace and c.relkind = 'v'
         order by c.relname, a.attnum
    """)
    views: dict[str, list[tuple[str, str]]] = {}
    for view, column, kind in rows:
        views.setdefault(view, []).append((column, short(kind)))
    sections = re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", PAGES["views.md"], re.MULTILINE | re.DOTALL)
    assert {view: re.findall(r"^\| `(\w+)` \| (\S+) \|", text, re.MULTILINE) for view, text in sections} == views


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```\nprocrastinate.f() → void\n```\n", {"f": "() → void"}),
        (
            "```\nprocrastinate.f(\n  a int = 3, b text[]\n) → table(\n  c int\n)\n```\n",
            {"f": "(a int = 3, b text[]) → table(c int)"},
        ),
        (
            "```\nprocrastinate.f() → bigint\nprocrastinate.g(a int) → text[]\n```\n",
            {"f": "() → bigint", "g": "(a int) → text[]"},
        ),
        ("```sql\nprocrastinate.f() → void\n```\n", {}),
    ],
)
def test_signatures_are_found(text: str, expected: dict[str, str]) -> None:
    found = documented({"page.md": text})
    assert {name: signature for name, (_, signature) in found.items()} == expected
