-- A queue for those who only speak SQL: psql, a trigger, or a program in any language.

create table shop_order (id bigint generated always as identity primary key, customer text not null);

-- The job is part of the transaction: no order without its mail, and no mail without its order.
begin;
insert into shop_order (customer) values ('Ada') returning id \gset
select procrastinate.defer('confirm_order', jsonb_build_object('order_id', :id, 'customer', 'Ada'), queue => 'mail');
commit;

begin;
insert into shop_order (customer) values ('nobody') returning id \gset
select procrastinate.defer('confirm_order', jsonb_build_object('order_id', :id, 'customer', 'nobody'), queue => 'mail');
rollback;

-- From a trigger it works for every client that writes to the table.
create function confirm() returns trigger language plpgsql as $$
begin
  perform procrastinate.defer('confirm_order', jsonb_build_object('order_id', new.id, 'customer', new.customer), queue => 'mail');
  return null;
end $$;
create trigger confirm after insert on shop_order for each row execute function confirm();
insert into shop_order (customer) values ('Grace'), ('Edsger');

-- Every morning at six in Berlin, as long as nobody says `select procrastinate.unschedule('report')`.
select procrastinate.schedule('report', 'daily_report', '0 6 * * *', 'Europe/Berlin', '{"day": "yesterday"}');

-- What waits?
select id, status, task, args from procrastinate.jobs order by id;
