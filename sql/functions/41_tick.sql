create or replace function procrastinate.tick_v1()
returns table (kind text, job_id bigint, detail jsonb, next_tick_at timestamptz, at timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_now timestamptz := procrastinate.now_();
  v_tick procrastinate.tick;
  v_done jsonb := '[]';
  v_purged jsonb;
  v_more boolean := false;
  v_failed boolean;
  v_next timestamptz;
begin
  select t.* into v_tick from procrastinate.tick as t;
  v_tick.next_at := procrastinate._tick_due_at(v_now);
  -- one at a time, nobody waits: whoever comes second finds it done
  if v_tick.next_at <= v_now and procrastinate._take_turn() then
    v_done := procrastinate._part_of_tick('rescue', v_now);
    v_more := jsonb_array_length(v_done) >= 1000;
    v_failed := jsonb_path_exists(v_done, '$[*] ? (@.kind == "error")');
    v_done := v_done || procrastinate._part_of_tick('schedules', v_now);
    if v_tick.purged_at is null or v_tick.purged_at <= v_now - interval '60 seconds' or v_tick.purged_at > v_now then
      v_purged := procrastinate._part_of_tick('retention', v_now);
      v_done := v_done || v_purged;
      if jsonb_path_exists(v_purged, '$[*] ? (@.detail.jobs >= 10000)') then
        v_more := true;
      else
        v_tick.purged_at := v_now;
      end if;
    end if;
    v_tick.swept_lock := procrastinate._sweep_locks(v_tick.swept_lock);
    -- what fails would fail again at once; but all that is to be rescued waits for the next tick
    v_tick.next_at := case when v_failed then v_now + interval '1 second' when v_more then v_now
                           else procrastinate._next_tick_at(v_now) end;
    update procrastinate.tick as t
       set next_at = v_tick.next_at, swept_lock = v_tick.swept_lock, purged_at = v_tick.purged_at;
  end if;
  v_next := greatest(least(v_tick.next_at, procrastinate._next_schedule_at()), v_now + interval '100 milliseconds');
  return query
    select d ->> 'kind', (d ->> 'job_id')::bigint, d -> 'detail', v_next, v_now
      from jsonb_array_elements(v_done || jsonb '[{}]') as d;
end $$;
comment on function procrastinate.tick_v1() is
'Do what is due by the clock: rescue the jobs of dead workers, fire schedules, apply the retention. Anybody may call it at any '
'time, any number at once; it does nothing before it is due. Returns what it did, in rows of kind error what failed while the rest '
'went on, and in a last row without kind when to call it next.';

create or replace function procrastinate._take_turn() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform from procrastinate.tick_turn as t for update skip locked;
  return found;
end $$;
comment on function procrastinate._take_turn() is
'Try for the turn of the only tick that works, held to the end of the transaction. A row and no advisory lock, which everybody who '
'may connect could hold for ever.';

create or replace function procrastinate._part_of_tick(part text, at timestamptz) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_done jsonb;
begin
  case part
    when 'rescue' then select jsonb_agg(to_jsonb(r)) into v_done from procrastinate._rescue(at) as r;
    when 'schedules' then select jsonb_agg(to_jsonb(f)) into v_done from procrastinate._fire_schedules(at) as f;
    when 'retention' then select jsonb_agg(to_jsonb(p)) into v_done from procrastinate._retain(at) as p;
  end case;
  return coalesce(v_done, '[]');
exception when others then
  return jsonb_build_array(jsonb_build_object(
    'kind', 'error', 'detail', jsonb_build_object('part', part, 'sqlstate', sqlstate, 'message', sqlerrm)));
end $$;
comment on function procrastinate._part_of_tick(text, timestamptz) is
'Do one part of a tick and return what it did; where it fails, a row of kind error, and the other parts go on.';

create or replace function procrastinate._next_tick_at(at timestamptz) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return greatest(at + interval '100 milliseconds', least(
    at + interval '60 seconds',
    (select min(w.heartbeat_at + w.stalled_after) from procrastinate.worker as w)));
end $$;
comment on function procrastinate._next_tick_at(timestamptz) is
'Tell when a worker may next be found dead; a minute from now at the latest. Schedules are asked each time: one that is just being '
'made in an open transaction must not hold the row of procrastinate.tick.';

create or replace function procrastinate._tick_due_at(at timestamptz) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  -- one further ahead than any is planned is from before the clock was put back
  return (
    select least(case when t.next_at <= at + interval '60 seconds' then t.next_at else at end, procrastinate._next_schedule_at())
      from procrastinate.tick as t);
end $$;
comment on function procrastinate._tick_due_at(timestamptz) is 'Tell when tick_v1 is to be called next.';

create or replace function procrastinate._tick_by(due timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  update procrastinate.tick as t set next_at = due where t.next_at > due;
  if found then
    -- a heartbeat is what tells workers when the next tick is due
    perform procrastinate._notify('a');
  end if;
end $$;
comment on function procrastinate._tick_by(timestamptz) is 'See that tick_v1 is called by this time.';

create or replace function procrastinate._rescue(at timestamptz) returns table (kind text, job_id bigint, detail jsonb)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_until timestamptz := clock_timestamp() + interval '100 milliseconds';
  v_dead bigint[];
  v_rescued bigint[];
  v_ended bigint[];
  j procrastinate.job;
begin
  -- a heartbeat of the future is one from before the clock was put back
  update procrastinate.worker as w set heartbeat_at = at
   where w.id = any (array(
     select k.id from procrastinate.worker as k where k.heartbeat_at > at + interval '60 seconds' for update skip locked));
  v_dead := array(
    select w.id from procrastinate.worker as w
     where w.heartbeat_at <= at - w.stalled_after order by w.id for update skip locked);
  -- those that are gone, sought between the ids of those that are not: the dead rows of what these have run are passed over
  v_dead := v_dead || array(
    select distinct k.worker_id
      from (
        select w.id, lead(w.id, 1, 9223372036854775807) over (order by w.id) as next_id
          from (select 0 as id union all select w.id from procrastinate.worker as w) as w) as g
     cross join lateral (
       select j.worker_id from procrastinate.job as j
        where j.state = 'x' and j.worker_id > g.id and j.worker_id < g.next_id offset 0) as k);
  for j in
    select k.* from procrastinate.job as k
     where k.worker_id = any (v_dead) and k.state = 'x' order by k.id limit 1000 for update skip locked
  loop
    detail := jsonb_build_object('task', j.task, 'queue', j.queue, 'worker_id', j.worker_id);
    begin
      kind := procrastinate._rescue_one(j, at, v_until);
    exception when others then
      kind := 'error';
      detail := detail || jsonb_build_object('part', 'rescue', 'sqlstate', sqlstate, 'message', sqlerrm);
    end;
    if kind is not null then
      job_id := j.id;
      v_rescued := v_rescued || case kind when 'rescued' then j.id end;
      v_ended := v_ended || case when kind not in ('rescued', 'error') then j.id end;
      return next;
    end if;
  end loop;
  if 'rescued' = any ((select c.sql_hooks from procrastinate.config as c)::text[]) then
    perform procrastinate._call_hooks('rescued', array_remove(v_rescued, null));
  end if;
  perform procrastinate._ended(array_remove(v_ended, null));
  delete from procrastinate.worker as w
   where w.id = any (v_dead)
     and not exists (select from procrastinate.job as k where k.worker_id = w.id and k.state = 'x' offset 0);
end $$;
comment on function procrastinate._rescue(timestamptz) is
'Take the jobs of workers that gave no heartbeat for too long, or are gone, away from them, and then forget those workers.';

create or replace function procrastinate._rescue_one(job procrastinate.job, at timestamptz, until timestamptz) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_policy jsonb := procrastinate._policy(job.retry, job.task, job.worker_id);
  v_allowed int := (select c.max_rescues from procrastinate.config as c);
  v_status text;
  v_error jsonb := jsonb_build_object('class', 'WorkerLost', 'message', 'the worker that ran the job is gone');
begin
  if not coalesce(pg_try_advisory_xact_lock(procrastinate._lock_key(job.lock)), true) then
    return null;
  end if;
  if jsonb_typeof(v_policy -> 'rescues') = 'number' then
    v_allowed := least((v_policy -> 'rescues')::numeric, 1000000)::int;
  end if;
  if job.rescues >= v_allowed or job.abort_requested then
    -- ended, but not by its worker: what that one still says is stale
    job.token := null;
    perform procrastinate._end_waiting(job, 'failed', 1, 0, v_error, at);
    v_status := 'failed';
  else
    v_status := procrastinate._put_back(job.id, null, 1, 1, null, null, null, 'rescued', v_error, at, until);
  end if;
  if v_status is not null then
    perform procrastinate._freed(job.queue, job.lock);
  end if;
  return case v_status when 'todo' then 'rescued' else v_status end;
end $$;
comment on function procrastinate._rescue_one(procrastinate.job, timestamptz, timestamptz) is
'Put one job of a dead worker back, whatever its retry policy; or end it as failed (WorkerLost) once that has happened often '
'enough, or when it was to be aborted. Null: an open transaction holds its lock, or its queueing lock is in doubt; the next tick '
'tries again.';

create or replace function procrastinate._sweep_locks(after text) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lock text := after;
  v_orphans text[] := '{}';
begin
  -- a few locks each time, from where the last sweep ended; hops from lock to lock in the index
  for i in 1 .. 200 loop
    v_lock := least(
      (select j.lock from procrastinate.job as j
        where j.lock is not null and j.state = 'w' and j.lock > v_lock order by j.lock limit 1),
      (select j.lock from procrastinate.job as j
        where j.lock is not null and j.state = 'b' and j.lock > v_lock order by j.lock limit 1));
    exit when v_lock is null;
    if not exists (select from procrastinate.job as j where j.lock = v_lock and j.state in ('r', 'h'))
      and not exists (select from procrastinate.job as j where j.lock = v_lock and j.state = 'x') then
      v_orphans := v_orphans || v_lock;
    end if;
  end loop;
  perform procrastinate._promote(v_orphans);
  return coalesce(v_lock, '');
end $$;
comment on function procrastinate._sweep_locks(text) is
'Find locks under which jobs wait with nothing to call them up. Only transactions that cancel several jobs of a lock and are rolled '
'back, or that complete a job at REPEATABLE READ, can leave such a lock behind.';
