"""Each hook is documented and tested."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from pyprocrastinate import hookspecs

ROOT = Path(__file__).parents[2]
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "pyprocrastinate_spec")}


def test_there_are_at_most_16_hooks_named_by_kind():
    assert 0 < len(HOOKS) <= 16
    kinds = re.compile(r"register_|wrap_|decide_|.*(ed|ing)$")
    assert [name for name in HOOKS if not kinds.match(name)] == []


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented_with_its_signature(name):
    page = (ROOT / "docs" / "hooks.md").read_text()
    assert f"\n## `{name}{inspect.signature(HOOKS[name])}`\n".replace("'", "") in page


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_tested(name):
    tests = (ROOT / "tests" / "plugins" / "test_hooks.py").read_text()
    assert f"def test_hook_{name}(" in tests


def test_every_hook_is_used():
    places = [*ROOT.glob("plugins/*/pyprocrastinate_*/**/*.py"), *ROOT.glob("examples/**/*.py")]
    used = {
        name
        for path in places
        for name in re.findall(r"@hookimpl[^\n]*\s+(?:@\w+\s+)*(?:async )?def (\w+)\(", path.read_text("utf-8"))
    }
    assert HOOKS.keys() - used == set()
