do $$ begin
  if current_setting('server_version_num')::int < 150000 then
    raise exception 'PostgreSQL % is too old', current_setting('server_version')
      using errcode = '0A000', hint = 'Use PostgreSQL 15 or later.';
  elsif getdatabaseencoding() <> 'UTF8' then
    raise exception 'the encoding of database "%" is %, not UTF8', current_database(), getdatabaseencoding()
      using errcode = '0A000',
            hint = 'Use a database made with: create database ... encoding ''UTF8'' template template0.';
  end if;
end $$;

create schema procrastinate;

-- what was applied; for the stage 'functions', number counts the loads and slug is the release that loaded them
create table procrastinate.migration (
  number int not null,
  stage text not null,
  slug text not null,
  checksum text not null,
  applied_at timestamptz not null default clock_timestamp(),
  constraint migration_pkey primary key (number, stage),
  constraint migration_stage check (stage in ('pre', 'functions', 'post'))
);

-- one row: the worker protocols that this schema speaks
create table procrastinate.protocol_range (
  singleton boolean primary key default true check (singleton),
  oldest int not null check (oldest >= 1),
  newest int not null,
  constraint protocol_range_order check (oldest <= newest)
);

insert into procrastinate.protocol_range (oldest, newest) values (1, 1);
