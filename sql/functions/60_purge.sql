create or replace function procrastinate.purge(
  older_than interval, statuses text[], queue text default null, max_rows int default 10000
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_before timestamptz := procrastinate.now_() - older_than;
  v_ids bigint[];
begin
  perform procrastinate._check_statuses(statuses);
  with gone as (
    delete from procrastinate.done as d
     where d.ctid = any (array(
       select k.ctid from procrastinate.done as k
        where k.finished_at < v_before and k.status = any (statuses) and (purge.queue is null or k.queue = purge.queue)
        limit max_rows for update skip locked))
    returning d.id)
  select array_agg(g.id) into v_ids from gone as g;
  delete from procrastinate.event as e where e.job_id = any (v_ids);
  return coalesce(cardinality(v_ids), 0);
end $$;
comment on function procrastinate.purge(interval, text[], text, int) is
'Delete jobs of these statuses that ended longer ago than older_than, at most max_rows of them, and return how many. Call it until '
'it returns less than max_rows. Raises 22023 for a status that is not one of a finished job.';

create or replace function procrastinate._check_statuses(statuses text[]) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if statuses is null or not statuses <@ '{succeeded,failed,aborted,cancelled}'::text[] then
    raise exception 'not a status of finished jobs' using errcode = '22023',
      hint = 'Use succeeded, failed, aborted or cancelled.';
  end if;
end $$;
comment on function procrastinate._check_statuses(text[]) is 'Raise 22023 unless all are statuses of finished jobs.';

create or replace function procrastinate._retain(at timestamptz) returns table (kind text, job_id bigint, detail jsonb)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_status text;
  v_age text;
  v_count bigint;
begin
  for v_status, v_age in
    select r.key, r.value from procrastinate.config as c, jsonb_each_text(c.retention) as r where r.value is not null
  loop
    v_count := procrastinate.purge(procrastinate._interval(v_age), array[v_status]);
    if v_count > 0 then
      kind := 'purged';
      detail := jsonb_build_object('status', v_status, 'jobs', v_count);
      return next;
    end if;
  end loop;
end $$;
comment on function procrastinate._retain(timestamptz) is 'Purge what the setting retention says, a batch of each status.';
