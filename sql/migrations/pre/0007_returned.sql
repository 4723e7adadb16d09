-- How often a job that was there already has become ready, so that a fetch knows when to look at old ids again.
create sequence procrastinate.returned_seq;
