-- The floor: what PL/pgSQL can do at best on this machine, without leases, retries, locks or a record of attempts.
-- Read only by benchmarks/systems/minq.py; nothing of the product depends on it.
-- Minimal PL/pgSQL queue used by bench_min.py. :fill fillfactor, variants share one table layout.
drop schema if exists q cascade; create schema q;
create table q.job(
  id bigint generated always as identity,
  queue text not null default 'default',
  status "char" not null default 'r',          -- r=ready  x=executing  d=done
  priority smallint not null default 0,
  run_at timestamptz not null default now(),
  attempts smallint not null default 0,
  worker int, started_at timestamptz, finished_at timestamptz,
  args jsonb not null default '{}');
create unique index job_pk on q.job(id);
create index job_ready on q.job(queue, priority, id) where status = 'r';
create table q.archive(id bigint not null, queue text not null, status "char" not null, priority smallint not null,
  run_at timestamptz not null, attempts smallint not null, worker int, started_at timestamptz, finished_at timestamptz,
  args jsonb not null);

-- claim: mark executing (UPDATE)
create function q.claim(p_queue text, p_n int, p_worker int) returns table(id bigint, args jsonb)
language plpgsql as $$ begin return query
  with c as materialized (select j.id from q.job j where j.queue = p_queue and j.status = 'r'
             order by j.priority, j.id limit p_n for update skip locked)
  update q.job j set status = 'x', worker = p_worker, started_at = clock_timestamp(), attempts = j.attempts + 1
    from c where j.id = c.id returning j.id, j.args; end $$;

create function q.finish_delete(p_ids bigint[]) returns void language plpgsql as $$
begin if cardinality(p_ids) > 0 then delete from q.job where id = any(p_ids); end if; end $$;
create function q.finish_update(p_ids bigint[]) returns void language plpgsql as $$
begin if cardinality(p_ids) > 0 then update q.job set status = 'd', finished_at = clock_timestamp() where id = any(p_ids); end if; end $$;
create function q.finish_archive(p_ids bigint[]) returns void language plpgsql as $$
begin if cardinality(p_ids) > 0 then
  with d as (delete from q.job where id = any(p_ids) returning *)
  insert into q.archive select id, queue, 'd', priority, run_at, attempts, worker, started_at, clock_timestamp(), args from d; end if; end $$;

create function q.ff_delete(p_ids bigint[], p_queue text, p_n int, p_worker int) returns table(id bigint, args jsonb)
language plpgsql as $$ begin perform q.finish_delete(p_ids); return query select * from q.claim(p_queue, p_n, p_worker); end $$;
create function q.ff_update(p_ids bigint[], p_queue text, p_n int, p_worker int) returns table(id bigint, args jsonb)
language plpgsql as $$ begin perform q.finish_update(p_ids); return query select * from q.claim(p_queue, p_n, p_worker); end $$;
create function q.ff_archive(p_ids bigint[], p_queue text, p_n int, p_worker int) returns table(id bigint, args jsonb)
language plpgsql as $$ begin perform q.finish_archive(p_ids); return query select * from q.claim(p_queue, p_n, p_worker); end $$;
create function q.add(p_queue text, p_args jsonb[]) returns setof bigint language sql as $$
  insert into q.job(queue, args) select p_queue, a from unnest(p_args) a returning id $$;

-- upper bounds / alternatives -------------------------------------------------------------
-- pop: claim == delete (at-most-once), one write per job
create function q.pop(p_queue text, p_n int) returns table(id bigint, args jsonb)
language plpgsql as $$ begin return query
  with c as materialized (select j.id from q.job j where j.queue = p_queue and j.status = 'r'
             order by j.priority, j.id limit p_n for update skip locked)
  delete from q.job j using c where j.id = c.id returning j.id, j.args; end $$;
-- cursor: caller passes the last (priority,id) it claimed, so the scan starts after the dead index entries
create function q.claim_after(p_queue text, p_n int, p_worker int, p_prio smallint, p_after bigint) returns table(id bigint, args jsonb)
language plpgsql as $$ begin return query
  with c as materialized (select j.id from q.job j where j.queue = p_queue and j.status = 'r'
             and (j.priority, j.id) > (p_prio, p_after)
             order by j.priority, j.id limit p_n for update skip locked)
  update q.job j set status = 'x', worker = p_worker, started_at = clock_timestamp(), attempts = j.attempts + 1
    from c where j.id = c.id returning j.id, j.args; end $$;
create function q.ffc_delete(p_ids bigint[], p_queue text, p_n int, p_worker int, p_after bigint) returns table(id bigint, args jsonb)
language plpgsql as $$ begin perform q.finish_delete(p_ids); return query select * from q.claim_after(p_queue, p_n, p_worker, 0::smallint, p_after); end $$;
create function q.ffc_archive(p_ids bigint[], p_queue text, p_n int, p_worker int, p_after bigint) returns table(id bigint, args jsonb)
language plpgsql as $$ begin perform q.finish_archive(p_ids); return query select * from q.claim_after(p_queue, p_n, p_worker, 0::smallint, p_after); end $$;
create function q.ffc_update(p_ids bigint[], p_queue text, p_n int, p_worker int, p_after bigint) returns table(id bigint, args jsonb)
language plpgsql as $$ begin perform q.finish_update(p_ids); return query select * from q.claim_after(p_queue, p_n, p_worker, 0::smallint, p_after); end $$;

-- split layout: immutable q.task (args) + narrow q.ready index-table; claim moves ready -> running, task row never updated
create table q.task(id bigint generated always as identity primary key, queue text not null, args jsonb not null, created_at timestamptz not null default now());
create table q.ready(queue text not null, priority smallint not null, id bigint not null, run_at timestamptz not null default now(), primary key(queue, priority, id));
create table q.running(id bigint primary key, worker int, started_at timestamptz, priority smallint);
create table q.done(id bigint not null, queue text not null, args jsonb not null, created_at timestamptz, finished_at timestamptz);
create function q.split_ff(p_ids bigint[], p_queue text, p_n int, p_worker int) returns table(id bigint, args jsonb)
language plpgsql as $$ begin
  if cardinality(p_ids) > 0 then
    delete from q.running r where r.id = any(p_ids);
    delete from q.task t where t.id = any(p_ids);
  end if;
  return query with c as (delete from q.ready r using (select r2.queue, r2.priority, r2.id from q.ready r2 where r2.queue = p_queue
       order by r2.priority, r2.id limit p_n for update skip locked) s
       where r.queue = s.queue and r.priority = s.priority and r.id = s.id returning r.id, r.priority),
    i as (insert into q.running select c.id, p_worker, clock_timestamp(), c.priority from c returning running.id)
  select t.id, t.args from q.task t join i on t.id = i.id; end $$;
