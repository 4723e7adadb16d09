"""
Every block of code in the README and in docs/ does what the page says.

A page is run from top to bottom, in an empty folder and a database of its own:

- `python` that begins with a comment like `# hello.py` becomes that file; other Python is run
- `sql` goes through `pyprocrastinate psql`
- `sh` goes through the shell; what it exports, the next block has, too
- `text` is what the block before it has printed, where `…` stands for anything
- `json` and `toml` can be read

A comment `<!-- not run: why -->` right before a block leaves it out.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyprocrastinate import embedded

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^>]+ -->\n+)?"
    r"^(?P<fence>```+)(?P<language>\S*)\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]+\]\((?P<target>[^)\s]+)\)")
DEADLINE = 120  # for a block
# Pages of which a pooler is no subject, and why they do not work through one.
NOT_POOLED = {
    "docs/how-to/django.md": "Django's test runner cannot drop a database to which a pooler keeps connections",
    "docs/how-to/shutdown.md": "it asks so often that psycopg prepares the query, and PgBouncer before 1.21 forgets it",
}


class Block(NamedTuple):
    language: str
    code: str
    line: int


class Page:
    """Runs the blocks of one page."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.printed = ""
        self.names: dict[str, Any] = {"__name__": "page"}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environ = os.environ | {"PROCRASTINATE_DSN": dsn, "PATH": path, "PAGER": "cat"}
        self.environ |= {"PYTHONPATH": "", "PYTHONWARNINGS": "error"}
        self.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # those of this checkout
        # They bring commands that the pages run.
        self.environ |= {"PROCRASTINATE_PLUGINS": "embedded,import"}
        self.open = contextlib.ExitStack()

    def run(self, block: Block) -> None:
        """Run a block, or compare it with what the last one printed."""
        match block.language:
            case "python" if named := re.match(r"# (\S+\.py)\n", block.code):
                (self.folder / named[1]).write_text(block.code)
            case "python":
                self.python(block)
            case "sql":
                sql = self.folder / "block.sql"
                sql.write_text(block.code)
                self.shell(f"pyprocrastinate psql -Xq -v ON_ERROR_STOP=1 -f {sql}")
            case "sh":
                self.shell(block.code)
            case "text":
                assert matches(block.code, self.printed), f"expected:\n{block.code}\nprinted:\n{self.printed}"
            case "json":
                json.loads(block.code)
            case "toml":
                tomllib.loads(block.code)
            case "":
                pass  # a drawing
            case _:
                pytest.fail(f"nobody knows how to run {block.language}")

    def python(self, block: Block) -> None:
        code = compile(block.code, "page", "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed, deadline(DEADLINE):
            exec(code, self.names)
        self.printed = printed.getvalue()

    def shell(self, code: str) -> None:
        state = self.folder.with_name(self.folder.name + ".environ")
        done = subprocess.run(
            ["sh", "-euc", f"{code}\nenv -0 > {state}"],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        self.printed = done.stdout
        pairs = state.read_text().removesuffix("\0").split("\0")
        self.environ = dict(pair.split("=", 1) for pair in pairs)
        state.unlink()
        os.environ["PROCRASTINATE_DSN"] = dsn = self.environ["PROCRASTINATE_DSN"]
        # So that the server of the page's folder is not stopped and started by every command.
        self.open.enter_context(embedded.resolve(dsn))

    def close(self) -> None:
        self.open.close()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and Path(file).is_relative_to(self.folder):
                del sys.modules[name]


@pytest.fixture
def page(folder, dsn, monkeypatch, pg_server) -> Iterator[Page]:
    pg_server.tool("psql")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PROCRASTINATE_DSN", dsn)
    page = Page(folder, dsn)
    yield page
    page.close()


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what has not ended by then, also in an event loop; Windows has nothing for it."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> list[Block]:
    """Return what is to be run of a page."""
    text = read(path)
    return [
        Block(found["language"], found["code"], text.count("\n", 0, found.start("fence")) + 2)
        for found in BLOCK.finditer(text)
        if not found["skip"]
    ]


def matches(expected: str, printed: str) -> bool:
    """Compare line by line, without blanks at their ends; a line `…` stands for any lines."""
    pattern = "".join(
        "(?:.*\n)*" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n"
        for line in map(str.rstrip, expected.rstrip().splitlines())
    )
    return bool(re.fullmatch(pattern, "".join(f"{x.rstrip()}\n" for x in printed.rstrip().splitlines())))


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def as_parameter(path: Path) -> Any:
    why = NOT_POOLED.get(page_id(path))
    return pytest.param(path, id=page_id(path), marks=pytest.mark.not_pooled(why) if why else ())


@pytest.mark.needs_tool("sh")
@pytest.mark.parametrize("path", [as_parameter(p) for p in PAGES if blocks(p)])
def test_the_code_of_a_page_does_what_the_page_says(path, page):
    for block in blocks(path):
        try:
            page.run(block)
        except BaseException as error:
            error.add_note(f"{path.relative_to(ROOT)}:{block.line}")
            raise


def anchors(text):
    """Return what GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(path, target):
    """Tell whether there is such a file and, in a page, such a heading."""
    name, _, anchor = target.partition("#")
    page = path.parent / name if name else path
    return page.exists() and (not anchor or page.suffix != ".md" or anchor in anchors(read(page)))


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_inside_the_project_lead_somewhere(path):
    targets = [found["target"] for found in LINK.finditer(read(path))]
    inside = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in inside if not leads_somewhere(path, target)] == []


def test_a_link_to_no_heading_leads_nowhere(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# The `page`, and more\n\n```sh\n# not a heading\n```\n", encoding="utf-8")
    led = {target: leads_somewhere(page, target) for target in ("#the-page-and-more", "page.md#not-a-heading", "no.md")}
    assert led == {"#the-page-and-more": True, "page.md#not-a-heading": False, "no.md": False}


def test_every_page_can_be_found():
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / found["target"]).resolve() for found in LINK.finditer(read(index))}
    pages = {page for page in PAGES if page.is_relative_to(index.parent)} - {index}
    assert [page_id(p) for p in sorted(pages) if not listed & {p, p.parent, p.parent / "README.md"}] == []


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a\n", "a  \n", True),
        ("a\n", "b\n", False),
        ("a\n", "a\nb\n", False),
        ("a … c\n", "a b c\n", True),
        ("a … c\n", "a b d\n", False),
        ("a\n…\nc\n", "a\nb\nb\nc\n", True),
        ("a\n…\n", "b\n", False),
    ],
)
def test_what_is_printed_is_compared(expected, printed, same):
    assert matches(expected, printed) is same


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a deadline needs setitimer")
@pytest.mark.parametrize("code", ["while True: pass", "import asyncio; asyncio.run(asyncio.Event().wait())"])
def test_a_block_that_hangs_is_given_up(code):
    with pytest.raises(TimeoutError), deadline(0.05):
        exec(code, {})
