create or replace function procrastinate.register_worker_v1(
  name text, queues text[] default null, tasks jsonb default '{}', schedules jsonb default '[]', protocol int default 1,
  stalled_after interval default null, info jsonb default '{}'
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_config procrastinate.config;
  v_now timestamptz := procrastinate.now_();
  v_id bigint;
begin
  select c.* into v_config from procrastinate.config as c;
  perform procrastinate._check_protocol(register_worker_v1.protocol);
  perform procrastinate._check_worker(register_worker_v1.name, register_worker_v1.queues, register_worker_v1.tasks);
  register_worker_v1.schedules := coalesce(register_worker_v1.schedules, '[]');
  register_worker_v1.stalled_after := coalesce(register_worker_v1.stalled_after, v_config.stalled_after);
  if register_worker_v1.stalled_after not between interval '1 second' and interval '10 years' then
    raise exception 'stalled_after is out of range' using errcode = '22023', hint = 'Give it 1 second to 10 years.';
  end if;
  insert into procrastinate.worker (name, queues, tasks, schedules, protocol, stalled_after, info, started_at, heartbeat_at)
  values (register_worker_v1.name, register_worker_v1.queues, register_worker_v1.tasks, register_worker_v1.schedules,
          register_worker_v1.protocol, register_worker_v1.stalled_after, coalesce(register_worker_v1.info, '{}'), v_now, v_now)
  returning worker.id into v_id;
  insert into procrastinate.task as t (name, source, queue, priority, lock, queueing_lock, retry, updated_at)
  select k.key, 'worker', d.*, v_now
    from jsonb_each(register_worker_v1.tasks) as k
   cross join lateral (
      select k.value ->> 'queue', (k.value ->> 'priority')::int, k.value ->> 'lock', k.value ->> 'queueing_lock',
             nullif(k.value -> 'retry', 'null')) as d (queue, priority, lock, queueing_lock, retry)
   -- what stays as it is, is not touched: somebody may be setting it in a transaction that stays open
   where not exists (
     select from procrastinate.task as o
      where o.name = k.key
        and (o.source = 'sql' or (o.queue, o.priority, o.lock, o.queueing_lock, o.retry) is not distinct from d))
   order by k.key
  on conflict (name) do update
    set queue = excluded.queue, priority = excluded.priority, lock = excluded.lock, queueing_lock = excluded.queueing_lock,
        retry = excluded.retry, updated_at = excluded.updated_at
    where t.source = 'worker';
  if register_worker_v1.schedules <> '[]' then
    perform procrastinate._declare_schedules(v_id, register_worker_v1.schedules);
  end if;
  perform procrastinate._tick_by(v_now + register_worker_v1.stalled_after);
  return v_id;
end $$;
comment on function procrastinate.register_worker_v1(text, text[], jsonb, jsonb, int, interval, jsonb) is
'Register a worker that starts, under an id that nobody had before. queues: null for all, empty for none. tasks: what it can run, '
'an object by task name with queue, priority, lock, queueing_lock and retry, which become the defaults of a defer unless '
'register_task set them. It loses its jobs after stalled_after without a heartbeat. Raises JQ005, JQ014, JQ017, JQ020 to JQ022.';

create or replace function procrastinate._check_worker(name text, queues text[], tasks jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  perform procrastinate._check_name('worker name', coalesce(name, ''), 512);
  perform procrastinate._check_name('queue', coalesce(q, ''), 128) from unnest(queues) as q;
  if jsonb_typeof(tasks) is distinct from 'object' or jsonb_path_exists(tasks, '$.* ? (@.type() != "object")') then
    raise exception 'tasks must be a JSON object of objects' using errcode = '22023', hint = 'Pass {"task name": {}}.';
  end if;
  perform procrastinate._check_job(k.key, k.value ->> 'queue', (k.value ->> 'priority')::int, k.value ->> 'lock',
                                   k.value ->> 'queueing_lock', null, null, null, 2),
          procrastinate._check_policy(coalesce(k.value -> 'retry', 'null'))
     from jsonb_each(tasks) as k;
end $$;
comment on function procrastinate._check_worker(text, text[], jsonb) is 'Raise what is wrong with a worker that registers.';

create or replace function procrastinate.register_task(
  name text, queue text default null, priority int default null, lock text default null, queueing_lock text default null,
  retry jsonb default null
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  perform procrastinate._check_job(register_task.name, register_task.queue, register_task.priority, register_task.lock,
                                   register_task.queueing_lock, null, null, null, 2);
  perform procrastinate._check_policy(register_task.retry);
  insert into procrastinate.task (name, source, queue, priority, lock, queueing_lock, retry, updated_at)
  values (register_task.name, 'sql', register_task.queue, register_task.priority, register_task.lock,
          register_task.queueing_lock, register_task.retry, procrastinate.now_())
  on conflict (name) do update
    set source = 'sql', queue = excluded.queue, priority = excluded.priority, lock = excluded.lock,
        queueing_lock = excluded.queueing_lock, retry = excluded.retry, updated_at = excluded.updated_at;
end $$;
comment on function procrastinate.register_task(text, text, int, text, text, jsonb) is
'Set what a defer of this task falls back to where it says nothing. Workers register theirs as they start, but never change what '
'was set here. Raises JQ014, JQ015, JQ017.';

create or replace function procrastinate.heartbeat_v1(worker_id bigint)
returns table (registered boolean, abort bigint[], next_tick_at timestamptz, at timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
begin
  at := procrastinate.now_();
  update procrastinate.worker as w set heartbeat_at = heartbeat_v1.at where w.id = worker_id;
  registered := found;
  abort := array(
    select j.id from procrastinate.job as j
     where j.worker_id = heartbeat_v1.worker_id and j.abort_requested and j.state = 'x' order by j.id);
  next_tick_at := procrastinate._tick_due_at(at);
  return next;
end $$;
comment on function procrastinate.heartbeat_v1(bigint) is
'Say that a worker lives. Returns whether it is still registered (else its jobs were given away: register again), which of its '
'jobs are to be aborted, when tick_v1 is due, and the time. One small write.';

create or replace function procrastinate.held_v1(worker_id bigint) returns table (id bigint, token bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  select j.id, j.token from procrastinate.job as j where j.worker_id = $1 and j.state = 'x' order by j.id
$$;
comment on function procrastinate.held_v1(bigint) is
'List the jobs that a worker holds. After a lost connection it may hold some that it never saw, because the answer of the fetch '
'was lost: it reports those as released.';

create or replace function procrastinate.backend_v1() returns int
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select pg_backend_pid()
$$;
comment on function procrastinate.backend_v1() is
'Tell which process of the server answers. A client that was told of another one as it connected is behind a pooler.';

create or replace function procrastinate.idle_v1(worker_id bigint, scan_from bigint[] default null)
returns table (ready boolean, next_due_at timestamptz, at timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
declare
  v_worker record;
begin
  v_worker := procrastinate._registered(worker_id);
  at := clock_timestamp() + v_worker.clock_offset;
  if v_worker.idle_at is null then
    update procrastinate.worker as w set idle_at = idle_v1.at where w.id = worker_id;
  end if;
  next_due_at := (
    select j.scheduled_at from procrastinate.job as j
     where j.state in ('s', 'h') and j.scheduled_at > idle_v1.at order by j.scheduled_at, j.id limit 1);
  ready := exists (select from procrastinate.job as j where j.state in ('s', 'h') and j.scheduled_at <= idle_v1.at)
    or procrastinate._any_beyond(v_worker.queues, case when scan_from[1] > 0 then procrastinate._lanes(scan_from) else '{}' end);
  return next;
end $$;
comment on function procrastinate.idle_v1(bigint, bigint[]) is
'Declare that a worker waits, so that a defer wakes it, and look once more, where a fetch with this scan_from would. Returns whether '
'a job may be ready, the time at which the next one will be due, and the time. A defer that is just committing may have looked '
'before: look again after 50 ms. Raises JQ004.';

create or replace function procrastinate.unregister_worker_v1(worker_id bigint) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
declare
  v_now timestamptz := procrastinate.now_();
  v_until timestamptz := clock_timestamp() + interval '100 milliseconds';
  v_count bigint := 0;
  v_ids bigint[];
  v_busy text[];
  v_ended bigint[];
  v_status text;
  r procrastinate.job;
begin
  select array_agg(h.id), procrastinate._try_locks(array_agg(h.lock)) into v_ids, v_busy
    from (
      select j.id, j.lock from procrastinate.job as j
       where j.worker_id = unregister_worker_v1.worker_id and j.state = 'x' order by j.id for update skip locked) as h;
  for r in
    select j.* from procrastinate.job as j
     where j.id = any (v_ids) and (j.lock is null or j.lock <> all (v_busy)) order by j.id
  loop
    if r.abort_requested then
      perform procrastinate._end_waiting(r, 'aborted', 1, 0, null, v_now);
      v_status := 'aborted';
    else
      -- not begun, or begun and abandoned by a worker that says so: the run does not count
      v_status := procrastinate._put_back(r.id, null, 0, 0, null, null, null, null, null, v_now, v_until);
    end if;
    if v_status is not null then
      v_count := v_count + 1;
      v_ended := v_ended || case when v_status <> 'todo' then r.id end;
      perform procrastinate._freed(r.queue, r.lock);
    end if;
  end loop;
  perform procrastinate._ended(array_remove(v_ended, null));
  delete from procrastinate.worker as w
   where w.id = worker_id
     -- what could not be put back yet is rescued once the worker counts as dead
     and not exists (select from procrastinate.job as j where j.worker_id = w.id and j.state = 'x');
  return v_count;
end $$;
comment on function procrastinate.unregister_worker_v1(bigint) is
'Take leave. What the worker still held goes back to its queue, at no attempt; returns how many jobs that were.';

create or replace function procrastinate._freed(queue text, lock text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if lock is not null then
    perform procrastinate._pass_on(array[lock], array[null::int], array[null::bigint], false, null);
  end if;
  perform procrastinate._wake(array[queue]);
end $$;
comment on function procrastinate._freed(text, text) is
'Pass on the lock of a job that was taken from its worker, and wake the workers of its queue.';
