create or replace function procrastinate.set_setting(name text, value jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
begin
  case name
    when 'max_args_bytes' then update procrastinate.config as c set max_args_bytes = value::int;
    when 'max_rescues' then update procrastinate.config as c set max_rescues = value::int;
    when 'stalled_after' then
      if procrastinate._interval(value #>> '{}') > '10 years' then
        raise exception 'stalled_after is over 10 years' using errcode = '22023', hint = 'Give it 1 second to 10 years.';
      end if;
      update procrastinate.config as c set stalled_after = procrastinate._interval(value #>> '{}');
    when 'notify' then update procrastinate.config as c set notify = value::boolean;
    when 'store_errors' then update procrastinate.config as c set store_errors = value::boolean;
    when 'retention' then
      perform procrastinate._check_keys('retention', value, '{succeeded,failed,aborted,cancelled}');
      if (select bool_or(procrastinate._interval(r.value) not between '0' and '1000 years') from jsonb_each_text(value) as r) then
        raise exception 'a retention is negative, or over 1000 years' using errcode = '22023', hint = 'Use null to keep jobs for ever.';
      end if;
      update procrastinate.config as c set retention = jsonb_strip_nulls(value);
    else
      raise exception 'unknown setting' using errcode = 'JQ018', detail = format('Its name is "%s".', left(name, 100)),
        hint = 'select * from procrastinate.settings lists them.';
  end case;
exception
  when check_violation or not_null_violation or data_exception or invalid_parameter_value or cannot_coerce then
    raise exception 'bad value for the setting %', name using errcode = 'JQ018', detail = sqlerrm,
      hint = 'select * from procrastinate.settings shows what each takes.';
end $$;
comment on function procrastinate.set_setting(text, jsonb) is
'Change a setting for all; select * from procrastinate.settings lists them. Raises JQ018.';
