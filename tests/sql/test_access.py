"""What `grant_access` lets a role do, and which queues it keeps a client to."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

_numbers = itertools.count()


@pytest.fixture
def role(db: Any) -> Iterator[Callable[..., str]]:
    """Return a function that makes a role, a member of the roles given, with this access; it is gone after the test."""
    made: list[str] = []

    def role(access: str | None = None, queues: list[str] | None = None, member_of: tuple[str, ...] = ()) -> str:
        made.append(name := f"role_{db.conn.info.backend_pid}_{next(_numbers)}")
        db.conn.execute(f"create role {name}")
        for group in member_of:
            db.conn.execute(f"grant {group} to {name}")
        if access:
            db.call("grant_access", role=name, access=access, queues=queues)
        return name

    yield role
    db.conn.execute("rollback; reset session authorization")
    for name in reversed(made):
        db.conn.execute(f"drop owned by {name}; drop role {name}")


@pytest.fixture
def logged_in(session: Callable[[], Any]) -> Callable[[str], Any]:
    """Return a function that opens a session of a role."""

    def logged_in(name: str) -> Any:
        other = session()
        other.conn.execute(f"set session authorization {name}")
        return other

    return logged_in


@pytest.fixture
def shop(role: Any, logged_in: Any) -> Any:
    """Return a session of a client that is limited to the queues shop and mail."""
    return logged_in(role("client", ["shop", "mail"]))


REFUSED = ("JQ024", "may not use this queue")


def refused(db: Any, call: Callable[[], Any]) -> None:
    with db.refused("JQ024", detail="Its queues are: mail, shop.", hint="grant_access"):
        call()


def test_a_limited_client_defers_into_its_queues_only(db: Any, shop: Any) -> None:
    assert shop.defer(queue="shop") == 1
    assert shop.defer_many({"task": "t", "queue": "shop"}, {"task": "t", "queue": "mail", "queueing_lock": "q"})
    for other in ({"queue": "bank"}, {}, {"queue": "Shop"}, {"queue": "bank", "queueing_lock": "x"}):
        refused(db, lambda other=other: shop.defer(**other))
        refused(db, lambda other=other: shop.defer_many({"task": "t", "queue": "shop"}, {"task": "t", **other}))
    assert db.one("select count(*) from procrastinate.jobs") == 3


def test_the_queue_counts_that_the_job_ends_up_in(db: Any, shop: Any) -> None:
    db.call("register_task", name="pay", queue="bank")
    db.call("register_task", name="sell", queue="shop")
    assert shop.defer("sell")
    assert shop.defer_many({"task": "sell"})
    refused(db, lambda: shop.defer("pay"))
    refused(db, lambda: shop.defer_many({"task": "pay"}))


def test_a_waiting_job_of_another_queue_is_not_replaced(db: Any, shop: Any) -> None:
    mine = db.defer(queue="bank", queueing_lock="q")
    more = {"queue": "shop", "queueing_lock": "q"}
    refused(db, lambda: shop.defer(on_conflict="replace", **more))
    refused(db, lambda: shop.defer_many({"task": "t", **more}, on_conflict="replace"))
    with db.refused("23505", f"job {mine} with the same queueing lock is waiting"):
        shop.defer(**more)
    assert shop.defer(on_conflict="ignore", **more) == mine
    assert db.job(mine).queue == "bank"
    own = db.defer(queue="mail", queueing_lock="own")
    assert shop.defer(queue="shop", queueing_lock="own", on_conflict="replace") == own


def test_it_cancels_and_retries_there_only(db: Any, shop: Any, worker: Any) -> None:
    ended, running, waiting = (db.defer(queue="bank") for _ in range(3))
    jobs = worker.fetch(2)
    worker.finish(jobs[0])
    assert (jobs[0].id, jobs[1].id) == (ended, running)
    refused(db, lambda: shop.value("cancel", job_id=waiting))
    refused(db, lambda: shop.value("cancel", job_id=waiting, delete=True))
    refused(db, lambda: shop.value("cancel", job_id=running, abort=True))
    refused(db, lambda: shop.value("cancel", job_id=running))
    refused(db, lambda: shop.value("retry", job_id=ended))
    refused(db, lambda: shop.value("retry", job_id=ended, queue="shop"))
    refused(db, lambda: shop.value("retry", job_id=running, queue="shop"))
    refused(db, lambda: shop.value("retry", job_id=waiting))
    assert [db.job(job).status for job in (ended, running, waiting)] == ["succeeded", "doing", "todo"]
    assert db.job(running).abort_requested is False

    own = db.defer(queue="shop")
    assert shop.value("cancel", job_id=own) == "cancelled"
    refused(db, lambda: shop.value("retry", job_id=own, queue="bank"))
    assert shop.value("retry", job_id=own, queue="mail") is True
    assert db.job(own).queue == "mail"


def test_it_takes_no_lock_of_a_job_of_another_queue(db: Any, shop: Any, worker: Any, session: Any) -> None:
    """Where it did, it would wait here, and elsewhere have a worker's outcome refused."""
    ended, running, waiting = (db.defer(queue="bank", queueing_lock=name) for name in "abc")
    jobs = worker.fetch(2)
    worker.finish(jobs[0])
    holder = session(autocommit=False)
    assert holder.rows("select id from procrastinate.job order by id for update") == [(running,), (waiting,)]
    assert holder.rows("select id from procrastinate.done for update") == [(ended,)]
    shop.conn.execute("set lock_timeout = '100ms'")
    for job in (running, waiting):
        refused(db, lambda job=job: shop.value("cancel", job_id=job))
        refused(db, lambda job=job: shop.value("cancel", job_id=job, abort=True))
    for job in (ended, running, waiting):
        refused(db, lambda job=job: shop.value("retry", job_id=job))
    refused(db, lambda: shop.defer(queue="shop", queueing_lock="c", on_conflict="replace"))


def test_rights_add_up_over_memberships(db: Any, role: Any, logged_in: Any) -> None:
    shop, mail = role("client", ["shop"]), role("client", ["mail"])
    both = logged_in(role(member_of=(shop, mail)))
    assert both.defer(queue="shop")
    assert both.defer(queue="mail")
    with db.refused("JQ024", detail="Its queues are: mail, shop."):
        both.defer(queue="bank")
    for access in ("client", "worker", "admin"):
        other = logged_in(role(member_of=(shop, role(access))))
        assert other.defer(queue="bank"), f"{access} is not limited"
    with db.refused("JQ024"):
        logged_in(role(member_of=(shop, role("observer")))).defer(queue="bank")


def test_a_client_without_queues_and_the_owner_are_not_limited(db: Any, shop: Any, role: Any, logged_in: Any) -> None:
    assert logged_in(role("client")).defer(queue="bank")
    assert db.defer(queue="bank")
    by_hand = role()
    db.conn.execute(f"grant usage on schema procrastinate to {by_hand}")
    db.conn.execute(f"grant execute on function procrastinate.defer to {by_hand}")
    assert logged_in(by_hand).defer(queue="bank")


def test_no_set_role_and_no_setting_gets_around_it(db: Any, role: Any, logged_in: Any) -> None:
    group = role("client", ["shop"])
    session = logged_in(role(member_of=(group,)))
    session.conn.execute(f"set role {group}")
    with db.refused("JQ024"):
        session.defer(queue="bank")
    for setting in ("procrastinate.in_hook = on", "role = none", "search_path = pg_temp"):
        session.conn.execute(f"set {setting}")
        with db.refused("JQ024"):
            session.defer(queue="bank")


def test_an_empty_list_of_queues_is_none_of_them(db: Any, role: Any, logged_in: Any) -> None:
    nowhere = logged_in(role("client", []))
    with db.refused("JQ024", detail="Its queues are: none."):
        nowhere.defer()


def test_a_later_grant_replaces_the_queues(db: Any, role: Any, logged_in: Any) -> None:
    name = role("client", ["shop"])
    client = logged_in(name)
    with db.refused("JQ024"):
        client.defer()
    db.call("grant_access", role=name, access="client", queues=["default"])
    assert client.defer()
    with db.refused("JQ024"):
        client.defer(queue="shop")
    db.call("grant_access", role=name, access="client")
    assert client.defer(queue="shop")
    assert db.rows("select * from procrastinate.roles") == [(name, "client", None)]
    assert db.one("select limited from procrastinate.config") is False


def test_a_renamed_role_keeps_its_limits_and_a_dropped_one_is_forgotten(db: Any, role: Any, logged_in: Any) -> None:
    name = role("client", ["shop"])
    client = logged_in(name)
    db.conn.execute(f"alter role {name} rename to {name}_more")
    try:
        with db.refused("JQ024"):
            client.defer()
        assert db.rows("select name from procrastinate.roles") == [(f"{name}_more",)]
    finally:
        db.conn.execute(f"alter role {name}_more rename to {name}")
    gone = f"gone_{db.conn.info.backend_pid}"
    db.conn.execute(f"create role {gone}")
    db.call("grant_access", role=gone, access="client", queues=["shop"])
    db.conn.execute(f"drop owned by {gone}; drop role {gone}")
    assert db.rows("select name from procrastinate.roles") == [(name,)]
    db.one("select procrastinate._grant_all()")


def test_limits_that_a_restore_has_lost_let_nobody_through(db: Any, shop: Any) -> None:
    db.conn.execute("delete from procrastinate.role")
    with db.refused("JQ024", detail="there are some", hint="grant_access"):
        shop.defer(queue="bank")
    db.defer(queue="bank")


def test_a_revoked_role_may_nothing(db: Any, role: Any, logged_in: Any) -> None:
    name = role("client", ["shop"])
    db.call("grant_access", role=name, access="observer")
    session = logged_in(name)
    assert session.rows("select name from procrastinate.queues") == []
    db.call("revoke_access", role=name)
    for query in (
        "select procrastinate.defer('t')",
        "select name from procrastinate.queues",
        "select procrastinate.now_()",
    ):
        with db.refused("42501"):
            session.one(query)
    assert db.rows("select * from procrastinate.roles") == []
    assert db.one("select limited from procrastinate.config") is False
    assert not db.one("select has_schema_privilege(%s, 'procrastinate', 'usage')", name)


@pytest.mark.parametrize(
    ("sqlstate", "arguments"),
    [
        ("22023", {"access": "owner"}),
        ("22023", {"access": None}),
        ("22023", {"access": "worker", "queues": ["shop"]}),
        ("42704", {"role": "no such role"}),
        ("42704", {"role": "public"}),
        ("42704", {"role": None}),
        ("JQ014", {"queues": [""]}),
        ("JQ014", {"queues": ["x" * 129]}),
        ("JQ014", {"queues": [None]}),
    ],
)
def test_what_cannot_be_granted_is_refused(db: Any, role: Any, sqlstate: str, arguments: dict[str, Any]) -> None:
    with db.refused(sqlstate):
        db.call("grant_access", **{"role": role(), "access": "client"} | arguments)
    assert db.rows("select * from procrastinate.roles") == []


def test_only_the_owner_grants_and_revokes(db: Any, role: Any, logged_in: Any) -> None:
    for access in ("client", "worker", "observer", "admin"):
        name = role(access)
        # even where it was let in by hand
        db.conn.execute(f"grant execute on all functions in schema procrastinate to {name}")
        session = logged_in(name)
        for call in ("grant_access(%s, 'admin')", "revoke_access(%s)", "_create_roles(%s)", "_set_owner(%s)"):
            with db.refused("42501"):
                session.one(f"select procrastinate.{call}", name)
    assert db.one("select count(*) from procrastinate.roles") == 4


def test_a_role_of_any_name_is_let_in(db: Any, logged_in: Any) -> None:
    name = f'we"ird; drop {db.conn.info.backend_pid}'
    quoted = '"' + name.replace('"', '""') + '"'
    db.conn.execute(f"create role {quoted}")
    try:
        db.call("grant_access", role=name, access="client", queues=["q"])
        assert logged_in(quoted).defer(queue="q")
        db.call("revoke_access", role=name)
        assert db.rows("select * from procrastinate.roles") == []
    finally:
        db.conn.execute(f"drop owned by {quoted}; drop role {quoted}")


def test_schedules_and_retries_of_limited_jobs_go_on(db: Any, role: Any, logged_in: Any, worker: Any) -> None:
    """A worker that also is a limited client fires schedules of all queues."""
    both = logged_in(role(member_of=(role("client", ["shop"]), role("worker"))))
    db.call("schedule", name="s", task="t", cron="* * * * *", queue="bank")
    db.advance("2 minutes")
    assert [row.kind for row in both.rows("select kind from procrastinate.tick_v1() where kind is not null")] == [
        "scheduled"
    ]


def test_an_observer_reads_no_value_of_a_job(db: Any, role: Any, logged_in: Any, secret: str, worker: Any) -> None:
    db.defer(args={"a": secret}, headers={"h": secret})
    db.call("schedule", name="s", task="t", cron="* * * * *", args={"a": secret})
    worker.fail(worker.take(), error=f"{secret}Error")
    observer = logged_in(role("observer"))
    for column in ("args", "headers", "error_message", "result", "*"):
        with db.refused("42501"):
            observer.rows(f"select {column} from procrastinate.jobs")
    # not by a condition, whoever thinks of one
    for condition in ("args ->> 'a' = 's3cr3t'", "(1 / length(args ->> 'a'))::bool", "jobs::text like '%s3%'"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            observer.conn.execute(f"select id from procrastinate.jobs where {condition}")
    for view, column in (("events", "detail"), ("schedules", "args"), ("sql_hooks", "last_error")):
        with db.refused("42501"):
            observer.rows(f"select {column} from procrastinate.{view}")
    assert observer.rows("select id, status, task, error_class from procrastinate.jobs")
    assert observer.rows("select jobs_count from procrastinate.count_jobs_v1('queue')")
    assert observer.rows("select name, live from procrastinate.schedules") == [("s", True)]


# What a client makes the owner's functions print. It may call each of these, and set what is printed of a statement.
PRINTS = (
    "select name from pg_settings where context = 'user' and vartype = 'bool' and name ~ '^(debug|trace|log)_|print'"
)
PRINTING_CALLS = {
    "protocol": ["()"],
    "backend_v1": ["()"],
    "now_": ["()"],
    "cron_next": ["('* * * * *', now())"],
    "defer": [
        "('t', queue => 'own')",
        "('t', queue => 'own', queueing_lock => 'q')",
        "('t', queue => 'own', queueing_lock => 'q', on_conflict => 'ignore')",
        "('t', queue => 'own', queueing_lock => 'q', on_conflict => 'replace')",
    ],
    "defer_many": [
        '(\'[{"task": "t", "queue": "own"}]\')',
        '(\'[{"task": "t", "queue": "own", "queueing_lock": "q"}]\')',
        '(\'[{"task": "t", "queue": "own", "queueing_lock": "q"}]\', on_conflict => \'replace\')',
    ],
    "cancel": [
        *(f"({job}, abort => {abort})" for job in ("ended", "running", "waiting") for abort in (True, False)),
        "(waiting, delete => true)",
    ],
    "retry": [
        *(f"({job})" for job in ("ended", "running", "waiting")),
        "(ended, queue => 'own')",
        "(running, queue => 'own')",
    ],
}
READING_HOOK = """
drop schema if exists metrics cascade;
create schema metrics;
create table metrics.seen (value text);
create function metrics.note(job_ids bigint[]) returns void language plpgsql as $$
declare
  v_value text := (select string_agg(j.args::text || j.queue, '') from procrastinate.jobs as j);
begin
  insert into metrics.seen values (v_value);
  execute format('insert into metrics.seen values (%L)', v_value);
end $$;
create function metrics.fail(job_ids bigint[]) returns void language plpgsql as $$
begin
  raise exception '%', (select string_agg(j.args::text, '') from procrastinate.jobs as j);
end $$;
select procrastinate.register_sql_hook(event, function)
  from unnest('{deferred,finished}'::text[]) as event,
       unnest('{metrics.note(bigint[]),metrics.fail(bigint[])}'::text[]) as function;
"""


def readable(diag: Any) -> str:
    """Return what was printed, and as text the bytes that a plan shows of a constant."""
    text = f"{diag.message_primary}\n{diag.message_detail}\n{diag.context}"
    for value in set(re.findall(r"\[ ([-0-9\s]+)\]", text)):
        text += "\n" + bytes(int(byte) & 255 for byte in re.findall(r"-?\d+", value)).decode("latin-1")
    return text


@pytest.mark.parametrize("explained", [False, True], ids=["debug settings", "auto_explain"])
@pytest.mark.parametrize("queues", [None, ["own"]], ids=["all queues", "own queue"])
def test_nothing_that_is_printed_shows_a_client_the_job_of_another(
    db: Any, worker: Any, role: Any, logged_in: Any, secret: str, queues: list[str] | None, explained: bool
) -> None:
    values = {"task": secret, "queue": secret, "args": {"a": secret}, "headers": {"h": secret}}
    ids = {name: str(db.defer(lock=f"{secret} {name}", **values)) for name in ("ended", "running", "waiting", "next")}
    worker.fail(worker.take(), error=f"{secret}Error")
    worker.take()
    db.defer_many(*[{"lock": f"{secret} waiting", **values}] * 2)
    db.defer(lock=f"{secret} q", queueing_lock="q", **values)
    assert db.status(*map(int, ids.values())) == ["failed", "doing", "todo", "todo"]
    db.conn.execute(READING_HOOK)
    client_role = role("client", queues)
    client = logged_in(client_role)
    settings = [[name] for (name,) in client.rows(PRINTS)]
    settings.append([name for (name,) in settings])
    if explained:
        settings = [[]]
        client.conn.execute("set session authorization default")
        try:
            client.conn.execute("load 'auto_explain'")
        except psycopg.errors.UndefinedFile:
            pytest.skip("needs auto_explain")
        for name, value in ("log_min_duration", "0"), ("log_nested_statements", "on"), ("log_verbose", "on"):
            client.conn.execute(f"set auto_explain.{name} = {value}")
        client.conn.execute(f"set session authorization {client_role}")
    assert {"debug_print_plan", "debug_print_parse", "debug_pretty_print"} <= set(settings[-1]) or explained
    assert set(PRINTING_CALLS) == set(db.one("select procrastinate._functions_of('client')"))
    notices: list[str] = []
    client.conn.add_notice_handler(lambda diag: notices.append(readable(diag)))
    client.conn.execute("set client_min_messages = debug5; set plan_cache_mode = force_custom_plan")
    # pretty lines end anywhere, within a number too
    client.conn.execute("set debug_pretty_print = off")
    leaks = set()
    for on in settings:
        for function, calls in PRINTING_CALLS.items():
            for call in calls:
                for name, job in ids.items():
                    call = call.replace(name, job)
                notices.clear()
                with contextlib.suppress(psycopg.Error), client.conn.transaction(force_rollback=True):
                    for name in on:
                        client.conn.execute(f"set local {name} = on")
                    client.conn.execute(f"select * from procrastinate.{function}{call}")
                # the call itself is printed, or the rest would mean nothing
                assert "debug_print_plan" not in on or any("plan:" in notice for notice in notices)
                if any(secret in notice for notice in notices):
                    leaks.add((*on, function + call))
    db.conn.execute("drop schema metrics cascade")
    assert leaks == set()


def test_nor_is_it_printed_to_the_log(db: Any) -> None:
    """What is not sent would still be written down there."""
    printing = db.rows("""
        select p.proname from pg_proc as p
         where p.pronamespace = 'procrastinate'::regnamespace and 'client_min_messages=notice' = any (p.proconfig)
           and 'debug_print_plan=off' <> all (p.proconfig)
    """)
    assert printing == []


def test_whoever_may_only_connect_stops_no_tick(db: Any, role: Any, logged_in: Any, worker: Any, session: Any) -> None:
    nobody = logged_in(role())
    nobody.conn.execute("select pg_advisory_lock(7043, 1)")
    for statement in ("lock table procrastinate.tick_turn", "select from procrastinate.tick_turn for update"):
        with db.refused("42501"), nobody.conn.transaction():
            nobody.conn.execute(statement)
    job = db.defer()
    worker.take()
    db.call("schedule", name="s", task="t", cron="* * * * *")
    db.advance("1 hour")
    other = session(autocommit=False)
    assert [row.kind for row in other.call("tick_v1")] == ["rescued", "scheduled", None]
    # nor by any other name that is free to all
    locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
    assert other.one(locks) == 0
    other.conn.commit()
    assert db.status(job) == "todo"
