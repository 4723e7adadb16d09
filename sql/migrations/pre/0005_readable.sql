-- The owner may insert rows by hand: what no client could read back is kept out of deferred_at, too. A few comparisons in
-- the one constraint that there is cost far less than another one.
update procrastinate.job set deferred_at = clock_timestamp()
where deferred_at not between '2000-01-01 00:00:00+00'::timestamptz and '9000-01-01 00:00:00+00'::timestamptz;

-- squawk-ignore ban-drop-constraint
alter table procrastinate.job drop constraint jobs_readable;

alter table procrastinate.job add constraint jobs_readable check (
  least(deferred_at, scheduled_at) >= '2000-01-01 00:00:00+00'::timestamptz
  and greatest(deferred_at, scheduled_at) <= '9000-01-01 00:00:00+00'::timestamptz
  and rank > -2147483648
) not valid;
