create or replace function procrastinate.finish_job_v1(job_id bigint, status text, delete boolean default false) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_job procrastinate.job;
begin
  if status is null or status not in ('succeeded', 'failed', 'aborted') then
    raise exception 'a run does not end like this' using errcode = '22023', hint = 'Use succeeded, failed or aborted.';
  end if;
  select j.* into v_job from procrastinate.job as j where j.id = job_id for update;
  if v_job.state <> 'x' then
    raise exception 'job % is waiting', job_id using errcode = 'JQ003', detail = 'Its status is todo.',
      hint = 'Cancel it, or wait until it runs.';
  elsif v_job.id is null then
    if exists (select from procrastinate.done as d where d.id = job_id) then
      raise exception 'job % has ended', job_id using errcode = 'JQ003', detail = 'Its status is that of a finished job.',
        hint = 'Retry it to run it again.';
    end if;
    return false;
  end if;
  -- taken away, not ended by its worker: what that worker still says is stale
  v_job.token := null;
  perform procrastinate._end_waiting(v_job, finish_job_v1.status, 1, 0, null, procrastinate.now_());
  if delete then
    delete from procrastinate.done as d where d.id = job_id;
    delete from procrastinate.event as e where e.job_id = finish_job_v1.job_id;
  end if;
  perform procrastinate._freed(v_job.queue, v_job.lock);
  return true;
end $$;
comment on function procrastinate.finish_job_v1(bigint, text, boolean) is
'End a running job without its worker: succeeded, failed or aborted; with delete, forget it then. What its worker says of it later '
'is stale. Returns false when there is no such job. Raises JQ003 for one that does not run, 22023 for another status.';

create or replace function procrastinate.count_jobs_v1(
  by text, queue text default null, task text default null, status text default null, lock text default null
) returns table (
  name text, jobs_count bigint, todo bigint, doing bigint, succeeded bigint, failed bigint, cancelled bigint, aborted bigint
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  if by is null or by not in ('queue', 'task', 'lock') then
    raise exception 'jobs are not counted by this' using errcode = '22023', hint = 'Use queue, task or lock.';
  end if;
  return query
  select case by when 'queue' then j.queue when 'task' then j.task else j.lock end as grouped, count(*),
         count(*) filter (where j.status = 'todo'), count(*) filter (where j.status = 'doing'),
         count(*) filter (where j.status = 'succeeded'), count(*) filter (where j.status = 'failed'),
         count(*) filter (where j.status = 'cancelled'), count(*) filter (where j.status = 'aborted')
    from procrastinate.jobs as j
   where (count_jobs_v1.queue is null or j.queue = count_jobs_v1.queue)
     and (count_jobs_v1.task is null or j.task = count_jobs_v1.task)
     and (count_jobs_v1.status is null or j.status = count_jobs_v1.status)
     and (count_jobs_v1.lock is null or j.lock = count_jobs_v1.lock)
     and (by <> 'lock' or j.lock is not null)
   group by grouped
   order by grouped;
end $$;
comment on function procrastinate.count_jobs_v1(text, text, text, text, text) is
'Count jobs by queue, task or lock, in all and by status; reads every job that matches. Raises 22023 for another word.';

create or replace function procrastinate.stalled_jobs_v1(silent_for interval, queue text default null, task text default null)
returns table (id bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select j.id
    from procrastinate.job as j
    left join procrastinate.worker as w on w.id = j.worker_id
   where j.state = 'x' and (w.id is null or w.heartbeat_at < (select procrastinate.now_() - silent_for))
     and (stalled_jobs_v1.queue is null or j.queue = stalled_jobs_v1.queue)
     and (stalled_jobs_v1.task is null or j.task = stalled_jobs_v1.task)
   order by j.id
$$;
comment on function procrastinate.stalled_jobs_v1(interval, text, text) is
'List the running jobs whose worker has given no heartbeat for this long. The tick rescues them; this only looks.';
