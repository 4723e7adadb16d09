"""
Who may do what: each role against each function, table, view and sequence.

The lists here are written a second time, on purpose: what is new has to be put into one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pyprocrastinate.migrate import migrate

Connection = psycopg.Connection[Any]

PREFIX = f"matrix_{os.getpid()}"
KINDS = ("client", "worker", "observer", "admin")

# Public functions, and who may call them besides the owner. Helpers begin with an underscore and are for nobody.
FUNCTIONS = {
    "advance": "",
    "backend_v1": "client worker observer admin",
    "cancel": "client admin",
    "complete_v1": "worker",
    "count_jobs_v1": "observer admin",
    "cron_next": "client worker observer admin",
    "defer": "client admin",
    "defer_many": "client admin",
    "enable_test_clock": "",
    "fetch_v1": "worker",
    "finish_job_v1": "admin",
    "finish_v1": "worker",
    "grant_access": "",
    "heartbeat_v1": "worker",
    "held_v1": "worker",
    "idle_v1": "worker",
    "now_": "client worker observer admin",
    "protocol": "client worker observer admin",
    "purge": "admin",
    "register_sql_hook": "",
    "register_task": "admin",
    "register_worker_v1": "worker",
    "retry": "client admin",
    "revoke_access": "",
    "schedule": "admin",
    "set_setting": "admin",
    "stalled_jobs_v1": "observer admin",
    "tick_v1": "worker admin",
    "unregister_sql_hook": "",
    "unregister_worker_v1": "worker",
    "unschedule": "admin",
    "work_v1": "worker",
}

# The columns that an observer reads of each view, and those kept from it; an admin reads all.
VIEWS = {
    "events": ("id job_id type at worker_id", "detail"),
    "jobs": (
        (
            "id status task queue priority lock queueing_lock attempts deferred_at scheduled_at started_at finished_at "
            "worker_id abort_requested error_class"
        ),
        "args headers error_message result",
    ),
    "locks": ("lock running_job_id worker_id running_since next_job_id next_queue state next_due_at waiting", ""),
    "queues": ("name ready blocked scheduled doing oldest_ready_at", ""),
    "roles": ("name access queues", ""),
    "schedules": (
        (
            "name kind task cron timezone catch_up max_delay queue priority lock queueing_lock enabled last_tick "
            "next_tick live options retry_at"
        ),
        "args",
    ),
    "settings": ("name value description", ""),
    "sql_hooks": ("event function failures last_failed_at disabled registered_at", "last_error"),
    "tasks": ("name source queue priority lock queueing_lock retry updated_at", ""),
    "workers": ("id name queues protocol started_at heartbeat_at stalled_after idle live running info", ""),
}


def rows(conn: Connection, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return conn.execute(query.encode(), parameters or None).fetchall()


@pytest.fixture
def granted(dsn: str, conn: Connection) -> Iterator[Callable[[str], str]]:
    """Let the roles in, and return a function that tells the name of one; `stranger` has no access at all."""
    migrate(dsn, roles=PREFIX)
    names = [f"{PREFIX}_{kind}" for kind in ("owner", *KINDS, "stranger")]
    conn.execute(f"create role {names[-1]}".encode())
    yield lambda kind: f"{PREFIX}_{kind}"
    for name in names[1:]:
        conn.execute(f"drop owned by {name}; drop role {name}".encode())
    conn.execute(f"reassign owned by {names[0]} to current_user; drop role {names[0]}".encode())


def matrix(conn: Connection, role: Callable[[str], str]) -> dict[str, set[str]]:
    """Return who but the owner has the right to execute each function."""
    query = """
    select p.proname, has_function_privilege(%s, p.oid, 'execute')
      from pg_proc as p where p.pronamespace = 'procrastinate'::regnamespace
    """
    found: dict[str, set[str]] = {}
    for kind in (*KINDS, "stranger"):
        for name, may in rows(conn, query, role(kind)):
            found.setdefault(name, set()).update([kind] if may else [])
    return found


def unlisted(found: dict[str, set[str]]) -> set[str]:
    return {name for name in found if not name.startswith("_")} - FUNCTIONS.keys()


def test_every_function_is_for_those_that_are_listed(conn: Connection, granted: Callable[[str], str]) -> None:
    found = matrix(conn, granted)
    assert unlisted(found) == set(), "say who may call it"
    assert FUNCTIONS.keys() <= found.keys()
    assert {name: kinds for name, kinds in found.items() if kinds != set(FUNCTIONS.get(name, "").split())} == {}


def test_a_new_function_has_to_be_listed(conn: Connection, granted: Callable[[str], str]) -> None:
    conn.execute("create function procrastinate.more() returns int begin atomic select 1; end")
    found = matrix(conn, granted)
    assert unlisted(found) == {"more"}
    # what PostgreSQL does with a function unless it is told otherwise
    assert found["more"] == {*KINDS, "stranger"}


def test_nobody_but_the_owner_touches_a_table_or_a_sequence(conn: Connection, granted: Callable[[str], str]) -> None:
    query = """
    select r.role, c.relname, p.privilege
      from pg_class as c
     cross join unnest(%s::text[]) as r (role)
     cross join unnest(case c.relkind when 'S' then '{usage,select,update}'
       else '{select,insert,update,delete,truncate,references,trigger}' end::text[]) as p (privilege)
     where c.relnamespace = 'procrastinate'::regnamespace and c.relkind = any (%s::"char"[])
       and case when c.relkind = 'S' then has_sequence_privilege(r.role, c.oid, p.privilege)
                else has_table_privilege(r.role, c.oid, p.privilege)
                  or p.privilege in ('select', 'insert', 'update', 'references')
                     and has_any_column_privilege(r.role, c.oid, p.privilege) end
    """
    roles = [granted(kind) for kind in (*KINDS, "stranger")]
    assert rows(conn, query, roles, ["r", "S", "p", "m", "f"]) == []
    # nor does anybody write through a view
    of_views = {(role.removeprefix(PREFIX + "_"), privilege) for role, _, privilege in rows(conn, query, roles, ["v"])}
    assert of_views == {("observer", "select"), ("admin", "select")}


def test_an_observer_reads_what_holds_no_values_of_jobs(conn: Connection, granted: Callable[[str], str]) -> None:
    query = """
    select c.relname, a.attname, has_column_privilege(%s, c.oid, a.attnum, 'select'),
           has_column_privilege(%s, c.oid, a.attnum, 'select')
      from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
     where c.relnamespace = 'procrastinate'::regnamespace and c.relkind = 'v'
    """
    found: dict[str, tuple[set[str], set[str]]] = {}
    for view, column, observer, admin in rows(conn, query, granted("observer"), granted("admin")):
        assert admin, (view, column)
        found.setdefault(view, (set(), set()))[0 if observer else 1].add(column)
    listed = {view: tuple(set(names.split()) for names in columns) for view, columns in VIEWS.items()}
    assert found == listed


def test_a_stranger_does_not_even_get_in(conn: Connection, granted: Callable[[str], str]) -> None:
    query = "select has_schema_privilege(%s, 'procrastinate', %s)"
    for kind in (*KINDS, "stranger"):
        assert rows(conn, query, granted(kind), "usage") == [(kind != "stranger",)]
        assert rows(conn, query, granted(kind), "create") == [(False,)]


def test_all_that_is_there_belongs_to_the_owner(conn: Connection, granted: Callable[[str], str]) -> None:
    query = """
    select relname, relowner::regrole::text from pg_class where relnamespace = 'procrastinate'::regnamespace
    union all select proname, proowner::regrole::text from pg_proc where pronamespace = 'procrastinate'::regnamespace
    union all select nspname, nspowner::regrole::text from pg_namespace where nspname = 'procrastinate'
    """
    assert {owner for _, owner in rows(conn, query)} == {granted("owner")}
