-- A parsed expression is a text[] of eight: the fields second, minute, hour, day of month, month and day of week as
-- masks, whose character number v + 1 is '1' when the value v is asked for; then 'and' or 'or', how the two day fields
-- go together; then 'real' or 'wall', the clock by which the expression runs when clocks are put forward or back:
--   wall  every field of the time is given: it runs once for each time that the clocks on the wall should show. One
--         that is left out runs as much later as clocks are put forward; one that is shown twice runs the first time.
--   real  second, minute or hour begins with '*', "every so often": it runs whenever the clocks on the wall do show
--         such a time, and so at even distances.
-- Near a change of the clocks both are worked out from the two offsets; anywhere else they are one and the same.
create or replace function procrastinate.cron_next(expression text, after timestamptz, timezone text default 'UTC')
returns timestamptz
language plpgsql stable strict security definer set search_path = pg_catalog, pg_temp as $$
declare
  -- 29 February falls on the same day of the week at least once in 40 years
  v_end constant interval := '41 years';
  v_cron text[] := procrastinate._cron_parse(expression);
  v_tick timestamptz;
  v_match timestamp;
  v_wall timestamp;
  v_day date;
begin
  perform procrastinate._check_zone(timezone);
  if after not between timestamptz '1900-01-01 00:00:00+00' and timestamptz '9000-01-01 00:00:00+00' then
    raise exception 'time is out of range' using errcode = 'JQ013',
      detail = 'It is infinite, before the year 1900 or after 9000.', hint = 'Pass a time that a schedule can follow.';
  end if;
  v_wall := date_trunc('second', after at time zone timezone) + interval '1 second';
  loop
    v_day := v_wall::date;
    if procrastinate._cron_steady(v_day, timezone) then
      v_match := procrastinate._cron_match(v_cron, v_wall, (after at time zone 'UTC') + v_end);
      if v_match is null or v_match::date = v_day then
        return v_match at time zone timezone;
      end if;
      v_wall := v_match::date;
    else
      v_tick := procrastinate._cron_near_change(v_cron, after, v_day, timezone);
      if v_tick is not null then
        return v_tick;
      end if;
      v_wall := v_day + 2;
    end if;
  end loop;
end $$;
comment on function procrastinate.cron_next(text, timestamptz, text) is
'Return the first time after the given one at which a cron expression fires, or null when it never does: minute, hour, '
'day of month, month, day of week and, if given, second; or @hourly, @daily, @midnight, @weekly, @monthly, @yearly, '
'@annually. Raises JQ020 (bad expression), JQ021 (unknown time zone), JQ013 (time out of range).';

create or replace function procrastinate._cron_last(expression text, after timestamptz, upto timestamptz, timezone text)
returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_low bigint := 0;
  v_high bigint := ceil(extract(epoch from upto - after));
  v_middle bigint;
  v_tick timestamptz := procrastinate.cron_next(expression, after, timezone);
  v_next timestamptz;
begin
  if v_tick is null or v_tick > upto then
    return null;
  end if;
  while v_high - v_low > 1 loop
    v_middle := (v_low + v_high) / 2;
    v_next := procrastinate.cron_next(expression, after + v_middle * interval '1 second', timezone);
    if v_next <= upto then
      v_tick := v_next;
      v_low := v_middle;
    else
      v_high := v_middle;
    end if;
  end loop;
  return v_tick;
end $$;
comment on function procrastinate._cron_last(text, timestamptz, timestamptz, text) is
'Return the last time in (after, upto] at which a cron expression fires, or null. Takes some 20 looks, however many there are.';

create or replace function procrastinate._cron_parse(expression text) returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  -- the collation keeps a Turkish database from reading FRI as something else
  v_text text := btrim(lower(expression collate "C"), E' \t\r\n');
  v_field text[];
  v_week text;
begin
  v_text := case v_text
              when '@hourly' then '0 * * * *'
              when '@daily' then '0 0 * * *'
              when '@midnight' then '0 0 * * *'
              when '@weekly' then '0 0 * * 0'
              when '@monthly' then '0 0 1 * *'
              when '@yearly' then '0 0 1 1 *'
              when '@annually' then '0 0 1 1 *'
              else v_text
            end;
  if length(v_text) > 1000 then
    perform procrastinate._cron_bad(format('It has %s characters, the limit is 1000.', length(v_text)));
  end if;
  v_field := array_remove(regexp_split_to_array(v_text, '[ \t\r\n]+'), '');
  if cardinality(v_field) not in (5, 6) then
    perform procrastinate._cron_bad(format('"%s" has %s of the 5 or 6 fields.', left(v_text, 40), cardinality(v_field)));
  end if;
  v_week := procrastinate._cron_field('day of week', v_field[5], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}');
  return array[
    procrastinate._cron_field('second', coalesce(v_field[6], '0'), 0, 59),
    procrastinate._cron_field('minute', v_field[1], 0, 59),
    procrastinate._cron_field('hour', v_field[2], 0, 23),
    procrastinate._cron_field('day of month', v_field[3], 1, 31),
    procrastinate._cron_field('month', v_field[4], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'),
    case when v_week like '%1' then '1' else left(v_week, 1) end || substr(v_week, 2),
    case when v_field[3] like '*%' or v_field[5] like '*%' then 'and' else 'or' end,
    case when v_field[1] like '*%' or v_field[2] like '*%' or v_field[6] like '*%' then 'real' else 'wall' end
  ];
end $$;
comment on function procrastinate._cron_parse(text) is
'Read a cron expression into the eight texts that 50_cron.sql explains. Raises JQ020.';

create or replace function procrastinate._cron_elsewhere(expression text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_cron constant text[] := procrastinate._cron_parse(expression);
  v_every_day constant boolean := strpos(substr(v_cron[4], 2), '0') = 0;
  v_every_weekday constant boolean := strpos(left(v_cron[6], 7), '0') = 0;
  v_field text[] := regexp_split_to_array(btrim(expression, E' \t\r\n'), '[ \t\r\n]+');
  v_both boolean;
begin
  if v_every_day and v_every_weekday then
    return null;
  end if;
  v_both := (v_every_day and (v_field[3] ~ '(^|,)[*](,|$)' or strpos(v_field[5], '*') > 0))
            or (v_every_weekday and (v_field[5] ~ '(^|,)[*](,|$)' or strpos(v_field[3], '*') > 0));
  if v_both = (v_cron[7] = 'and') then
    return null;
  elsif v_both then
    v_field[case when v_every_day then 3 else 5 end] := '*';
  else
    v_field[3] := regexp_replace(v_field[3], '^[*]', '1-31');
    v_field[5] := regexp_replace(v_field[5], '^[*]', '0-7');
  end if;
  return array_to_string(v_field, ' ');
end $$;
comment on function procrastinate._cron_elsewhere(text) is
'Return what to write here for the times at which croniter would fire, or null where it reads the expression as we do. Of the two '
'day fields croniter wants either, unless one covers all days and is, or stands beside, a star; here a leading star decides.';

create or replace function procrastinate._cron_field(field text, value text, low int, high int, names text[] default '{}')
returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_mask bit varying := repeat('0', high + 1)::bit varying;
  v_values text;
  v_part text;
  v_item text[];
  v_first int;
  v_last int;
  v_step int;
begin
  foreach v_part in array string_to_array(value, ',') loop
    v_item := regexp_match(v_part, '^(?:[*]|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,4}))?$');
    v_first := case when v_item[1] is null then low else procrastinate._cron_value(v_item[1], low, names) end;
    v_last := case when v_item[2] is not null then procrastinate._cron_value(v_item[2], low, names)
                   when v_item[1] is null or v_item[3] is not null then high
                   else v_first end;
    -- from some day to Sunday: Sunday ends the week as well as it begins it
    v_last := case when high = 7 and v_last = 0 and v_first > 0 then 7 else v_last end;
    v_step := least(coalesce(v_item[3], '1')::int, high + 1);
    if v_item is null or v_first is null or v_last is null then
      perform procrastinate._cron_bad(format('%s: "%s" cannot be read.', field, left(v_part, 40)));
    elsif v_first < low or v_first > high or v_last < low or v_last > high then
      perform procrastinate._cron_bad(format('%s: "%s" is not within %s to %s.', field, v_part, low, high));
    elsif v_first > v_last then
      perform procrastinate._cron_bad(format('%s: "%s" ends before it begins.', field, v_part));
    elsif v_step = 0 then
      perform procrastinate._cron_bad(format('%s: the step of "%s" is zero.', field, v_part));
    end if;
    v_values := left(repeat(rpad('1', v_step, '0'), high + 1), v_last - v_first + 1);
    v_mask := v_mask | rpad(repeat('0', v_first) || v_values, high + 1, '0')::bit varying;
  end loop;
  return v_mask::text;
end $$;
comment on function procrastinate._cron_field(text, text, int, int, text[]) is
'Read one field of a cron expression into a mask. Raises JQ020 naming the field.';

-- Those without a SET clause are inlined into the expressions that call them.
create or replace function procrastinate._cron_value(item text, low int, names text[]) returns int
language sql immutable parallel safe begin atomic
  select case when item ~ '[0-9]' then item::int else array_position(names, item) + low - 1 end;
end;
comment on function procrastinate._cron_value(text, int, text[]) is 'Read a number or a name of a cron field.';

create or replace function procrastinate._cron_bad(detail text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'bad cron expression' using errcode = 'JQ020', detail = _cron_bad.detail,
    hint = 'Write minute, hour, day of month, month, day of week and, if wanted, second, as in "*/5 8-18 * * mon-fri"; '
           'or @hourly, @daily, @weekly, @monthly, @yearly.';
end $$;
comment on function procrastinate._cron_bad(text) is 'Raise JQ020.';

create or replace function procrastinate._check_zone(timezone text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  perform timestamptz '2000-01-01 00:00:00+00' at time zone timezone;
exception
  when invalid_parameter_value then
    raise exception 'unknown time zone' using errcode = 'JQ021',
      detail = format('It is "%s".', left(timezone, 100)),
      hint = 'Use a name of the view pg_timezone_names, such as UTC or Europe/Berlin.';
end $$;
comment on function procrastinate._check_zone(text) is 'Raise JQ021 for a time zone that PostgreSQL does not know. Null passes.';

create or replace function procrastinate._cron_bit(mask text, value int) returns int
language sql immutable parallel safe begin atomic
  select value + nullif(strpos(substr(mask, value + 1), '1'), 0) - 1;
end;
comment on function procrastinate._cron_bit(text, int) is 'Return the first value of a mask that is not below the given one, or null.';

create or replace function procrastinate._cron_match(cron text[], at timestamp, before timestamp) returns timestamp
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_day date := at::date;
  v_second int := extract(epoch from at::time)::int;
  v_match timestamp;
begin
  loop
    v_day := procrastinate._cron_day(cron, v_day, before::date);
    v_second := procrastinate._cron_time(cron, case when v_day = at::date then v_second else 0 end);
    exit when v_day is null or v_second is not null;
    v_day := v_day + 1;
  end loop;
  v_match := v_day + make_interval(secs => v_second);
  return case when v_match < before then v_match end;
end $$;
comment on function procrastinate._cron_match(text[], timestamp, timestamp) is
'Return the first time in [at, before) that a parsed expression asks for, on clocks that nobody changes, or null.';

create or replace function procrastinate._cron_day(cron text[], at date, upto date) returns date
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_both constant boolean := cron[7] = 'and';
  v_day date := at;
  v_number int;
  v_next int;
begin
  while v_day <= upto loop
    v_number := date_part('day', v_day);
    v_next := case when substr(cron[5], date_part('month', v_day)::int + 1, 1) = '0' then null
                   when v_both then procrastinate._cron_bit(cron[4], v_number)
                   else v_number end;
    if v_next is distinct from v_number then
      v_day := least(v_day + (v_next - v_number), (date_trunc('month', v_day::timestamp) + interval '1 month')::date);
    elsif substr(cron[6], date_part('dow', v_day)::int + 1, 1) = '1'
       or not v_both and substr(cron[4], v_number + 1, 1) = '1' then
      return v_day;
    else
      v_day := v_day + 1;
    end if;
  end loop;
  return null;
end $$;
comment on function procrastinate._cron_day(text[], date, date) is
'Return the first day in [at, upto] that a parsed expression asks for, or null.';

create or replace function procrastinate._cron_time(cron text[], second int) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_hour int := procrastinate._cron_bit(cron[3], second / 3600);
  v_minute int;
  v_second int;
begin
  if v_hour = second / 3600 then
    v_minute := procrastinate._cron_bit(cron[2], second / 60 % 60);
    if v_minute = second / 60 % 60 then
      v_second := procrastinate._cron_bit(cron[1], second % 60);
      if v_second is null then
        v_minute := procrastinate._cron_bit(cron[2], v_minute + 1);
      end if;
    end if;
    if v_minute is null then
      v_hour := procrastinate._cron_bit(cron[3], v_hour + 1);
    end if;
  end if;
  return v_hour * 3600 + coalesce(v_minute, procrastinate._cron_bit(cron[2], 0)) * 60
         + coalesce(v_second, procrastinate._cron_bit(cron[1], 0));
end $$;
comment on function procrastinate._cron_time(text[], int) is
'Return the first second of a day, from the given one, that a parsed expression asks for, or null.';

create or replace function procrastinate._cron_steady(day date, timezone text) returns boolean
language sql stable parallel safe begin atomic
  select ((day + 2)::timestamp at time zone timezone) - ((day - 2)::timestamp at time zone timezone) = interval '96 hours';
end;
comment on function procrastinate._cron_steady(date, text) is
'Tell that nobody changes the clocks from two days before the beginning of a day to the end of the day after it.';

create or replace function procrastinate._cron_near_change(cron text[], after timestamptz, day date, timezone text)
returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_from timestamptz := (day - 2)::timestamp at time zone timezone;
  v_upto timestamptz := (day + 2)::timestamp at time zone timezone;
  v_before interval := procrastinate._cron_offset(v_from, timezone);
  v_after interval := procrastinate._cron_offset(v_upto, timezone);
  v_change timestamptz := procrastinate._cron_change(v_from, v_upto, timezone);
  v_missing interval := '0';
  v_doubled interval := '0';
  v_early timestamp;
  v_late timestamp;
begin
  if cron[8] = 'wall' then
    v_missing := greatest(v_after - v_before, interval '0');
    v_doubled := greatest(v_before - v_after, interval '0');
  end if;
  v_from := greatest(v_from, date_trunc('second', after) + interval '1 second');
  v_early := procrastinate._cron_match(
    cron, (v_from at time zone 'UTC') + v_before, (v_change at time zone 'UTC') + v_before + v_missing);
  v_late := procrastinate._cron_match(
    cron, (greatest(v_from, v_change + v_doubled) at time zone 'UTC') + v_after, (v_upto at time zone 'UTC') + v_after);
  v_early := least(v_early - v_before, v_late - v_after);
  return case when v_early < v_upto at time zone 'UTC' then v_early at time zone 'UTC' end;
end $$;
comment on function procrastinate._cron_near_change(text[], timestamptz, date, text) is
'Return the first time at which a parsed expression fires between two days before the beginning of a day and the end of the '
'day after it, or null, minding the change of the clocks therein.';

create or replace function procrastinate._cron_offset(at timestamptz, timezone text) returns interval
language sql stable parallel safe begin atomic
  select (at at time zone timezone) - (at at time zone 'UTC');
end;
comment on function procrastinate._cron_offset(timestamptz, text) is 'Tell by how much the clocks of a time zone are ahead of UTC.';

create or replace function procrastinate._cron_change(low timestamptz, high timestamptz, timezone text) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_before interval := procrastinate._cron_offset(low, timezone);
  v_low int := 0;
  v_high int := extract(epoch from high - low)::int;
  v_middle int;
begin
  while v_high - v_low > 1 loop
    v_middle := (v_low + v_high) / 2;
    if procrastinate._cron_offset(low + make_interval(secs => v_middle), timezone) = v_before then
      v_low := v_middle;
    else
      v_high := v_middle;
    end if;
  end loop;
  return low + make_interval(secs => v_high);
end $$;
comment on function procrastinate._cron_change(timestamptz, timestamptz, text) is
'Return the time in (low, high] at which the clocks of a time zone are changed; the upper end when they are not.';
