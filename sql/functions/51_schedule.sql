-- A tick fires by moving its schedule's next_tick on, in the transaction that defers the job. The row is locked for that
-- and next_tick only ever grows, so a tick fires at most once, whoever calls tick_v1 and wherever the clock goes.
create or replace function procrastinate.schedule(
  name text, task text, cron text, timezone text default 'UTC', args jsonb default '{}', catch_up text default 'last',
  max_delay interval default null, queue text default null, priority int default null, lock text default null,
  queueing_lock text default null, enabled boolean default true, options jsonb default '{}'
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_now timestamptz := procrastinate.now_();
  v_old procrastinate.schedule;
begin
  schedule.timezone := coalesce(schedule.timezone, 'UTC');
  schedule.args := coalesce(schedule.args, '{}');
  schedule.catch_up := coalesce(schedule.catch_up, 'last');
  schedule.options := coalesce(schedule.options, '{}');
  perform procrastinate._check_schedule(
    schedule.name, schedule.task, schedule.cron, schedule.timezone, schedule.args, schedule.max_delay, schedule.queue,
    schedule.priority, schedule.lock, schedule.queueing_lock, v_now);
  perform procrastinate._check_schedule_options(schedule.catch_up, schedule.options);
  -- locks the row, whether it is new or not
  insert into procrastinate.schedule as s (name, kind, task, cron, timezone, args, catch_up, created_at, updated_at)
  values (schedule.name, 'sql', schedule.task, schedule.cron, schedule.timezone, schedule.args, schedule.catch_up, v_now, v_now)
  on conflict (name) do update set updated_at = excluded.updated_at
  returning s.* into v_old;
  if v_old.kind = 'declared' and exists (select from procrastinate._declared(v_now) as d where d.name = v_old.name) then
    perform procrastinate._name_taken(v_old.name, 'Live workers declare it.');
  end if;
  update procrastinate.schedule as s
     set kind = 'sql', declaration = null, task = schedule.task, cron = schedule.cron, timezone = schedule.timezone,
         args = schedule.args, catch_up = schedule.catch_up, max_delay = schedule.max_delay, queue = schedule.queue,
         priority = schedule.priority, lock = schedule.lock, queueing_lock = schedule.queueing_lock,
         enabled = coalesce(schedule.enabled, true), options = schedule.options, retry_at = null,
         next_tick = case
           when not schedule.enabled then null
           -- at the same times as before: what is due stays due, so that a program may say this at each start
           when (v_old.kind, v_old.cron, v_old.timezone) = ('sql', schedule.cron, schedule.timezone)
             and v_old.next_tick is not null then v_old.next_tick
           else procrastinate.cron_next(schedule.cron, greatest(v_now, v_old.last_tick), schedule.timezone)
         end
   where s.name = schedule.name;
  -- by their heartbeats workers learn when the next tick is due
  perform procrastinate._notify('a');
end $$;
comment on function procrastinate.schedule(text, text, text, text, jsonb, text, interval, text, int, text, text, boolean, jsonb) is
'Defer a job of this task at each time of a cron expression, from now on; replaces the schedule of this name. Of ticks missed, '
'catch_up fires all, the last, or none; never those later than max_delay (none: a minute). Options: timestamp (true adds the tick '
'to args as "timestamp", in seconds since 1970). Raises JQ010 to JQ016, JQ020 to JQ022, 22023.';

create or replace function procrastinate.unschedule(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  -- a worker that gives no heartbeat may still come back, as long as its row is there
  if exists (
    select from procrastinate.schedule as s, procrastinate.worker as w
     where s.name = unschedule.name and s.kind = 'declared'
       and w.schedules @> jsonb_build_array(jsonb_build_object('name', s.name))
  ) then
    raise exception 'schedule "%" is declared by workers', unschedule.name using errcode = 'JQ022',
      detail = 'It belongs to their code.', hint = 'Remove it there and restart them.';
  end if;
  delete from procrastinate.schedule as s where s.name = unschedule.name;
  return found;
end $$;
comment on function procrastinate.unschedule(text) is
'Remove a schedule; jobs that it has deferred stay. Returns whether there was one. JQ022 while workers declare it.';

create or replace function procrastinate._check_schedule(
  name text, task text, cron text, timezone text, args jsonb, max_delay interval, queue text, priority int, lock text,
  queueing_lock text, at timestamptz
) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  perform procrastinate._check_name('schedule', coalesce(name, ''), 512);
  perform procrastinate._check_job(task, queue, priority, lock, queueing_lock, null, args, null, c.max_args_bytes),
          procrastinate._check_object('args', args || '{"timestamp": 10000000000}', c.max_args_bytes)
     from procrastinate.config as c;
  if max_delay not between interval '0' and interval '100 years' then
    raise exception 'max_delay is out of range' using errcode = '22023', hint = 'Use 0 to 100 years.';
  end if;
  if procrastinate.cron_next(coalesce(cron, ''), at, coalesce(timezone, 'UTC')) is null then
    perform procrastinate._cron_bad(format('"%s" never fires.', left(cron, 100)));
  end if;
end $$;
comment on function procrastinate._check_schedule(text, text, text, text, jsonb, interval, text, int, text, text, timestamptz) is
'Raise what is wrong with a schedule: JQ010 to JQ015, JQ020, JQ021, 22023.';

create or replace function procrastinate._check_schedule_options(catch_up text, options jsonb) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if catch_up not in ('all', 'last', 'none') then
    raise exception 'unknown catch_up' using errcode = '22023', hint = 'Use all, last or none.';
  end if;
  perform procrastinate._check_keys('options', options, '{timestamp}');
  if jsonb_typeof(options -> 'timestamp') <> 'boolean' then
    raise exception 'the option timestamp must be true or false' using errcode = '22023', hint = 'Use {"timestamp": true}.';
  end if;
end $$;
comment on function procrastinate._check_schedule_options(text, jsonb) is 'Raise 22023 or JQ016.';

create or replace function procrastinate._name_taken(name text, detail text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'schedule name "%" is taken', name using errcode = 'JQ022', detail = _name_taken.detail,
    hint = 'Choose another name, or remove the other schedule first.';
end $$;
comment on function procrastinate._name_taken(text, text) is 'Raise JQ022.';

create or replace function procrastinate._declared(at timestamptz) returns table (name text, declaration jsonb)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select distinct on (d.value ->> 'name') d.value ->> 'name', d.value
    from (
      -- most workers run the same code
      select max(w.id) as id, w.schedules
        from procrastinate.worker as w
       where w.heartbeat_at > _declared.at - w.stalled_after and w.schedules <> '[]'
       group by w.schedules) as w
   cross join jsonb_array_elements(w.schedules) with ordinality as d (value, ord)
   order by d.value ->> 'name', w.id desc, d.ord desc
$$;
comment on function procrastinate._declared(timestamptz) is
'List the schedules that live workers declare; where they differ, as the newest of them does.';

create or replace function procrastinate._declare_schedules(worker_id bigint, schedules jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_now timestamptz := procrastinate.now_();
  v_names text[];
  v_taken text;
begin
  v_names := procrastinate._check_declarations(schedules, v_now);
  if v_names = '{}' then
    return;
  end if;
  -- locks the rows, by name, whether they are new or not
  insert into procrastinate.schedule as s (name, kind, task, cron, timezone, args, catch_up, created_at, updated_at)
  select n, 'declared', '', '', '', '{}', 'all', v_now, v_now from unnest(v_names) as n order by n
  on conflict (name) do update set updated_at = s.updated_at;
  select s.name into v_taken from procrastinate.schedule as s where s.name = any (v_names) and s.kind = 'sql' limit 1;
  if v_taken is not null then
    perform procrastinate._name_taken(v_taken, 'It was made by procrastinate.schedule().');
  end if;
  perform procrastinate._declare(d.declaration, v_now, not exists (
            select from procrastinate.worker as w
             where w.id <> _declare_schedules.worker_id and w.heartbeat_at > v_now - w.stalled_after
               and w.schedules @> jsonb_build_array(jsonb_build_object('name', d.name))))
     from procrastinate._declared(v_now) as d
    where d.name = any (v_names);
end $$;
comment on function procrastinate._declare_schedules(bigint, jsonb) is
'Take in the schedules of a worker that has just been registered. Raises what is wrong with one, JQ022 if schedule() made one of '
'that name.';

create or replace function procrastinate._check_declarations(schedules jsonb, at timestamptz) returns text[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  d jsonb;
  v_there text;
  v_detail text;
  v_hint text;
begin
  if jsonb_typeof(schedules) is distinct from 'array' or jsonb_path_exists(schedules, 'strict $[*] ? (@.type() != "object")') then
    raise exception 'schedules must be a JSON array of objects' using errcode = '22023',
      hint = 'Pass [{"name": "n", "task": "t", "cron": "0 * * * *"}].';
  end if;
  for d in select jsonb_array_elements(schedules) loop
    begin
      perform procrastinate._check_keys(
        'a schedule', d, '{name,task,cron,timezone,args,queue,priority,lock,queueing_lock,max_delay}');
      perform procrastinate._check_schedule(
        d ->> 'name', d ->> 'task', d ->> 'cron', d ->> 'timezone', procrastinate._declared_args(d),
        procrastinate._declared_delay(d), d ->> 'queue', (d ->> 'priority')::int, d ->> 'lock', d ->> 'queueing_lock', at);
    exception when others then
      get stacked diagnostics v_detail = pg_exception_detail, v_hint = pg_exception_hint;
      raise exception 'schedule "%": %', left(d ->> 'name', 100), sqlerrm using errcode = sqlstate, detail = v_detail, hint = v_hint;
    end;
    v_there := procrastinate._cron_elsewhere(d ->> 'cron');
    if v_there is not null then
      raise warning 'schedule "%" fires next at %, where croniter would read "%" and fire at %', d ->> 'name',
        procrastinate.cron_next(d ->> 'cron', at, coalesce(d ->> 'timezone', 'UTC')), v_there,
        procrastinate.cron_next(v_there, at, coalesce(d ->> 'timezone', 'UTC'))
        using detail = 'If one of the day fields begins with a star, both must match; if none does, either.';
    end if;
  end loop;
  return array(select distinct e ->> 'name' from jsonb_array_elements(schedules) as e);
end $$;
comment on function procrastinate._check_declarations(jsonb, timestamptz) is
'Return the names of the schedules that a worker declares, or raise what is wrong with them.';

create or replace function procrastinate._declared_args(declaration jsonb) returns jsonb
language sql immutable parallel safe begin atomic
  select coalesce(nullif(declaration -> 'args', 'null'), '{}');
end;
comment on function procrastinate._declared_args(jsonb) is 'Read the args of a declared schedule.';

create or replace function procrastinate._declared_delay(declaration jsonb) returns interval
language sql immutable parallel safe begin atomic
  select make_interval(secs => coalesce((declaration ->> 'max_delay')::float8, 600));
end;
comment on function procrastinate._declared_delay(jsonb) is 'Read the max_delay of a declared schedule.';

create or replace function procrastinate._declare(declaration jsonb, at timestamptz, resumed boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_cron text := declaration ->> 'cron';
  v_timezone text := coalesce(declaration ->> 'timezone', 'UTC');
  v_delay interval := procrastinate._declared_delay(declaration);
  v_old procrastinate.schedule;
  v_next timestamptz;
begin
  select s.* into v_old from procrastinate.schedule as s where s.name = _declare.declaration ->> 'name' for update;
  if resumed or v_old.next_tick is null then
    -- nobody was there to fire what was missed: only the last one still counts, unless that is too old as well
    v_next := procrastinate._cron_last(
      v_cron, greatest(v_old.last_tick, at - v_delay - interval '1 microsecond'), at, v_timezone);
  elsif (v_old.cron, v_old.timezone) = (v_cron, v_timezone) then
    v_next := v_old.next_tick;
  end if;
  v_next := coalesce(v_next, procrastinate.cron_next(v_cron, greatest(at, v_old.last_tick), v_timezone));
  update procrastinate.schedule as s
     set declaration = _declare.declaration, task = _declare.declaration ->> 'task', cron = v_cron, timezone = v_timezone,
         args = procrastinate._declared_args(_declare.declaration), catch_up = 'all', max_delay = v_delay,
         queue = _declare.declaration ->> 'queue', priority = (_declare.declaration ->> 'priority')::int,
         lock = _declare.declaration ->> 'lock', queueing_lock = _declare.declaration ->> 'queueing_lock',
         enabled = true, options = '{"timestamp": true}', next_tick = v_next, retry_at = null, updated_at = at
   where s.name = v_old.name;
end $$;
comment on function procrastinate._declare(jsonb, timestamptz, boolean) is
'Let a declared schedule be as a worker declares it. What is due at the same times as before stays due, unless no live worker '
'declared it in between (resumed).';

create or replace function procrastinate._fire_schedules(at timestamptz) returns table (kind text, job_id bigint, detail jsonb)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_live jsonb := (select jsonb_object_agg(d.name, d.declaration) from procrastinate._declared(at) as d);
  v_until timestamptz := clock_timestamp() + interval '100 milliseconds';
  s procrastinate.schedule;
begin
  -- the newest that declared it may be gone, and another one left; or one that seemed dead lives again
  for s in
    select t.* from procrastinate.schedule as t
     where t.kind = 'declared' and v_live ? t.name and (t.declaration is distinct from v_live -> t.name or t.next_tick is null)
       and coalesce(t.retry_at <= at, true)
     order by t.name for update skip locked
  loop
    begin
      perform procrastinate._declare(v_live -> s.name, at, false);
    exception when others then
      kind := 'error';
      detail := procrastinate._schedule_failed(s, at, sqlstate, sqlerrm);
      return next;
    end;
  end loop;
  for s in
    select t.* from procrastinate.schedule as t
     where t.enabled and t.next_tick <= at and coalesce(t.retry_at <= at, true)
     order by t.next_tick, t.name for update skip locked
  loop
    if s.kind = 'declared' and not coalesce(v_live ? s.name, false) then
      -- sleeps until a worker declares it
      update procrastinate.schedule as t set next_tick = null where t.name = s.name;
      continue;
    end if;
    begin
      return query select f.kind, f.job_id, f.detail from procrastinate._fire(s, at, v_until) as f;
    exception when others then
      kind := 'error';
      detail := procrastinate._schedule_failed(s, at, sqlstate, sqlerrm);
      return next;
    end;
  end loop;
end $$;
comment on function procrastinate._fire_schedules(timestamptz) is
'Fire the ticks that are due. Returns a row for each, of kind scheduled, or skipped (the queueing lock is taken: job_id is the one '
'that waits; or all were too late); and one of kind error for a schedule that failed, which is tried again after 10 seconds, '
'or after 1 where its queueing lock is in doubt.';

create or replace function procrastinate._schedule_failed(
  schedule procrastinate.schedule, at timestamptz, code text, message text
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- 55P03: an open transaction defers a job with its queueing lock; no tick waits for that
  update procrastinate.schedule as s
     set retry_at = at + case code when '55P03' then interval '1 second' else interval '10 seconds' end
   where s.name = schedule.name;
  return jsonb_strip_nulls(jsonb_build_object(
    'schedule', schedule.name, 'tick', schedule.next_tick, 'sqlstate', code, 'message', message));
end $$;
comment on function procrastinate._schedule_failed(procrastinate.schedule, timestamptz, text, text) is
'Let a schedule that failed be tried again in 10 seconds, and return the detail that says so.';

create or replace function procrastinate._fire(schedule procrastinate.schedule, at timestamptz, until timestamptz)
returns table (kind text, job_id bigint, detail jsonb)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms' as $$
declare
  v_ticks timestamptz[] := procrastinate._due(schedule, at);
  v_last timestamptz := v_ticks[cardinality(v_ticks)];
begin
  perform procrastinate._wait_until(until);
  if v_last is null then
    v_last := procrastinate._cron_last(schedule.cron, schedule.next_tick - interval '1 microsecond', at, schedule.timezone);
    return query select 'skipped', null::bigint, jsonb_build_object('schedule', schedule.name, 'tick', v_last, 'reason', 'late');
  else
    return query
      select case when d.created then 'scheduled' else 'skipped' end, d.id,
             jsonb_build_object('schedule', schedule.name, 'tick', v_ticks[d.ord])
             || case when d.created then '{}' else '{"reason": "queueing lock"}'::jsonb end
        from procrastinate.defer_many((
          select jsonb_agg(jsonb_build_object(
                   'task', schedule.task, 'queue', schedule.queue, 'priority', schedule.priority, 'lock', schedule.lock,
                   'queueing_lock', schedule.queueing_lock, 'headers', jsonb_build_object('schedule', schedule.name),
                   'args', schedule.args || case
                     when schedule.options -> 'timestamp' = 'true'
                     then jsonb_build_object('timestamp', extract(epoch from t.tick)::bigint) else '{}' end) order by t.ord)
            from unnest(v_ticks) with ordinality as t (tick, ord)), 'ignore') as d;
  end if;
  update procrastinate.schedule as s
     set last_tick = v_last, next_tick = procrastinate.cron_next(s.cron, v_last, s.timezone), retry_at = null
   where s.name = schedule.name;
end $$;
comment on function procrastinate._fire(procrastinate.schedule, timestamptz, timestamptz) is
'Defer the due jobs of one schedule, whose row is locked, and move it on. Waits for queueing locks until the time given last.';

create or replace function procrastinate._due(schedule procrastinate.schedule, at timestamptz) returns timestamptz[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  -- the rest of a long backlog is for the next call
  v_limit constant int := 1000;
  v_oldest timestamptz := case
    when schedule.kind = 'declared' then null
    when schedule.catch_up = 'none' then at - coalesce(schedule.max_delay, interval '60 seconds')
    else at - schedule.max_delay end;
  v_tick timestamptz := schedule.next_tick;
  v_ticks timestamptz[] := '{}';
begin
  if v_tick < v_oldest then
    v_tick := procrastinate.cron_next(schedule.cron, v_oldest - interval '1 microsecond', schedule.timezone);
  end if;
  if schedule.catch_up = 'last' then
    v_tick := procrastinate._cron_last(schedule.cron, v_tick - interval '1 microsecond', at, schedule.timezone);
    return array_remove(array[v_tick], null);
  end if;
  while v_tick <= at and cardinality(v_ticks) < v_limit loop
    v_ticks := v_ticks || v_tick;
    v_tick := procrastinate.cron_next(schedule.cron, v_tick, schedule.timezone);
  end loop;
  return v_ticks;
end $$;
comment on function procrastinate._due(procrastinate.schedule, timestamptz) is
'Return the ticks of a schedule that are due and neither too late nor passed over by its catch_up; at most 1000.';

create or replace function procrastinate._next_schedule_at() returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $$
  select min(greatest(s.next_tick, s.retry_at)) from procrastinate.schedule as s where s.enabled and s.next_tick is not null
$$;
comment on function procrastinate._next_schedule_at() is
'Tell when a schedule is next to be looked at; null: none is. One that nobody declares any more is looked at once, and then sleeps.';
