"""
No name that a caller chooses is ever taken for one of ours or of PostgreSQL's.

A session puts its own functions, operators, types and tables in front of all others, each of which raises if it is
touched, and then calls every function that can be called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

# One for each function of PostgreSQL that our bodies name, and for each operator, of the same types.
DECOYS = r"""
create schema decoy;
grant usage on schema decoy to public;
do $$
declare
  r record;
  v_count int := 0;
begin
  for r in
    select p.proname, oidvectortypes(p.proargtypes) as args, format_type(p.prorettype, null) as result
      from pg_proc as p
     where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset
       and p.proname in (
         select m[1] from pg_proc as o, regexp_matches(pg_get_functiondef(o.oid), '(\w+)\(', 'g') as m
          where o.pronamespace = 'procrastinate'::regnamespace)
  loop
    begin
      execute format(
        'create function decoy.%I(%s) returns %s language plpgsql as %L', r.proname, r.args, r.result,
        format('begin raise exception ''decoy %s''; end', r.proname));
      v_count := v_count + 1;
    exception when others then null;  -- a type that nobody may take
    end;
  end loop;
  for r in
    select o.oprname, format_type(nullif(o.oprleft, 0), null) as l, format_type(o.oprright, null) as r,
           format_type(o.oprresult, null) as result, o.oid
      from pg_operator as o where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprleft <> 0
  loop
    begin
      execute format(
        'create function decoy.op_%s(%s, %s) returns %s language plpgsql as %L', r.oid, r.l, r.r, r.result,
        format('begin raise exception ''decoy operator %s''; end', replace(r.oprname, '%', '%%')));
      execute format(
        'create operator decoy.%s (leftarg = %s, rightarg = %s, function = decoy.op_%s)', r.oprname, r.l, r.r, r.oid);
      v_count := v_count + 1;
    exception when others then null;
    end;
  end loop;
  for r in select c.relname from pg_class as c
            where c.relnamespace = 'procrastinate'::regnamespace and c.relkind in ('r', 'v', 'S') loop
    execute format('create table decoy.%I (decoy int)', r.relname);
  end loop;
  create table decoy.made as select v_count as decoys;
end $$
"""
# Types and tables of pg_temp come before all others where nobody says otherwise.
IN_FRONT = """
do $$
declare
  r record;
begin
  for r in select c.relname from pg_class as c
            where c.relnamespace = 'procrastinate'::regnamespace and c.relkind in ('r', 'v', 'S') loop
    execute format('create temp table %I (decoy int)', r.relname);
  end loop;
  foreach r.relname in array '{text,jsonb,int4,int8,bool,timestamptz,interval,pg_class,pg_proc,pg_roles}'::name[] loop
    execute format('create type pg_temp.%I as (decoy int)', r.relname);
  end loop;
end $$
"""
OF_THE_OWNER = {
    "advance",
    "enable_test_clock",
    "register_sql_hook",
    "unregister_sql_hook",
    "grant_access",
    "revoke_access",
}


class Caller:
    """Calls functions by parameters in words, in which there is no name to be looked up, and notes which."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self.called: set[str] = set()

    def __call__(self, function: str, /, **arguments: Any) -> list[Any]:
        self.called.add(function)
        given = {
            name: json.dumps(value) if isinstance(value, dict | list) else None if value is None else str(value)
            for name, value in arguments.items()
        }
        names = ", ".join(f"{name} => %({name})s" for name in given)
        return self.conn.execute(f"select * from procrastinate.{function}({names})".encode(), given).fetchall()

    def one(self, function: str, /, **arguments: Any) -> Any:
        return self(function, **arguments)[0][0]


@pytest.fixture
def caller(db: Any, session: Callable[..., Any]) -> Iterator[Caller]:
    """Return somebody who may do all that anybody may but the owner, and whose names stand in front."""
    name = f"trickster_{db.conn.info.backend_pid}"
    db.conn.execute("drop schema if exists decoy cascade")
    db.conn.execute(DECOYS)
    db.conn.execute(f"create role {name}")
    for access in ("client", "worker", "observer", "admin"):
        db.call("grant_access", role=name, access=access)
    conn = session(prepare_threshold=None).conn
    try:
        conn.execute(f"set session authorization {name}")
        conn.execute(IN_FRONT)
        conn.execute("set search_path = pg_temp, decoy, pg_catalog, procrastinate, public")
        yield Caller(conn)
    finally:
        conn.close()
        db.conn.execute(f"drop schema decoy cascade; drop owned by {name}; drop role {name}")


def test_there_are_decoys_and_who_has_no_path_meets_them(db: Any, caller: Caller) -> None:
    assert db.one("select decoys from decoy.made") > 500
    for body in ("return length('x');", "return 1 + 1;"):
        db.conn.execute(
            f"create function public.careless() returns int language plpgsql as 'begin {body} end'".replace(
                "'x'", "''x''"
            )
        )
        try:
            with pytest.raises(psycopg.errors.RaiseException, match="decoy"):
                caller.conn.execute("select public.careless()")
        finally:
            db.conn.execute("drop function public.careless()")


def test_no_function_meets_a_decoy(db: Any, caller: Caller) -> None:
    call, one = caller, caller.one

    def finish(*outcomes: dict[str, Any]) -> None:
        verdicts = call("finish_v1", worker_id=worker, outcomes=list(outcomes))
        assert {verdict for _, _, verdict, *_ in verdicts} == {"ok"}, verdicts

    def fetch(count: int) -> list[Any]:
        jobs = call("fetch_v1", worker_id=worker, capacity=count)
        assert len(jobs) == count
        return jobs

    call("register_task", name="t", retry={"max_attempts": 3})
    for name, value in {"max_rescues": 2, "stalled_after": "30 seconds", "retention": {"succeeded": "1 day"}}.items():
        call("set_setting", name=name, value=json.dumps(value))
    call("schedule", name="s", task="t", cron="*/5 * * * *", timezone="Europe/Berlin", args={"a": 1}, lock="l")
    assert one("cron_next", expression="0 0 1 1 *", after="2030-05-01 00:00Z")
    assert one("protocol") == 1
    assert one("backend_v1") == caller.conn.info.backend_pid
    worker = one(
        "register_worker_v1",
        name="w",
        queues="{default,other}",
        tasks={"t": {"retry": 2}, "u": {"queue": "other"}},
        schedules=[{"name": "d", "task": "u", "cron": "@hourly"}],
        info={"pid": 1},
    )

    for n in range(3):
        one(
            "defer",
            task="t",
            args={"n": n},
            lock="l",
            priority=n,
            headers={"h": 1},
            retry={"wait": 1, "exponential_wait": 2},
        )
    for on_conflict in ("raise", "ignore", "replace"):
        one("defer", task="u", queueing_lock="q", on_conflict=on_conflict, schedule_in="1 hour")
    call("defer_many", jobs=[{"task": "t"}, {"task": "t", "lock": "m"}, {"task": "u", "schedule_in": 5}])
    call(
        "defer_many",
        jobs=[{"task": "t", "queueing_lock": "r"}, {"task": "t", "queueing_lock": "r"}],
        on_conflict="ignore",
    )

    (job,) = fetch(1)
    assert call("held_v1", worker_id=worker) == [job[:2]]
    finish({"id": job[0], "token": job[1], "outcome": "failed", "error": {"class": "E", "message": "m"}})
    jobs = fetch(3)
    finish(
        {"id": jobs[0][0], "token": jobs[0][1], "outcome": "succeeded", "result": {"r": 1}},
        {"id": jobs[1][0], "token": jobs[1][1], "outcome": "unknown_task"},
        {"id": jobs[2][0], "token": jobs[2][1], "outcome": "released"},
    )
    db.advance("2 hours")
    call("heartbeat_v1", worker_id=worker)
    assert "scheduled" in {kind for kind, *_ in call("tick_v1")}
    *jobs, last = call(
        "work_v1",
        worker_id=worker,
        succeeded="{}",
        tokens="{}",
        outcomes=[],
        keep="true",
        capacity=4,
        extra=2,
        scan_from=None,
    )
    assert len(jobs) >= 4
    call("complete_v1", job_id=jobs[0][0], token=jobs[0][1], result={"a": [1]})
    assert one("retry", job_id=jobs[0][0], schedule_in="1 minute", priority=5, queue="other", lock="n") is True
    assert one("retry", job_id=jobs[1][0]) is True
    assert one("finish_job_v1", job_id=jobs[2][0], status="failed") is True
    assert one("cancel", job_id=jobs[3][0], abort="true") == "abort_requested"
    assert call("heartbeat_v1", worker_id=worker)[0][1] == [jobs[3][0]]
    waiting = one("defer", task="t", lock="l")
    assert one("cancel", job_id=waiting) == "cancelled"
    assert one("cancel", job_id=one("defer", task="t"), delete="true") == "deleted"
    call(
        "work_v1",
        worker_id=worker,
        succeeded=f"{{{jobs[3][0]}}}",
        tokens=f"{{{jobs[3][1]}}}",
        outcomes=[],
        keep="false",
        capacity=1,
        extra=0,
        scan_from="{" + ",".join(map(str, last[-1])) + "}",
    )
    assert one("stalled_jobs_v1", silent_for="-1 hour") is not None
    for by in ("queue", "task", "lock"):
        assert call("count_jobs_v1", by=by, status="todo")
    db.advance("1 minute")
    assert "rescued" in {kind for kind, *_ in call("tick_v1")}
    worker = one("register_worker_v1", name="w")
    call("idle_v1", worker_id=worker)
    fetch(1)
    assert one("unregister_worker_v1", worker_id=worker) == 1
    assert one("unschedule", name="s") is True
    assert one("now_") is not None
    db.advance("2 days")
    assert one("purge", older_than="1 hour", statuses="{succeeded,cancelled,failed}") > 1
    views = db.rows("select relname from pg_class where relnamespace = 'procrastinate'::regnamespace and relkind = 'v'")
    for (view,) in views:
        caller.conn.execute(f"select * from procrastinate.{view}".encode()).fetchall()

    public = db.rows(
        r"select proname from pg_proc where pronamespace = 'procrastinate'::regnamespace and proname not like '\_%'"
    )
    assert {name for (name,) in public} - OF_THE_OWNER == caller.called, "call the new one, too"
