-- What each kind of access may do. A load of the functions grants it anew, so that what is added here reaches the roles that
-- were let in before; it takes nothing away that an owner granted by hand.
create or replace function procrastinate._functions_of(access text) returns text[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select '{protocol,backend_v1,now_,cron_next}'::text[] || case access
    when 'client' then '{defer,defer_many,cancel,retry}'::text[]
    when 'worker' then '{register_worker_v1,work_v1,fetch_v1,finish_v1,complete_v1,idle_v1,heartbeat_v1,held_v1,tick_v1,'
                       'unregister_worker_v1}'::text[]
    when 'observer' then '{count_jobs_v1,stalled_jobs_v1}'::text[]
    when 'admin' then '{defer,defer_many,cancel,retry,count_jobs_v1,stalled_jobs_v1,finish_job_v1,tick_v1,purge,schedule,'
                      'unschedule,register_task,set_setting}'::text[]
  end
$$;
comment on function procrastinate._functions_of(text) is 'Name the functions that an access may call.';

create or replace function procrastinate._grant(role text, access text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_grant text;
begin
  for v_grant in
    select 'usage on schema procrastinate'
    union all
    select 'execute on function ' || p.oid::regprocedure
      from pg_proc as p
     where p.pronamespace = 'procrastinate'::regnamespace and p.proname = any (procrastinate._functions_of(access))
    union all
    select format('select %s on %s', case access
             -- by columns, not by a view of fewer: what is not granted cannot leak through a condition either
             when 'observer' then '(' || string_agg(quote_ident(a.attname), ', ') filter (
               where a.attname not in ('args', 'headers', 'error_message', 'result', 'detail', 'last_error')) || ')'
             else '' end, c.oid::regclass)
      from pg_class as c
      join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
     where c.relnamespace = 'procrastinate'::regnamespace and c.relkind = 'v' and access in ('observer', 'admin')
     group by c.oid
  loop
    execute format('grant %s to %I', v_grant, role);
  end loop;
end $$;
comment on function procrastinate._grant(text, text) is
'Grant a role what an access takes. An observer reads all columns but those that may hold arguments, results or what an error said.';

create or replace function procrastinate.grant_access(role text, access text, queues text[] default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if access is null or access not in ('client', 'worker', 'observer', 'admin') then
    raise exception 'unknown access' using errcode = '22023', hint = 'Use client, worker, observer or admin.';
  elsif queues is not null and access <> 'client' then
    raise exception 'only a client can be limited to queues' using errcode = '22023',
      hint = 'Leave queues out: who runs or manages jobs, does so with all.';
  elsif not exists (select from pg_roles as r where r.rolname = role) then
    raise exception 'there is no such role' using errcode = 'undefined_object', detail = format('Its name is "%s".', left(role, 100)),
      hint = 'Create it first.';
  end if;
  perform procrastinate._check_name('queue', coalesce(q, ''), 128) from unnest(queues) as q;
  -- one at a time: two would note the limits without each other's, and could not grant the same function
  perform from procrastinate.config as c for update;
  insert into procrastinate.role (role, access, queues)
  select r.oid, grant_access.access, grant_access.queues from pg_roles as r where r.rolname = grant_access.role
  on conflict on constraint role_pkey do update set queues = excluded.queues;
  perform procrastinate._note_limits();
  perform procrastinate._grant(role, access);
end $$;
comment on function procrastinate.grant_access(text, text, text[]) is
'Let a role, and its members, do what a client, worker, observer or admin does, now and after each upgrade; a client with queues '
'only defers, cancels and retries in those. For the owner of the schema only: 42501, 42704, 22023, JQ014.';

create or replace function procrastinate.revoke_access(role text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from pg_roles as r where r.rolname = role) then
    raise exception 'there is no such role' using errcode = 'undefined_object', detail = format('Its name is "%s".', left(role, 100)),
      hint = 'What a role could do went with it.';
  end if;
  perform from procrastinate.config as c for update;
  delete from procrastinate.role as a using pg_roles as r where r.rolname = revoke_access.role and a.role = r.oid;
  perform procrastinate._note_limits();
  execute format(
    'revoke all on schema procrastinate from %1$I; revoke all on all tables in schema procrastinate from %1$I;'
    'revoke all on all functions in schema procrastinate from %1$I', role);
end $$;
comment on function procrastinate.revoke_access(text) is
'Take from a role all that it may do in the schema; its members keep what they have otherwise. For the owner of the schema only: '
'42501, 42704.';

create or replace function procrastinate._note_limits() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update procrastinate.config as c set limited = exists (select from procrastinate.role as a where a.queues is not null)
$$;
comment on function procrastinate._note_limits() is 'Note in the settings whether any client has a list of queues.';

create or replace function procrastinate._grant_all() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform procrastinate._grant(r.rolname, a.access)
     from procrastinate.role as a join pg_roles as r on r.oid = a.role order by r.rolname, a.access;
end $$;
comment on function procrastinate._grant_all() is 'Grant to all roles that were let in what their access takes.';

create or replace function procrastinate._check_queues(queues text[]) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_allowed text[];
begin
  if not (select c.limited from procrastinate.config as c)
     or pg_has_role(session_user, (select n.nspowner from pg_namespace as n where n.nspname = 'procrastinate'), 'member') then
    return;
  end if;
  -- Rights add up, as they do in SQL: one access to all queues is enough. Null is no limit.
  select case when bool_and(a.queues is not null) then array_agg(q order by q) end into v_allowed
    from procrastinate.role as a
    left join unnest(a.queues) as q on true
   where a.access <> 'observer' and pg_has_role(session_user, a.role, 'member');
  if not exists (select from procrastinate.role as a where a.queues is not null) then
    -- a restore where one of the roles is missing brings none of the limits back
    raise exception 'the limits of clients are lost' using errcode = 'JQ024',
      detail = 'The settings say that there are some, and procrastinate.roles has none.',
      hint = 'The owner of the schema grants them again, with procrastinate.grant_access.';
  elsif not queues <@ v_allowed then
    raise exception 'role "%" may not use this queue', session_user using errcode = 'JQ024',
      detail = format('Its queues are: %s.', coalesce(nullif(array_to_string(v_allowed, ', '), ''), 'none')),
      hint = 'The owner of the schema opens more with procrastinate.grant_access.';
  end if;
end $$;
comment on function procrastinate._check_queues(text[]) is
'Raise JQ024 for queues that are closed to whoever has logged in: the role of the session, which no SET ROLE changes.';

create or replace function procrastinate._set_owner(owner text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_object text;
begin
  for v_object in
    select 'schema procrastinate'
    union all
    select 'function ' || p.oid::regprocedure from pg_proc as p where p.pronamespace = 'procrastinate'::regnamespace
    union all
    select case c.relkind when 'r' then 'table ' when 'v' then 'view ' else 'sequence ' end || c.oid::regclass
      from pg_class as c
     where c.relnamespace = 'procrastinate'::regnamespace and c.relkind in ('r', 'v', 'S')
       -- a column's sequence goes with its table
       and not exists (select from pg_depend as d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'i')
  loop
    execute format('alter %s owner to %I', v_object, owner);
  end loop;
end $$;
comment on function procrastinate._set_owner(text) is 'Give the schema and all that is in it to a role.';

create or replace function procrastinate._create_roles(prefix text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_owner text := prefix || '_owner';
  v_role text;
  v_access text;
begin
  foreach v_access in array '{owner,client,worker,observer,admin}'::text[] loop
    v_role := prefix || '_' || v_access;
    begin
      if not exists (select from pg_roles as r where r.rolname = v_role) then
        execute format('create role %I', v_role);
      end if;
      if v_role = v_owner and not pg_has_role(v_owner, 'usage') then
        execute format('grant %I to %I', v_owner, current_user);
      end if;
    exception
      when insufficient_privilege then
        raise exception '%', sqlerrm using errcode = 'insufficient_privilege', hint = format(
          'Let somebody who may do it create %1$s_owner, %1$s_client, %1$s_worker, %1$s_observer and %1$s_admin, and grant '
          '%1$s_owner to %2$I.', prefix, current_user);
      when duplicate_object or unique_violation then
        -- roles are the cluster's: another database's migration was faster
        null;
    end;
  end loop;
  if (select n.nspowner from pg_namespace as n where n.nspname = 'procrastinate')
     <> (select r.oid from pg_roles as r where r.rolname = v_owner) then
    perform procrastinate._set_owner(v_owner);
  end if;
  foreach v_access in array '{client,worker,observer,admin}'::text[] loop
    perform procrastinate.grant_access(prefix || '_' || v_access, v_access)
      where not exists (
        select from procrastinate.roles as r where (r.name, r.access) = (prefix || '_' || v_access, v_access));
  end loop;
end $$;
comment on function procrastinate._create_roles(text) is
'Create group roles for the owner, clients, workers, observers and admins, those that are not there yet; give the schema to the '
'first and let in the others, as they are if they were let in before. What "pyprocrastinate migrate --roles" does.';
