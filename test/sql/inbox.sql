-- The inbox: what accept() says, and what it refuses.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
\pset format unaligned
\pset null -

CREATE FUNCTION pg_temp.refusal(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text; message text; detail text; hint text;
BEGIN
    EXECUTE command;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(' | ', state, message, NULLIF(detail, ''), NULLIF(hint, ''));
END
$$;

\echo -- once for each consumer
SELECT outbox.accept('billing', 'm1') AS first, outbox.accept('billing', 'm1') AS again, outbox.accept('shipping', 'm1') AS other_consumer, outbox.accept('billing', 'm2') AS other_message;
SELECT outbox.accept('billing', 'm1');
SELECT outbox.accept('Billing', 'm3') AS upper, outbox.accept('billing', 'M3') AS message, outbox.accept('billing', 'm3 ') AS space, outbox.accept('billing', 'm3') AS lower;

\echo -- what is rolled back was not accepted
BEGIN;
SELECT outbox.accept('billing', 'r1');
SAVEPOINT s;
SELECT outbox.accept('billing', 'r2'), outbox.accept('billing', 'r1');
ROLLBACK TO s;
SELECT outbox.accept('billing', 'r2'), outbox.accept('billing', 'r1');
ROLLBACK;
SELECT outbox.accept('billing', 'r1'), outbox.accept('billing', 'r2');

\echo -- inside of one statement, and in a block with an exception
SELECT count(*) FILTER (WHERE outbox.accept('many', (i % 10)::text)) FROM generate_series(1, 100) AS i;
DO $$
BEGIN
    BEGIN
        ASSERT outbox.accept('many', 'x');
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN
        ASSERT outbox.accept('many', 'x');
    END;
    ASSERT NOT outbox.accept('many', 'x');
END
$$;

\echo -- any id up to 512 bytes
SELECT outbox.accept('long', repeat('ä', 256)) AS first, outbox.accept('long', repeat('ä', 256)) AS again, outbox.accept('long', repeat('ä', 255) || 'b') AS shorter, outbox.accept(repeat('c', 128), 'x') AS consumer;
SELECT count(*) FILTER (WHERE outbox.accept('long', rpad(i::text, 512, md5(i::text)))) AS first, count(*) FILTER (WHERE outbox.accept('long', rpad(i::text, 512, md5(i::text)))) AS again FROM generate_series(1, 300) AS i;

\echo -- many at once: the new ones, in their order, each once
SELECT outbox.accept_many('batch', '{d,a,c,a,b,d}');
SELECT outbox.accept_many('batch', '{e,d,c,0,b,a}'), outbox.accept_many('batch', '{}'), outbox.accept_many('batch', '{a}');
SELECT outbox.accept_many('batch', '[5:7]={z,y,x}');
SELECT outbox.accept('batch', 'y'), outbox.accept_many('other', '{y}');

\echo -- SERIALIZABLE and REPEATABLE READ know their own
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT outbox.accept('levels', '1'), outbox.accept('levels', '1'), outbox.accept('billing', 'm1');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT outbox.accept('levels', '1'), outbox.accept('levels', '2'), outbox.accept('levels', '2');
COMMIT;

\echo -- session_replication_role makes no difference
SET session_replication_role = replica;
SELECT outbox.accept('replica', '1'), outbox.accept('replica', '1');
RESET session_replication_role;

\echo -- a DBA may add columns and indexes, and an index may be an expression that itself accepts
BEGIN;
ALTER TABLE outbox.inbox ADD note text;
CREATE INDEX added_by_dba ON outbox.inbox (accepted_at);
CREATE FUNCTION public.nested(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN IF $1 = ''outer'' THEN PERFORM outbox.accept(''nested'', ''inner''); END IF; RETURN $1; END';
CREATE INDEX added_too ON outbox.inbox (public.nested(message_id));
SELECT outbox.accept('nested', 'outer'), outbox.accept('nested', 'inner');
SET enable_seqscan = off;
SELECT count(*) FROM outbox.inbox WHERE public.nested(message_id) = 'outer';
SELECT count(*) = (SELECT count(*) FROM outbox.inbox WHERE message_id >= '') AS all_in_both FROM outbox.inbox WHERE accepted_at > '-infinity';
RESET enable_seqscan;
REINDEX TABLE outbox.inbox;
SELECT outbox.accept('nested', 'outer'), outbox.accept('nested', 'after');
ROLLBACK;
REINDEX TABLE outbox.inbox;
SELECT outbox.accept('nested', 'outer'), outbox.accept('billing', 'm1');
BEGIN;
ALTER TABLE outbox.inbox DROP CONSTRAINT inbox_pkey;
SELECT pg_temp.refusal('SELECT outbox.accept(''billing'', ''m1'')');
ALTER TABLE outbox.inbox ADD CONSTRAINT other PRIMARY KEY (consumer, message_id);
SELECT pg_temp.refusal('SELECT outbox.accept(''billing'', ''m1'')');
ROLLBACK;

\echo -- refusals
SELECT command, pg_temp.refusal('SELECT outbox.' || command) FROM unnest(ARRAY[
    'accept(NULL, ''x'')', 'accept(''c'', NULL)', 'accept('''', ''x'')', 'accept(''c'', '''')', 'accept(repeat(''c'', 129), ''x'')', 'accept(''c'', repeat(''x'', 513))',
    'accept_many(NULL, ''{x}'')', 'accept_many(''c'', NULL)', 'accept_many(''c'', ''{x,NULL}'')', 'accept_many(''c'', ARRAY[''x'', repeat(''x'', 513)])', 'accept_many(''c'', ''{{a},{b}}'')',
    'set_consumer(NULL)', 'set_consumer('''')', 'set_consumer(repeat(''c'', 129))', 'set_consumer(''c'', ''0'')', 'set_consumer(''c'', ''4000 days'')', 'set_consumer(''c'', NULL, ''-1 s'')']) AS command;
SELECT outbox.accept('c', 'x') AS nothing_was_left_behind;
BEGIN READ ONLY;
SELECT pg_temp.refusal('SELECT outbox.accept(''c'', ''y'')');
SELECT pg_temp.refusal('SELECT outbox.accept_many(''c'', ''{y}'')');
ROLLBACK;

\echo -- counts
SELECT outbox.set_consumer('billing', '30 days', '5 days'), outbox.set_consumer('quiet', sender_retry_span => '1 day');
SELECT consumer, held, accepted, duplicates, oldest_at <= now() AS oldest, retention, sender_retry_span FROM outbox.inbox_status WHERE consumer IN ('billing', 'shipping', 'batch', 'quiet') ORDER BY consumer COLLATE "C";

\echo -- a retention shorter than what senders may repeat is a warning
SELECT status, subject, value FROM outbox.health() WHERE check_name = 'inbox_retention';
SELECT outbox.set_consumer('hasty', '1 day', '3 days'), outbox.set_consumer('usual', NULL, '8 days'), outbox.set_consumer('quiet', sender_retry_span => '7 days');
SELECT status, subject, value, detail, action FROM outbox.health() WHERE check_name = 'inbox_retention';
SELECT outbox.set_consumer('hasty', '4 days', '3 days'), outbox.set_consumer('usual');
SELECT status, subject, value FROM outbox.health() WHERE check_name = 'inbox_retention';

\echo -- maintain() forgets what is old enough, by consumer, and counts it; duplicates too
INSERT INTO outbox.inbox (accepted_at, message_id, consumer) SELECT now() - i * interval '1 day' - interval '1 minute', 'old ' || i, c FROM generate_series(1, 40) AS i, unnest(ARRAY['billing', 'hasty', 'old']) AS c;
SELECT outbox.accept('old', 'old 39'), outbox.accept('hasty', 'old 3'), outbox.accept('old', 'old 3');
SELECT consumer, held, accepted, duplicates FROM outbox.inbox_status WHERE consumer IN ('billing', 'hasty', 'old') ORDER BY consumer COLLATE "C";
SELECT action, segment, count, detail FROM outbox.maintain() WHERE action = 'expired';
SELECT consumer, held, accepted, duplicates FROM outbox.inbox_status WHERE consumer IN ('billing', 'hasty', 'old') ORDER BY consumer COLLATE "C";
SELECT outbox.accept('old', 'old 39'), outbox.accept('hasty', 'old 3'), outbox.accept('hasty', 'old 4'), outbox.accept('billing', 'old 29'), outbox.accept('billing', 'old 30');
SELECT action, segment, count, detail FROM outbox.maintain() WHERE action = 'expired';

DELETE FROM outbox.inbox;
DELETE FROM outbox.inbox_count;
DELETE FROM outbox.consumer;
