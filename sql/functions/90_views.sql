-- A view reads tables with its owner's rights, but calls functions with those of who reads it: so no view calls one.
create or replace view procrastinate.jobs as
select j.id, case when j.state = 'x' then 'doing' else 'todo' end as status, j.task, j.queue, j.args, j.headers,
       -j.rank as priority, j.lock, j.queueing_lock, j.attempts, j.deferred_at,
       -- a worker that does not know its task gave it back for a moment
       case when j.error ? 'due' then (j.error ->> 'due')::timestamptz else j.scheduled_at end as scheduled_at, j.started_at,
       null::timestamptz as finished_at, j.worker_id, j.abort_requested, j.error ->> 'class' as error_class,
       j.error ->> 'message' as error_message, null::jsonb as result
  from procrastinate.job as j
union all
select d.id, d.status, d.task, d.queue, d.args, d.headers, -d.rank, d.lock, d.queueing_lock, d.attempts, d.deferred_at,
       d.scheduled_at, d.started_at, d.finished_at, d.worker_id, false, d.error ->> 'class', d.error ->> 'message', d.result
  from procrastinate.done as d;
comment on view procrastinate.jobs is
'Every job: waiting and running ones, and those that have ended and were kept. error_class and error_message are of its last run.';

create or replace view procrastinate.events as
select e.id, e.job_id, e.type, e.at, e.worker_id, e.detail from procrastinate.event as e
union all
-- runs that did not end the job, or that an operator's retry made past: their starts are not in the job's own times
select -(e.id * 16 + 1), e.job_id, 'started', e.started_at, e.worker_id, null
  from procrastinate.event as e where e.started_at is not null
union all
select -(e.id * 16 + 3), e.job_id, e.detail ->> 'status', (e.detail ->> 'finished_at')::timestamptz, e.worker_id, null
  from procrastinate.event as e where e.type = 'retried' and e.detail ? 'finished_at'
union all
select -(j.id * 16 + 4), j.id, 'deferred', j.deferred_at, null, null from procrastinate.job as j
union all
select -(j.id * 16 + 5), j.id, 'scheduled', s.due, null, null
  from procrastinate.job as j
 cross join lateral (values (case when j.error ? 'due' then (j.error ->> 'due')::timestamptz else j.scheduled_at end)) as s (due)
 where s.due is not null and j.attempts = 0
union all
select -(j.id * 16 + 6), j.id, 'started', j.started_at, j.worker_id, null from procrastinate.job as j where j.started_at is not null
union all
select -(d.id * 16 + 4), d.id, 'deferred', d.deferred_at, null, null from procrastinate.done as d
union all
select -(d.id * 16 + 5), d.id, 'scheduled', d.scheduled_at, null, null
  -- of a job that never ran, or has run once: else it is the time of a retry
  from procrastinate.done as d where d.scheduled_at is not null and d.attempts <= (d.started_at is not null)::int
union all
select -(d.id * 16 + 6), d.id, 'started', d.started_at, d.worker_id, null from procrastinate.done as d where d.started_at is not null
union all
select -(d.id * 16 + 7), d.id, d.status, d.finished_at, d.worker_id, d.error from procrastinate.done as d;
comment on view procrastinate.events is
'The story of each job. Ordinary events are derived from the job''s own times and have negative ids; order them by at. scheduled '
'carries the time a job waits for.';

create or replace view procrastinate.queues as
select j.queue as name, count(*) filter (where j.state = 'r') as ready,
       count(*) filter (where j.state in ('w', 'b')) as blocked, count(*) filter (where j.state in ('s', 'h')) as scheduled,
       count(*) filter (where j.state = 'x') as doing,
       min(coalesce(j.scheduled_at, j.deferred_at)) filter (where j.state = 'r') as oldest_ready_at
  from procrastinate.job as j
 group by j.queue;
comment on view procrastinate.queues is
'Queues in which something waits or runs: ready to run, blocked behind a lock, scheduled for later, running. A ready job may turn out '
'to be blocked when it is fetched.';

create or replace view procrastinate.tasks as
select t.name, t.source, t.queue, t.priority, t.lock, t.queueing_lock, t.retry, t.updated_at from procrastinate.task as t;
comment on view procrastinate.tasks is
'What a defer falls back to, by task: registered by workers as they start, or set by register_task (source sql).';

create or replace view procrastinate.workers as
select w.id, w.name, w.queues, w.protocol, w.started_at, w.heartbeat_at, w.stalled_after, w.idle_at is not null as idle,
       w.heartbeat_at > (select clock_timestamp() + c.clock_offset from procrastinate.config as c) - w.stalled_after as live,
       (select count(*) from procrastinate.job as j where j.worker_id = w.id and j.state = 'x') as running, w.info
  from procrastinate.worker as w;
comment on view procrastinate.workers is 'Workers that are registered; one that is not live will be found dead by the next tick.';

create or replace view procrastinate.locks as
select l.lock, h.id as running_job_id, h.worker_id, h.started_at as running_since, n.id as next_job_id, n.queue as next_queue,
       case when h.id is not null then 'running' when n.state = 'h' then 'waits for its retry'
            when n.scheduled_at > (select clock_timestamp() + c.clock_offset from procrastinate.config as c) then 'scheduled'
            else 'ready' end as state,
       case when h.id is null and n.state = 'h' then n.scheduled_at end as next_due_at, l.waiting
  from (
    select j.lock, count(*) filter (where j.state in ('r', 'w', 'b', 'h')) as waiting
      from procrastinate.job as j
     where j.lock is not null and j.state <> 's'
     group by j.lock) as l
  left join procrastinate.job as h on h.lock = l.lock and h.state = 'x'
  left join lateral (
    select j.id, j.queue, j.state, j.scheduled_at from procrastinate.job as j
     where j.lock = l.lock and j.state in ('r', 'w', 'b', 'h') order by j.rank, j.id limit 1) as n on true;
comment on view procrastinate.locks is
'Who waits for whom: for each lock the job that runs under it, the job that is next, in whichever queue, and how many wait.';

create or replace view procrastinate.sql_hooks as
select h.event, h.function, h.failures, h.last_error, h.last_failed_at, h.disabled, h.registered_at from procrastinate.sql_hook as h;
comment on view procrastinate.sql_hooks is
'Functions that are called with the ids of jobs; failures are those in a row, the fifth disables one until it is registered again.';

create or replace view procrastinate.settings as
select s.name, s.value, s.description
  from procrastinate.config as c
 cross join lateral (values
   ('max_args_bytes', to_jsonb(c.max_args_bytes), 'size limit of args and of headers, as JSON text'),
   ('max_rescues', to_jsonb(c.max_rescues), 'how often a job is run again because its worker died'),
   ('stalled_after', to_jsonb(c.stalled_after::text), 'a worker is dead after this long without a heartbeat, unless it says otherwise'),
   ('notify', to_jsonb(c.notify), 'send NOTIFY when a job may be ready; without it workers poll'),
   ('store_errors', to_jsonb(c.store_errors), 'keep messages and tracebacks of failed runs; the class is always kept'),
   ('retention', c.retention, 'by status, how long finished jobs are kept; null or absent: for ever')
 ) as s (name, value, description);
comment on view procrastinate.settings is 'Settings and their values; change them with set_setting.';

create or replace view procrastinate.schedules as
select s.name, s.kind, s.task, s.cron, s.timezone, s.args, s.catch_up, s.max_delay, s.queue, s.priority, s.lock,
       s.queueing_lock, s.enabled, s.last_tick, s.next_tick,
       s.kind = 'sql' or exists (
         select from procrastinate.worker as w
          where w.heartbeat_at > (select clock_timestamp() + c.clock_offset from procrastinate.config as c) - w.stalled_after
            and w.schedules @> jsonb_build_array(jsonb_build_object('name', s.name))) as live,
       s.options, s.retry_at
  from procrastinate.schedule as s;
comment on view procrastinate.schedules is
'What shall run when: made by schedule() (kind sql) or declared by workers (kind declared), which fires while one of them lives. '
'last_tick is the newest that fired or was passed over; retry_at is set after an error.';

create or replace view procrastinate.roles as
select r.rolname::text as name, a.access, a.queues
  from procrastinate.role as a
 inner join pg_catalog.pg_roles as r on r.oid = a.role;
comment on view procrastinate.roles is
'Roles that grant_access has let in, as what, and, where a client is limited to them, its queues.';
