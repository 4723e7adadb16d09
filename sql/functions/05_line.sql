create or replace function procrastinate._next_in_line(
  lock text, after_rank int default null, after_id bigint default null,
  out id bigint, out rank int, out queue text, out state "char"
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  -- What runs under a lock is better than all that is 'w' under it, so a finish looks on from its own place and never
  -- walks over the dead rows of the jobs before it.
  if after_id is not null then
    select s.* into id, rank, queue, state from (
      (select j.id, j.rank, j.queue, j.state from procrastinate.job as j
        where j.lock = _next_in_line.lock and j.state in ('r', 'b', 'h') order by j.rank, j.id limit 1)
      union all
      (select j.id, j.rank, j.queue, j.state from procrastinate.job as j
        where j.lock = _next_in_line.lock and j.state = 'w' and (j.rank, j.id) > (after_rank, after_id)
        order by j.rank, j.id limit 1)) as s
     order by s.rank, s.id limit 1;
  end if;
  if id is null then
    select s.* into id, rank, queue, state from (
      (select j.id, j.rank, j.queue, j.state from procrastinate.job as j
        where j.lock = _next_in_line.lock and j.state in ('r', 'b', 'h') order by j.rank, j.id limit 1)
      union all
      (select j.id, j.rank, j.queue, j.state from procrastinate.job as j
        where j.lock = _next_in_line.lock and j.state = 'w' order by j.rank, j.id limit 1)) as s
     order by s.rank, s.id limit 1;
  end if;
end $$;
comment on function procrastinate._next_in_line(text, int, bigint) is
'Find the best waiting job of a lock, looking on from the given place where a job that ran under it stood. Null: nothing waits.';

create or replace function procrastinate._promote(locks text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lock text;
  v_best bigint;
begin
  foreach v_lock in array locks loop
    select b.id into v_best from procrastinate._next_in_line(v_lock) as b where b.state in ('w', 'b');
    if v_best is not null then
      -- If somebody is just cancelling the best, any other will do: a candidate is checked when it is fetched.
      update procrastinate.job as j set state = 'r'
       where j.id = any (array(
         select c.id from (
           select k.id, k.state from procrastinate.job as k where k.id = v_best for update skip locked) as c
          where c.state in ('w', 'b')));
      if not found then
        update procrastinate.job as j set state = 'r'
         where j.id = any (array(
           select k.id from procrastinate.job as k
            where k.lock = v_lock and k.state = 'w' order by k.rank, k.id limit 1 for update skip locked));
      end if;
    end if;
  end loop;
end $$;
comment on function procrastinate._promote(text[]) is
'See that each of these locks has a candidate if anything waits under it. Safe at any time, with no lock held.';

create or replace function procrastinate._take_locks(locks text[]) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select pg_advisory_xact_lock(k.key)
    from (select distinct procrastinate._lock_key(l) as key from unnest(locks) as l order by 1) as k
$$;
comment on function procrastinate._take_locks(text[]) is
'Wait, in one order for all, for the right to pass these locks on; held to the end of the transaction.';
