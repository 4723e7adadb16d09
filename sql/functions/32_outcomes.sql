create or replace function procrastinate._end_runs(
  outcomes jsonb, at timestamptz, out verdicts jsonb, out lock text[], out rank int[], out id bigint[]
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_ids bigint[] := array(select (o ->> 'id')::bigint from jsonb_array_elements(outcomes) as o order by 1);
  v_store boolean := (select c.store_errors from procrastinate.config as c);
  v_once bigint[];
  v_late jsonb;
  o record;
begin
  with mine as materialized (
    select j.*, d.*, g.o
      from jsonb_array_elements(outcomes) as g (o)
      join procrastinate.job as j on j.id = (g.o ->> 'id')::bigint and j.token = (g.o ->> 'token')::bigint and j.token > 0
     cross join lateral procrastinate._decide(
       g.o, j.task, j.queue, j.attempts - j.budget_from, j.abort_requested, j.retry, j.worker_id, at) as d
     where j.id = any (v_ids)),
  back as (
    update procrastinate.job as j
       set state = procrastinate._waiting_state(m.retry_at, at, coalesce(m.new_lock, m.lock), m.attempts + m.counts),
           token = -m.token, worker_id = null, started_at = null, abort_requested = false,
           attempts = m.attempts + m.counts, scheduled_at = coalesce(m.retry_at, m.scheduled_at),
           rank = coalesce(m.new_rank, m.rank), queue = coalesce(m.new_queue, m.queue), lock = coalesce(m.new_lock, m.lock),
           error = case when m.counts > 0 then procrastinate._error(m.o -> 'error', v_store, false)
                        -- given back for a moment: it was due when it was due
                        when m.retry_at is not null then coalesce(m.error, '{}') || jsonb_build_object('due', m.scheduled_at)
                        else m.error end
      from mine as m
     where j.id = m.id and j.id = any (v_ids) and m.new_status = 'todo' and m.queueing_lock is null),
  gone as (
    delete from procrastinate.job as j using mine as m
     where j.id = m.id and j.id = any (v_ids) and m.new_status <> 'todo'),
  kept as (
    insert into procrastinate.done (
      id, token, worker_id, deferred_at, scheduled_at, started_at, finished_at, rank, attempts, rescues, status, task, queue,
      lock, queueing_lock, args, headers, retry, error, result)
    select m.id, m.token, m.worker_id, m.deferred_at, m.scheduled_at, m.started_at, at, m.rank, m.attempts + m.counts, m.rescues,
           m.new_status, m.task, m.queue, m.lock, m.queueing_lock, m.args, m.headers, m.retry,
           procrastinate._error(m.o -> 'error', v_store, true),
           case when octet_length((m.o -> 'result')::text) <= 65536 then m.o -> 'result' end
      from mine as m
     where m.new_status <> 'todo' and coalesce((m.o ->> 'keep')::boolean, true)),
  forgotten as (
    delete from procrastinate.event as e
     where e.job_id = any (array(
       select m.id from mine as m where m.new_status <> 'todo' and not coalesce((m.o ->> 'keep')::boolean, true)))),
  noted as (
    insert into procrastinate.event (job_id, worker_id, at, started_at, type, detail)
    select m.id, m.worker_id, at, m.started_at, 'deferred_for_retry',
           jsonb_strip_nulls(jsonb_build_object(
             'retry_at', m.retry_at, 'error', procrastinate._error(m.o -> 'error', v_store, true)))
      from mine as m
     where m.new_status = 'todo' and m.counts > 0 and m.queueing_lock is null)
  select coalesce(jsonb_agg(procrastinate._verdict(m.id, m.token, m.refused, m.message, m.new_status, m.retry_at))
           filter (where m.new_status is distinct from 'todo' or m.queueing_lock is null), '[]'),
         array_agg(m.lock) filter (where m.frees),
         -- what went back to its line is itself the next, or holds the next up: look from the start of the line
         array_agg(case when m.new_status <> 'todo' then m.rank end) filter (where m.frees),
         array_agg(case when m.new_status <> 'todo' then m.id end) filter (where m.frees),
         array_agg(m.id) filter (where m.new_status = 'todo' and m.queueing_lock is not null)
    into verdicts, lock, rank, id, v_once
    from (
      select n.*, n.lock is not null and n.refused is null and (n.new_status <> 'todo' or n.queueing_lock is null) as frees
        from mine as n) as m;
  if v_once is not null then
    for o in select * from procrastinate._end_runs_once(outcomes, v_once, v_store, at) loop
      verdicts := verdicts || o.verdict;
      if o.lock is not null then
        lock := lock || o.lock;
        rank := rank || null::int;
        id := id || null::bigint;
      end if;
    end loop;
  end if;
  select jsonb_agg(procrastinate._late_verdict(
           (g.o ->> 'id')::bigint, (g.o ->> 'token')::bigint, coalesce((g.o ->> 'keep')::boolean, true)))
    into v_late
    from jsonb_array_elements(outcomes) as g (o)
   where not exists (
     select from jsonb_array_elements(verdicts) as v where v -> 'id' = g.o -> 'id' and v -> 'token' = g.o -> 'token');
  verdicts := verdicts || coalesce(v_late, '[]');
  perform procrastinate._wake_for_returned(v_ids);
end $$;
comment on function procrastinate._end_runs(jsonb, timestamptz) is
'End the runs that are not plain successes and whose jobs the caller holds, all in one statement, and return the verdicts and the '
'locks to pass on.';

create or replace function procrastinate._end_runs_once(outcomes jsonb, ids bigint[], store_errors boolean, at timestamptz)
returns table (verdict jsonb, lock text)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  r record;
  v_status text;
  v_until timestamptz := clock_timestamp() + interval '100 milliseconds';
begin
  for r in
    select j.id, j.token, j.lock, d.*, u.o
      from jsonb_array_elements(outcomes) as u (o)
      join procrastinate.job as j on j.id = (u.o ->> 'id')::bigint and j.token = (u.o ->> 'token')::bigint
     cross join lateral procrastinate._decide(
       u.o, j.task, j.queue, j.attempts - j.budget_from, j.abort_requested, j.retry, j.worker_id, at) as d
     where j.id = any (ids)
     order by j.id
  loop
    v_status := procrastinate._put_back(
      r.id, r.retry_at, r.counts, 0, r.new_rank, r.new_queue, r.new_lock,
      case when r.counts > 0 then 'deferred_for_retry' end, procrastinate._error(r.o -> 'error', store_errors, true), at, v_until);
    lock := case when v_status is not null then r.lock end;
    verdict := case
      when v_status is null then
        procrastinate._verdict(r.id, r.token, '55P03', 'an open transaction defers a job with the same queueing lock', null, null)
      else
        procrastinate._verdict(r.id, r.token, null, null, v_status, case when v_status = 'todo' then r.retry_at end)
    end;
    return next;
  end loop;
end $$;
comment on function procrastinate._end_runs_once(jsonb, bigint[], boolean, timestamptz) is
'Put jobs with a queueing lock back in the queue, each on its own, because a waiting job may have taken that lock.';

create or replace function procrastinate._put_back(
  job_id bigint, retry_at timestamptz, counts int, rescued int, new_rank int, new_queue text, new_lock text,
  event text, error jsonb, at timestamptz, until timestamptz
) returns text
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms' as $$
declare
  v_old procrastinate.job;
begin
  select j.* into v_old from procrastinate.job as j where j.id = job_id for update;
  begin
    perform procrastinate._wait_until(until);
    update procrastinate.job as j
       set state = procrastinate._waiting_state(_put_back.retry_at, at, coalesce(new_lock, j.lock), j.attempts + counts),
           token = case when rescued = 0 then -j.token end, worker_id = null, started_at = null, abort_requested = false,
           attempts = j.attempts + counts, rescues = j.rescues + rescued,
           scheduled_at = coalesce(_put_back.retry_at, j.scheduled_at), rank = coalesce(new_rank, j.rank),
           queue = coalesce(new_queue, j.queue), lock = coalesce(new_lock, j.lock),
           error = case when counts > 0 then _put_back.error - 'traceback'
                        when _put_back.retry_at is not null then coalesce(j.error, '{}') || jsonb_build_object('due', j.scheduled_at)
                        else j.error end
     where j.id = job_id;
    if event is not null then
      insert into procrastinate.event (job_id, worker_id, at, started_at, type, detail)
      values (job_id, v_old.worker_id, at, v_old.started_at, event,
              jsonb_strip_nulls(jsonb_build_object('retry_at', _put_back.retry_at, 'error', _put_back.error)));
    end if;
    return 'todo';
  exception
    when unique_violation then
      perform procrastinate._end_waiting(
        v_old, case when v_old.attempts + counts = 0 then 'cancelled' else 'failed' end, counts, rescued,
        jsonb_build_object('class', 'Superseded', 'message', 'another job with the same queueing lock is waiting'), at);
      return case when v_old.attempts + counts = 0 then 'cancelled' else 'failed' end;
    when lock_not_available then
      -- an open transaction has deferred a job with this queueing lock: whether there is room is not known yet
      return null;
  end;
end $$;
comment on function procrastinate._put_back(bigint, timestamptz, int, int, int, text, text, text, jsonb, timestamptz, timestamptz) is
'Return a running job to the queue and say todo; or, if its queueing lock is taken, end it as superseded and say failed, or '
'cancelled if it never ran. Null: not known yet, nothing is changed; it waits for that until the time of the real clock given last. '
'The caller passes its lock on.';

create or replace function procrastinate._end_waiting(
  job procrastinate.job, status text, counts int, rescued int, error jsonb, at timestamptz
) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  with gone as (delete from procrastinate.job as j where j.id = job.id)
  insert into procrastinate.done (
    id, token, worker_id, deferred_at, scheduled_at, started_at, finished_at, rank, attempts, rescues, status, task, queue, lock,
    queueing_lock, args, headers, retry, error)
  values (
    job.id, case when rescued > 0 then null else job.token end, job.worker_id, job.deferred_at, job.scheduled_at, job.started_at,
    at, job.rank, job.attempts + counts, job.rescues + rescued, status, job.task, job.queue, job.lock, job.queueing_lock,
    job.args, job.headers, job.retry, error)
$$;
comment on function procrastinate._end_waiting(procrastinate.job, text, int, int, jsonb, timestamptz) is
'Move one job, whose row the caller holds, from the queue to the finished ones.';

create or replace function procrastinate._decide(
  outcome jsonb, task text, queue text, attempts int, abort_requested boolean, own_retry jsonb, worker_id bigint, at timestamptz,
  out new_status text, out retry_at timestamptz, out new_rank int, out new_queue text, out new_lock text, out counts int,
  out refused text, out message text
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_known boolean;
begin
  counts := 1;
  case outcome ->> 'outcome'
    when 'succeeded' then
      new_status := 'succeeded';
      if octet_length((outcome -> 'result')::text) > 65536 then
        message := 'the result is larger than 64 KiB and is not stored';
      end if;
    when 'released' then
      -- what is to be aborted must not start anew
      new_status := case when abort_requested then 'aborted' else 'todo' end;
      counts := abort_requested::int;
    when 'unknown_task' then
      v_known := exists (
        select from procrastinate.worker as w
         where w.id <> worker_id and w.tasks ? task and (w.queues is null or queue = any (w.queues))
           and w.heartbeat_at > at - w.stalled_after);
      new_status := case when abort_requested then 'aborted' when v_known then 'todo' else 'failed' end;
      counts := case new_status when 'todo' then 0 else 1 end;
      -- not at once, or the worker that does not know it would be the first to fetch it again
      retry_at := case new_status when 'todo' then at + interval '1 second' end;
    when 'failed', 'aborted' then
      new_status := outcome ->> 'outcome';
      -- what a user asked to stop is never retried, however it ended
      if not abort_requested and (new_status = 'failed' or outcome ->> 'reason' = 'shutdown') then
        select d.retry_at, d.new_rank, d.new_queue, d.new_lock, d.refused, d.message
          into retry_at, new_rank, new_queue, new_lock, refused, message
          from procrastinate._decide_retry(outcome, task, attempts, own_retry, worker_id, at) as d;
        new_status := case when refused is not null then null when retry_at is not null then 'todo' else new_status end;
      end if;
    else
      refused := '22023';
      message := 'unknown outcome';
  end case;
end $$;
comment on function procrastinate._decide(jsonb, text, text, int, boolean, jsonb, bigint, timestamptz) is
'Decide what an outcome makes of a job: the one place for the rules of abort, release and retry. refused is an SQLSTATE.';

create or replace function procrastinate._decide_retry(
  outcome jsonb, task text, attempts int, own_retry jsonb, worker_id bigint, at timestamptz,
  out retry_at timestamptz, out new_rank int, out new_queue text, out new_lock text, out refused text, out message text
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_decision jsonb := outcome -> 'retry';
begin
  if v_decision is null then
    retry_at := procrastinate._retry_at(
      procrastinate._policy(own_retry, task, worker_id), attempts, outcome -> 'error', at);
  elsif v_decision <> 'null' then
    perform procrastinate._check_keys('a retry decision', v_decision, '{at,in,priority,queue,lock}');
    retry_at := coalesce(
      (v_decision ->> 'at')::timestamptz,
      procrastinate._add(at, make_interval(secs => (v_decision ->> 'in')::float8)), at);
    new_rank := -(v_decision ->> 'priority')::int;
    new_queue := v_decision ->> 'queue';
    new_lock := v_decision ->> 'lock';
    perform procrastinate._check_time(retry_at);
    perform procrastinate._check_name('queue', new_queue, 128);
    perform procrastinate._check_name('lock', new_lock, 512);
  end if;
exception
  -- a policy that was written past the checks, or a decision of user code: only this outcome suffers
  when others then
    retry_at := null;
    refused := sqlstate;
    message := sqlerrm;
end $$;
comment on function procrastinate._decide_retry(jsonb, text, int, jsonb, bigint, timestamptz) is
'Tell when and where a failed run is retried: the decision sent with it, or the policy. refused is an SQLSTATE.';

create or replace function procrastinate._waiting_state(due timestamptz, at timestamptz, lock text, attempts int) returns "char"
language sql begin atomic
  select case when due is null or due <= at then procrastinate._ready()
              when lock is not null and attempts > 0 then 'h' else 's' end::"char";
end;
comment on function procrastinate._waiting_state(timestamptz, timestamptz, text, int) is
'Tell the state of a job that goes (back) into the queue: one that has run and waits for its retry holds its lock back.';

create or replace function procrastinate._clip(value text, bytes int, tail boolean) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  -- what is dropped ends, or what is kept begins, where a character does: no byte there is a following one
  select case
    when octet_length(value) <= bytes then value
    when tail then convert_from(substring(b.raw from 1 + (
      select min(i) from generate_series(octet_length(value) - $2, octet_length(value) - $2 + 3) as i
       where get_byte(b.raw, i) & 192 <> 128)), 'UTF8')
    else convert_from(substring(b.raw for (
      select max(i) from generate_series($2 - 3, $2) as i where get_byte(b.raw, i) & 192 <> 128)), 'UTF8')
    end
    from convert_to(value, 'UTF8') as b (raw)
$$;
comment on function procrastinate._clip(text, int, boolean) is
'Keep as many whole characters of the beginning, or the end, as fit into this many bytes.';

create or replace function procrastinate._error(error jsonb, store boolean, with_traceback boolean) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when jsonb_typeof(error) = 'object' then jsonb_strip_nulls(jsonb_build_object(
    'class', left(error ->> 'class', 500),
    'message', case when store then procrastinate._clip(error ->> 'message', 8192, false) end,
    'traceback', case when store and with_traceback then procrastinate._clip(error ->> 'traceback', 65536, true) end)) end
$$;
comment on function procrastinate._error(jsonb, boolean, boolean) is
'Keep of an error what the setting store_errors allows: the class always, the message up to 8,192 and the end of the traceback '
'up to 65,536 bytes.';

create or replace function procrastinate._verdict(
  id bigint, token bigint, refused text, message text, status text, retry_at timestamptz
) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'id', id, 'token', token, 'verdict', case when refused is null then 'ok' else 'refused' end, 'sqlstate', refused,
    'message', message, 'status', status, 'retry_at', retry_at))
$$;
comment on function procrastinate._verdict(bigint, bigint, text, text, text, timestamptz) is 'Put a verdict together.';

create or replace function procrastinate._wake_for_returned(ids bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_queues text[] := array(select distinct j.queue from procrastinate.job as j where j.id = any (ids) and j.state <> 'x');
begin
  -- idle workers sleep until the next time they know of, which a retry may precede
  if v_queues <> '{}' then
    perform procrastinate._wake(v_queues);
  end if;
end $$;
comment on function procrastinate._wake_for_returned(bigint[]) is 'Wake idle workers for jobs that went back into their queues.';
