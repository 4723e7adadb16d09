create or replace function procrastinate._acceptable(
  task text, queue text, priority int, lock text, queueing_lock text, scheduled_at timestamptz,
  args jsonb, headers jsonb, max_bytes int
) returns boolean
-- stable, as pg_column_size is: the planner would not take an immutable one into the query
language sql stable parallel safe begin atomic
  -- 512 bytes cannot hold 64 levels; what is larger goes the slow way, which decides
  select coalesce(length(task) between 1 and 128, false)
     and coalesce(length(queue) between 1 and 128, true)
     and coalesce(priority > -2147483648, true)
     and coalesce(length(lock) between 1 and 512, true)
     and coalesce(length(queueing_lock) between 1 and 512, true)
     and coalesce(scheduled_at between timestamptz '2000-01-01 00:00:00+00' and timestamptz '9000-01-01 00:00:00+00', true)
     -- || unpacks what comes out of a table compressed; a few bytes can hold a number of many digits
     and coalesce(
       jsonb_typeof(args) = 'object' and pg_column_size(args || '{}') <= 512 and octet_length(args::text) <= max_bytes, true)
     and coalesce(
       jsonb_typeof(headers) = 'object' and pg_column_size(headers || '{}') <= 512 and octet_length(headers::text) <= max_bytes, true);
end;
comment on function procrastinate._acceptable(text, text, int, text, text, timestamptz, jsonb, jsonb, int) is
'Tell, cheaply and inline, that a job is surely within the limits. False means: ask procrastinate._check_job.';

create or replace function procrastinate._check_job(
  task text, queue text, priority int, lock text, queueing_lock text, scheduled_at timestamptz,
  args jsonb, headers jsonb, max_bytes int
) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  perform procrastinate._check_name('task', coalesce(task, ''), 128);
  perform procrastinate._check_name('queue', queue, 128);
  perform procrastinate._check_name('lock', lock, 512);
  perform procrastinate._check_name('queueing lock', queueing_lock, 512);
  perform procrastinate._check_priority(priority);
  perform procrastinate._check_time(scheduled_at);
  perform procrastinate._check_object('args', args, max_bytes);
  perform procrastinate._check_object('headers', headers, max_bytes);
  return true;
end $$;
comment on function procrastinate._check_job(text, text, int, text, text, timestamptz, jsonb, jsonb, int) is
'Return true, or raise what is wrong with a job: JQ010 to JQ015.';

create or replace function procrastinate._check_name(what text, value text, max int) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if length(value) not between 1 and max then
    raise exception '% name is %', what, case when value = '' then 'empty' else 'too long' end
      using errcode = 'JQ014', detail = format('It has %s characters.', length(value)),
            hint = format('Use 1 to %s characters.', max);
  end if;
end $$;
comment on function procrastinate._check_name(text, text, int) is 'Raise JQ014 for an empty or over-long name. Null passes.';

create or replace function procrastinate._check_priority(priority int) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if priority = -2147483648 then
    raise exception 'priority is out of range' using errcode = 'JQ015', hint = 'Use -2147483647 to 2147483647.';
  end if;
end $$;
comment on function procrastinate._check_priority(int) is 'Raise JQ015 for a priority that has no negative. Null passes.';

create or replace function procrastinate._check_time(value timestamptz) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if value not between timestamptz '2000-01-01 00:00:00+00' and timestamptz '9000-01-01 00:00:00+00' then
    raise exception 'time is out of range' using errcode = 'JQ013',
      detail = case when isfinite(value) then 'It is before the year 2000 or after 9000.' else 'It is infinite.' end,
      hint = 'Leave the time out to run the job as soon as possible.';
  end if;
end $$;
comment on function procrastinate._check_time(timestamptz) is
'Raise JQ013 for infinity and for years that no client can read back. Null passes.';

create or replace function procrastinate._check_object(what text, value jsonb, max_bytes int) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if jsonb_typeof(value) <> 'object' then
    raise exception '% must be a JSON object', what using errcode = 'JQ010',
      detail = format('It is of type %s.', jsonb_typeof(value)), hint = 'Pass named values, as in {"to": "a@b.c"}.';
  elsif octet_length(value::text) > max_bytes then
    raise exception '% are too large', what using errcode = 'JQ012',
      detail = format('They take %s bytes as JSON text, the limit is %s.', octet_length(value::text), max_bytes),
      hint = 'Store the data elsewhere and pass a reference, or raise the setting max_args_bytes.';
  elsif jsonb_path_exists(value, 'strict $.**{64} ? (@.type() == "object" || @.type() == "array")') then
    raise exception '% are nested too deep', what using errcode = 'JQ011',
      detail = 'There are more than 64 levels.', hint = 'Flatten the data: not every client can read deeper values.';
  end if;
end $$;
comment on function procrastinate._check_object(text, jsonb, int) is
'Raise JQ010 (not an object), JQ011 (more than 64 levels) or JQ012 (too large). Null passes.';

create or replace function procrastinate._check_args(args jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  perform procrastinate._check_object('args', args, (select c.max_args_bytes from procrastinate.config as c));
end $$;
comment on function procrastinate._check_args(jsonb) is 'Raise JQ010, JQ011 or JQ012 for args that a defer would refuse.';

create or replace function procrastinate._check_keys(what text, value jsonb, allowed text[]) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_key text;
begin
  if jsonb_typeof(value) <> 'object' then
    raise exception '% must be a JSON object', what using errcode = 'JQ016',
      hint = format('Known keys: %s.', coalesce(nullif(array_to_string(allowed, ', '), ''), 'none'));
  end if;
  select k into v_key from jsonb_object_keys(value) as k where k <> all (allowed) limit 1;
  if v_key is not null then
    raise exception 'unknown key in %', what using errcode = 'JQ016',
      detail = format('The key is "%s".', left(v_key, 100)),
      hint = format('Known keys: %s.', coalesce(nullif(array_to_string(allowed, ', '), ''), 'none'));
  end if;
end $$;
comment on function procrastinate._check_keys(text, jsonb, text[]) is
'Raise JQ016 for a key that nothing would read: it is a typing error, or a later release''s. Null passes.';
