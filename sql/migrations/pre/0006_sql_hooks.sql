-- Functions of the schema's owner that are called with the ids of jobs. The name is kept as text: a column of type
-- regprocedure stops pg_upgrade.
create table procrastinate.sql_hook (
  event text not null,
  function text not null,
  -- in a row
  failures int not null default 0,
  last_error text,
  last_failed_at timestamptz,
  disabled boolean not null default false,
  registered_at timestamptz not null,
  constraint sql_hook_pkey primary key (event, function),
  constraint sql_hook_event check (event in ('deferred', 'started', 'finished', 'rescued'))
);

-- the events that have hooks
alter table procrastinate.config add column sql_hooks text[] not null default '{}';
