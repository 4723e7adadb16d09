create or replace function procrastinate.defer(
  task text, args jsonb default '{}', queue text default null, priority int default null, lock text default null,
  queueing_lock text default null, on_conflict text default 'raise', schedule_at timestamptz default null,
  schedule_in interval default null, retry jsonb default null, headers jsonb default null, options jsonb default '{}'
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_now timestamptz;
  v_max_bytes int;
  v_hooks text[];
  v_limited boolean;
  v_id bigint;
  v_created boolean := true;
begin
  -- Clients send JSON null for what is left out, as in the jobs of defer_many. All in one statement: each costs a defer as
  -- much as two entries of an index.
  select clock_timestamp() + c.clock_offset, c.max_args_bytes, c.sql_hooks, c.limited,
         coalesce(defer.queue, t.queue, 'default'), coalesce(defer.priority, t.priority, 0), coalesce(defer.lock, t.lock),
         coalesce(defer.queueing_lock, t.queueing_lock), coalesce(nullif(defer.args, 'null'), '{}'),
         nullif(defer.headers, 'null'), nullif(defer.retry, 'null')
    into v_now, v_max_bytes, v_hooks, v_limited, queue, priority, lock, queueing_lock, args, headers, retry
    from procrastinate.config as c
    left join procrastinate.task as t on t.name = defer.task;
  if schedule_in is not null or retry is not null or options <> '{}' or on_conflict is distinct from 'raise' then
    schedule_at := procrastinate._one_time(schedule_at, v_now, schedule_in);
    perform procrastinate._check_policy(retry), procrastinate._check_keys('options', options, '{}'),
            procrastinate._check_conflict(on_conflict);
  end if;
  if not procrastinate._acceptable(task, queue, priority, lock, queueing_lock, schedule_at, args, headers, v_max_bytes) then
    perform procrastinate._check_job(task, queue, priority, lock, queueing_lock, schedule_at, args, headers, v_max_bytes);
  end if;
  if v_limited then
    perform procrastinate._check_queues(array[queue]);
  end if;
  if queueing_lock is null then
    insert into procrastinate.job (task, queue, rank, lock, args, headers, retry, deferred_at, scheduled_at, state)
    values (defer.task, defer.queue, -defer.priority, defer.lock, defer.args, defer.headers, defer.retry, v_now, defer.schedule_at,
            case when schedule_at > v_now then 's' else 'r' end)
    returning id into v_id;
  else
    v_id := procrastinate._defer_once(
      task, queue, priority, lock, queueing_lock, schedule_at, args, headers, retry, v_now, on_conflict,
      nextval('procrastinate.job_id_seq'));
    v_created := v_id > 0;
    v_id := abs(v_id);
  end if;
  if 'deferred' = any (v_hooks) and v_created then
    perform procrastinate._call_hooks('deferred', array[v_id]);
  end if;
  perform procrastinate._wake(array[queue]);
  return v_id;
end $$;
comment on function procrastinate.defer(text, jsonb, text, int, text, text, text, timestamptz, interval, jsonb, jsonb, jsonb) is
'Defer a job in the transaction of the caller, and return its id. Null queue, priority, lock and queueing_lock take the '
'defaults registered for the task. on_conflict: raise (23505), ignore or replace a waiting job with the same queueing_lock. '
'Raises JQ010 to JQ017, JQ024, 22023, 23505 (constraint jobs_queueing_lock).';

create or replace function procrastinate.defer_many(jobs jsonb, on_conflict text default 'raise')
returns table (ord int, id bigint, created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_config procrastinate.config;
  v_now timestamptz;
  v_queues text[];
  v_ords int[];
  v_ids bigint[];
  v_id bigint;
  r record;
begin
  select c.* into v_config from procrastinate.config as c;
  v_now := clock_timestamp() + v_config.clock_offset;
  perform procrastinate._check_conflict(on_conflict);
  perform procrastinate._check_jobs(defer_many.jobs);
  -- With a queueing lock, jobs may meet waiting ones or each other: those go one by one.
  if jsonb_path_exists(defer_many.jobs, 'strict $[*] ? (@.queueing_lock != null)')
     or exists (
       select from procrastinate.task as t
        where t.queueing_lock is not null
          and t.name in (select j ->> 'task' from jsonb_array_elements(defer_many.jobs) as j)
     ) then
    for r in
      -- ids in the order given, but queueing locks in one order for all, or two calls might wait for each other
      select p.* from (
        select q.*, nextval('procrastinate.job_id_seq') as new_id
          from procrastinate._parse_jobs(defer_many.jobs, v_now, v_config.max_args_bytes) as q offset 0) as p
       order by p.queueing_lock collate "C", p.ord
    loop
      if r.queueing_lock is null then
        insert into procrastinate.job (id, task, queue, rank, lock, args, headers, retry, deferred_at, scheduled_at, state)
        values (r.new_id, r.task, r.queue, -r.priority, r.lock, r.args, r.headers, r.retry, v_now, r.scheduled_at,
                case when r.scheduled_at > v_now then 's' else 'r' end);
        v_id := r.new_id;
      else
        v_id := procrastinate._defer_once(
          r.task, r.queue, r.priority, r.lock, r.queueing_lock, r.scheduled_at, r.args, r.headers, r.retry, v_now, on_conflict,
          r.new_id);
      end if;
      v_ords := v_ords || r.ord;
      v_ids := v_ids || v_id;
      v_queues := v_queues || r.queue;
    end loop;
    return query select u.ord, abs(u.id), u.id > 0 from unnest(v_ords, v_ids) as u (ord, id) order by u.ord;
  else
    with p as materialized (select * from procrastinate._parse_jobs(defer_many.jobs, v_now, v_config.max_args_bytes)),
    i as (
      insert into procrastinate.job (task, queue, rank, lock, args, headers, retry, deferred_at, scheduled_at, state)
      select p.task, p.queue, -p.priority, p.lock, p.args, p.headers, p.retry, v_now, p.scheduled_at,
             case when p.scheduled_at > v_now then 's'
                  when p.lock is null then 'r'
                  -- the best of a lock becomes its candidate, the rest line up behind it at once
                  when row_number() over (
                    partition by p.lock, p.scheduled_at > v_now order by p.priority desc, p.ord) = 1 then 'r'
                  else 'w'
             end::"char"
        from p
       order by p.ord
      returning job.id
    )
    -- ids are given in the order of the insert
    select array_agg(i.id order by i.id) into v_ids from i;
    return query select u.ord::int, u.id, true from unnest(v_ids) with ordinality as u (id, ord) order by u.ord;
    v_queues := array(
      select distinct coalesce(j ->> 'queue', t.queue, 'default')
        from jsonb_array_elements(defer_many.jobs) as j
        left join procrastinate.task as t on t.name = j ->> 'task');
  end if;
  if v_config.limited then
    perform procrastinate._check_queues(v_queues);
  end if;
  if 'deferred' = any (v_config.sql_hooks) then
    perform procrastinate._call_hooks('deferred', array(select v from unnest(v_ids) as v where v > 0));
  end if;
  if v_queues <> '{}' then
    perform procrastinate._wake(v_queues);
  end if;
end $$;
comment on function procrastinate.defer_many(jsonb, text) is
'Defer a JSON array of jobs in one statement, all or none. Each is an object with the keys task, args, queue, priority, '
'lock, queueing_lock, schedule_at, schedule_in (seconds, or an interval as text), retry and headers. Returns a row for each, '
'in the order given; created is false where on_conflict ignored or replaced. Raises as defer does.';

create or replace function procrastinate._check_jobs(jobs jsonb) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_job jsonb;
begin
  if jsonb_typeof(jobs) is distinct from 'array' then
    raise exception 'jobs must be a JSON array' using errcode = '22023', hint = 'Pass [{"task": "name", "args": {}}, …].';
  end if;
  select j into v_job
    from jsonb_array_elements(jobs) as j
   where jsonb_typeof(j) <> 'object'
      or j - '{task,args,queue,priority,lock,queueing_lock,schedule_at,schedule_in,retry,headers}'::text[] <> '{}'
   limit 1;
  if v_job is not null then
    perform procrastinate._check_keys('a job', v_job,
      '{task,args,queue,priority,lock,queueing_lock,schedule_at,schedule_in,retry,headers}');
  end if;
end $$;
comment on function procrastinate._check_jobs(jsonb) is 'Raise 22023 or JQ016 for what is not an array of job objects.';

create or replace function procrastinate._parse_jobs(jobs jsonb, at timestamptz, max_bytes int)
returns table (
  ord int, task text, queue text, priority int, lock text, queueing_lock text, scheduled_at timestamptz,
  args jsonb, headers jsonb, retry jsonb
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  return query
    select p.*
      from (
        select x.ord::int, x.task, coalesce(x.queue, t.queue, 'default') as queue,
               coalesce(x.priority, t.priority, 0) as priority, coalesce(x.lock, t.lock) as lock,
               coalesce(x.queueing_lock, t.queueing_lock) as queueing_lock,
               case when x.schedule_in is null then x.schedule_at
                    else procrastinate._one_time(x.schedule_at, _parse_jobs.at, procrastinate._interval(x.schedule_in)) end as scheduled_at,
               coalesce(nullif(x.args, 'null'), '{}') as args, nullif(x.headers, 'null') as headers,
               nullif(x.retry, 'null') as retry
          from rows from (jsonb_to_recordset(_parse_jobs.jobs) as (
                 task text, args jsonb, queue text, priority int, lock text, queueing_lock text,
                 schedule_at timestamptz, schedule_in text, retry jsonb, headers jsonb)) with ordinality
               as x (task, args, queue, priority, lock, queueing_lock, schedule_at, schedule_in, retry, headers, ord)
          left join procrastinate.task as t on t.name = x.task
         offset 0
      ) as p
     where case when procrastinate._acceptable(
                       p.task, p.queue, p.priority, p.lock, p.queueing_lock, p.scheduled_at, p.args, p.headers, _parse_jobs.max_bytes)
                then true
                else procrastinate._check_job(
                       p.task, p.queue, p.priority, p.lock, p.queueing_lock, p.scheduled_at, p.args, p.headers, _parse_jobs.max_bytes)
           end
       and (p.retry is null or procrastinate._check_policy(p.retry))
     order by p.ord;
end $$;
comment on function procrastinate._parse_jobs(jsonb, timestamptz, int) is
'Read the jobs of a defer_many with the defaults of their tasks filled in, each checked as a defer checks it.';

create or replace function procrastinate._interval(value text) returns interval
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when value ~ '^-?[0-9]+(\.[0-9]+)?$' then make_interval(secs => value::float8) else value::interval end
$$;
comment on function procrastinate._interval(text) is 'Read a number of seconds, or an interval in PostgreSQL''s words.';

create or replace function procrastinate._one_time(schedule_at timestamptz, at timestamptz, schedule_in interval) returns timestamptz
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if schedule_at is not null and schedule_in is not null then
    raise exception 'both schedule_at and schedule_in are given' using errcode = '22023', hint = 'Give one of them.';
  end if;
  return case when schedule_in is null then schedule_at else procrastinate._add(at, schedule_in) end;
end $$;
comment on function procrastinate._one_time(timestamptz, timestamptz, interval) is
'Turn schedule_at or schedule_in into a time. 22023 when both are given, JQ013 beyond the year 9000.';

create or replace function procrastinate._add(at timestamptz, duration interval) returns timestamptz
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if justify_interval(duration) not between interval '-7000 years' and interval '6900 years' then
    raise exception 'time is out of range' using errcode = 'JQ013',
      detail = 'The interval leads before the year 2000 or after 9000.',
      hint = 'Leave the time out to run the job as soon as possible.';
  end if;
  return at + duration;
end $$;
comment on function procrastinate._add(timestamptz, interval) is 'Add an interval to a time, with JQ013 in place of an overflow.';

create or replace function procrastinate._check_conflict(on_conflict text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(on_conflict, '') not in ('raise', 'ignore', 'replace') then
    raise exception 'unknown on_conflict' using errcode = '22023', hint = 'Use raise, ignore or replace.';
  end if;
end $$;
comment on function procrastinate._check_conflict(text) is 'Raise 22023 unless it is raise, ignore or replace.';

create or replace function procrastinate._defer_once(
  task text, queue text, priority int, lock text, queueing_lock text, scheduled_at timestamptz, args jsonb,
  headers jsonb, retry jsonb, at timestamptz, on_conflict text, new_id bigint
) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set debug_print_plan = off set client_min_messages = notice as $$
#variable_conflict use_column
declare
  v_state "char" := case when scheduled_at > at then 's' else 'r' end;
  v_id bigint;
  v_old procrastinate.job;
begin
  -- A waiting job found in the way may start before it is read: then there is room, and the insert is tried again.
  for i in 1 .. 100 loop
    insert into procrastinate.job (id, task, queue, rank, lock, queueing_lock, args, headers, retry, deferred_at, scheduled_at, state)
    values (new_id, _defer_once.task, _defer_once.queue, -priority, _defer_once.lock, _defer_once.queueing_lock, _defer_once.args,
            _defer_once.headers, _defer_once.retry, at, _defer_once.scheduled_at, v_state)
    on conflict (queueing_lock) where queueing_lock is not null and state <> 'x' do nothing
    returning job.id into v_id;
    if v_id is not null then
      return v_id;
    end if;
    select j.* into v_old from procrastinate.job as j
     where j.queueing_lock = _defer_once.queueing_lock and j.state <> 'x';
    if on_conflict = 'replace' and v_old.id is not null then
      -- before its row is held, and below once more, for what it is then
      perform procrastinate._check_queues(array[v_old.queue]);
      select j.* into v_old from procrastinate.job as j
       where j.queueing_lock = _defer_once.queueing_lock and j.state <> 'x'
         for update;
    end if;
    if v_old.id is not null then
      if on_conflict = 'raise' then
        raise exception 'job % with the same queueing lock is waiting', v_old.id
          using errcode = 'unique_violation', constraint = 'jobs_queueing_lock', schema = 'procrastinate', table = 'job',
                hint = 'Defer it later, or pass on_conflict => ignore or replace.';
      elsif on_conflict = 'replace' then
        perform procrastinate._check_queues(array[v_old.queue]);
        update procrastinate.job as j
           set task = _defer_once.task, queue = _defer_once.queue, rank = -priority, lock = _defer_once.lock,
               args = _defer_once.args, headers = _defer_once.headers, retry = _defer_once.retry,
               scheduled_at = _defer_once.scheduled_at,
               state = case when v_state = 'r' then procrastinate._ready() else v_state end,
               budget_from = j.attempts, rescues = 0, error = null
         where j.id = v_old.id;
        insert into procrastinate.event (job_id, type, at, detail)
        values (v_old.id, 'replaced', at, jsonb_build_object('task', v_old.task, 'queue', v_old.queue));
        perform procrastinate._call_up(v_old.lock) where v_old.lock is not null and v_old.state <> 'w';
      end if;
      return -v_old.id;
    end if;
  end loop;
  raise exception 'the queueing lock changes hands too fast' using errcode = 'serialization_failure', hint = 'Try again.';
end $$;
comment on function procrastinate._defer_once(text, text, int, text, text, timestamptz, jsonb, jsonb, jsonb, timestamptz, text, bigint) is
'Insert a job with a queueing lock under this id and return it, or minus the id of the job that waits already (ignored or replaced). '
'Raises 23505 with constraint jobs_queueing_lock when on_conflict is raise; 40001 under REPEATABLE READ.';
