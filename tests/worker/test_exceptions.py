"""Each SQLSTATE of the schema has a class, and each class a meaning."""

from __future__ import annotations

import re
from pathlib import Path

from pyprocrastinate import _sqlfiles, exceptions


def test_each_code_of_the_schema_has_a_class() -> None:
    raised = {
        code
        for path in (*_sqlfiles.function_files(), *_sqlfiles.migration_files("post"))
        for code in re.findall(r"errcode\s*=\s*'(JQ\w{3})'", Path(path).read_text("utf-8"))
    }
    assert len(raised) > 15
    assert raised <= exceptions.REFUSALS.keys()


def test_each_class_is_in_the_tree_and_says_what_it_means() -> None:
    assert exceptions.__doc__
    drawn = re.findall(r"[├└]── (\w+)", exceptions.__doc__)
    classes = {
        name: cls
        for name, cls in vars(exceptions).items()
        if isinstance(cls, type) and issubclass(cls, exceptions.ProcrastinateException)
    }
    assert {"ProcrastinateException", *drawn} == classes.keys()
    for name, cls in classes.items():
        assert cls.__doc__, name
        codes = re.findall(rf"── {name}\b.*?((?: (?:JQ\d+|\d\w{{4}}),?)*)$", exceptions.__doc__, re.MULTILINE)
        if issubclass(cls, exceptions.Refused) and codes:
            assert tuple(codes[0].replace(",", "").split()) == vars(cls).get("sqlstates", ()), name


def test_a_message_holds_fact_detail_and_hint() -> None:
    error = exceptions.JobNotFound("no job 7", detail="It is gone.", hint="Look elsewhere.")
    assert str(error) == "no job 7\nIt is gone.\nLook elsewhere."
    assert str(exceptions.JobAborted()) == "Raised by a task to end as aborted."
