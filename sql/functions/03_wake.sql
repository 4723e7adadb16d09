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
  perform procrastinate._notify('q' || left(encode(sha256(convert_to(u.q, 'UTF8')), 'hex'), 8))
     from (select distinct unnest(_wake.queues)) as u(q);
end $$;
comment on function procrastinate._wake(text[]) is
'Tell workers that jobs of these queues may be ready. A hint only: what is true, a worker reads in the database.';

create or replace function procrastinate._notify(payload text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  -- The queue of notifications is the server's. Whoever may connect to any of its databases can fill it, and each NOTIFY then
  -- fails the transaction it is in. Workers that hear nothing look from time to time, so a job that starts later is all that is
  -- lost; and half is enough: the server itself warns from there on.
  select pg_notify('procrastinate_v1', payload)
    from procrastinate.config as c
   where c.notify and pg_notification_queue_usage() < 0.5
$$;
comment on function procrastinate._notify(text) is
'Send a notification to workers, unless that is turned off, or the queue of notifications is half full.';
