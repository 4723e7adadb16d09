-- Last, and at every load: a function is executable by everybody from the moment it is created.
revoke all on schema procrastinate from public;
revoke all on all tables in schema procrastinate from public;
revoke all on all sequences in schema procrastinate from public;
revoke all on all functions in schema procrastinate from public;
do $$ begin perform procrastinate._grant_all(); end $$;
