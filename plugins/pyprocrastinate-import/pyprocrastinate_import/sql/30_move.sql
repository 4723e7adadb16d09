create or replace function procrastinate_import.move(
  source text, after bigint default 0, max_jobs int default 10000, finished boolean default false,
  force boolean default false, dry_run boolean default false
) returns table (kind text, old_id bigint, task text, note text, jobs bigint)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_ids bigint[];
begin
  perform procrastinate_import._attach(move.source);
  if dry_run then
    return query
      select 'alive', l.worker_id, null, format('its last heartbeat was %s ago', l.age), null::bigint
        from procrastinate_import._living(clock_timestamp()) as l where not force;
  else
    -- waits for those who just defer; who comes later waits for the end of this transaction
    lock table pg_temp.import_jobs in share row exclusive mode;
    perform procrastinate_import._refuse_living() where not force;
  end if;
  v_now := procrastinate.now_();
  if after = 0 then
    return query select 'schedules', null::bigint, null, null, procrastinate_import._keep_ticks(v_now, dry_run);
  end if;
  v_ids := array(
    select j.id from pg_temp.import_jobs as j
     where j.id > after
       and (j.status::text in ('todo', 'doing', 'aborting')
            or finished and not exists (
              select from procrastinate_import.moved as m where m.source = move.source and m.old_id = j.id))
     order by j.id limit max_jobs);
  if dry_run then
    return query
      with c as materialized (select * from procrastinate_import._read(move.source, v_ids, force, v_now))
      select 'left', c.old_id, c.task, c.problem, null::bigint from c where c.problem is not null
       union all
      select case when c.waits then 'waiting' else 'finished' end, null, null, null, count(*)
        from c where c.problem is null group by c.waits;
  else
    return query select * from procrastinate_import._move(move.source, v_ids, force, v_now);
    perform procrastinate._wake(array(
      select distinct j.queue_name::text from pg_temp.import_jobs as j where j.id = any (v_ids)));
  end if;
  if cardinality(v_ids) = max_jobs then
    return query select 'next', v_ids[max_jobs], null, null, null::bigint;
  end if;
  perform procrastinate_import._detach();
end $$;
comment on function procrastinate_import.move(text, bigint, int, boolean, boolean, boolean) is
'Move jobs with larger ids than after, at most max_jobs, and with the first ones the ticks that schedules have had. Returns rows of '
'kind waiting, finished and schedules with how many there were; left, for each job that stays, with the reason; and next, with the '
'id to go on after, if there may be more. dry_run only looks, and says which workers are alive. Raises 55006, 22023.';

create or replace function procrastinate_import._refuse_living() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_worker record;
begin
  select * into v_worker from procrastinate_import._living(clock_timestamp()) as l limit 1;
  if found then
    raise exception 'worker % of Procrastinate is alive', v_worker.worker_id using errcode = 'object_in_use',
      detail = format('Its last heartbeat was %s ago.', v_worker.age),
      hint = 'Stop the old workers and try again; one that was killed counts as dead after 30 seconds.';
  end if;
end $$;
comment on function procrastinate_import._refuse_living() is 'Raise 55006 while a worker of Procrastinate is alive.';

create or replace function procrastinate_import._move(source text, ids bigint[], force boolean, at timestamptz)
returns table (kind text, old_id bigint, task text, note text, jobs bigint)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  return query
    with c as materialized (select * from procrastinate_import._read(_move.source, ids, force, _move.at)),
    n as materialized (
      -- new ids in the order of the old ones, which is the order among equal priorities
      select o.*, nextval(pg_get_serial_sequence('procrastinate.job', 'id')) as new_id,
             procrastinate._waiting_state(o.scheduled_at, _move.at, o.lock, o.attempts) as state
        from (select c.* from c where c.problem is null order by c.old_id) as o),
    i as (
      insert into procrastinate.job (
        id, deferred_at, scheduled_at, rank, attempts, state, task, queue, lock, queueing_lock, args)
      select n.new_id, n.deferred_at, n.scheduled_at, -n.priority, n.attempts,
             case when n.lock is null or n.state <> 'r' or n.queueing_lock is not null then n.state
                  -- The best of a lock becomes its candidate, the rest line up behind it. One with a queueing lock is never
                  -- that best one, because it may turn out not to be inserted.
                  when row_number() over (
                    partition by n.lock, n.state, n.queueing_lock is null order by n.priority desc, n.new_id) = 1 then 'r'
                  else 'w'
             end::"char",
             n.task, n.queue, n.lock, n.queueing_lock, n.args
        from n where n.waits order by n.new_id
      on conflict (queueing_lock) where queueing_lock is not null and state <> 'x' do nothing
      returning id),
    d as (
      insert into procrastinate.done (
        id, deferred_at, scheduled_at, started_at, finished_at, rank, attempts, status, task, queue, lock, queueing_lock, args)
      select n.new_id, n.deferred_at, n.scheduled_at, n.started_at, n.finished_at, -n.priority, n.attempts, n.status, n.task,
             n.queue, n.lock, n.queueing_lock, n.args
        from n where not n.waits order by n.new_id
      returning id),
    m as (
      insert into procrastinate_import.moved (source, old_id, new_id, status, moved_at)
      select _move.source, n.old_id, n.new_id, n.status, _move.at
        from n where n.new_id in (select i.id from i union all select d.id from d)
      returning old_id)
    select 'left', c.old_id, c.task, coalesce(c.problem, 'another job with its queueing lock waits'), null::bigint
      from c where not exists (select from m where m.old_id = c.old_id)
     union all
    select 'finished', null, null, null, (select count(*) from d)
     union all
    select 'waiting', null, null, null, procrastinate_import._cancel(
      _move.source, array(select n.old_id from n where n.waits and exists (select from m where m.old_id = n.old_id)));
end $$;
comment on function procrastinate_import._move(text, bigint[], boolean, timestamptz) is
'Move these jobs, and cancel those of them that wait where they come from, so that nobody runs them there.';

create or replace function procrastinate_import._cancel(source text, ids bigint[]) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_count bigint;
begin
  -- the triggers there find what they need on the search path; the clause above puts ours back
  perform set_config('search_path', format('pg_catalog, %I, pg_temp', source), true);
  update pg_temp.import_jobs as j set status = 'cancelled' where j.id = any (ids);
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function procrastinate_import._cancel(text, bigint[]) is
'Cancel jobs where they come from, and return how many that were.';

create or replace function procrastinate_import._keep_ticks(at timestamptz, dry_run boolean) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_count bigint;
begin
  if dry_run then
    return (select count(*) from procrastinate_import._ticks(at));
  end if;
  insert into procrastinate.schedule as s (
    name, kind, task, cron, timezone, args, catch_up, last_tick, created_at, updated_at)
  select t.name, 'declared', t.task, '', '', '{}', 'all', t.tick, at, at
    from procrastinate_import._ticks(at) as t order by t.name
  on conflict (name) do update
    set last_tick = excluded.last_tick, updated_at = excluded.updated_at,
        next_tick = case when s.next_tick > excluded.last_tick then s.next_tick
                         when s.next_tick is not null then procrastinate.cron_next(s.cron, excluded.last_tick, s.timezone) end;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function procrastinate_import._keep_ticks(timestamptz, boolean) is
'Note for each schedule the newest tick that it has had, so that it does not fire that one again; return how many there are.';

create or replace function procrastinate_import._ticks(at timestamptz) returns table (name text, task text, tick timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return query
    select t.name, t.task, t.tick
      from (
        select p.task_name || case when p.periodic_id <> '' then ':' || p.periodic_id else '' end as name,
               p.task_name::text as task, to_timestamp(max(p.defer_timestamp)) as tick
          from pg_temp.import_periodic_defers as p
         -- a tick of the future would keep the schedule from firing until then
         where p.defer_timestamp between 946684800 and extract(epoch from at)
         group by p.task_name, p.periodic_id) as t
      left join procrastinate.schedule as s on s.name = t.name
     where s.last_tick is null or s.last_tick < t.tick;
end $$;
comment on function procrastinate_import._ticks(timestamptz) is
'List the newest tick that each schedule of Procrastinate has fired, unless as new a one is known here.';
