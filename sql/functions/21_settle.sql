create or replace function procrastinate._settle(
  queues text[], inout id bigint[], inout rank int[], inout lock text[], inout solo boolean[], taken bigint[],
  handed bigint[], handed_lock text[], out q int[]
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_locks text[];
  v_own text[];
  v_head bigint[];
  v_head_rank int[];
  v_head_lock text[];
  v_held bigint[] := '{}';
  v_mine bigint[];
  v_take bigint[];
  v_best bigint[];
begin
  -- locks this call has already decided about: a handed job is claimed, what else waits under its lock is not
  v_own := coalesce(handed_lock, '{}');
  if taken <> '{}' then
    v_own := v_own || array(select j.lock from procrastinate.job as j where j.id = any (taken) and j.lock is not null);
  end if;
  v_locks := array(
    select l.lock from (
      select distinct u.lock from unnest(lock) as u (lock)
       where u.lock is not null and u.lock <> all (v_own) limit 256) as l
     where pg_try_advisory_xact_lock(procrastinate._lock_key(l.lock)));
  if v_locks <> '{}' then
    -- A new statement: what a finish or another fetch wrote before it gave the advisory lock up is visible now.
    select coalesce(array_agg(h.id) filter (where h.id is not null), '{}'), array_agg(h.head) filter (where h.head is not null),
           array_agg(h.rank) filter (where h.head is not null), array_agg(h.lock) filter (where h.head is not null)
      into v_held, v_head, v_head_rank, v_head_lock
      from (
        select x.id, b.id as head, b.rank, l.lock
          from unnest(v_locks) as l (lock)
          left join lateral (
            select j.id from procrastinate.job as j
             where j.lock = l.lock and j.state = 'x' order by j.token desc limit 1) as x on true
          left join lateral procrastinate._first_in_line(
            case when x.id is null then l.lock end, -2147483648, 0) as b on true
      ) as h;
  end if;
  -- mostly, each candidate with a lock is handed over or the head of a lock that is free
  v_mine := coalesce(v_head, '{}') || coalesce(handed, '{}');
  if v_held = '{}' and v_mine <@ id and cardinality(v_mine) = cardinality(array_remove(lock, null)) then
    return;
  end if;
  -- A job that somebody else holds decides nothing yet.
  v_head := procrastinate._hold(v_head, v_head_rank, v_head_lock);
  v_take := array(
    select j.id from procrastinate.job as j
     where j.id = any (v_head) and j.state <> 'h' and (queues is null or j.queue = any (queues)));
  if not v_head <@ v_take then
    perform procrastinate._surface(v_head, v_take);
  end if;
  v_take := v_take || array(
    select u.id from unnest(id, lock) as u (id, lock) where u.lock is null or u.id = any (coalesce(handed, '{}')));
  -- Where somebody else is deciding, the best of these stays a candidate, and the others need not be looked at each time.
  v_best := array(
    select distinct on (u.lock) u.id from unnest(id, rank, lock) as u (id, rank, lock)
     where u.lock is not null and u.lock <> all (v_own)
       and u.lock not in (select j.lock from procrastinate.job as j where j.id = any (v_held || v_head))
     order by u.lock, u.rank, u.id);
  perform procrastinate._line_up(id, rank, lock, v_take, v_held || v_head || coalesce(handed, '{}') || taken || v_best);
  select array_agg(t.id), array_agg(t.rank), array_agg(t.lock), array_agg(t.solo)
    into id, rank, lock, solo
    from (
      select j.id, j.rank, j.lock, j.lock is null and j.queueing_lock is null as solo
        from procrastinate.job as j where j.id = any (v_take) order by j.rank, j.id) as t;
  id := coalesce(id, '{}');
end $$;
comment on function procrastinate._settle(text[], bigint[], int[], text[], boolean[], bigint[], bigint[], text[]) is
'Decide which of the candidates, whose rows the caller holds, may be claimed: those without a lock, those handed over, and '
'for each lock that is free its best waiting job. The others line up behind.';

create or replace function procrastinate._surface(heads bigint[], taken bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_queues text[];
begin
  with u as (
    update procrastinate.job as j set state = procrastinate._ready()
     where j.id = any (array(select h from unnest(heads) as h where h <> all (taken))) and j.state in ('w', 'b')
    returning j.queue)
  select array_agg(u.queue) into v_queues from u;
  if v_queues is not null then
    perform procrastinate._wake(v_queues);
  end if;
end $$;
comment on function procrastinate._surface(bigint[], bigint[]) is
'Make the head of a lock a candidate where it waits in a queue that this fetch does not serve, and wake who does.';

create or replace function procrastinate._line_up(id bigint[], rank int[], lock text[], taken bigint[], heads bigint[])
returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update procrastinate.job as j
     set state = case when (j.rank, j.id) > (d.head_rank, d.head) then 'w' else 'b' end
    from (
      select c.id, h.id as head, h.rank as head_rank
        from unnest($1, $2, $3) as c (id, rank, lock)
        join (select k.id, k.rank, k.lock from procrastinate.job as k where k.id = any ($5)) as h on h.lock = c.lock
       where c.id <> all ($4) and c.id <> h.id) as d
   where j.id = d.id and j.id = any ($1)
$$;
comment on function procrastinate._line_up(bigint[], int[], text[], bigint[], bigint[]) is
'Take from the candidates those that wait behind the head of their lock, or before it while it runs.';
