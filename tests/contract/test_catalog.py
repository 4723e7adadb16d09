"""Rules that every object of the schema keeps, asked of the catalog."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from pyprocrastinate import _sqlfiles

Connection = psycopg.Connection[Any]

# Functions that anybody may see but that need the rights of the caller.
FOR_THE_OWNER = {
    "enable_test_clock",
    "advance",
    "register_sql_hook",
    "unregister_sql_hook",
    "grant_access",
    "revoke_access",
}

BROKEN = """
select p.oid::regprocedure::text || ' ' || c.rule
  from pg_proc as p
 cross join lateral (values
   ('has no comment', obj_description(p.oid, 'pg_proc') is null),
   ('has no pinned search_path',
     p.prosqlbody is null
     and 'search_path=pg_catalog, pg_temp' <> all (coalesce(p.proconfig, '{}'))),
   ('may be executed by PUBLIC', has_function_privilege('public', p.oid, 'execute')),
   ('returns the row type of a table',
     exists (select from pg_class as t where t.reltype = p.prorettype and t.relkind in ('r', 'p'))),
   ('takes the row type of a table',
     p.proname not like '\\_%%' and exists (
       select from pg_class as t
        where t.reltype = any (p.proargtypes) and t.relkind in ('r', 'p'))),
   ('is for callers but runs with their rights',
     not p.prosecdef and p.proname not like '\\_%%' and p.proname <> all (%(owner)s)),
   ('is a helper but runs with the rights of the owner', p.prosecdef and p.proname like '\\_%%'),
   ('has an overload', exists (
     select from pg_proc as o
      where o.pronamespace = p.pronamespace and o.proname = p.proname and o.oid <> p.oid)),
   ('is in another language', (select l.lanname from pg_language as l where l.oid = p.prolang)
     not in ('sql', 'plpgsql'))
 ) as c(rule, broken)
 where p.pronamespace = 'procrastinate'::regnamespace and c.broken
 order by 1
"""

GRANTED = """
select r.relname || ' is granted to ' || a.grantee::regrole || ': ' || a.privilege_type
  from pg_class as r, aclexplode(r.relacl) as a
 where r.relnamespace = 'procrastinate'::regnamespace and a.grantee <> r.relowner
union all
select 'the schema is granted to ' || a.grantee::regrole || ': ' || a.privilege_type
  from pg_namespace as n, aclexplode(n.nspacl) as a
 where n.nspname = 'procrastinate' and a.grantee <> n.nspowner
"""


def lines(conn: Connection, query: str, **parameters: Any) -> list[str]:
    return [line for (line,) in conn.execute(query.encode(), parameters or None).fetchall()]


def broken_rules(conn: Connection) -> list[str]:
    return lines(conn, BROKEN, owner=list(FOR_THE_OWNER))


def test_every_function_keeps_the_rules(conn: Connection) -> None:
    assert broken_rules(conn) == []


@pytest.mark.parametrize(
    ("rule", "function"),
    [
        ("has no comment", "x() returns int set search_path = pg_catalog, pg_temp"),
        ("has no pinned search_path", "x() returns int"),
        ("may be executed by PUBLIC", "x() returns int"),
        ("returns the row type of a table", "x() returns procrastinate.job"),
        ("takes the row type of a table", "x(j procrastinate.job) returns int"),
        ("is for callers but runs with their rights", "x() returns int"),
        ("is a helper but runs with the rights of the owner", "_x() returns int security definer"),
        ("has an overload", "protocol(x int) returns int"),
    ],
)
def test_a_broken_rule_is_noticed(conn: Connection, rule: str, function: str) -> None:
    body = "language plpgsql as 'begin return null; end'"
    conn.execute(f"create function procrastinate.{function} {body}".encode())
    assert [line for line in broken_rules(conn) if line.endswith(rule)]


def test_nobody_is_granted_a_table_or_a_view(conn: Connection) -> None:
    assert lines(conn, GRANTED) == []
    conn.execute("grant select on procrastinate.jobs to pg_monitor")
    conn.execute("grant usage on schema procrastinate to public")
    assert len(lines(conn, GRANTED)) == 2


def test_no_table_mentions_a_function_of_ours(conn: Connection) -> None:
    # tables come first, so that functions can be loaded anew without them
    query = """
    select d.objid::regclass::text || d.classid::regclass || p.proname
      from pg_depend as d
      join pg_proc as p on p.oid = d.refobjid and d.refclassid = 'pg_proc'::regclass
     where p.pronamespace = 'procrastinate'::regnamespace
       and d.classid in ('pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_class'::regclass)
    """
    assert lines(conn, query) == []


def test_every_name_in_a_body_exists(conn: Connection) -> None:
    known = set(
        lines(
            conn,
            "select proname from pg_proc where pronamespace = 'procrastinate'::regnamespace "
            "union select relname from pg_class where relnamespace = 'procrastinate'::regnamespace",
        )
    )
    bodies = conn.execute(
        "select proname, pg_get_functiondef(oid) from pg_proc where pronamespace = 'procrastinate'::regnamespace"
    ).fetchall()
    assert bodies
    for name, body in bodies:
        code = re.sub(r"--[^\n]*|'(?:[^']|'')*'", "", body)
        assert set(re.findall(r"\bprocrastinate\.(\w+)", code)) <= known, name


def test_bodies_pass_the_strictest_checks_of_plpgsql(conn: Connection) -> None:
    conn.execute("set plpgsql.extra_errors = 'all'")
    for path in _sqlfiles.function_files():
        conn.execute(path.read_bytes())


def test_bodies_pass_plpgsql_check(conn: Connection) -> None:
    if not lines(conn, "select name from pg_available_extensions where name = 'plpgsql_check'"):
        pytest.skip("needs the extension plpgsql_check on the server")
    conn.execute("create extension plpgsql_check")
    found = lines(
        conn,
        """
        select concat_ws(' ', p.oid::regprocedure, 'line', c.lineno, c.level, c.message, c.detail)
          from pg_proc as p
          join pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
         cross join lateral plpgsql_check_function_tb(
           p.oid, fatal_errors => false, extra_warnings => false) as c
         where p.pronamespace = 'procrastinate'::regnamespace
           -- said of every literal that is assigned to what is not text
           and c.message <> 'target type is different type than source type'
        """,
    )
    assert not found, "\n".join(found)
