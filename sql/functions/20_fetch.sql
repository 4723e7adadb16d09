create or replace function procrastinate.fetch_v1(worker_id bigint, capacity int default 1)
returns table (
  id bigint, token bigint, task text, queue text, args text, headers text, attempts int, priority int, lock text,
  queueing_lock text, scheduled_at timestamptz, deferred_at timestamptz, abort_requested boolean
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query
    select w.id, w.token, w.task, w.queue, w.args, w.headers, w.attempts, w.priority, w.lock, w.queueing_lock, w.scheduled_at,
           w.deferred_at, w.abort_requested
      from procrastinate.work_v1(worker_id, '{}', '{}', '[]', true, capacity, 0, null) as w
     where w.id is not null;
end $$;
comment on function procrastinate.fetch_v1(bigint, int) is
'Claim up to capacity due jobs of the worker''s queues: priority descending, then id ascending, none whose lock is taken. '
'Each comes with the token that its outcome must carry. Raises JQ004 (not registered), JQ006 (not READ COMMITTED).';

create or replace function procrastinate._registered(
  worker_id bigint, out queues text[], out idle_at timestamptz, out clock_offset interval, out sql_hooks text[]
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  -- "look again in a new statement" sees nothing new under a transaction-wide snapshot
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'jobs cannot be fetched in a % transaction', current_setting('transaction_isolation')
      using errcode = 'JQ006', hint = 'Fetch in autocommit, at READ COMMITTED.';
  end if;
  select w.queues, w.idle_at, c.clock_offset, c.sql_hooks into queues, idle_at, clock_offset, sql_hooks
    from procrastinate.worker as w cross join procrastinate.config as c where w.id = worker_id;
  if not found then
    raise exception 'worker % is not registered', worker_id using errcode = 'JQ004',
      detail = 'It never was, has unregistered, or gave no heartbeat for too long and its jobs were given away.',
      hint = 'Call procrastinate.register_worker_v1 and go on under the new id.';
  end if;
end $$;
comment on function procrastinate._registered(bigint) is
'Return what a fetch must know of its worker, and of the settings. Raises JQ004, JQ006.';

create or replace function procrastinate._fetch(
  queues text[], capacity int, extra int, scan_from bigint[], handed bigint[], handed_rank int[], handed_lock text[],
  at timestamptz, out ids bigint[], out scan_next bigint[]
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_start timestamptz := clock_timestamp();
  v_ms bigint := extract(epoch from v_start) * 1000;
  v_want int := capacity + extra;
  v_size int := v_want;
  v_lanes bigint[];
  v_rescan boolean;
  v_seen bigint[] := '{}';
  v_took float8;
  v_more boolean;
  v_from_rank int;
  v_from_id bigint;
  v_to_rank int := -2147483648;
  v_to_id bigint := 0;
  v_left_rank int;
  c record;
  l record;
  s record;
begin
  ids := '{}';
  scan_next := procrastinate._look_at_due(coalesce(scan_from, array_fill(0::bigint, '{11}')), v_ms, at);
  v_rescan := scan_next[1] > 0 and scan_next[1] not between v_ms + 1 and v_ms + 60000;
  if v_rescan then
    select r.scan, r.lanes into scan_next, v_lanes from procrastinate._rescan(scan_next, v_ms) as r;
  else
    v_lanes := case when scan_next[1] > 0 then procrastinate._lanes(scan_next) else '{}' end;
  end if;
  for v_round in 1 .. 20 loop
    v_start := clock_timestamp();
    v_from_rank := v_to_rank;
    v_from_id := v_to_id;
    c := procrastinate._candidates(queues, v_lanes, v_from_rank, v_from_id, v_size);
    v_more := c.scanned >= v_size;
    v_to_rank := coalesce(c.to_rank, v_to_rank);
    v_to_id := coalesce(c.to_id, v_to_id);
    if v_round = 1 then
      v_took := extract(epoch from clock_timestamp() - v_start) * 1e6 / (100 + v_size);
    end if;
    if handed <> '{}' then
      -- only as far as this round has come: better ones may follow
      select * into c from procrastinate._merge_handed(
        c.id, c.rank, c.lock, c.solo, c.q, handed, handed_rank, handed_lock, v_from_rank, v_from_id,
        case when v_more then v_to_rank end, v_to_id);
    end if;
    exit when c.id is null and not v_more;
    s := c;
    if array_remove(c.lock, null) <> '{}' then
      c := procrastinate._settle(queues, c.id, c.rank, c.lock, c.solo, ids, handed, handed_lock);
      ids := ids || procrastinate._cut(c.id, c.solo, capacity - cardinality(ids), v_want - cardinality(ids));
    elsif extra > 0 or cardinality(c.id) > v_want - cardinality(ids) then
      ids := ids || procrastinate._cut(c.id, c.solo, capacity - cardinality(ids), v_want - cardinality(ids));
    else
      ids := ids || c.id;
    end if;
    if v_took > 3 or v_lanes <> '{}' then
      select k.* into l from procrastinate._lanes_of(s.q, s.rank, s.id, ids) as k;
      v_seen := procrastinate._widen_lanes(v_seen, l.q, l.rank, l.id);
      v_left_rank := coalesce(v_left_rank, l.left_rank);
    end if;
    exit when cardinality(ids) >= v_want or not v_more;
    -- what was scanned is mostly blocked: go on in larger steps, but others pass over what this holds and does not take
    v_size := greatest(v_want - cardinality(ids), least(v_size * 2, 500));
  end loop;
  -- more are due, and there is room for them: look again with the next call
  if scan_next[3] = 0 and cardinality(ids) < v_want then
    scan_next[2] := 0;
  end if;
  scan_next := procrastinate._scan_next(
    scan_next, v_lanes, v_rescan, v_seen, v_took, coalesce(v_left_rank, case when v_more then v_to_rank end), v_ms);
end $$;
comment on function procrastinate._fetch(text[], int, int, bigint[], bigint[], int[], text[], timestamptz) is
'Choose the jobs of the next claim and hold their rows: the best due ones of the queues, with those that a finish of '
'the same call hands over merged in by order. Jobs beyond capacity (extra) have no lock of either kind.';

create or replace function procrastinate._candidates(
  queues text[], lanes bigint[], after_rank int, after_id bigint, size int,
  out id bigint[], out rank int[], out lock text[], out solo boolean[], out q int[],
  out scanned int, out to_rank int, out to_id bigint
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_lo_rank int := after_rank;
  v_lo_id bigint := after_id;
  v_hi_rank int;
  v_hi_id bigint;
  v_lane int := 1;
  v_need int := size;
  r record;
begin
  if queues = '{}' then
    return;
  elsif cardinality(queues) > 1 then
    select k.* into id, rank, lock, solo, q, scanned, to_rank, to_id
      from procrastinate._candidates_of_several(queues, lanes, after_rank, after_id, size) as k;
    return;
  end if;
  -- a lane ends one range and starts the next
  loop
    v_hi_rank := coalesce(lanes[v_lane + 1], 2147483647);
    v_hi_id := case when lanes[v_lane] is null then 9223372036854775807 else 0 end;
    if queues is null then
      select array_agg(s.id) as id, array_agg(s.rank) as rank, array_agg(s.lock) as lock, array_agg(s.solo) as solo into r
        from (
          select j.id, j.rank, j.lock, j.lock is null and j.queueing_lock is null as solo
            from procrastinate.job as j
           where j.state = 'r' and (j.rank, j.id) > (v_lo_rank, v_lo_id) and (j.rank, j.id) < (v_hi_rank, v_hi_id)
           order by j.rank, j.id limit v_need for update skip locked) as s;
    -- Written so that only the index that begins with the queue gives the order: with "queue =", the planner may
    -- read all queues' jobs in theirs, and drop the others.
    else
      select array_agg(s.id) as id, array_agg(s.rank) as rank, array_agg(s.lock) as lock, array_agg(s.solo) as solo into r
        from (
          select j.id, j.rank, j.lock, j.lock is null and j.queueing_lock is null as solo
            from procrastinate.job as j
           where j.state = 'r' and (j.queue, j.rank, j.id) > (queues[1], v_lo_rank, v_lo_id)
             and (j.queue, j.rank, j.id) < (queues[1], v_hi_rank, v_hi_id)
           order by j.queue, j.rank, j.id limit v_need for update skip locked) as s;
    end if;
    if r.id is not null then
      id := id || r.id;
      rank := rank || r.rank;
      lock := lock || r.lock;
      solo := solo || r.solo;
      v_need := v_need - cardinality(r.id);
    end if;
    exit when v_need <= 0 or lanes[v_lane] is null;
    v_lo_rank := lanes[v_lane + 1];
    v_lo_id := lanes[v_lane + 2];
    if (v_lo_rank, v_lo_id) < (after_rank, after_id) then
      v_lo_rank := after_rank;
      v_lo_id := after_id;
    end if;
    v_lane := v_lane + 3;
  end loop;
  scanned := coalesce(cardinality(id), 0);
  q := array_fill(case when queues is null then 0 else 1 end, array[scanned]);
  to_rank := rank[scanned];
  to_id := id[scanned];
end $$;
comment on function procrastinate._candidates(text[], bigint[], int, bigint, int) is
'Hold the best candidates after a place in the order. Lanes are triples (number of the queue in the list, rank, id), '
'sorted: in that queue and rank, ids up to that one were seen dead or gone a moment ago and are not scanned again. scanned: how '
'many were found, with those that somebody else holds; the last of them stands at to_rank, to_id.';

create or replace function procrastinate._candidates_of_several(
  queues text[], lanes bigint[], after_rank int, after_id bigint, size int,
  out id bigint[], out rank int[], out lock text[], out solo boolean[], out q int[],
  out scanned int, out to_rank int, out to_id bigint
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_limit int := least(size, 4 * (size::bigint / cardinality(queues) + 1));
  v_size int[] := array[cardinality(queues)];
  v_queue text[] := queues;
  v_rank int[] := array_fill(after_rank, v_size);
  v_id bigint[] := array_fill(after_id, v_size);
  v_to_rank int[] := array_fill(2147483647, v_size);
  v_to_id bigint[] := array_fill(9223372036854775807, v_size);
  v_found tid[];
  v_of int[];
begin
  if lanes <> '{}' then
    select array_agg(p.queue), array_agg(p.rank), array_agg(p.id), array_agg(p.to_rank), array_agg(p.to_id)
      into v_queue, v_rank, v_id, v_to_rank, v_to_id
      from procrastinate._parts(queues, lanes, after_rank, after_id) as p;
  end if;
  -- A little of each part has the best of all in it, unless all that was asked for of one is among them: it may have more.
  loop
    select array_agg(f.tid), array_agg(f.part), array_agg(f.rank), array_agg(f.id) into v_found, v_of, rank, id
      from (
        select s.tid, s.rank, s.id, p.part
          from unnest(v_queue, v_rank, v_id, v_to_rank, v_to_id) with ordinality as p (queue, rank, id, to_rank, to_id, part)
         cross join lateral (
           select j.ctid as tid, j.rank, j.id
             from procrastinate.job as j
            where j.state = 'r' and (j.queue, j.rank, j.id) > (p.queue, p.rank, p.id)
              and (j.queue, j.rank, j.id) < (p.queue, p.to_rank, p.to_id)
            order by j.queue, j.rank, j.id limit v_limit) as s
         order by s.rank, s.id limit size) as f;
    exit when v_limit >= size;
    exit when not exists (select from unnest(v_of) as u (part) group by u.part having count(*) = v_limit);
    v_limit := size;
  end loop;
  scanned := coalesce(cardinality(id), 0);
  to_rank := rank[scanned];
  to_id := id[scanned];
  -- most rows were not among the best: they are held only now that it is known which are
  select array_agg(s.id), array_agg(s.rank), array_agg(s.lock), array_agg(s.solo), array_agg(s.q)
    into id, rank, lock, solo, q
    from (
      select h.id, h.rank, h.lock, h.solo, array_position(queues, h.queue) as q
        from (
          select j.id, j.rank, j.queue, j.lock, j.lock is null and j.queueing_lock is null as solo, j.state
            from procrastinate.job as j
           where j.ctid = any (v_found) offset 0 for update skip locked) as h
       where h.state = 'r' and h.queue = any (queues)
       order by h.rank, h.id) as s;
end $$;
comment on function procrastinate._candidates_of_several(text[], bigint[], int, bigint, int) is
'Do what _candidates does for a list of two queues and more.';

create or replace function procrastinate._parts(
  queues text[], lanes bigint[], after_rank int default -2147483648, after_id bigint default 0
) returns table (queue text, rank int, id bigint, to_rank int, to_id bigint)
language sql immutable parallel safe begin atomic
  select queues[q], case when before then after_rank else rank end, case when before then after_id else id end,
         lead(rank, 1, 2147483647) over w, case when lead(rank) over w is null then 9223372036854775807 else 0 end
    from (
      select n as q, -2147483648 as rank, 0 as id, true as before
        from generate_series(least(coalesce(cardinality(queues), 0), 1), coalesce(cardinality(queues), 0)) as n
      union all
      select lanes[n]::int, lanes[n + 1]::int, lanes[n + 2], (lanes[n + 1], lanes[n + 2]) < (after_rank, after_id)
        from generate_series(1, cardinality(lanes), 3) as n) as l
  window w as (partition by q order by rank);
end;
comment on function procrastinate._parts(text[], bigint[], int, bigint) is
'Return what lanes do not skip of each queue, or of all, after a place: parts, each from after one place to before another.';

create or replace function procrastinate._merge_handed(
  inout id bigint[], inout rank int[], inout lock text[], inout solo boolean[], inout q int[],
  handed bigint[], handed_rank int[], handed_lock text[], from_rank int, from_id bigint, to_rank int, to_id bigint
)
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select array_agg(m.id), array_agg(m.rank), array_agg(m.lock), array_agg(m.solo), array_agg(m.q)
    from (
      select u.id, u.rank, u.lock, u.solo, u.q
        from unnest(id, rank, lock, solo, q) as u (id, rank, lock, solo, q)
       where u.id <> all (handed)
      union all
      select h.id, h.rank, h.lock, false, null from unnest(handed, handed_rank, handed_lock) as h (id, rank, lock)
       where (h.rank, h.id) > (from_rank, from_id) and (to_rank is null or (h.rank, h.id) <= (to_rank, to_id))
      order by 2, 1
    ) as m
$$;
comment on function procrastinate._merge_handed(
  bigint[], int[], text[], boolean[], int[], bigint[], int[], text[], int, bigint, int, bigint) is
'Put those jobs that a finish hands over and that stand between two places among the candidates, in order.';

create or replace function procrastinate._cut(id bigint[], solo boolean[], capacity int, want int) returns bigint[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_taken bigint[];
begin
  v_taken := array(
    select u.id from unnest(id, solo) with ordinality as u (id, solo, n)
     where u.n <= capacity or u.solo order by u.n limit greatest(want, 0));
  -- a job chosen from behind its lock and not taken after all must not be lost from sight
  if cardinality(v_taken) < cardinality(id) then
    update procrastinate.job as j set state = procrastinate._ready()
     where j.id = any (array(select u.id from unnest(_cut.id) as u (id) where u.id <> all (v_taken))) and j.state in ('w', 'b');
  end if;
  return v_taken;
end $$;
comment on function procrastinate._cut(bigint[], boolean[], int, int) is
'Keep as many as there is room for; those beyond capacity only if they have no lock of either kind.';

create or replace function procrastinate._look_at_due(scan_from bigint[], ms bigint, at timestamptz) returns bigint[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  c_most constant int := 250;
  v_full boolean := scan_from[3] not between ms + 1 and ms + 900;
  v_from timestamptz := '-infinity';
  v_count int;
begin
  if scan_from[2] between ms - 99 and ms then
    return scan_from;
  end if;
  -- the head of the index is full of dead rows under a held horizon: mostly start where the last look ended
  if not v_full then
    v_from := at - make_interval(secs => (ms - scan_from[2]) / 1000.0 + 0.05);
  end if;
  update procrastinate.job as j
     set state = procrastinate._ready(), scheduled_at = procrastinate._due_before(j.scheduled_at, j.error),
         error = nullif(j.error - 'due', '{}')
   where j.id = any (array(
     select d.id from procrastinate.job as d
      where d.state in ('s', 'h') and d.scheduled_at > v_from and d.scheduled_at <= at
      order by d.scheduled_at, d.id limit c_most for update skip locked));
  get diagnostics v_count = row_count;
  scan_from[2] := ms;
  if v_count = c_most then
    scan_from[3] := 0;
  elsif v_full then
    scan_from[3] := ms + 900;
  end if;
  return scan_from;
end $$;
comment on function procrastinate._look_at_due(bigint[], bigint, timestamptz) is
'Make candidates of jobs whose time has come, of any queue: every 100 ms those since the last look, every 900 ms all; no more than '
'250, so that many which come due at once do not stop those that are ready.';

create or replace function procrastinate._lanes_of(
  inout q int[], inout rank int[], inout id bigint[], taken bigint[], out left_rank int
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_left bigint[];
begin
  -- what was not taken and does not wait behind others is still to be fetched: the lane ends before it
  v_left := array(
    select h.id from (
      select j.id, j.state from procrastinate.job as j
       where j.id = any (array(select u.id from unnest(_lanes_of.id) as u (id) where u.id <> all (taken))) offset 0) as h
     where h.state = 'r');
  select array_agg(g.q), array_agg(g.rank), array_agg(coalesce(g.id_left - 1, g.id)), min(g.rank) filter (where g.id_left is not null)
    into q, rank, id, left_rank
    from (
      select u.q, u.rank, max(u.id) as id, min(u.id) filter (where u.id = any (v_left)) as id_left
        from unnest(_lanes_of.q, _lanes_of.rank, _lanes_of.id) as u (q, rank, id)
       where u.q is not null
       group by u.q, u.rank) as g;
end $$;
comment on function procrastinate._lanes_of(int[], int[], bigint[], bigint[]) is
'Tell of scanned candidates how far they may be skipped next time, by queue and rank; and the best rank in which some were left.';

create or replace function procrastinate._widen_lanes(lanes bigint[], q int[], rank int[], id bigint[]) returns bigint[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(v.value order by l.q, l.rank, v.part), '{}')
    from (
      select m.q, m.rank, max(m.id) as id
        from (
          select u.q, u.rank, u.id from unnest(q, rank, id) as u (q, rank, id) where u.q is not null
          union all
          select lanes[3 * n - 2], lanes[3 * n - 1], lanes[3 * n] from generate_series(1, cardinality(lanes) / 3) as n
        ) as m
       group by m.q, m.rank order by m.q, m.rank limit 48
    ) as l
   cross join lateral (values (1, l.q), (2, l.rank), (3, l.id)) as v (part, value)
$$;
comment on function procrastinate._widen_lanes(bigint[], int[], int[], bigint[]) is
'Move each lane on to the greatest id just seen in it; at most 48 are kept.';

-- Dead rows before the first live one, as under a held horizon, make a scan from the head slow: lanes skip them. What became
-- ready behind a lane is still found. Every 900 ms a scan starts where the lanes ended two such scans before: ids given
-- since then lie beyond, whenever they are committed. Anything older is either a job that was there already and has
-- become ready, which is counted in returned_seq, or was written or held by a transaction that was at work during both scans
-- before: after each of the two, everything is scanned. And every minute, in case a statement was stopped between
-- taking its id and its transaction's number.
-- A scan is an array: 1 the time of the next such scan, 0 while no lanes are in use; 2 and 3 the last look at due jobs and
-- the next full one; 4 slow scans so far; 5 and 6 returned_seq at the last two; 7 the time of the next full one; 8 to 11 how
-- long these parts are: transactions at work then, those at work at the scan before as well, the lanes of then and of
-- the scan before; then those parts; then the lanes. Times in ms; one too far ahead is from before the clock was put back.
create or replace function procrastinate._part(scan bigint[], n int) returns bigint[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_from int := 12;
begin
  for i in 8 .. 6 + n loop
    v_from := v_from + scan[i];
  end loop;
  return scan[v_from:v_from + scan[7 + n] - 1];
end $$;
comment on function procrastinate._part(bigint[], int) is 'Return one of the four parts of a scan.';

create or replace function procrastinate._lanes(scan bigint[]) returns bigint[]
language sql immutable parallel safe begin atomic
  select scan[12 + scan[8] + scan[9] + scan[10] + scan[11]:];
end;
comment on function procrastinate._lanes(bigint[]) is 'Return the lanes of a scan.';

create or replace function procrastinate._rescan(inout scan bigint[], ms bigint, out lanes bigint[])
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_returned bigint := (select case when s.is_called then s.last_value else 0 end from procrastinate.returned_seq as s);
  v_at_work bigint[] := array(select x::text::bigint from pg_snapshot_xip(pg_current_snapshot()) as x limit 100);
  v_long bigint[] := array(
    select x from unnest(procrastinate._part(scan, 1)) as x where x = any (v_at_work));
  v_lanes bigint[] := procrastinate._lanes(scan);
  v_before bigint[] := procrastinate._part(scan, 3);
  v_full boolean := scan[6] <> v_returned or scan[7] not between ms + 1 and ms + 60000 or not procrastinate._part(scan, 2) <@ v_at_work
                    or cardinality(v_at_work) >= 100;
begin
  lanes := case when v_full then '{}' else procrastinate._part(scan, 4) end;
  scan := array[ms + 900, scan[2], scan[3], scan[4], v_returned, scan[5], case when v_full then ms + 60000 else scan[7] end,
                cardinality(v_at_work), cardinality(v_long), cardinality(v_lanes), cardinality(v_before)]
    || v_at_work || v_long || v_lanes || v_before || v_lanes;
end $$;
comment on function procrastinate._rescan(bigint[], bigint) is
'Decide how far back a scan must start that looks for what has become ready behind the lanes: no lanes mean from the head.';

create or replace function procrastinate._scan_next(
  scan bigint[], lanes bigint[], rescan boolean, seen bigint[], took float8, reached int, ms bigint
) returns bigint[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_slow boolean := took > 10;
  v_old bigint[] := procrastinate._lanes(scan);
  v_lanes bigint[];
  v_then bigint[];
  v_before bigint[];
begin
  if scan[1] > 0 and not rescan then
    return scan[1:11 + scan[8] + scan[9] + scan[10] + scan[11]] || procrastinate._widen_lanes(lanes || seen, '{}', '{}', '{}');
  elsif lanes = '{}' and took <= 3 then
    return array[0, scan[2], scan[3], 0, 0, 0, 0, 0, 0, 0, 0];
  end if;
  -- This scan has taken all that is better than the rank it reached: there the old lanes still hold. From that rank on
  -- it may have left lower ids than were seen before, so those lanes start again from what it took.
  v_lanes := procrastinate._widen_lanes(procrastinate._lanes_kept(v_old, seen, reached) || seen, '{}', '{}', '{}');
  if scan[1] > 0 then
    v_then := procrastinate._lanes_both(procrastinate._part(scan, 3), v_lanes);
    v_before := procrastinate._lanes_both(procrastinate._part(scan, 4), v_lanes);
    return scan[1:9] || array[cardinality(v_then), cardinality(v_before)]::bigint[]
      || procrastinate._part(scan, 1) || procrastinate._part(scan, 2) || v_then || v_before || v_lanes;
  end if;
  -- Lanes are kept from the first sign of dead rows, so that none is missing later, but used only after three slow scans:
  -- one may be a busy machine. The first two scans that look behind them find no older lanes, and start at the head.
  return array[case when v_slow and scan[4] > 1 then ms + 900 else 0 end, scan[2], scan[3],
               case when v_slow then least(scan[4] + 1, 3) else 0 end, 0, 0, 0, 0, 0, 0, 0] || v_lanes;
end $$;
comment on function procrastinate._scan_next(bigint[], bigint[], boolean, bigint[], float8, int, bigint) is
'Decide where the next fetch starts, from how long this scan took (µs, per row and 100 more). A new or better priority lies between '
'the lanes and is seen at once.';

create or replace function procrastinate._lanes_kept(lanes bigint[], seen bigint[], reached int) returns bigint[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(l.value order by k.n, l.part), '{}')
    from generate_series(1, cardinality(lanes), 3) as k (n)
   cross join lateral (values (1, lanes[k.n]), (2, lanes[k.n + 1]), (3, lanes[k.n + 2])) as l (part, value)
   where reached is null or lanes[k.n + 1] < reached
      or lanes[k.n + 1] > reached and not exists (
           select from generate_series(1, cardinality(seen), 3) as s (n)
            where seen[s.n] = lanes[k.n] and seen[s.n + 1] = lanes[k.n + 1])
$$;
comment on function procrastinate._lanes_kept(bigint[], bigint[], int) is 'Return the lanes that still hold after a scan as far as a rank.';

create or replace function procrastinate._lanes_both(a bigint[], b bigint[]) returns bigint[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(v.value order by l.n, v.part), '{}')
    from (
      select i.n, a[i.n] as q, a[i.n + 1] as rank, least(a[i.n + 2], b[k.n + 2]) as id
        from generate_series(1, cardinality(a), 3) as i (n)
        join generate_series(1, cardinality(b), 3) as k (n) on (b[k.n], b[k.n + 1]) = (a[i.n], a[i.n + 1])) as l
   cross join lateral (values (1, l.q), (2, l.rank), (3, l.id)) as v (part, value)
$$;
comment on function procrastinate._lanes_both(bigint[], bigint[]) is 'Return the lanes that are in both, each as far as both of them go.';

create or replace function procrastinate._ready() returns "char"
language sql begin atomic
  select case when nextval('procrastinate.returned_seq') > 0 then 'r'::"char" end;
end;
comment on function procrastinate._ready() is
'Return the state of a candidate, for a job that was there already: fetches then know that they must look at old ids again.';

create or replace function procrastinate._any_beyond(queues text[], lanes bigint[]) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if queues is null then
    return exists (
      select from procrastinate._parts(queues, lanes) as p
       cross join lateral (
         select from procrastinate.job as j
          where j.state = 'r' and (j.rank, j.id) > (p.rank, p.id) and (j.rank, j.id) < (p.to_rank, p.to_id) limit 1) as f);
  end if;
  return exists (
    select from procrastinate._parts(queues, lanes) as p
     cross join lateral (
       select from procrastinate.job as j
        where j.state = 'r' and (j.queue, j.rank, j.id) > (p.queue, p.rank, p.id)
          and (j.queue, j.rank, j.id) < (p.queue, p.to_rank, p.to_id) limit 1) as f);
end $$;
comment on function procrastinate._any_beyond(text[], bigint[]) is 'Tell whether there is a candidate that these lanes do not skip.';
