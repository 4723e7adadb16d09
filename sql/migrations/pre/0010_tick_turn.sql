-- Whoever does what is due by the clock holds this row. An advisory lock would do, but those are open to everybody who may
-- connect; and the row of tick is written by workers that register, in transactions that may stay open.
create table procrastinate.tick_turn (
  singleton boolean primary key default true check (singleton)
);

insert into procrastinate.tick_turn default values;
