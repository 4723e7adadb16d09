-- What shall run when, and how far that has come. Rows are few and are written at each tick, so there is no index but
-- the key, and every update stays on its page.
--
-- A declared schedule belongs to the code of the workers: which one holds is in procrastinate.worker.schedules of those
-- that live, and the row keeps a copy of it (declaration). It outlives them, so that a restart repeats no tick.
create table procrastinate.schedule (
  name text primary key,
  kind text not null,
  task text not null,
  cron text not null,
  timezone text not null,
  args jsonb not null,
  catch_up text not null,
  max_delay interval,
  queue text,
  priority int,
  lock text,
  queueing_lock text,
  enabled boolean not null default true,
  options jsonb not null default '{}',
  declaration jsonb,
  -- the newest tick that fired or was passed over, and the next one; null: it is stopped, or nobody declares it
  last_tick timestamptz,
  next_tick timestamptz,
  -- not before this time again, because the last try failed
  retry_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint schedule_kind check (kind in ('sql', 'declared')),
  constraint schedule_catch_up check (catch_up in ('all', 'last', 'none')),
  constraint schedule_once check (next_tick > last_tick)
) with (fillfactor = 50);
