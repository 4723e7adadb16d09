-- The schema speaks a range of protocols. An upgrade moves its ends one after the other, so that old and new workers
-- run side by side in between. The newest is what these functions serve, so it is raised here, in the transaction that
-- loads them. The oldest is raised by a migration of the post stage: select procrastinate._raise_oldest(2);
update procrastinate.protocol_range set newest = 1 where newest < 1;

create or replace function procrastinate.protocol() returns table (oldest int, newest int)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select r.oldest, r.newest from procrastinate.protocol_range as r
$$;
comment on function procrastinate.protocol() is
'Tell the oldest and the newest worker protocol that this schema speaks. A worker of another protocol must not start.';

create or replace function procrastinate._check_protocol(protocol int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_range procrastinate.protocol_range;
begin
  -- the share lock holds until the worker's row is committed, so that _raise_oldest cannot miss it
  select r.* into v_range from procrastinate.protocol_range as r for share;
  if protocol between v_range.oldest and v_range.newest then
    return;
  end if;
  raise exception 'the schema does not speak protocol %', coalesce(protocol::text, 'null')
    using errcode = 'JQ005', detail = format('It speaks %s to %s.', v_range.oldest, v_range.newest),
          hint = case when protocol < v_range.oldest then 'Upgrade the worker to a later release of pyprocrastinate.'
                      else 'Run "pyprocrastinate migrate --stage pre" with the release of the worker.' end;
end $$;
comment on function procrastinate._check_protocol(int) is
'Raise JQ005 for a protocol that the schema does not speak; else keep the range as it is until the transaction ends.';

create or replace function procrastinate._raise_oldest(protocol int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workers text;
begin
  -- first the row, then the workers: who registers meanwhile waits for this row, or is seen below
  update procrastinate.protocol_range as r set oldest = protocol where r.oldest < protocol;
  select string_agg(format('%s (id %s, protocol %s)', w.name, w.id, w.protocol), ', ' order by w.id) into v_workers
    from procrastinate.worker as w
   where w.protocol < _raise_oldest.protocol and w.heartbeat_at + w.stalled_after > (select procrastinate.now_());
  if v_workers is not null then
    raise exception 'live workers speak a protocol older than %', protocol
      using errcode = 'JQ901', detail = format('They are: %s.', v_workers),
            hint = 'Stop them or upgrade them, then run "pyprocrastinate migrate --stage post".';
  end if;
end $$;
comment on function procrastinate._raise_oldest(int) is
'Retire every older protocol. Raises JQ901, naming them, while live workers speak one.';
