-- Locks last as long as what is written under them: also when a cursor has written it, and fails later, in a savepoint.  Its earlier rows stay, and the server gives the cursor's own locks back.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
\pset format unaligned
\pset tuples_only on
\set VERBOSITY terse

CREATE VIEW pg_temp.held AS
SELECT relation::regclass AS "table", mode FROM pg_locks JOIN pg_class AS c ON c.oid = relation JOIN pg_namespace AS n ON n.oid = relnamespace
 WHERE pid = pg_backend_pid() AND granted AND nspname = 'outbox' AND relkind = 'r';

\echo -- a segment, while there is an event in it to commit
BEGIN;
DECLARE c CURSOR FOR SELECT outbox.enqueue('t', to_jsonb(1 / (2 - i))) IS NOT NULL FROM generate_series(1, 2) AS i;
FETCH c;
SAVEPOINT s;
\set ON_ERROR_STOP off
FETCH c;
\set ON_ERROR_STOP on
ROLLBACK TO s;
SELECT 'segments written to: ' || count(*) FROM pg_temp.held JOIN pg_inherits ON inhrelid = "table" WHERE mode = 'RowExclusiveLock';
SELECT outbox.enqueue('t', '2') IS NOT NULL;
ROLLBACK;

\echo -- what is scheduled, and its key
BEGIN;
DECLARE c CURSOR FOR SELECT outbox.enqueue('t', to_jsonb(1 / (2 - i)), deliver_at => now() + interval '1 hour', dedup_key => 'held') IS NOT NULL FROM generate_series(1, 2) AS i;
FETCH c;
SAVEPOINT s;
\set ON_ERROR_STOP off
FETCH c;
\set ON_ERROR_STOP on
ROLLBACK TO s;
SELECT "table" FROM pg_temp.held WHERE "table" IN ('outbox.scheduled'::regclass, 'outbox.dedup'::regclass) AND mode = 'RowExclusiveLock' ORDER BY 1;
ROLLBACK;

\echo -- what is accepted
BEGIN;
DECLARE c CURSOR FOR SELECT outbox.accept('held', (1 / (2 - i))::text) FROM generate_series(1, 2) AS i;
FETCH c;
SAVEPOINT s;
\set ON_ERROR_STOP off
FETCH c;
\set ON_ERROR_STOP on
ROLLBACK TO s;
SELECT "table" FROM pg_temp.held WHERE "table" = 'outbox.inbox'::regclass AND mode = 'RowExclusiveLock';
ROLLBACK;

\echo -- the whole log, for a subscription that is to read it
BEGIN;
DECLARE c CURSOR FOR SELECT outbox.subscribe('cursor' || i, starting => CASE i WHEN 1 THEN 'earliest' ELSE 'never' END) FROM generate_series(1, 2) AS i;
FETCH c;
SAVEPOINT s;
\set ON_ERROR_STOP off
FETCH c;
\set ON_ERROR_STOP on
ROLLBACK TO s;
SELECT 'segments to be read: ' || count(*) FROM pg_temp.held JOIN pg_inherits ON inhrelid = "table" WHERE mode = 'AccessShareLock';
ROLLBACK;
