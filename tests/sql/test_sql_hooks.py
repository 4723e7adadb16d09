"""Functions of the schema's owner that are called with the ids of jobs."""

from __future__ import annotations

import re

import pytest

NOTE = """
create schema metrics;
create table metrics.seen (event text, ids bigint[], who text, path text);
"""
HOOK = """
create or replace function metrics.{event}(job_ids bigint[]) returns void language plpgsql as $$
begin
  insert into metrics.seen
  values ('{event}', array(select unnest(job_ids) order by 1), current_user, current_setting('search_path'));
end $$
"""
EVENTS = ("deferred", "started", "finished", "rescued")


@pytest.fixture
def clean(db):
    db.conn.execute("drop schema if exists metrics cascade")
    db.conn.execute(NOTE)
    yield db
    db.conn.execute("drop schema metrics cascade")


@pytest.fixture
def seen(clean):
    """Return a function that says which ids hooks of each event were given since it was called last, call by call."""
    db = clean
    for event in EVENTS:
        db.conn.execute(HOOK.format(event=event))
        db.value("register_sql_hook", event=event, function=f"metrics.{event}(bigint[])")

    def seen(event=None):
        rows = db.rows("with d as (delete from metrics.seen returning *) select event, ids from d")
        return [row.ids for row in rows if row.event == event] if event else [(row.event, row.ids) for row in rows]

    return seen


def hook(db):
    """Return the only hook as the view shows it."""
    (row,) = db.rows("select * from procrastinate.sql_hooks")
    return row


def broken(db, event="deferred", body="raise exception 'no %', 's3cr3t';"):
    db.conn.execute(
        "create or replace function metrics.broken(job_ids bigint[]) returns int language plpgsql as"
        f" $$ begin insert into metrics.seen values ('half'); {body} return 1; end $$"
    )
    db.value("register_sql_hook", event=event, function="metrics.broken(bigint[])")


# What is told


def test_a_defer_is_told(db, seen):
    first = db.defer()
    second = db.defer(queueing_lock="q")
    assert seen() == [("deferred", [first]), ("deferred", [second])]


@pytest.mark.parametrize("options", [{}, {"queueing_lock": "q"}])
def test_a_batch_is_told_at_once(db, seen, options):
    ids = [row.id for row in db.defer_many({}, {"lock": "l"}, {"lock": "l"}, options)]
    assert seen() == [("deferred", ids)]
    assert db.defer_many() == []
    assert seen() == []


@pytest.mark.parametrize("on_conflict", ["ignore", "replace"])
def test_what_is_not_deferred_is_not_told(db, seen, on_conflict):
    db.defer(queueing_lock="q")
    seen()
    db.defer(queueing_lock="q", on_conflict=on_conflict)
    rows = db.defer_many({"queueing_lock": "q"}, {"queueing_lock": "r"}, on_conflict=on_conflict)
    assert seen() == [("deferred", [row.id for row in rows if row.created])]
    db.defer_many({"queueing_lock": "q"}, on_conflict=on_conflict)
    assert seen() == []


@pytest.mark.parametrize("call", ["fetch", "work"])
def test_starts_are_told_once_a_call(db, worker, seen, call):
    ids = [row.id for row in db.defer_many({}, {}, {})]
    seen()
    worker.fetch(2) if call == "fetch" else worker.work(capacity=2)
    assert seen() == [("started", ids[:2])]
    worker.fetch(2) if call == "fetch" else worker.work(capacity=2)
    assert seen() == [("started", ids[2:])]
    worker.fetch(2) if call == "fetch" else worker.work(capacity=2)
    assert seen() == []


@pytest.mark.parametrize("keep", [True, False])
def test_ends_are_told_once_a_call(db, worker, outcome, seen, keep):
    db.defer_many(*[{"retry": 1} if n == 4 else {} for n in range(6)])
    seen()
    plain, other, failed, aborted, retried, released = worker.fetch(6)
    told = [
        outcome(failed, "failed"),
        outcome(aborted, "aborted"),
        outcome(retried, "failed"),
        outcome(released, "released"),
    ]
    seen()
    worker.finish(plain, other, outcomes=told, keep=keep)
    ended = [plain.id, other.id, failed.id, aborted.id]
    assert seen() == [("finished", ended)]
    # what is told again does not end again
    worker.finish(plain, other, outcomes=told, keep=keep)
    assert seen() == []


def test_one_call_finishes_and_starts(db, worker, seen):
    first, second = (row.id for row in db.defer_many({"lock": "l"}, {"lock": "l"}))
    run = worker.take()
    seen()
    worker.work(run, capacity=1)
    assert sorted(seen()) == [("finished", [first]), ("started", [second])]


def test_a_job_that_its_task_completes_is_told_once(db, worker, seen):
    job_id = db.defer()
    run = worker.take()
    seen()
    with db.conn.transaction():
        db.value("complete_v1", job_id=job_id, token=run.token)
        assert seen() == [("finished", [job_id])]
    worker.finish(run)
    assert seen() == []


def test_jobs_that_end_without_a_run_are_told(db, worker, seen):
    cancelled, deleted, aborted = (db.defer() for _ in range(3))
    worker.fetch(3)
    worker.unregister()
    seen()
    db.cancel(cancelled)
    db.cancel(deleted, delete=True)
    assert seen() == [("finished", [cancelled])]
    other = db.worker()
    other.take()
    db.cancel(aborted, abort=True)
    seen()
    other.unregister()
    assert (seen(), db.status(aborted)) == ([("finished", [aborted])], "aborted")


def test_rescues_are_told(db, worker, seen):
    back, end = db.defer(), db.defer(retry={"rescues": 0})
    worker.fetch(2)
    db.advance("1 hour")
    seen()
    db.tick()
    assert seen() == [("rescued", [back]), ("finished", [end])]


def test_a_schedule_that_fires_is_told(db, seen):
    db.value("schedule", name="s", task="t", cron="0 * * * *")
    db.advance("1 hour")
    ((kind, job_id),) = db.tick()
    assert (kind, seen()) == ("scheduled", [("deferred", [job_id])])


def test_a_rolled_back_defer_was_never_told(db, seen, session):
    other = session(autocommit=False)
    other.defer()
    other.conn.rollback()
    assert seen() == []


def test_a_hook_sees_what_it_is_told_of(db, worker, clean):
    db.conn.execute("""
        create function metrics.look(job_ids bigint[]) returns void language sql as $$
          insert into metrics.seen (event, ids)
          select status, array_agg(id) from procrastinate.jobs where id = any (job_ids) group by status $$""")
    for event in EVENTS[:3]:
        db.value("register_sql_hook", event=event, function="metrics.look(bigint[])")
    job_id = db.defer()
    worker.finish(worker.take())
    rows = db.rows("select event, ids from metrics.seen")
    assert [(r.event, r.ids) for r in rows] == [("todo", [job_id]), ("doing", [job_id]), ("succeeded", [job_id])]


def test_what_a_hook_does_calls_no_hook(db, clean):
    db.conn.execute("""
        create function metrics.echo(job_ids bigint[]) returns void language plpgsql as $$
        begin perform procrastinate.defer('echo'); end $$""")
    db.value("register_sql_hook", event="deferred", function="metrics.echo(bigint[])")
    db.defer()
    db.defer()
    assert [row.task for row in db.rows("select task from procrastinate.jobs order by id")] == ["task", "echo"] * 2
    assert hook(db).failures == 0


# With whose rights, and how


def test_a_hook_runs_with_the_rights_of_the_owner_and_a_pinned_path(db, seen):
    owner, role = db.one("select current_user"), f"deferrer_{db.conn.info.backend_pid}"
    db.conn.execute(f"""
        create role {role};
        grant usage on schema procrastinate to {role};
        grant execute on function procrastinate.defer to {role};
        set session authorization {role};
    """)
    try:
        db.conn.execute("set search_path = public; set lock_timeout = '7s'; select procrastinate.defer('t')")
        assert db.one("select current_setting('lock_timeout')") == "7s"
        for call in "register_sql_hook('started', 'f')", "unregister_sql_hook('started', 'f')":
            with db.refused("42501"):
                db.conn.execute(f"select procrastinate.{call}")
    finally:
        db.conn.execute(f"reset session authorization; reset all; drop owned by {role}; drop role {role}")
    ((who, path),) = db.rows("select who, path from metrics.seen")
    assert (who, path) == (owner, "pg_catalog, pg_temp")


def test_not_even_the_owner_of_a_right_registers_for_others(db, clean):
    role = f"stranger_{db.conn.info.backend_pid}"
    db.conn.execute(HOOK.format(event="deferred"))
    db.conn.execute(f"""
        create role {role};
        grant usage on schema procrastinate, metrics to {role};
        grant execute on all functions in schema procrastinate to {role};
        set session authorization {role};
    """)
    try:
        with db.refused("42501"):
            db.value("register_sql_hook", event="deferred", function="metrics.deferred(bigint[])")
    finally:
        db.conn.execute(f"reset session authorization; drop owned by {role}; drop role {role}")
    assert db.rows("select * from procrastinate.sql_hooks") == []


def test_a_function_of_another_role_is_never_called(db, clean):
    db.conn.execute(HOOK.format(event="deferred"))
    role = f"stranger_{db.conn.info.backend_pid}"
    db.conn.execute(f"create role {role}; grant usage, create on schema metrics to {role}")
    try:
        db.value("register_sql_hook", event="deferred", function="metrics.deferred(bigint[])")
        db.conn.execute(f"alter function metrics.deferred owner to {role}")
        with db.refused("42501", "the hook belongs to another role"):
            db.value("register_sql_hook", event="started", function="metrics.deferred(bigint[])")
        db.defer()
        assert "belongs to another role" in hook(db).last_error
        assert db.rows("select * from metrics.seen") == []
    finally:
        db.conn.execute(f"drop owned by {role}; drop role {role}")


@pytest.mark.parametrize(
    ("event", "function", "sqlstate"),
    [
        ("ended", "metrics.deferred(bigint[])", "22023"),
        (None, "metrics.deferred(bigint[])", "22023"),
        ("deferred", "metrics.nothing(bigint[])", "42883"),
        ("deferred", None, "42883"),
        ("deferred", "pg_catalog.pg_sleep(double precision)", "22023"),
        ("deferred", "metrics.p(bigint[])", "22023"),
    ],
)
def test_what_is_no_hook_is_refused(db, seen, event, function, sqlstate):
    db.conn.execute("create procedure metrics.p(bigint[]) language sql as ''")
    with db.refused(sqlstate):
        db.value("register_sql_hook", event=event, function=function)


def test_there_are_five_at_most(db, seen):
    db.value("register_sql_hook", event="started", function="metrics.deferred(bigint[])")
    with db.refused("54000"):
        db.value("register_sql_hook", event="finished", function="metrics.deferred(bigint[])")
    assert db.one("select count(*) from procrastinate.sql_hooks") == 5
    # one that is there is none more
    db.value("register_sql_hook", event="started", function="metrics.deferred(bigint[])")


def test_a_hook_with_an_odd_name(db, clean):
    db.conn.execute("""
        create schema "Odd; name"; create function "Odd; name"."a""b"(job_ids bigint[]) returns void language sql
        as $$ insert into metrics.seen (ids) values (job_ids) $$""")
    try:
        db.value("register_sql_hook", event="deferred", function='"Odd; name"."a""b"(bigint[])')
        job_id = db.defer()
        assert db.one("select ids from metrics.seen") == [job_id]
    finally:
        db.conn.execute('drop schema "Odd; name" cascade')
    assert db.value("unregister_sql_hook", event="deferred", function=hook(db).function) is True


def test_a_hook_is_unregistered(db, seen):
    assert db.value("unregister_sql_hook", event="deferred", function="metrics.deferred(bigint [])") is True
    assert db.value("unregister_sql_hook", event="deferred", function="metrics.deferred(bigint[])") is False
    db.defer()
    assert seen() == []
    assert db.one("select sql_hooks from procrastinate.config") == ["finished", "rescued", "started"]


def test_a_hook_that_is_gone_is_unregistered(db, seen):
    db.conn.execute("drop function metrics.deferred")
    assert db.value("unregister_sql_hook", event="deferred", function="metrics.deferred(bigint[])") is True


# Failing


@pytest.mark.parametrize("event", ["deferred", "started", "finished"])
def test_a_hook_that_fails_hurts_nobody(db, worker, clean, event):
    broken(db, event)
    job_id = db.defer()
    worker.finish(worker.take())
    assert db.status(job_id) == "succeeded"
    row = hook(db)
    assert (row.failures, row.disabled) == (1, False)
    assert re.match("P0001 no ", row.last_error)
    assert abs((row.last_failed_at - db.now()).total_seconds()) < 60
    # what it did before it failed is undone
    assert db.rows("select * from metrics.seen") == []


@pytest.mark.parametrize("event", ["deferred", "started", "finished"])
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("assert false, 'no';", "P0004 no"),
        ("raise query_canceled using message = 'no';", "57014 no"),
        ("raise serialization_failure;", "40001 "),
        ("commit;", "2D000 "),
        ("perform metrics.broken(job_ids);", "54001 "),
        ("execute 'drop table metrics.seen'; perform from metrics.seen;", "42P01 "),
        ("drop function metrics.broken(bigint[]); perform metrics.broken(job_ids);", "42883 "),
        ("set role pg_monitor;", "42501 "),
    ],
)
def test_nothing_that_a_hook_raises_fails_a_call(db, worker, clean, event, body, error):
    broken(db, event, body)
    job_id = db.defer()
    worker.finish(worker.take())
    assert db.status(job_id) == "succeeded"
    assert hook(db).last_error.startswith(error)
    assert hook(db).failures == 1


@pytest.mark.parametrize(
    "body",
    [
        "set search_path = metrics;",
        "set local search_path = metrics;",
        "set statement_timeout = '1ms';",
        "set local statement_timeout = '1ms';",
        "set lock_timeout = '1ms';",
        "set transaction_read_only = on;",
    ],
)
def test_a_hook_that_changes_the_session_has_failed(db, clean, session, body):
    broken(db, body=body)
    other = session(autocommit=False)
    settings = "select name, setting from pg_settings order by name"
    other.conn.execute("do 'begin end'")  # loads PL/pgSQL, which has settings, too
    before = other.rows(settings)
    other.defer()
    assert other.rows(settings) == before
    other.conn.commit()
    assert other.rows(settings) == before
    assert re.match("0A000 .*settings", hook(db).last_error)


def test_settings_of_a_hooks_own_are_no_failure(db, clean):
    db.conn.execute("""
        create function metrics.own(job_ids bigint[]) returns void language sql
        set search_path = metrics, pg_temp set lock_timeout = '1ms' set statement_timeout = '1s'
        as 'insert into seen (ids) values (job_ids)'""")
    db.value("register_sql_hook", event="deferred", function="metrics.own(bigint[])")
    job_id = db.defer()
    assert db.one("select ids from metrics.seen") == [job_id]
    assert hook(db).failures == 0


OWN_PATH = "create or replace function metrics.own(job_ids bigint[]) returns void language sql {} as 'select'"
TABLES_FIRST = "temporary tables of a session come before those of the hook"


@pytest.mark.parametrize(
    "path",
    [
        "metrics",
        "''",
        "pg_temp, metrics",
        "metrics, 'x, pg_temp'",
        "metrics, pg_temporary",
        "pg_temp, metrics, pg_temp",
        "'pg_temp', metrics, pg_temp",
        "pg_temp_3, metrics, pg_temp",
        "from current",
    ],
)
def test_a_hook_in_whose_path_temporary_tables_come_first_is_refused(db, clean, path):
    """A client would have one of its own there, with a trigger that runs as the owner."""
    db.conn.execute("set search_path = metrics")
    db.conn.execute(OWN_PATH.format(f"set search_path {'=' if path != 'from current' else ''} {path}"))
    db.conn.execute("reset search_path")
    with db.refused("22023", TABLES_FIRST, hint="pg_temp"):
        db.value("register_sql_hook", event="deferred", function="metrics.own(bigint[])")


@pytest.mark.parametrize(
    "path", ["pg_temp", "metrics, pg_temp", 'metrics, public, "pg_temp"', "'', 'pg_temp'", "from current"]
)
def test_a_hook_in_whose_path_they_come_last_is_none_of_those(db, clean, path):
    db.conn.execute("set search_path = metrics,pg_temp")
    db.conn.execute(OWN_PATH.format(f"set search_path {'=' if path != 'from current' else ''} {path}"))
    db.conn.execute("reset search_path")
    db.value("register_sql_hook", event="deferred", function="metrics.own(bigint[])")
    db.defer()
    assert hook(db).failures == 0


def test_a_hook_that_is_given_such_a_path_later_is_not_called(db, clean):
    db.conn.execute(HOOK.format(event="deferred"))
    db.value("register_sql_hook", event="deferred", function="metrics.deferred(bigint[])")
    db.conn.execute("alter function metrics.deferred set search_path = metrics")
    db.defer()
    assert hook(db).last_error == f"22023 {TABLES_FIRST}"
    assert db.rows("select * from metrics.seen") == []


def test_a_hook_that_takes_long_has_failed(db, clean):
    db.value("enable_test_clock")
    broken(db, body="perform procrastinate.advance('6 s');")
    for n in range(1, 7):
        db.defer()
        assert (hook(db).failures, hook(db).disabled) == (min(n, 5), n >= 5)
    assert hook(db).last_error.startswith("57014 the hook took 00:00:06")
    assert db.rows("select * from metrics.seen") == []


def test_a_statement_timeout_ends_a_hook_and_not_the_call(db, clean, session):
    broken(db, body="perform pg_sleep(3600);")
    other = session()
    other.conn.execute("set statement_timeout = '300ms'")
    job_id = other.defer()
    assert db.status(job_id) == "todo"
    assert hook(db).last_error.startswith("57014 canceling statement")


def test_a_hook_that_is_gone_has_failed(db, seen):
    db.conn.execute("drop function metrics.deferred")
    db.defer()
    (row,) = db.rows("select * from procrastinate.sql_hooks where event = 'deferred'")
    assert (row.failures, row.last_error) == (1, "42883 the function is gone, or belongs to another role")


def test_a_hook_that_fails_does_not_stop_the_others(db, seen):
    broken(db)
    job_id = db.defer()
    assert seen() == [("deferred", [job_id])]


def test_five_failures_in_a_row_disable_a_hook(db, clean):
    broken(db)
    for n in range(1, 7):
        db.defer()
        assert (hook(db).failures, hook(db).disabled) == (min(n, 5), n >= 5)
    db.value("register_sql_hook", event="deferred", function="metrics.broken(bigint[])")
    assert (hook(db).failures, hook(db).disabled, hook(db).last_error) == (0, False, None)


def test_failures_count_in_a_row_only(db, clean):
    broken(db, body="if job_ids[1] % 5 > 0 then raise exception 'x'; end if;")
    for _ in range(14):
        db.defer()
    assert (hook(db).failures, hook(db).disabled) == (4, False)
    assert hook(db).last_error == "P0001 x"


def test_a_failure_in_a_transaction_that_stays_open_keeps_nobody_waiting(db, clean, session):
    broken(db)
    first = session(autocommit=False)
    first.defer()
    second = session()
    second.conn.execute("set lock_timeout = '10s'")
    second.defer()
    first.conn.rollback()
    assert hook(db).failures == 0
    second.defer()
    assert hook(db).failures == 1


def test_a_hook_does_not_wait_for_long(db, clean, session):
    db.conn.execute("create table metrics.count (n int); insert into metrics.count values (0)")
    broken(db, body="update metrics.count set n = n + 1;")
    other = session(autocommit=False)
    other.conn.execute("update metrics.count set n = 9")
    db.defer()
    assert hook(db).last_error.startswith("55P03 ")
    other.conn.rollback()
    db.defer()
    assert (db.one("select n from metrics.count"), hook(db).failures) == (1, 0)


def test_at_repeatable_read_too(db, clean, session):
    broken(db)
    other = session(autocommit=False)
    other.conn.isolation_level = 3
    other.rows("select 1")
    db.defer()
    other.defer()
    other.conn.commit()
    assert db.one("select count(*) from procrastinate.jobs") == 2


def test_where_there_is_no_hook_nothing_is_called(db, session):
    other = session(autocommit=False)
    other.conn.execute("""
        create or replace function procrastinate._call_hooks(event text, job_ids bigint[]) returns void
        language plpgsql as $$ begin raise exception 'called'; end $$""")
    worker = other.worker()
    other.defer_many({}, {"queueing_lock": "q"})
    job_id = other.defer()
    other.cancel(job_id)
    worker.finish(*worker.fetch(1))
    _, *rest = worker.work(capacity=1)
    worker.unregister()
    assert rest
    assert other.one("select count(*) from procrastinate.done") == 2
    other.conn.rollback()
