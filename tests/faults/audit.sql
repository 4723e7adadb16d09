-- Writes each transition of each job down, in the transaction that makes it. For the soak only.
create schema audit;

create table audit.log (
  seq bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  -- when the client's statement began
  began timestamptz not null default statement_timestamp(),
  job bigint not null,
  was text,
  now text not null,
  token bigint,
  worker bigint,
  attempts int not null,
  rescues int not null,
  lock text,
  queueing_lock text,
  rank int not null,
  due timestamptz,
  key text,
  -- for how long the lease of the run that this ends was over; none while the worker gives heartbeats, or is gone
  overdue interval
);

-- one row: how many of a thousand transitions take a hundred milliseconds longer
create table audit.slow (per_mille int not null);
insert into audit.slow values (0);

create table audit.effect (key text not null, job bigint not null, token bigint not null);

create function audit.note(was text, now text, token bigint, worker bigint, r jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into audit.log (job, was, now, token, worker, attempts, rescues, lock, queueing_lock, rank, due, key, overdue)
  values ((r ->> 'id')::bigint, was, now, token, worker, (r ->> 'attempts')::int, (r ->> 'rescues')::int, r ->> 'lock',
          r ->> 'queueing_lock', (r ->> 'rank')::int, (r ->> 'scheduled_at')::timestamptz, r -> 'args' ->> 'key',
          (select clock_timestamp() - w.heartbeat_at - w.stalled_after
             from procrastinate.worker as w where was = 'doing' and w.id = note.worker));
  if (select s.per_mille > random() * 1000 from audit.slow as s) then
    perform pg_sleep(0.1);
  end if;
end $$;

create function audit.on_job() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_was text := case when tg_op <> 'INSERT' then case when old.state = 'x' then 'doing' else 'todo' end end;
  v_now text := case when tg_op = 'DELETE' then 'gone' when new.state = 'x' then 'doing' else 'todo' end;
begin
  if tg_op = 'DELETE' then
    perform audit.note(v_was, v_now, old.token, old.worker_id, to_jsonb(old));
  elsif tg_op = 'INSERT' or v_was <> v_now or old.token is distinct from new.token
    or (old.rank, old.lock, old.queueing_lock, old.scheduled_at, old.args)
       is distinct from (new.rank, new.lock, new.queueing_lock, new.scheduled_at, new.args) then
    -- the run that this ends, if it ends one
    perform audit.note(v_was, v_now, case when v_now = 'doing' then new.token else old.token end,
                       case when v_now = 'doing' then new.worker_id else old.worker_id end, to_jsonb(new));
  end if;
  return null;
end $$;

create function audit.on_done() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform audit.note(null, new.status, new.token, new.worker_id, to_jsonb(new));
  return null;
end $$;

create trigger audit after insert or update or delete on procrastinate.job for each row execute function audit.on_job();
create trigger audit after insert on procrastinate.done for each row execute function audit.on_done();
