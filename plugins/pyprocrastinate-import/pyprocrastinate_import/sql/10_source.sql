-- The old tables may be in any schema. Temporary views give them one name, so that all other statements are plain ones.
create or replace function procrastinate_import._attach(source text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set client_min_messages = warning as $$
declare
  v_table text;
begin
  -- fails where there is no schema to import to
  perform procrastinate.protocol();
  if to_regclass(format('%I.procrastinate_jobs', source)) is null then
    raise exception 'there is no table procrastinate_jobs in schema "%"', source using errcode = '22023',
      hint = 'Name the schema of Procrastinate''s tables with --schema.';
  elsif to_regclass(format('%I.procrastinate_workers', source)) is null then
    raise exception 'the tables in schema "%" are older than Procrastinate 3', source using errcode = '22023',
      hint = 'Bring them to its version 3 first, with its own migrations.';
  end if;
  perform procrastinate_import._detach();
  foreach v_table in array '{jobs,events,workers,periodic_defers}'::text[] loop
    execute format('create temp view %I as select * from %I.%I',
                   'import_' || v_table, source, 'procrastinate_' || v_table);
  end loop;
end $$;
comment on function procrastinate_import._attach(text) is
'Show the tables of Procrastinate that are in this schema as temporary views. Raises 3F000, 22023.';

create or replace function procrastinate_import._detach() returns void
language plpgsql set search_path = pg_catalog, pg_temp set client_min_messages = warning as $$
begin
  drop view if exists pg_temp.import_jobs, pg_temp.import_events, pg_temp.import_workers, pg_temp.import_periodic_defers;
end $$;
comment on function procrastinate_import._detach() is
'Remove the temporary views: behind a pooler the next transaction of this connection may be somebody else''s.';

create or replace function procrastinate_import._living(at timestamptz) returns table (worker_id bigint, age interval)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return query
    select w.id, date_trunc('second', at - w.last_heartbeat)
      from pg_temp.import_workers as w
     where w.last_heartbeat > at - interval '30 seconds'
     order by w.id;
end $$;
comment on function procrastinate_import._living(timestamptz) is
'List the workers of Procrastinate that gave a heartbeat in the last 30 seconds: the rest it counts as stalled itself.';
