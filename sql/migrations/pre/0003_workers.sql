create table procrastinate.worker (
  id bigint generated always as identity primary key,
  name text not null,
  queues text[],
  tasks jsonb not null default '{}',
  schedules jsonb not null default '[]',
  protocol int not null,
  stalled_after interval not null,
  info jsonb not null default '{}',
  started_at timestamptz not null,
  heartbeat_at timestamptz not null,
  -- since when it waits for work; kept for a second into a busy spell, so that a worker that alternates
  -- between one job and none does not rewrite its row for each of them
  idle_at timestamptz
) with (fillfactor = 50);

-- what a defer falls back to, by task name; 'sql' rows are never overwritten by a worker
create table procrastinate.task (
  name text primary key,
  source text not null check (source in ('sql', 'worker')),
  queue text,
  priority int,
  lock text,
  queueing_lock text,
  retry jsonb,
  updated_at timestamptz not null
);

-- one row: every setting is a typed column
create table procrastinate.config (
  singleton boolean primary key default true check (singleton),
  max_args_bytes int not null default 1048576 check (max_args_bytes between 2 and 67108864),
  max_rescues int not null default 3 check (max_rescues between 0 and 1000000),
  stalled_after interval not null default '30 seconds' check (stalled_after >= '1 second'),
  notify boolean not null default true,
  store_errors boolean not null default true,
  retention jsonb not null default '{}',
  clock_offset interval not null default '0',
  test_clock boolean not null default false
);

insert into procrastinate.config default values;

-- when somebody should call tick_v1 next, and how far its sweep of the locks has come; apart from config,
-- because it is written every few seconds and config is read by every defer
create table procrastinate.tick (
  singleton boolean primary key default true check (singleton),
  next_at timestamptz not null,
  swept_lock text not null default '',
  purged_at timestamptz
) with (fillfactor = 10);

insert into procrastinate.tick (next_at) values (clock_timestamp());
