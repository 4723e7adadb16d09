create or replace function procrastinate._wake(queues text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- Every NOTIFY takes a lock of the whole cluster at commit, so an autocommitted statement sends one only when
  -- somebody waits. Inside a transaction block the commit may come after a worker has gone idle: always send.
  -- Autocommitted is what began its transaction itself, as a query, or, prepared before, as the portal that runs it; and is
  -- alone: after one of several statements in a message, or in a DO block, the commit may be long in coming, too.
  if not exists (
       select from procrastinate.worker as w
        where w.idle_at is not null and (w.queues is null or w.queues && _wake.queues))
     and strpos(rtrim(current_query(), E'; \n'), ';') = 0
     and (now() = statement_timestamp() or exists (select from pg_cursors as c where c.creation_time = now()))
  then
    return;
  end if;
  perform pg_notify('procrastinate_v1', 'q' || left(encode(sha256(convert_to(u.q, 'UTF8')), 'hex'), 8))
     from (select distinct unnest(_wake.queues)) as u(q)
     join procrastinate.config as c on c.notify;
end $$;
comment on function procrastinate._wake(text[]) is
'Tell workers that jobs of these queues may be ready. A hint only: what is true, a worker reads in the database.';
