"""Roles that the migration creates on request: by whom it can be done, and that they outlive upgrades."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyprocrastinate.migrate import MigrationError, migrate, plan, script

Connection = psycopg.Connection[Any]

KINDS = ("owner", "client", "worker", "observer", "admin")
_numbers = itertools.count()


def one(conn: Connection, query: str, *parameters: Any) -> Any:
    row = conn.execute(query.encode(), parameters or None).fetchone()
    return row and row[0]


@pytest.fixture
def admin(empty_dsn: str) -> Iterator[Connection]:
    """Return a superuser's connection to a database with nothing in it."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def prefix(pg_server: Any, empty_dsn: str) -> Iterator[str]:
    """Return what names of roles may begin with; those that do are dropped after the test."""
    name = f"r{os.getpid()}_{next(_numbers)}"
    yield name
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        made = "select rolname from pg_roles where starts_with(rolname, %s || '_') order by rolname like '%%_login'"
        for (role,) in conn.execute(made, [name]).fetchall():
            conn.execute(
                sql.SQL("reassign owned by {0} to current_user; drop owned by {0}").format(sql.Identifier(role))
            )
        for (role,) in conn.execute(made, [name]).fetchall():
            conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(role)))


@pytest.fixture
def login(admin: Connection, empty_dsn: str, prefix: str) -> Callable[[str], str]:
    """Return a function that makes a role with these attributes, which may create schemas, and returns its DSN."""

    def login(attributes: str = "") -> str:
        name = f"{prefix}_{next(_numbers)}_login"
        admin.execute(f"create role {name} login password 'x' {attributes}".encode())
        admin.execute(f'grant create on database "{admin.info.dbname}" to {name}'.encode())
        return make_conninfo(empty_dsn, user=name, password="x")

    return login


def owners(conn: Connection) -> set[str]:
    query = """
    select relowner::regrole::text from pg_class where relnamespace = 'procrastinate'::regnamespace
    union select proowner::regrole::text from pg_proc where pronamespace = 'procrastinate'::regnamespace
    union select nspowner::regrole::text from pg_namespace where nspname = 'procrastinate'
    """
    return {owner for (owner,) in conn.execute(query.encode()).fetchall()}


def access(conn: Connection, prefix: str) -> dict[str, bool]:
    """Return who of the five may defer."""
    query = "select has_function_privilege(%s, 'procrastinate.defer', 'execute')"
    named = query.replace("'procrastinate.defer'", "(select oid from pg_proc where proname = 'defer')")
    return {kind: one(conn, named, f"{prefix}_{kind}") for kind in KINDS}


EXPECTED = {"owner": True, "client": True, "worker": False, "observer": False, "admin": True}


def test_they_come_with_the_schema_or_later_and_only_once(admin: Connection, empty_dsn: str, prefix: str) -> None:
    migrate(empty_dsn)
    assert one(admin, "select count(*) from procrastinate.roles") == 0
    (step,) = migrate(empty_dsn, roles=prefix)
    assert step.name == f"roles {prefix}_owner, _client, _worker, _observer, _admin"
    assert access(admin, prefix) == EXPECTED
    assert owners(admin) == {f"{prefix}_owner"}
    assert (
        one(admin, "select bool_or(rolcanlogin or rolsuper) from pg_roles where starts_with(rolname, %s)", prefix)
        is False
    )
    assert plan(empty_dsn, roles=prefix) == []
    assert migrate(empty_dsn, roles=prefix) == []


def test_psql_does_the_same(pg_server: Any, admin: Connection, empty_dsn: str, prefix: str) -> None:
    steps = plan(empty_dsn, roles=prefix)
    assert [step.stage for step in steps][-2:] == ["functions", "roles"]
    command = [pg_server.tool("psql"), "-XqAt", "--set=ON_ERROR_STOP=1", f"--dbname={empty_dsn}"]
    done = subprocess.run(command, input=script(steps), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert access(admin, prefix) == EXPECTED
    assert owners(admin) == {f"{prefix}_owner"}
    assert plan(empty_dsn, roles=prefix) == []


def test_a_role_that_may_create_roles_is_enough(
    admin: Connection, empty_dsn: str, prefix: str, login: Callable[[str], str]
) -> None:
    dsn = login("createrole")
    migrate(dsn, roles=prefix)
    assert access(admin, prefix) == EXPECTED
    assert owners(admin) == {f"{prefix}_owner"}
    assert migrate(dsn, roles=prefix) == []


def test_so_is_one_that_may_not_if_the_roles_are_there(
    admin: Connection, prefix: str, login: Callable[[], str]
) -> None:
    dsn = login()
    with pytest.raises(MigrationError, match="permission denied to create role") as raised:
        migrate(dsn, roles=prefix)
    assert f"grant {prefix}_owner to" in str(raised.value)
    user = one(admin, "select rolname from pg_roles where starts_with(rolname, %s)", prefix)
    assert owners(admin) == {user}, "all but the roles is there"
    for kind in KINDS:
        admin.execute(f"create role {prefix}_{kind}".encode())
    with pytest.raises(MigrationError, match=rf"Let somebody who may do it .* grant {prefix}_owner to {user}"):
        migrate(dsn, roles=prefix)
    admin.execute(f"grant {prefix}_owner to {user}".encode())
    assert [step.stage for step in migrate(dsn, roles=prefix)] == ["roles"]
    assert access(admin, prefix) == EXPECTED
    assert owners(admin) == {f"{prefix}_owner"}


def test_members_of_the_owner_upgrade_and_nobody_else(
    admin: Connection, empty_dsn: str, prefix: str, login: Callable[[], str], release: Any
) -> None:
    migrate(empty_dsn, roles=prefix)
    stranger, member = login(), login()
    with pytest.raises(MigrationError, match=f"belongs to {prefix}_owner, and .* is no member"):
        migrate(stranger)
    name = conninfo_to_dict(member)["user"]
    admin.execute(f"grant {prefix}_owner to {name}".encode())
    release.add("migrations/pre/9001_more.sql", "create table procrastinate.more (id int);")
    release.add(
        "migrations/pre/9002_index.sql",
        "-- no-transaction\ncreate index concurrently more_index on procrastinate.job (task);\n",
    )
    body = "returns int begin atomic select 1; end;"
    release.add("functions/97_more.sql", f"create or replace function procrastinate._more() {body}")
    assert len(migrate(member)) == 3
    assert owners(admin) == {f"{prefix}_owner"}


def test_what_a_superuser_upgrades_stays_its_owners(
    admin: Connection, empty_dsn: str, login: Callable[[], str], release: Any
) -> None:
    migrate(login())
    (owner,) = owners(admin)
    body = "returns int language sql security definer as 'select 1';"
    release.add("functions/97_more.sql", f"create or replace function procrastinate.more() {body}")
    migrate(empty_dsn)
    assert owners(admin) == {owner}


def test_an_upgrade_lets_the_roles_call_what_is_new(
    admin: Connection, empty_dsn: str, prefix: str, release: Any
) -> None:
    migrate(empty_dsn, roles=prefix)
    admin.execute(f"grant execute on function procrastinate.purge to {prefix}_worker".encode())
    release.add(
        "functions/35_more.sql",
        "create or replace function procrastinate.more() returns int begin atomic select 1; end;",
    )
    path = release.folder / "functions" / "62_access.sql"
    path.write_text(
        path.read_text().replace("'{defer,defer_many,cancel,retry}'", "'{defer,defer_many,cancel,retry,more}'")
    )
    migrate(empty_dsn)
    may = "select has_function_privilege(%s, %s::regproc, 'execute')"
    for kind, expected in {"client": True, "worker": False, "observer": False}.items():
        assert one(admin, may, f"{prefix}_{kind}", "procrastinate.more") is expected
    assert access(admin, prefix) == EXPECTED
    assert one(admin, may, f"{prefix}_worker", "procrastinate.purge"), "granted by hand"
    assert not one(admin, may, f"{prefix}_client", "procrastinate._check_queues")


def test_a_function_that_is_loaded_again_keeps_its_grants(
    admin: Connection, empty_dsn: str, prefix: str, release: Any
) -> None:
    acl = "select string_agg(proacl::text, ';' order by oid) from pg_proc where proacl::text like '%%' || %s || '%%'"
    migrate(empty_dsn, roles=prefix)
    before = one(admin, acl, prefix)
    assert before
    release.add("functions/00_more.sql", "select 1;")
    assert [step.stage for step in migrate(empty_dsn)] == ["functions"]
    assert one(admin, acl, prefix) == before


def test_databases_of_one_cluster_share_them_or_have_their_own(
    pg_server: Any, admin: Connection, empty_dsn: str, dsn: str, prefix: str
) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: migrate(each, roles=prefix), (empty_dsn, dsn)))
    with psycopg.connect(dsn, autocommit=True) as other:
        assert access(admin, prefix) == access(other, prefix) == EXPECTED
        migrate(empty_dsn, roles=f"{prefix}_own")
        own = f"{prefix}_own"
        assert access(admin, own) == EXPECTED
        assert access(other, own) == dict.fromkeys(KINDS, False)
        for conn in admin, other:
            conn.execute(b"select procrastinate._set_owner(current_user)")
        for kind in KINDS[1:]:
            other.execute(f"drop owned by {prefix}_{kind}".encode())
        other.execute(f"drop owned by {prefix}_owner".encode())


@pytest.mark.parametrize("bad", ["", "Shop", "a b", "x'; drop", "1x", "x" * 55, "ü"])
def test_a_prefix_is_a_plain_word(empty_dsn: str, bad: str) -> None:
    if not bad:
        assert all(step.stage != "roles" for step in plan(empty_dsn, roles=bad))
        return
    with pytest.raises(MigrationError, match="is not what the name of a role begins with"):
        plan(empty_dsn, roles=bad)


def test_the_longest_prefix_makes_names_that_are_kept_whole(admin: Connection, empty_dsn: str, prefix: str) -> None:
    longest = prefix + "_" + "x" * (53 - len(prefix))
    migrate(empty_dsn, roles=longest)
    assert one(admin, "select count(*) from pg_roles where starts_with(rolname, %s)", longest) == 5
    assert migrate(empty_dsn, roles=longest) == []
