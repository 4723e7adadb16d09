-- A hook is a function of the schema's owner that is called with ids of jobs. Which events have any is in
-- procrastinate.config, in the one row that the hot path reads anyway; nothing else is done where there is none.
create or replace function procrastinate.register_sql_hook(event text, function text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(event, '') not in ('deferred', 'started', 'finished', 'rescued') then
    raise exception 'unknown event' using errcode = '22023', hint = 'Use deferred, started, finished or rescued.';
  end if;
  -- one at a time, so that two do not count to four
  perform from procrastinate.config as c for update;
  insert into procrastinate.sql_hook as h (event, function, registered_at)
  values (register_sql_hook.event, procrastinate._hook_function(register_sql_hook.function), procrastinate.now_())
  on conflict on constraint sql_hook_pkey do update
    set failures = 0, last_error = null, last_failed_at = null, disabled = false, registered_at = excluded.registered_at;
  if (select count(*) from procrastinate.sql_hook as h) > 5 then
    raise exception 'there are five hooks already' using errcode = '54000',
      hint = 'Let one function do the work of several, or unregister one.';
  end if;
  perform procrastinate._note_hooks();
end $$;
comment on function procrastinate.register_sql_hook(text, text) is
'Have a function(job_ids bigint[]) called after jobs were deferred, started, finished or rescued, in the same transaction, once a '
'statement, with the rights of the owner of the schema, to whom it must belong. One that fails is undone, and after five failures '
'in a row no longer called; registered again it is. For the owner of the schema only: 42501, 42883, 22023, 54000.';

create or replace function procrastinate.unregister_sql_hook(event text, function text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_found boolean;
begin
  -- as one that registers does, or the note would be without that one's
  perform from procrastinate.config as c for update;
  delete from procrastinate.sql_hook as h
   where h.event = unregister_sql_hook.event
     and h.function in (unregister_sql_hook.function, procrastinate._hook_name(to_regprocedure(unregister_sql_hook.function)));
  v_found := found;
  perform procrastinate._note_hooks();
  return v_found;
end $$;
comment on function procrastinate.unregister_sql_hook(text, text) is
'Have a hook no longer called; the function may be gone already. Returns whether it was registered. For the owner of the schema only.';

create or replace function procrastinate._note_hooks() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update procrastinate.config as c set sql_hooks = array(select distinct h.event from procrastinate.sql_hook as h order by 1)
$$;
comment on function procrastinate._note_hooks() is 'Note in the settings which events have hooks.';

create or replace function procrastinate._hook_function(function text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_function regprocedure := to_regprocedure(function);
begin
  if v_function is null then
    raise exception 'there is no such function' using errcode = 'undefined_function',
      hint = 'Name it with its schema and its arguments, as in metrics.count_jobs(bigint[]).';
  elsif not exists (
    select from pg_proc as p where p.oid = v_function and p.prokind = 'f' and p.proargtypes::text = 'bigint[]'::regtype::oid::text
  ) then
    raise exception 'a hook is a function that takes an array of job ids' using errcode = '22023',
      hint = 'Declare it with one parameter, job_ids bigint[].';
  elsif not procrastinate._is_owners(v_function) then
    raise exception 'the hook belongs to another role' using errcode = '42501',
      hint = 'Whoever may replace it would get the rights of the owner of the schema, so it must belong to that role.';
  end if;
  perform procrastinate._check_hook_path(v_function);
  return procrastinate._hook_name(v_function);
end $$;
comment on function procrastinate._hook_function(text) is
'Return the name of a function that may be a hook, with schema and arguments; raise 42883, 22023 or 42501 for any other.';

create or replace function procrastinate._check_hook_path(function regprocedure) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  -- They do so in any path that does not name them. Whoever calls may make one, by the name of a table that the hook writes, with
  -- a trigger that then has the rights of the owner.
  if exists (
    select from pg_proc as p, unnest(p.proconfig) as c (setting)
     where p.oid = function and c.setting like 'search\_path=%'
       and (c.setting !~ '[=,]\s*("pg_temp"|pg_temp)$' or c.setting ~* 'pg_temp.*pg_temp')
  ) then
    raise exception 'temporary tables of a session come before those of the hook' using errcode = '22023',
      hint = 'Let its search_path end in pg_temp, and name that only there.';
  end if;
end $$;
comment on function procrastinate._check_hook_path(regprocedure) is
'Raise 22023 for a function with a search_path of its own that does not put pg_temp last.';

create or replace function procrastinate._hook_name(function regprocedure) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select format('%I.%I(bigint[])', n.nspname, p.proname)
    from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace where p.oid = function
$$;
comment on function procrastinate._hook_name(regprocedure) is 'Write the name of a hook, as it is kept.';

create or replace function procrastinate._is_owners(function regprocedure) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select from pg_proc as p
     where p.oid = function
       and (p.proowner = (select n.nspowner from pg_namespace as n where n.nspname = 'procrastinate')
            or (select r.rolsuper from pg_roles as r where r.oid = p.proowner)))
$$;
comment on function procrastinate._is_owners(regprocedure) is
'Tell whether a function belongs to the owner of the schema, or to a superuser.';

create or replace function procrastinate._call_hooks(event text, job_ids bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp
  set debug_print_plan = off set debug_print_rewritten = off set debug_print_parse = off set client_min_messages = notice as $$
declare
  v_function text;
begin
  -- what a hook itself defers or ends calls no hook
  if job_ids is null or job_ids = '{}' or current_setting('procrastinate.in_hook', true) = 'on' then
    return;
  end if;
  for v_function in
    select h.function from procrastinate.sql_hook as h where h.event = _call_hooks.event and not h.disabled order by h.function
  loop
    begin
      perform procrastinate._run_hook(v_function, job_ids);
      perform procrastinate._hook_ran(_call_hooks.event, v_function, null);
    -- others are not all: these two are when a statement_timeout ends a hook that would not end, and when it asserts
    exception when others or query_canceled or assert_failure then
      perform procrastinate._hook_ran(_call_hooks.event, v_function, sqlstate || ' ' || sqlerrm);
    end;
  end loop;
end $$;
comment on function procrastinate._call_hooks(text, bigint[]) is
'Call the hooks of an event. What one of them raises is noted, and undone is only what that one did.';

create or replace function procrastinate._ended(job_ids bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if 'finished' = any ((select c.sql_hooks from procrastinate.config as c)::text[]) then
    perform procrastinate._call_hooks('finished', job_ids);
  end if;
end $$;
comment on function procrastinate._ended(bigint[]) is 'Call the hooks, if there are any, for jobs that have ended otherwise than by a run.';

create or replace function procrastinate._run_hook(function text, job_ids bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
  set enable_seqscan = on set enable_bitmapscan = on set plan_cache_mode = auto as $$
declare
  v_began timestamptz := procrastinate.now_();
  v_session text := procrastinate._session();
  v_took interval;
begin
  -- asked again each time: it may be gone, and a function of somebody else stand in its place
  if not procrastinate._is_owners(to_regprocedure(function)) then
    raise exception 'the function is gone, or belongs to another role' using errcode = 'undefined_function';
  end if;
  perform procrastinate._check_hook_path(to_regprocedure(function));
  perform set_config('procrastinate.in_hook', 'on', true);
  execute format('select %s($1)', left(function, -length('(bigint[])'))) using job_ids;
  perform set_config('procrastinate.in_hook', '', true);
  if procrastinate._session() <> v_session then
    raise exception 'the hook has changed settings of the session' using errcode = '0A000';
  end if;
  v_took := procrastinate.now_() - v_began;
  if v_took > interval '5 seconds' then
    raise exception 'the hook took %', v_took using errcode = 'query_canceled';
  end if;
end $$;
comment on function procrastinate._run_hook(text, bigint[]) is
'Call a hook with the settings of a user''s query, none of which the hot path has; for a lock it waits 100 ms. Raises what it raises, '
'and where it took longer than 5 seconds, or would leave the session other than it was.';

create or replace function procrastinate._session() returns text language sql stable begin atomic
  select concat_ws(' ', current_setting('search_path'), current_setting('statement_timeout'), current_setting('lock_timeout'),
                   current_setting('transaction_read_only'));
end;
comment on function procrastinate._session() is
'Write the settings that, changed by a hook, would have later statements fail. Not pinned, for search_path is one of them.';

create or replace function procrastinate._hook_ran(event text, function text, error text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- Nobody waits to take a note, and none is taken of what went well after all that did.
  update procrastinate.sql_hook as h
     set failures = case when error is null then 0 else h.failures + 1 end, last_error = coalesce(left(error, 1000), h.last_error),
         last_failed_at = case when error is null then h.last_failed_at else procrastinate.now_() end,
         disabled = error is not null and h.failures >= 4
   where h.ctid = any (array(
     select k.ctid from procrastinate.sql_hook as k
      where k.event = _hook_ran.event and k.function = _hook_ran.function and (error is not null or k.failures > 0)
        for update skip locked));
exception when others then
  -- at REPEATABLE READ, somebody else may have taken one
  return;
end $$;
comment on function procrastinate._hook_ran(text, text, text) is
'Note how a hook ended: the fifth failure in a row disables it.';
