create or replace function procrastinate_import._read(source text, ids bigint[], force boolean, at timestamptz)
returns table (
  old_id bigint, status text, waits boolean, problem text, task text, queue text, priority int, lock text, queueing_lock text,
  args jsonb, attempts int, scheduled_at timestamptz, deferred_at timestamptz, started_at timestamptz, finished_at timestamptz
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_max_bytes int := (select c.max_args_bytes from procrastinate.config as c);
  v_living bigint[] := array(select l.worker_id from procrastinate_import._living(clock_timestamp()) as l);
begin
  return query
    select j.id, j.status::text, s.waits,
           case
             when s.runs and not force then 'it runs, or did when its worker died'
             when s.runs and j.worker_id = any (v_living) then format('it runs under worker %s, which is alive', j.worker_id)
             when s.runs and j.abort_requested then 'it was to be aborted when its worker died'
             when m.new_id is not null then format('it was moved before, as job %s, and waits again', m.new_id)
             when s.waits and procrastinate_import._queueing_lock_taken(j.id, s.runs, j.queueing_lock)
               then 'another job with its queueing lock waits'
             else procrastinate_import._refusal(
               j.task_name, j.queue_name, j.priority, j.lock, j.queueing_lock, j.scheduled_at, j.args, v_max_bytes)
           end,
           j.task_name::text, j.queue_name::text, j.priority, j.lock, j.queueing_lock, j.args,
           -- a run that was lost counts
           j.attempts + s.runs::int, j.scheduled_at, coalesce(e.deferred_at, e.latest_at, at),
           e.started_at, coalesce(e.ended_at, e.latest_at, at)
      from pg_temp.import_jobs as j
     cross join lateral (
       select j.status::text in ('doing', 'aborting') as runs, j.status::text in ('todo', 'doing', 'aborting') as waits) as s
      left join procrastinate_import.moved as m on m.source = _read.source and m.old_id = j.id
     cross join lateral (
       select min(v.at) filter (where v.type::text = 'deferred') as deferred_at,
              max(v.at) filter (where v.type::text = 'started') as started_at,
              max(v.at) filter (where v.type::text = j.status::text) as ended_at, max(v.at) as latest_at
         from pg_temp.import_events as v
        where v.job_id = j.id and v.type::text <> 'scheduled' and v.at between '2000-01-01' and _read.at) as e
     where j.id = any (ids);
end $$;
comment on function procrastinate_import._read(text, bigint[], boolean, timestamptz) is
'Read jobs of Procrastinate as they would be here. problem is why one cannot be moved, null if it can.';

create or replace function procrastinate_import._queueing_lock_taken(job_id bigint, runs boolean, queueing_lock text)
returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return queueing_lock is not null and (
    exists (
      select from procrastinate.job as j
       where j.queueing_lock = _queueing_lock_taken.queueing_lock and j.state <> 'x')
    -- there, one may run while another one waits: taken over, both would wait
    or runs and exists (
      select from pg_temp.import_jobs as o
       where o.queueing_lock = _queueing_lock_taken.queueing_lock
         and (o.status::text = 'todo' or o.status::text = 'doing' and o.id < job_id)));
end $$;
comment on function procrastinate_import._queueing_lock_taken(bigint, boolean, text) is
'Tell whether another waiting job, here or there, has the queueing lock that this one would need.';

create or replace function procrastinate_import._refusal(
  task text, queue text, priority int, lock text, queueing_lock text, scheduled_at timestamptz, args jsonb, max_bytes int
) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_message text;
  v_detail text;
begin
  if not procrastinate._acceptable(task, queue, priority, lock, queueing_lock, scheduled_at, args, null, max_bytes) then
    perform procrastinate._check_job(task, queue, priority, lock, queueing_lock, scheduled_at, args, null, max_bytes);
  end if;
  return null;
exception when others then
  get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail;
  return format('%s: %s', v_message, rtrim(v_detail, '.'));
end $$;
comment on function procrastinate_import._refusal(text, text, int, text, text, timestamptz, jsonb, int) is
'Say why a defer would refuse a job; null if it would not.';
