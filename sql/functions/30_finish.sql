create or replace function procrastinate.finish_v1(
  worker_id bigint, succeeded bigint[] default '{}', tokens bigint[] default '{}', outcomes jsonb default '[]',
  keep boolean default true
) returns table (id bigint, token bigint, verdict text, sqlstate text, message text, status text, retry_at timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
  set jit = off set plan_cache_mode = force_generic_plan as $$
declare
  v_verdicts jsonb;
begin
  select f.verdicts into v_verdicts
    from procrastinate.config as c
   cross join lateral procrastinate._sift(succeeded, tokens, outcomes) as s
   cross join lateral procrastinate._finish(
     succeeded, tokens, s.outcomes, keep, false, null, c.clock_offset, c.sql_hooks) as f;
  return query
    select g.id, g.token, case when g.fault is null then coalesce(v.verdict, 'ok') else 'refused' end,
           case when g.fault is null then v.sqlstate else '22023' end, coalesce(g.fault, v.message),
           case when v.verdict is null and g.fault is null then 'succeeded' else v.status end, v.retry_at
      from (
        select u.id, u.token, u.n, null as fault from unnest(succeeded, tokens) with ordinality as u (id, token, n)
        union all
        select procrastinate._bigint(o.o -> 'id'), procrastinate._bigint(o.o -> 'token'), 1000000 + o.n,
               procrastinate._outcome_fault(o.o)
          from jsonb_array_elements(outcomes) with ordinality as o (o, n)) as g
      left join lateral (
        select * from jsonb_to_recordset(v_verdicts) as w (
                 id bigint, token bigint, verdict text, sqlstate text, message text, status text, retry_at timestamptz)
         where (w.id, w.token) is not distinct from (g.id, g.token) and g.fault is null limit 1) as v on true
     order by g.n;
end $$;
comment on function procrastinate.finish_v1(bigint, bigint[], bigint[], jsonb, boolean) is
'Tell how runs ended; the rules of the queue decide what that makes of the jobs. succeeded and tokens: plain successes, kept '
'in history or not. outcomes: everything else, as JSON objects with id, token, outcome and more. Returns a verdict for each: '
'ok, already (this run has ended), stale (the job is somebody else''s now) or refused. Never raises for one job, nor waits for '
'one that an open transaction holds, or its lock: refused with 55P03, it is to be told again.';

create or replace function procrastinate._finish(
  succeeded bigint[], tokens bigint[], outcomes jsonb, keep boolean, hand boolean, queues text[], clock_offset interval,
  sql_hooks text[], out verdicts jsonb, out handed bigint[], out handed_rank int[], out handed_lock text[]
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_now timestamptz := clock_timestamp() + clock_offset;
  v_ids bigint[];
  v_tokens bigint[];
  f_lock text[];
  f_rank int[];
  f_id bigint[];
  v_aside jsonb;
  o record;
begin
  -- Somebody may abort some of these jobs, or look at their locks, in a transaction that stays open: the others shall not
  -- wait for it. A row that nobody has touched since its claim has no xmax, or that of the claim.
  -- An array of tokens would be searched from its start for each row; "is true" keeps a subquery from being joined: it is hashed.
  if outcomes <> '[]' or exists (
    select from procrastinate.job as j
     where j.id = any (succeeded) and (j.lock is not null or j.xmax <> 0 and j.xmax <> j.xmin)
       and (j.token in (select t from unnest(tokens) as t)) is true) then
    select a.succeeded, a.tokens, a.outcomes, a.verdicts into succeeded, tokens, outcomes, v_aside
      from procrastinate._set_aside(succeeded, tokens, outcomes) as a;
  end if;
  if cardinality(succeeded) > 0 then
    if keep then
      with d as (
        delete from procrastinate.job as j
         where j.id = any (succeeded) and (j.token in (select t from unnest(tokens) as t)) is true and j.token > 0
        returning j.id, j.token, j.worker_id, j.deferred_at, j.scheduled_at, j.started_at, j.rank, j.attempts, j.rescues,
                  j.task, j.queue, j.lock, j.queueing_lock, j.args, j.headers, j.retry),
      i as (
        insert into procrastinate.done (
          id, token, worker_id, deferred_at, scheduled_at, started_at, finished_at, rank, attempts, rescues, status,
          task, queue, lock, queueing_lock, args, headers, retry)
        select d.id, d.token, d.worker_id, d.deferred_at, d.scheduled_at, d.started_at, v_now, d.rank, d.attempts + 1,
               d.rescues, 'succeeded', d.task, d.queue, d.lock, d.queueing_lock, d.args, d.headers, d.retry
          from d)
      select array_agg(d.token), array_agg(d.lock) filter (where d.lock is not null),
             array_agg(d.rank) filter (where d.lock is not null), array_agg(d.id) filter (where d.lock is not null)
        into v_tokens, f_lock, f_rank, f_id from d;
    else
      with d as (
        delete from procrastinate.job as j
         where j.id = any (succeeded) and (j.token in (select t from unnest(tokens) as t)) is true and j.token > 0
        returning j.id, j.token, j.rank, j.lock)
      select array_agg(d.id), array_agg(d.token), array_agg(d.lock) filter (where d.lock is not null),
             array_agg(d.rank) filter (where d.lock is not null), array_agg(d.id) filter (where d.lock is not null)
        into v_ids, v_tokens, f_lock, f_rank, f_id from d;
      delete from procrastinate.event as e where e.job_id = any (v_ids);
    end if;
    if coalesce(cardinality(v_tokens), 0) < cardinality(succeeded) then
      select jsonb_agg(procrastinate._late_verdict(u.id, u.token, keep)) into verdicts
        from unnest(succeeded, tokens) as u (id, token)
       where u.token is null or v_tokens is null or u.token <> all (v_tokens);
    end if;
  end if;
  if outcomes <> '[]' then
    select * into o from procrastinate._end_runs(outcomes, v_now);
    verdicts := coalesce(verdicts, '[]') || o.verdicts;
    f_lock := f_lock || o.lock;
    f_rank := f_rank || o.rank;
    f_id := f_id || o.id;
  end if;
  if v_aside is not null then
    verdicts := coalesce(verdicts, '[]') || v_aside;
  end if;
  if f_lock <> '{}' then
    o := procrastinate._pass_on(f_lock, f_rank, f_id, hand, queues);
    handed := o.handed;
    handed_rank := o.handed_rank;
    handed_lock := o.handed_lock;
  end if;
  if 'finished' = any (sql_hooks) then
    perform procrastinate._call_hooks('finished', array(
      select u.id from unnest(succeeded, tokens) as u (id, token) where u.token = any (v_tokens)
      union
      select (v ->> 'id')::bigint from jsonb_array_elements(verdicts) as v where v ->> 'verdict' = 'ok' and v ->> 'status' <> 'todo'));
  end if;
end $$;
comment on function procrastinate._finish(bigint[], bigint[], jsonb, boolean, boolean, text[], interval, text[]) is
'End runs and pass their locks on. With hand, the jobs that are next under those locks and in these queues are '
'returned, their rows held, for the fetch of the same call; else they become candidates. verdicts leaves out plain ok.';

create or replace function procrastinate._sift(
  succeeded bigint[], tokens bigint[], inout outcomes jsonb, out verdicts jsonb
)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if jsonb_typeof(outcomes) is distinct from 'array' then
    raise exception 'outcomes must be a JSON array' using errcode = '22023',
      hint = 'Pass [{"id": 1, "token": 1, "outcome": "failed"}].';
  end if;
  select coalesce(jsonb_agg(g.o order by g.n) filter (where g.fault is null and g.nth = 1), '[]'),
         jsonb_agg(procrastinate._verdict(g.id, g.token, '22023', g.fault, null, null)) filter (where g.fault is not null)
    into outcomes, verdicts
    from (
      -- a run that is told twice counts once, as it was told first
      select r.*, row_number() over (partition by r.id, r.token, r.fault is null order by r.n) as nth
        from (
          select u.o, u.n, procrastinate._bigint(u.o -> 'id') as id, procrastinate._bigint(u.o -> 'token') as token,
                 procrastinate._outcome_fault(u.o) as fault
            from jsonb_array_elements(outcomes) with ordinality as u (o, n)) as r
       where r.fault is not null or not exists (
         select from unnest(succeeded, tokens) as s (id, token) where (s.id, s.token) = (r.id, r.token))) as g;
end $$;
comment on function procrastinate._sift(bigint[], bigint[], jsonb) is
'Take from the outcomes those that nobody can read, with verdicts that refuse them, and those that are told twice.';

create or replace function procrastinate._bigint(value jsonb) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when value::text ~ '^-?[0-9]{1,19}$' and abs(value::numeric) <= 9223372036854775807 then value::bigint end
$$;
comment on function procrastinate._bigint(jsonb) is 'Read a JSON integer; null for anything else.';

create or replace function procrastinate._outcome_fault(outcome jsonb) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case
    when jsonb_typeof(outcome) <> 'object' then 'an outcome must be a JSON object'
    when jsonb_typeof(outcome -> 'id') <> 'null' and procrastinate._bigint(outcome -> 'id') is null
      or jsonb_typeof(outcome -> 'token') <> 'null' and procrastinate._bigint(outcome -> 'token') is null
      then 'id and token must be integers'
    when jsonb_typeof(outcome -> 'keep') not in ('boolean', 'null') then 'keep must be true or false'
  end
$$;
comment on function procrastinate._outcome_fault(jsonb) is 'Tell why an outcome cannot be read; null: it can.';

create or replace function procrastinate._set_aside(
  inout succeeded bigint[], inout tokens bigint[], inout outcomes jsonb, out verdicts jsonb
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_ids bigint[] := succeeded || array(select (u.o ->> 'id')::bigint from jsonb_array_elements(outcomes) as u (o));
  v_tokens bigint[] := tokens || array(select (u.o ->> 'token')::bigint from jsonb_array_elements(outcomes) as u (o));
  v_held bigint[];
  v_locks text[];
  v_busy bigint[];
begin
  select array_agg(h.token), array_agg(h.lock) filter (where h.lock is not null) into v_held, v_locks
    from (
      select j.token, j.lock from procrastinate.job as j
       where j.id = any (v_ids) and j.token = any (v_tokens) and j.token > 0 order by j.id for update skip locked) as h;
  v_locks := procrastinate._try_locks(v_locks);
  select array_agg(j.token), jsonb_agg(procrastinate._verdict(
           j.id, j.token, '55P03', 'an open transaction holds the job, or its lock', null, null))
    into v_busy, verdicts
    from procrastinate.job as j
   where j.id = any (v_ids) and j.token = any (v_tokens) and j.token > 0
     and (v_held is null or j.token <> all (v_held) or j.lock = any (v_locks));
  if v_busy is not null then
    select coalesce(array_agg(u.id), '{}'), coalesce(array_agg(u.token), '{}') into succeeded, tokens
      from unnest(succeeded, tokens) as u (id, token)
     where u.token is null or u.token <> all (v_busy);
    outcomes := coalesce((
      select jsonb_agg(u.o order by u.n)
        from jsonb_array_elements(outcomes) with ordinality as u (o, n)
       where u.o ->> 'token' is null or (u.o ->> 'token')::bigint <> all (v_busy)), '[]');
  end if;
end $$;
comment on function procrastinate._set_aside(bigint[], bigint[], jsonb) is
'Hold the jobs of these runs, in the order of their ids, and the right to pass their locks on. Take from the runs those for which '
'somebody else holds either: they are refused with 55P03, to be told again a little later.';

create or replace function procrastinate._late_verdict(id bigint, token bigint, keep boolean) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_status text;
begin
  select 'todo' into v_status from procrastinate.job as j
   where j.id = _late_verdict.id and j.token = -_late_verdict.token and j.token < 0;
  if v_status is null then
    select d.status into v_status from procrastinate.done as d
     where d.id = _late_verdict.id and abs(d.token) = _late_verdict.token;
    -- ended by complete_v1, which keeps the job, while its worker was told to forget it
    if v_status is not null and not keep then
      delete from procrastinate.done as d where d.id = _late_verdict.id;
      delete from procrastinate.event as e where e.job_id = _late_verdict.id;
      v_status := null;
      return jsonb_build_object('id', id, 'token', token, 'verdict', 'already');
    end if;
  end if;
  return jsonb_strip_nulls(jsonb_build_object(
    'id', id, 'token', token, 'verdict', case when v_status is null then 'stale' else 'already' end, 'status', v_status));
end $$;
comment on function procrastinate._late_verdict(bigint, bigint, boolean) is
'Tell a run that ended before (already) from one whose job was given to somebody else, or is gone (stale).';

create or replace function procrastinate._pass_on(
  lock text[], rank int[], id bigint[], hand boolean, queues text[],
  out handed bigint[], out handed_rank int[], out handed_lock text[]
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_next bigint[];
  v_next_rank int[];
  v_next_lock text[];
  v_held bigint[];
  v_give bigint[];
  v_queues text[];
  v_missed text[];
begin
  perform procrastinate._take_locks(lock);
  -- A new statement: what fetches lined up behind the ended job before they gave the advisory lock up is visible now.
  select array_agg(coalesce(n.id, m.id)), array_agg(coalesce(n.rank, m.rank)), array_agg(u.lock)
    into v_next, v_next_rank, v_next_lock
    from unnest(lock, rank, id) as u (lock, rank, id)
    -- without a place, from the start of the line; and so, too, where nothing stands beyond it
    left join lateral procrastinate._first_in_line(u.lock, coalesce(u.rank, -2147483648), coalesce(u.id, 0)) as n on true
    left join lateral procrastinate._first_in_line(case when n.id is null then u.lock end, -2147483648, 0) as m on true
   where coalesce(n.id, m.id) is not null;
  v_held := procrastinate._hold(v_next, v_next_rank, v_next_lock);
  if hand then
    select array_agg(j.id), array_agg(j.rank), array_agg(j.lock) into handed, handed_rank, handed_lock
      from procrastinate.job as j
     where j.id = any (v_held) and j.state <> 'h' and (queues is null or j.queue = any (queues));
  end if;
  v_give := array(select h from unnest(v_held) as h where h <> all (coalesce(handed, '{}')));
  if v_give <> '{}' then
    update procrastinate.job as j set state = procrastinate._ready() where j.id = any (v_give) and j.state in ('w', 'b');
    v_queues := array(
      select distinct h.queue
        from (select j.queue, j.state from procrastinate.job as j where j.id = any (v_give) offset 0) as h
       where h.state = 'r');
    perform procrastinate._wake(v_queues);
  end if;
  if cardinality(v_held) < cardinality(v_next) then
    v_missed := array(
      select distinct u.lock from unnest(lock) as u (lock)
       where u.lock not in (select j.lock from procrastinate.job as j where j.id = any (v_held)));
    perform procrastinate._promote(v_missed);
  end if;
end $$;
comment on function procrastinate._pass_on(text[], int[], bigint[], boolean, text[]) is
'Pass locks on from jobs that ran under them, whose places are given, to the next in line.';

create or replace function procrastinate.complete_v1(job_id bigint, token bigint, result jsonb default null) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
  set jit = off set plan_cache_mode = force_generic_plan as $$
declare
  v_verdict jsonb;
  v_lock text;
begin
  -- whoever else holds the job or its lock is waited for
  select j.lock into v_lock from procrastinate.job as j where j.id = job_id and j.token = complete_v1.token for update;
  perform procrastinate._take_locks(array[v_lock]);
  select f.verdicts -> 0 into v_verdict
    from procrastinate.config as c
   cross join lateral procrastinate._finish(
     '{}', '{}',
     jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
       'id', job_id, 'token', complete_v1.token, 'outcome', 'succeeded', 'result', result))),
     true, false, null, c.clock_offset, c.sql_hooks) as f;
  if v_verdict ->> 'verdict' <> 'ok' then
    raise exception 'job % is not held under this token', job_id using errcode = 'JQ002',
      detail = case v_verdict ->> 'verdict'
                 when 'already' then 'This run has already ended.' else 'The job was given away, or is gone.' end,
      hint = 'Roll back: what this run did must not count.';
  end if;
end $$;
comment on function procrastinate.complete_v1(bigint, bigint, jsonb) is
'End a run as succeeded in the caller''s transaction, so that its writes and the end of the job commit together: exactly once '
'inside one database. Raises JQ002 when the token is not current; the caller''s writes are then to be rolled back.';
