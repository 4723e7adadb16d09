create or replace function procrastinate.retry(
  job_id bigint, schedule_at timestamptz default null, schedule_in interval default null, priority int default null,
  queue text default null, lock text default null, options jsonb default '{}'
) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set debug_print_plan = off set client_min_messages = notice as $$
#variable_conflict use_column
declare
  v_now timestamptz := procrastinate.now_();
  v_at timestamptz := procrastinate._one_time(schedule_at, v_now, schedule_in);
  v_done procrastinate.done;
begin
  perform procrastinate._check_keys('options', options, '{}');
  perform procrastinate._check_time(v_at);
  perform procrastinate._check_name('queue', retry.queue, 128);
  perform procrastinate._check_name('lock', retry.lock, 512);
  perform procrastinate._check_priority(priority);
  -- before any row is held: where the queue is closed to the caller, a worker's outcome would be refused meanwhile
  perform procrastinate._check_queues(array[k.queue, coalesce(retry.queue, k.queue)])
     from (select j.queue from procrastinate.job as j where j.id = job_id
           union all
           select d.queue from procrastinate.done as d where d.id = job_id) as k;
  if procrastinate._retry_running(job_id, v_at, -priority, retry.queue, retry.lock, v_now) then
    return true;
  end if;
  delete from procrastinate.done as d where d.id = job_id returning d.* into v_done;
  if v_done.id is null then
    if exists (select from procrastinate.job as j where j.id = job_id) then
      raise exception 'job % has just been retried', job_id using errcode = 'JQ003', detail = 'Somebody else was faster.',
        hint = 'Only a job that has ended, or runs, can be retried.';
    end if;
    return false;
  end if;
  perform procrastinate._check_queues(array[v_done.queue, coalesce(retry.queue, v_done.queue)]);
  insert into procrastinate.job (
    id, token, deferred_at, scheduled_at, rank, attempts, budget_from, state, task, queue, lock, queueing_lock, args, headers,
    retry, error)
  values (
    v_done.id, -abs(v_done.token), v_done.deferred_at, coalesce(v_at, v_done.scheduled_at), coalesce(-priority, v_done.rank),
    v_done.attempts, v_done.attempts,
    procrastinate._waiting_state(v_at, v_now, coalesce(retry.lock, v_done.lock), v_done.attempts), v_done.task,
    coalesce(retry.queue, v_done.queue), coalesce(retry.lock, v_done.lock), v_done.queueing_lock, v_done.args, v_done.headers,
    v_done.retry, v_done.error - 'traceback')
  on conflict (queueing_lock) where queueing_lock is not null and state <> 'x' do nothing;
  if not found then
    perform procrastinate._raise_waiting(v_done.queueing_lock);
  end if;
  insert into procrastinate.event (job_id, worker_id, at, started_at, type, detail)
  values (job_id, v_done.worker_id, v_now, v_done.started_at, 'retried',
          jsonb_strip_nulls(jsonb_build_object('status', v_done.status, 'finished_at', v_done.finished_at, 'error', v_done.error)));
  perform procrastinate._wake(array[coalesce(retry.queue, v_done.queue)]);
  return true;
end $$;
comment on function procrastinate.retry(bigint, timestamptz, interval, int, text, text, jsonb) is
'Put a finished job back in the queue, with a fresh budget of retries; null priority, queue and lock stay as they were. A running '
'job is taken from its worker, whose outcome will be stale. Returns false when there is no such job. Raises JQ003 for a waiting '
'one, JQ024, 23505 (jobs_queueing_lock) when its queueing lock is taken.';

create or replace function procrastinate._retry_running(
  job_id bigint, due timestamptz, new_rank int, new_queue text, new_lock text, at timestamptz
) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_job procrastinate.job;
  v_status text;
begin
  select j.* into v_job from procrastinate.job as j where j.id = job_id for update;
  if v_job.id is null then
    return false;
  elsif v_job.state <> 'x' then
    raise exception 'job % is waiting', job_id using errcode = 'JQ003', detail = 'Its status is todo.',
      hint = 'Only a job that has ended, or runs, can be retried.';
  end if;
  perform procrastinate._check_queues(array[v_job.queue, coalesce(new_queue, v_job.queue)]);
  if exists (
    select from procrastinate.job as j where j.queueing_lock = v_job.queueing_lock and j.state <> 'x') then
    perform procrastinate._raise_waiting(v_job.queueing_lock);
  end if;
  if procrastinate._try_locks(array[v_job.lock]) <> '{}' then
    raise exception 'an open transaction holds the lock of the job' using errcode = 'lock_not_available', hint = 'Try again.';
  end if;
  v_status := procrastinate._put_back(
    job_id, due, 1, 0, new_rank, new_queue, new_lock, 'retried', null, at, clock_timestamp() + interval '100 milliseconds');
  if v_status is null then
    raise exception 'an open transaction defers a job with the same queueing lock' using errcode = 'lock_not_available',
      hint = 'Try again.';
  elsif v_status <> 'todo' then
    perform procrastinate._raise_waiting(v_job.queueing_lock);
  end if;
  -- taken away, not ended by its worker: what that worker still says is stale
  update procrastinate.job as j set token = null, budget_from = j.attempts where j.id = job_id;
  if v_job.lock is not null then
    perform procrastinate._pass_on(array[v_job.lock], array[null::int], array[null::bigint], false, null);
  end if;
  perform procrastinate._wake(array[coalesce(new_queue, v_job.queue)]);
  return true;
end $$;
comment on function procrastinate._retry_running(bigint, timestamptz, int, text, text, timestamptz) is
'Take a running job from its worker and put it back; false when the job is not in the queue.';

create or replace function procrastinate._raise_waiting(queueing_lock text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'job % with the same queueing lock is waiting',
    (select j.id from procrastinate.job as j where j.queueing_lock = _raise_waiting.queueing_lock and j.state <> 'x')
    using errcode = 'unique_violation', constraint = 'jobs_queueing_lock', schema = 'procrastinate', table = 'job',
          hint = 'Wait until that job has started, or cancel it.';
end $$;
comment on function procrastinate._raise_waiting(text) is 'Raise 23505 with constraint jobs_queueing_lock, naming the job that waits.';
