"""Settings: one place, documented defaults, nothing accepted that nothing could use."""

from __future__ import annotations

import pytest

DEFAULTS = {
    "max_args_bytes": 1048576,
    "max_rescues": 3,
    "stalled_after": "00:00:30",
    "notify": True,
    "store_errors": True,
    "retention": {},
}


def settings(db):
    return dict(db.rows("select name, value from procrastinate.settings"))


def test_settings_and_their_defaults(db):
    assert settings(db) == DEFAULTS
    described = db.rows("select description from procrastinate.settings")
    assert all(row.description for row in described)


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("max_args_bytes", 2, 2),
        ("max_args_bytes", 67108864, 67108864),
        ("max_rescues", 0, 0),
        ("max_rescues", 1000000, 1000000),
        ("stalled_after", "1 minute", "00:01:00"),
        ("stalled_after", 90, "00:01:30"),
        ("stalled_after", 1.5, "00:00:01.5"),
        ("notify", False, False),
        ("store_errors", False, False),
        ("retention", {"succeeded": "1 day"}, {"succeeded": "1 day"}),
        ("retention", {"failed": 60, "aborted": None}, {"failed": 60}),
        ("retention", {}, {}),
    ],
    ids=str,
)
def test_a_setting_can_be_changed_and_changed_back(db, name, given, shown):
    db.set(name, given)
    assert settings(db) == DEFAULTS | {name: shown}
    db.set(name, DEFAULTS[name])
    assert settings(db) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_args_bytes", 1),
        ("max_args_bytes", 67108865),
        ("max_args_bytes", "1000"),
        ("max_args_bytes", None),
        ("max_args_bytes", 1e30),
        ("max_rescues", -1),
        ("max_rescues", 1000001),
        ("max_rescues", {}),
        ("stalled_after", "0.9 seconds"),
        ("stalled_after", -5),
        ("stalled_after", "soon"),
        ("stalled_after", None),
        ("stalled_after", []),
        ("notify", "on"),
        ("notify", 1),
        ("notify", None),
        ("store_errors", {}),
        ("retention", {"failed": "soon"}),
        ("retention", {"failed": True}),
        ("retention", {"failed": []}),
        ("retention", {"failed": -1}),
        ("retention", {"failed": "-1 day"}),
        ("retention", None),
    ],
    ids=str,
)
def test_what_a_setting_cannot_be_is_refused(db, name, bad):
    with db.refused("JQ018", f"bad value for the setting {name}", hint="settings"):
        db.set(name, bad)
    with db.refused("JQ018"):
        db.one(f"select procrastinate.set_setting('{name}', null)")
    assert settings(db) == DEFAULTS


@pytest.mark.parametrize("bad", [{"doing": "1 day"}, {"succeded": "1 day"}])
def test_a_retention_of_no_such_status_is_refused(db, bad):
    with db.refused("JQ016", "unknown key in retention", hint="succeeded, failed"):
        db.set("retention", bad)


@pytest.mark.parametrize("bad", [[], "1 day", 5])
def test_a_retention_by_no_status_is_refused(db, bad):
    with db.refused("JQ016", "retention must be a JSON object"):
        db.set("retention", bad)


@pytest.mark.parametrize("name", ["max_arg_bytes", "", "clock_offset", "singleton", None])
def test_an_unknown_setting_is_refused(db, name):
    with db.refused("JQ018", "unknown setting", hint="settings"):
        db.set(name, 1)


def test_a_change_is_part_of_the_callers_transaction(db, session):
    other = session(autocommit=False)
    other.set("max_rescues", 7)
    assert settings(db) == DEFAULTS
    other.conn.rollback()
    assert settings(db) == DEFAULTS
