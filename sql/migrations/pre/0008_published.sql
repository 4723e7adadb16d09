-- Rows of finished jobs are deleted, which PostgreSQL refuses in a database that publishes all its tables unless a subscriber
-- could tell which rows those are. Nothing is written for it where nothing is published.
alter table procrastinate.done replica identity full;
