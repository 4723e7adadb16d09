"""
Stop a session between any two statements of the queue's functions.

`install` puts a gate behind every statement of every PL/pgSQL function of the schema. A session
that has `gates.stop` set to n waits at the n-th gate it comes to for as long as the gates are shut.
So one session can be halted in the middle of a function while another runs through, at every
place where that can happen.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg

SHUT = "select pg_advisory_lock(77, 77)"
OPEN = "select pg_advisory_unlock(77, 77)"

SAVE = """
do $$
declare
  v_table text;
begin
  foreach v_table in array array[
    'job', 'done', 'event', 'worker', 'tick', 'config', 'task', 'schedule', 'sql_hook', 'role'] loop
    execute format('drop table if exists gates.%I', v_table);
    execute format('create table gates.%1$I as table procrastinate.%1$I', v_table);
  end loop;
end $$
"""
# Ids go on from the same number each time, so that equal outcomes have equal ids.
RESTORE = """
do $$
declare
  v_table text;
begin
  foreach v_table in array array[
    'job', 'done', 'event', 'worker', 'tick', 'config', 'task', 'schedule', 'sql_hook', 'role'] loop
    execute format('delete from procrastinate.%I', v_table);
    execute format(
      'insert into procrastinate.%1$I overriding system value table gates.%1$I', v_table);
  end loop;
  perform setval(pg_get_serial_sequence('procrastinate.job', 'id'), 10000000);
end $$
"""

_GATE = """
create schema gates;
create function gates.pass() returns void language plpgsql as $$
declare
  v_stop text := current_setting('gates.stop', true);
  v_count int;
begin
  if v_stop <> '' then
    v_count := current_setting('gates.count')::int + 1;
    perform set_config('gates.count', v_count::text, false);
    if v_count = v_stop::int then
      perform pg_advisory_lock_shared(77, 77);
      perform pg_advisory_unlock_shared(77, 77);
    end if;
  end if;
end $$;
"""


def install(conn: psycopg.Connection[Any]) -> int:
    """Gate the functions of this database, and return how many gates there are."""
    conn.execute(_GATE)
    functions = conn.execute("""
        select pg_get_functiondef(p.oid) from pg_proc as p
          join pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
         where p.pronamespace = 'procrastinate'::regnamespace order by p.oid::regprocedure::text
        """).fetchall()
    count = 0
    for (source,) in functions:
        gated, n = _gate(source)
        conn.execute(gated.encode())
        count += n
    return count


def rewrite(conn: psycopg.Connection[Any], function: str, old: str, new: str) -> None:
    """Replace a piece of a function's source, which must be there once."""
    row = conn.execute(
        "select pg_get_functiondef(p.oid) from pg_proc as p"
        " where p.pronamespace = 'procrastinate'::regnamespace and p.proname = %s",
        [function],
    ).fetchone()
    assert row is not None
    source = str(row[0])
    assert source.count(old) == 1, f"{function} has changed: {old!r} is not in it once"
    conn.execute(source.replace(old, new).encode())


def _gate(source: str) -> tuple[str, int]:
    head, body, tail = re.split(r"(?<=\$function\$)|(?=\$function\$\s*\Z)", source, maxsplit=2)
    lines, count, inside = [], 0, False
    for line in body.split("\n"):
        lines.append(line)
        inside = inside or line.strip() == "begin"
        statement = line.split(" --")[0].rstrip()
        if inside and statement.endswith(";") and not statement.lstrip().startswith("--"):
            lines.append("perform gates.pass();")
            count += 1
    return head + "\n".join(lines) + tail, count
