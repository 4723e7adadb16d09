create or replace function procrastinate.cancel(
  job_id bigint, abort boolean default false, delete boolean default false, options jsonb default '{}'
) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  set debug_print_plan = off set client_min_messages = notice as $$
declare
  v_job procrastinate.job;
  v_now timestamptz := procrastinate.now_();
begin
  perform procrastinate._check_keys('options', options, '{}');
  -- Whose queue is closed to the caller, or who only looks, holds no row: a worker's outcome would be refused meanwhile.
  perform procrastinate._check_queues(array[j.queue]) from procrastinate.job as j where j.id = job_id;
  select j.* into v_job from procrastinate.job as j where j.id = job_id and (abort or j.state <> 'x') for update;
  if v_job.id is null then
    return null;
  end if;
  perform procrastinate._check_queues(array[v_job.queue]);
  if v_job.state = 'x' then
    if not v_job.abort_requested then
      update procrastinate.job as j set abort_requested = true where j.id = job_id;
      insert into procrastinate.event (job_id, worker_id, at, type) values (job_id, v_job.worker_id, v_now, 'abort_requested');
    end if;
    perform procrastinate._notify('a');
    return 'abort_requested';
  end if;
  if delete then
    delete from procrastinate.job as j where j.id = job_id;
    delete from procrastinate.event as e where e.job_id = cancel.job_id;
  else
    v_job.token := -abs(v_job.token);
    v_job.scheduled_at := procrastinate._due_before(v_job.scheduled_at, v_job.error);
    v_job.error := nullif(v_job.error - 'due', '{}');
    perform procrastinate._end_waiting(v_job, 'cancelled', 0, 0, v_job.error, v_now);
    perform procrastinate._ended(array[job_id]);
  end if;
  perform procrastinate._call_up(v_job.lock) where v_job.lock is not null and v_job.state <> 'w';
  return case when delete then 'deleted' else 'cancelled' end;
end $$;
comment on function procrastinate.cancel(bigint, boolean, boolean, jsonb) is
'Cancel a waiting job (or delete it), and with abort ask a running one to stop. Returns cancelled, deleted, abort_requested, or '
'null when there is nothing to do: no such job, one that has ended, or a running one without abort. Raises JQ024.';
