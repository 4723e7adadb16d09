create or replace function procrastinate._check_policy(policy jsonb) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_key text;
  v_value jsonb;
  v_bad text;
begin
  if jsonb_typeof(policy) in ('null', 'boolean') then
    return true;
  elsif jsonb_typeof(policy) = 'number' then
    v_bad := case when policy::numeric <> trunc(policy::numeric) or policy::numeric not between 0 and 2147483647 then 'retry' end;
  elsif jsonb_typeof(policy) <> 'object' then
    v_bad := 'retry';
  else
    for v_key, v_value in select * from jsonb_each(policy) loop
      v_bad := case
        when v_value = 'null' then null
        when v_key = 'retry_exceptions' then
          case when jsonb_typeof(v_value) <> 'array' or jsonb_path_exists(v_value, 'strict $[*] ? (@.type() != "string")') then v_key end
        when v_key not in ('max_attempts', 'wait', 'linear_wait', 'exponential_wait', 'max_wait', 'jitter', 'rescues')
          or jsonb_typeof(v_value) <> 'number' then v_key
        when v_value::numeric not between 0 and case when v_key = 'jitter' then 1 else 1e12 end then v_key
        when v_key in ('max_attempts', 'rescues')
          and (v_value::numeric <> trunc(v_value::numeric) or v_value::numeric > 2147483647) then v_key
      end;
      exit when v_bad is not null;
    end loop;
  end if;
  if v_bad is not null then
    raise exception 'bad retry policy' using errcode = 'JQ017', detail = format('The fault is in "%s".', left(v_bad, 100)),
      hint = 'Use true, false, a number of retries, or an object with max_attempts, wait, linear_wait, exponential_wait, '
        'max_wait (seconds), jitter (0 to 1), retry_exceptions (class names) and rescues.';
  end if;
  return true;
end $$;
comment on function procrastinate._check_policy(jsonb) is 'Return true, or raise JQ017 for what is no retry policy.';

create or replace function procrastinate._retry_at(policy jsonb, attempts int, error jsonb, at timestamptz) returns timestamptz
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_max int;
  v_exponential float8;
  v_delay float8;
begin
  case coalesce(jsonb_typeof(policy), 'null')
    when 'boolean' then
      return case when policy::boolean then at end;
    when 'number' then
      return case when attempts < policy::int then at end;
    when 'object' then
      v_max := (policy ->> 'max_attempts')::int;
    else
      return null;
  end case;
  -- none of the waits is given: an object that only says how often a job may be rescued
  if not policy ?| '{max_attempts,wait,linear_wait,exponential_wait,retry_exceptions}' then
    return null;
  elsif v_max > 0 and attempts >= v_max then
    return null;
  -- no names, no filter
  elsif jsonb_typeof(policy -> 'retry_exceptions') = 'array' and policy -> 'retry_exceptions' <> '[]'
    and not coalesce(policy -> 'retry_exceptions' ? (error ->> 'class'), false)
    and not coalesce(array(select jsonb_array_elements_text(policy -> 'retry_exceptions'))
                     && array(select jsonb_array_elements_text(error -> 'ancestors')), false) then
    return null;
  end if;
  v_exponential := coalesce((policy ->> 'exponential_wait')::float8, 0);
  v_delay := coalesce((policy ->> 'wait')::float8, 0)
    + coalesce((policy ->> 'linear_wait')::float8, 0) * attempts
    -- 2e11 s is past the year 8000: beyond, power() would overflow
    + case when v_exponential > 1 and (attempts + 1) * ln(v_exponential) > ln(2e11) then 2e11
           when v_exponential > 0 then power(v_exponential, attempts + 1) else 0 end;
  v_delay := least(v_delay, coalesce((policy ->> 'max_wait')::float8, 2e11), 2e11);
  v_delay := v_delay * (1 - coalesce((policy ->> 'jitter')::float8, 0) * random());
  return least(at + make_interval(secs => v_delay), timestamptz '9000-01-01 00:00:00+00');
end $$;
comment on function procrastinate._retry_at(jsonb, int, jsonb, timestamptz) is
'Tell when a run that failed is retried, null for never. attempts: runs before this one, 0 at first. '
'Delay in seconds: wait + linear_wait * attempts + exponential_wait ^ (attempts + 1), at most max_wait, less up to jitter of it.';

create or replace function procrastinate._policy(own jsonb, task text, worker_id bigint) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(
    own,
    (select nullif(w.tasks -> task -> 'retry', 'null') from procrastinate.worker as w where w.id = worker_id),
    (select t.retry from procrastinate.task as t where t.name = task))
$$;
comment on function procrastinate._policy(jsonb, text, bigint) is
'Find the retry policy of a run: the job''s own, else what its worker registered for the task, else what is in tasks.';
