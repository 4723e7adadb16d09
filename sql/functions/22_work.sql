create or replace function procrastinate.work_v1(
  worker_id bigint, succeeded bigint[], tokens bigint[], outcomes jsonb, keep boolean, capacity int, extra int,
  scan_from bigint[]
) returns table (
  id bigint, token bigint, task text, queue text, args text, headers text, attempts int, priority int, lock text,
  queueing_lock text, scheduled_at timestamptz, deferred_at timestamptz, abort_requested boolean, verdicts jsonb,
  scan_next bigint[]
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
  set jit = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  v_worker record;
  v_handed bigint[];
  v_handed_rank int[];
  v_handed_lock text[];
  v_now timestamptz;
  v_ids bigint[] := '{}';
  r record;
begin
  -- Functions are called in assignments: to select from them would start an executor for each.
  capacity := least(greatest(capacity, 0), 1000000);
  extra := least(greatest(extra, 0), 1000000);
  v_worker := procrastinate._registered(worker_id);
  if outcomes <> '[]' then
    r := procrastinate._sift(succeeded, tokens, outcomes);
    outcomes := r.outcomes;
    verdicts := r.verdicts;
  end if;
  if cardinality(succeeded) > 0 or outcomes <> '[]' then
    r := procrastinate._finish(
      succeeded, tokens, outcomes, keep, capacity > 0, v_worker.queues, v_worker.clock_offset, v_worker.sql_hooks);
    v_handed := r.handed;
    v_handed_rank := r.handed_rank;
    v_handed_lock := r.handed_lock;
    verdicts := coalesce(verdicts || r.verdicts, verdicts, r.verdicts);
  end if;
  -- read after the finish: under a lock, one job's end is no later than the next one's start
  v_now := clock_timestamp() + v_worker.clock_offset;
  scan_next := scan_from;
  if capacity + extra > 0 then
    r := procrastinate._fetch(
      v_worker.queues, capacity, extra, scan_from, v_handed, v_handed_rank, v_handed_lock, v_now);
    v_ids := r.ids;
    scan_next := r.scan_next;
    if v_ids <> '{}' then
      -- the rows are held: each is given to the worker under a new token
      return query
        with c as (
          update procrastinate.job as j
             set state = 'x', token = nextval('procrastinate.token_seq'), worker_id = work_v1.worker_id, started_at = v_now
           where j.id = any (v_ids)
          returning j.*)
        select c.id, c.token, c.task, c.queue, c.args::text, c.headers::text, c.attempts, -c.rank, c.lock, c.queueing_lock,
               c.scheduled_at, c.deferred_at, c.abort_requested, null::jsonb, null::bigint[]
          from c order by c.rank, c.id;
      if 'started' = any (v_worker.sql_hooks) then
        perform procrastinate._call_hooks('started', v_ids);
      end if;
    end if;
    if v_worker.idle_at < v_now - interval '1 second' and cardinality(v_ids) >= capacity + extra then
      -- a tick that holds the row may wait for a lock of this fetch: it shall not be waited for
      update procrastinate.worker as w set idle_at = null
       where w.id = any (array(select k.id from procrastinate.worker as k where k.id = worker_id for update skip locked));
    end if;
  end if;
  if v_handed is not null and not v_handed <@ v_ids then
    perform procrastinate._surface(v_handed, v_ids);
  end if;
  id := null;
  return next;
end $$;
comment on function procrastinate.work_v1(bigint, bigint[], bigint[], jsonb, boolean, int, int, bigint[]) is
'Finish what ended and fetch what fits, in one round trip. As finish_v1 and fetch_v1; extra: jobs beyond the free slots, only '
'such without locks. The last row has no id: it carries the verdicts other than plain ok, and scan_next, which the next call '
'passes as scan_from (null at first). Raises JQ004, JQ006.';
