-- Loaded whole at the start of each import, in its first transaction; one at a time.
do $$ begin
  perform pg_advisory_xact_lock(7043, 2);
  perform set_config(name, '0', true) from pg_settings where name in
    ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout');
end $$;

create schema if not exists procrastinate_import;
revoke all on schema procrastinate_import from public;

-- what became of which job; also what keeps a job from being moved twice
create table if not exists procrastinate_import.moved (
  source text not null,
  old_id bigint not null,
  new_id bigint not null,
  status text not null,
  moved_at timestamptz not null,
  constraint moved_pkey primary key (source, old_id)
);
