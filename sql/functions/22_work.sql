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
  v_now timestamptz;
  v_hooks text[];
  v_ids bigint[] := '{}';
  v_lost bigint[];
  f record;
begin
  capacity := least(greatest(capacity, 0), 1000000);
  extra := least(greatest(extra, 0), 1000000);
  select * into v_worker from procrastinate._fetching(worker_id);
  if outcomes <> '[]' then
    select s.outcomes, s.verdicts into outcomes, verdicts from procrastinate._sift(succeeded, tokens, outcomes) as s;
  end if;
  if cardinality(succeeded) > 0 or outcomes <> '[]' then
    select * into f from procrastinate._finish(
      succeeded, tokens, outcomes, keep, capacity > 0, v_worker.queues);
    verdicts := coalesce(verdicts || f.verdicts, verdicts, f.verdicts);
  else
    select null::bigint[] as handed, null::int[] as handed_rank, null::text[] as handed_lock into f;
  end if;
  -- read after the finish: under a lock, one job's end is no later than the next one's start
  select clock_timestamp() + c.clock_offset, c.sql_hooks into v_now, v_hooks from procrastinate.config as c;
  scan_next := scan_from;
  if capacity + extra > 0 then
    select k.ids, k.scan_next into v_ids, scan_next
      from procrastinate._fetch(
        v_worker.queues, capacity, extra, scan_from, f.handed, f.handed_rank, f.handed_lock, v_now) as k;
    if v_ids <> '{}' then
      return query select c.*, null::jsonb, null::bigint[] from procrastinate._claim(worker_id, v_ids, v_now) as c;
      if 'started' = any (v_hooks) then
        perform procrastinate._call_hooks('started', v_ids);
      end if;
    end if;
    if v_worker.idle_at < v_now - interval '1 second' and cardinality(v_ids) >= capacity + extra then
      -- a tick that holds the row may wait for a lock of this fetch: it shall not be waited for
      update procrastinate.worker as w set idle_at = null
       where w.id = any (array(select k.id from procrastinate.worker as k where k.id = worker_id for update skip locked));
    end if;
  end if;
  v_lost := array(select h from unnest(f.handed) as h where h <> all (v_ids));
  if v_lost <> '{}' then
    perform procrastinate._surface(v_lost, '{}');
  end if;
  id := null;
  return next;
end $$;
comment on function procrastinate.work_v1(bigint, bigint[], bigint[], jsonb, boolean, int, int, bigint[]) is
'Finish what ended and fetch what fits, in one round trip. As finish_v1 and fetch_v1; extra: jobs beyond the free slots, only '
'such without locks. The last row has no id: it carries the verdicts other than plain ok, and scan_next, which the next call '
'passes as scan_from (null at first). Raises JQ004, JQ006.';
