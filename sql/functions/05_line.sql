create or replace function procrastinate._first_in_line(lock text, after_rank int, after_id bigint)
returns table (id bigint, rank int, queue text, state "char")
language sql stable parallel safe begin atomic
  select s.id, s.rank, s.queue, s.state
    from (
      (select j.id, j.rank, j.queue, j.state from procrastinate.job as j
        where j.lock = $1 and j.state in ('r', 'b', 'h') order by j.rank, j.id limit 1)
      union all
      (select j.id, j.rank, j.queue, j.state from procrastinate.job as j
        where j.lock = $1 and j.state = 'w' and (j.rank, j.id) > (after_rank, after_id)
        order by j.rank, j.id limit 1)) as s
   order by s.rank, s.id
   limit 1;
end;
comment on function procrastinate._first_in_line(text, int, bigint) is
'Find the best waiting job of a lock, inline. What runs under a lock is better than all that is w under it, so a finish looks on from '
'its own place, and never walks over the dead rows of the jobs before it.';

create or replace function procrastinate._promote(locks text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lock text;
  v_best bigint;
begin
  foreach v_lock in array locks loop
    select n.id into v_best from procrastinate._first_in_line(v_lock, -2147483648, 0) as n where n.state in ('r', 'h');
    -- a candidate that somebody holds may be about to go, and then another must stand there
    perform from procrastinate.job as j where j.id = v_best for update skip locked;
    if not found then
      perform procrastinate._call_up(v_lock);
    end if;
  end loop;
end $$;
comment on function procrastinate._promote(text[]) is
'See that each of these locks has a candidate if anything waits under it. Safe at any time, with no lock held.';

create or replace function procrastinate._call_up(lock text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_queues text[];
begin
  -- Whatever waits will do, and what somebody holds is passed over: a candidate is checked when it is fetched.
  with u as (
    update procrastinate.job as j set state = procrastinate._ready()
     where j.id = any (
       array(
         select k.id from procrastinate.job as k
          where k.lock = _call_up.lock and k.state in ('r', 'b', 'h') and k.state = 'b'
          order by k.rank, k.id limit 1 for update skip locked)
       || array(
         select k.id from procrastinate.job as k
          where k.lock = _call_up.lock and k.state = 'w' order by k.rank, k.id limit 1 for update skip locked))
    returning j.queue)
  select array_agg(u.queue) into v_queues from u;
  if v_queues is not null then
    perform procrastinate._wake(v_queues);
  end if;
end $$;
comment on function procrastinate._call_up(text) is
'Make candidates of the best jobs that wait for a lock, even if there are others. For whoever takes one away that may have been '
'the last: it cannot know whether those it sees are just being taken away, too.';

create or replace function procrastinate._hold(id bigint[], rank int[], lock text[]) returns bigint[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  return array(
    select h.id from (
      select j.id, j.rank, j.lock, j.state from procrastinate.job as j where j.id = any (_hold.id) for update skip locked) as h
     -- replaced since it was found, a job may stand elsewhere
     where h.state in ('r', 'w', 'b', 'h')
       and (h.id, h.rank, h.lock) in (
         select u.id, u.rank, u.lock from unnest(_hold.id, _hold.rank, _hold.lock) as u (id, rank, lock)));
end $$;
comment on function procrastinate._hold(bigint[], int[], text[]) is
'Hold the rows of jobs that were found to be next in line: those that still are, and that nobody else holds.';

create or replace function procrastinate._due_before(scheduled_at timestamptz, error jsonb) returns timestamptz
language sql stable parallel safe begin atomic
  select case when error ? 'due' then (error ->> 'due')::timestamptz else scheduled_at end;
end;
comment on function procrastinate._due_before(timestamptz, jsonb) is
'Tell what scheduled_at was before a worker gave the job back for a moment, which is noted beside its last error.';

create or replace function procrastinate._take_locks(locks text[]) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select pg_advisory_xact_lock(k.key)
    from (select distinct procrastinate._lock_key(l) as key from unnest(locks) as l order by 1) as k
$$;
comment on function procrastinate._take_locks(text[]) is
'Wait, in one order for all, for the right to pass these locks on; held to the end of the transaction.';

create or replace function procrastinate._try_locks(locks text[]) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_missed text[];
begin
  v_missed := array(
    select k.lock from (select distinct l as lock, procrastinate._lock_key(l) as key from unnest(locks) as l order by 2) as k
     where not pg_try_advisory_xact_lock(k.key));
  if v_missed <> '{}' then
    v_missed := procrastinate._await_locks(v_missed);
  end if;
  return v_missed;
end $$;
comment on function procrastinate._try_locks(text[]) is
'Take the right to pass these locks on, held to the end of the transaction, and return those for which that cannot be had: '
'a fetch in a transaction that stays open holds it. Waits 100 ms at most.';

create or replace function procrastinate._await_locks(locks text[]) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms' as $$
declare
  v_until timestamptz := clock_timestamp() + interval '100 milliseconds';
  v_missed text[] := '{}';
  v_lock text;
begin
  -- Only fetches hold these, and they do not wait for any: two that wait here cannot wait for each other.
  foreach v_lock in array locks loop
    begin
      perform procrastinate._wait_until(v_until);
      perform pg_advisory_xact_lock(procrastinate._lock_key(v_lock));
    exception when lock_not_available then
      v_missed := v_missed || v_lock;
    end;
  end loop;
  return v_missed;
end $$;
comment on function procrastinate._await_locks(text[]) is
'Wait for the right to pass these locks on, 100 ms for all of them, and return those for which it was not to be had.';

create or replace function procrastinate._wait_until(until timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select set_config(
    'lock_timeout', greatest(1, ceil(extract(epoch from until - clock_timestamp()) * 1000))::int::text, true)
$$;
comment on function procrastinate._wait_until(timestamptz) is
'Let what follows wait for locks until this time of the real clock, 1 ms at least; for callers that set lock_timeout of their own.';
