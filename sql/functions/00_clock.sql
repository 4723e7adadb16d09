-- How it hangs together
--
-- procrastinate.job holds what waits and what runs, procrastinate.done what has ended, procrastinate.event what
-- neither can tell. A job is claimed by an UPDATE that gives it a token from a sequence; only the holder of that
-- token can end the claim. Ending it deletes the row from job and inserts it into done, in one statement.
--
-- Locks. Rows of job under one lock form a line, ordered by (rank, id). Two rules keep it right:
--   1. A claim under a lock is made, and a lock is passed on, only while holding the transaction's advisory lock on
--      that name (procrastinate._lock_key). A fetch only ever tries for it, a finish waits for it. Whoever gets it
--      looks again in a new statement, so that what the other side wrote is visible: hence READ COMMITTED.
--   2. Marking a row a candidate ('r') is always safe. So a defer writes 'r', reads no other row and takes no lock,
--      and a user's long transaction blocks nobody.
-- A row is 'w' only while a better one of its lock is running, is a candidate, or waits for its retry.
--
-- Plans. What touches the tables of jobs never scans one as a whole, whatever the statistics say: enable_seqscan is off for
-- it. Before PostgreSQL 18 that makes any scan that remains, as of the one row of config, look so dear that each statement
-- would be compiled first, for 100 ms and more: hence jit is off, too. Nor are ids looked for among all candidates: that is
-- what "id = any (…) and state = 'r'" may come to, in a plan made while there were next to none. "offset 0" keeps the
-- conditions apart.
--
-- Whoever calls may set what the server prints of a statement, and have it sent. In a plan parameters are constants: what a
-- client may call has debug_print_plan off where it holds a value of somebody else's job, and sends nothing below a notice,
-- as what auto_explain says where that is loaded. Hooks may write such values into the text of a statement: nothing is printed.
--
-- Order of locks: the turn of a tick, for which nobody waits; then job rows, by id and mostly with skip locked; then advisory
-- locks in the order of their keys; then schedule rows; then the worker's own row.
create or replace function procrastinate.now_() returns timestamptz
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select clock_timestamp() + c.clock_offset from procrastinate.config as c
$$;
comment on function procrastinate.now_() is
'Tell the time that every rule of the queue goes by: the clock of the database, plus the offset of the test clock.';

create or replace function procrastinate.enable_test_clock(enabled boolean default true) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform procrastinate._owner_only();
  update procrastinate.config set test_clock = enabled, clock_offset = case when enabled then clock_offset else '0' end;
end $$;
comment on function procrastinate.enable_test_clock(boolean) is
'Allow procrastinate.advance, or forbid it and go back to the real time. For tests. JQ023 unless called by the owner of the schema.';

create or replace function procrastinate.advance(duration interval) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform procrastinate._owner_only();
  update procrastinate.config set clock_offset = clock_offset + duration where test_clock;
  if not found then
    raise exception 'the test clock is not enabled' using errcode = 'JQ023',
      hint = 'Call procrastinate.enable_test_clock() first, in a test database only.';
  end if;
  return procrastinate.now_();
end $$;
comment on function procrastinate.advance(interval) is
'Move the time of the queue on, and return it. For tests: nothing has to sleep. JQ023 unless the owner has enabled the test clock.';

create or replace function procrastinate._owner_only() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not pg_has_role(session_user, (select n.nspowner from pg_namespace as n where n.nspname = 'procrastinate'), 'member') then
    raise exception 'only the owner of the schema may move the test clock' using errcode = 'JQ023',
      hint = 'Connect as the role that ran the migrations.';
  end if;
end $$;
comment on function procrastinate._owner_only() is 'Raise JQ023 unless the session belongs to the owner of the schema.';

create or replace function procrastinate._lock_key(lock text) returns bigint
language sql immutable parallel safe begin atomic
  select pg_catalog.hashtextextended(lock, 7043);
end;
comment on function procrastinate._lock_key(text) is
'Name the advisory lock that guards a job lock. Two names with one key only wait for each other.';
