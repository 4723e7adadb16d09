-- Roles that the owner of the schema has let in, so that each load of the functions grants them what is new. By oid: a
-- role that is renamed keeps its limits.
create table procrastinate.role (
  role regrole not null,
  access text not null,
  queues text[],
  constraint role_pkey primary key (role, access),
  constraint role_access check (access in ('client', 'worker', 'observer', 'admin')),
  constraint role_queues check (queues is null or access = 'client')
);

-- whether any of them has a list of queues
alter table procrastinate.config add column limited boolean not null default false;
