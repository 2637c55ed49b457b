-- Enqueue: what it records, what it refuses, and that the log cannot be written in any other way.  Nothing is delivered here.
\set ON_ERROR_STOP off
\set VERBOSITY default
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS outbox CASCADE;
CREATE EXTENSION outbox;
\pset format unaligned
\pset null -

-- a refusal in one line: SQLSTATE, message, detail, hint
CREATE FUNCTION pg_temp.refusal(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text; message text; detail text; hint text; context text;
BEGIN
    EXECUTE command;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
    RETURN concat_ws(' | ', state, message, NULLIF(detail, ''), NULLIF(hint, ''), substring(context FROM '^event \d+ of \d+'));
END
$$;

\echo -- one of each kind
SELECT outbox.enqueue('order.paid', '{"n": 1}', key => 'order-1', headers => '{"X-Shop": "7"}', tenant => 'acme') AS id \gset
SELECT id = :'id' AS same_id, xid::text = xmin::text AS same_xid, epoch = outbox.epoch() AS same_epoch,
       abs(EXTRACT(epoch FROM created_at - clock_timestamp())) < 60 AS recent, outbox._event_time(id) = date_trunc('milliseconds', created_at) AS time_in_id FROM outbox.event;
SELECT outbox.enqueue_raw('order.label', '\x000102', 'application/pdf', key => 'order-1') IS NOT NULL AS enqueued;
SELECT outbox.enqueue('order.empty', 'null') IS NOT NULL AS enqueued;
SELECT cardinality(outbox.enqueue_many('[{"type": "a", "payload": 1}, {"type": "b", "payload": null, "key": "k", "headers": {"h": "v"}, "tenant": "t"},
                                         {"type": "c", "payload": {"deep": [1, 2]}, "key": null, "headers": null, "deliver_at": null, "dedup_key": null, "tenant": null}]'));
SELECT outbox.enqueue_many('[]');
INSERT INTO outbox.new_event (type, payload, key) VALUES ('view.one', '1', 'k'), ('view.two', '[2]', NULL) RETURNING id IS NOT NULL AS id, type;
SELECT type, key, tenant, payload, body, content_type, headers FROM outbox.event ORDER BY id;
SELECT bool_and(a.id < b.id) AS ids_of_many_ascend FROM outbox.event a, outbox.event b WHERE (a.type, b.type) IN (('a', 'b'), ('b', 'c'));

\echo -- an event is as atomic as the rest of its transaction
BEGIN;
SELECT outbox.enqueue('tx.kept', '1') IS NOT NULL AS enqueued;
SAVEPOINT s;
SELECT outbox.enqueue('tx.savepoint', '1') IS NOT NULL AS enqueued;
ROLLBACK TO s;
SELECT outbox.enqueue('tx.after', '1') IS NOT NULL AS enqueued;
COMMIT;
BEGIN;
SELECT outbox.enqueue('tx.lost', '1') IS NOT NULL AS enqueued;
ROLLBACK;
SELECT type FROM outbox.event WHERE type LIKE 'tx.%' ORDER BY id;
SELECT count(DISTINCT xid) AS transactions FROM outbox.event WHERE type LIKE 'tx.%';

\echo -- trace context: the header wins over the setting, what is invalid is dropped, and it is no header any more
SET outbox.traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
SELECT outbox.enqueue('trace.setting', '1') IS NOT NULL AS enqueued;
SELECT outbox.enqueue('trace.header', '1', headers => '{"TraceParent": "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-00", "a": "b"}') IS NOT NULL AS enqueued;
SELECT outbox.enqueue('trace.bad-header', '1', headers => '{"traceparent": "nonsense"}') IS NOT NULL AS enqueued;
SET outbox.traceparent = 'nonsense';
SELECT outbox.enqueue('trace.bad-setting', '1') IS NOT NULL AS enqueued;
RESET outbox.traceparent;
SELECT type, traceparent, headers FROM outbox.event WHERE type LIKE 'trace.%' ORDER BY id;

\echo -- refusals
SELECT args, pg_temp.refusal(format('SELECT outbox.enqueue(%s)', args)) FROM unnest(ARRAY[
    $$NULL, '1'$$, $$'a', NULL$$, $$'', '1'$$, $$'a..b', '1'$$, $$'outbox', '1'$$, $$'outbox.ping', '1'$$, $$'outboxes.ping', '1'$$,
    $$'a', '1', tenant => ''$$, $$'a', '1', headers => '[]'$$, $$'a', '1', headers => '{"a": 1}'$$, $$'a', '1', headers => '{"Webhook-Id": "x"}'$$,
    $$'a', '1', headers => '{"a b": "x"}'$$, $$'a', '1', headers => '{"a": "x\r\nb: c"}'$$, $$'a', '1', headers => '{"": "x"}'$$, $$'a', '1', headers => '{}'$$,
    $$'a', '1', deliver_at => 'infinity'$$, $$'a', '1', deliver_at => '-infinity'$$, $$'a', '1', deliver_at => now() + interval '11 years'$$, $$'a', '1', dedup_key => ''$$,
    $$'a', '1', key => ''$$, $$E'a\u0085b', '1'$$, $$E'a\u009f', '1'$$, $$E'\u00c2\u00a0', '1'$$, $$'a b', '1'$$,
    $$'a', '1', headers => '"x"'$$]) AS args;
SELECT pg_temp.refusal($$SELECT outbox.enqueue('a', '1', key => repeat('x', 1024))$$);
SELECT pg_temp.refusal($$SELECT outbox.enqueue('a', '1', key => repeat('x', 1025))$$);
SELECT pg_temp.refusal($$SELECT outbox.enqueue('a', '1', tenant => repeat('x', 129))$$);
SELECT pg_temp.refusal($$SELECT outbox.enqueue('a', '1', dedup_key => repeat('ä', 255))$$);
SELECT pg_temp.refusal($$SELECT outbox.enqueue('a', '1', dedup_key => repeat('ä', 256))$$);
SELECT pg_temp.refusal($$SELECT outbox.enqueue(repeat('x', 256), '1')$$);
SELECT pg_temp.refusal($$SELECT outbox.enqueue('a', to_jsonb(repeat('x', 1024 * 1024)))$$);
-- a number may be far longer in what is sent than in what is stored
SELECT pg_temp.refusal($$SELECT outbox.enqueue('a', (SELECT jsonb_agg(1e100000) FROM generate_series(1, 30)))$$);
-- INSTEAD OF triggers do not fire in a session of this kind: refused, not lost
SET session_replication_role = replica;
SELECT pg_temp.refusal($$INSERT INTO outbox.new_event (type, payload) VALUES ('a', '1')$$);
SELECT pg_temp.refusal($$INSERT INTO outbox.new_event (id, type, payload) VALUES (NULL, 'a', '1')$$);
SELECT pg_temp.refusal($$INSERT INTO outbox.new_event (id, type, payload) VALUES (DEFAULT, 'a', '1'), (NULL, 'b', '1')$$);
SELECT pg_temp.refusal($$INSERT INTO outbox.new_event (id, type, payload) SELECT NULL, 'a', '1'$$);
SELECT pg_temp.refusal($$DO 'DECLARE i uuid; BEGIN INSERT INTO outbox.new_event (id, type, payload) VALUES (i, ''a'', ''1''); END'$$);
PREPARE insertion AS INSERT INTO outbox.new_event (id, type, payload) VALUES ($1, 'a', '1');
SELECT pg_temp.refusal('EXECUTE insertion (NULL)');
\set SHOW_CONTEXT never
COPY outbox.new_event (type, payload) FROM stdin;
a	1
\.
COPY outbox.new_event (id, type, payload) FROM stdin;
\N	a	1
\.
RESET session_replication_role;
COPY outbox.new_event (id, type, payload) FROM stdin;
\N	copied.with-id	1
\.
COPY outbox.new_event (type, payload) FROM stdin;
copied.without	1
\.
EXECUTE insertion (NULL);
SELECT type FROM outbox.event ORDER BY id DESC LIMIT 3;
\set SHOW_CONTEXT errors
SELECT pg_temp.refusal($$SELECT outbox.enqueue('a', '1', headers => (SELECT jsonb_object_agg('h' || i, repeat('x', 1000)) FROM generate_series(1, 20) i))$$);
SELECT args, pg_temp.refusal(format('SELECT outbox.enqueue_raw(%s)', args)) FROM unnest(ARRAY[
    $$'a', NULL, 'text/plain'$$, $$'a', 'x', NULL$$, $$'a', 'x', ''$$, $$'a', 'x', E'text/plain\r\na: b'$$]) AS args;
SELECT events, pg_temp.refusal(format('SELECT outbox.enqueue_many(%L)', events)) FROM unnest(ARRAY[
    NULL, '{}', '1', '[1]', '[[]]', '[{"type": "a"}]', '[{"type": "a", "payload": 1}, {"type": "b", "payload": 1, "kye": "x"}]', '[{"type": 1, "payload": 1}]',
    '[{"payload": 1}]', '[{"type": "a", "payload": 1, "headers": {"host": "x"}}]', '[{"type": "a", "payload": 1, "deliver_at": "soon"}]', '[{"type": "a", "payload": 1, "deliver_at": 7}]', '[{"type": "a", "payload": 1}, {"type": "a", "payload": 1, "deliver_at": "infinity"}]', '[{"type": "a", "payload": 1, "dedup_key": 1}]']) AS events;
SELECT pg_temp.refusal($$INSERT INTO outbox.new_event (id, type, payload) VALUES (gen_random_uuid(), 'a', '1')$$);
SELECT pg_temp.refusal($$INSERT INTO outbox.new_event (type) VALUES ('a')$$);
BEGIN READ ONLY;
SELECT outbox.enqueue('a', '1');
ROLLBACK;

\echo -- nobody else writes the log
SELECT command, pg_temp.refusal(command) FROM unnest(ARRAY[
    'UPDATE outbox.event SET type = NULL', 'DELETE FROM outbox.event', 'TRUNCATE outbox.event', 'TRUNCATE outbox.event_9',
    $$INSERT INTO outbox.event (type, payload) VALUES ('a', '1')$$, $$INSERT INTO outbox.event_9 (type, payload) VALUES ('a', '1')$$,
    $$INSERT INTO outbox.event_9 (id, xid, epoch, created_at, type, payload) VALUES ('00000000-0000-7000-8000-000000000000', pg_current_xact_id(), outbox.epoch(), now(), 'a', '1')$$,
    $$INSERT INTO outbox.event_9 (id, xid, epoch, created_at, type, payload) VALUES ('00000000-0000-4000-8000-000000000000', '3', outbox.epoch(), now(), 'a', '1')$$]) AS command;

\echo -- nor ids that are far in the future: ids would be, ever after
SELECT pg_temp.refusal($$INSERT INTO outbox.event_9 (id, xid, epoch, created_at, type, payload) VALUES ('ffffffff-0000-7000-8000-000000000000', '3', outbox.epoch() # 1, now(), 'a', '1')$$);

\echo -- save a dump that is restored
BEGIN;
INSERT INTO outbox.event_9 (id, xid, epoch, created_at, type, payload) VALUES ('00000000-0000-7000-8000-000000000000', '3', outbox.epoch(), now(), 'dump.own', '1');
INSERT INTO outbox.event_9 (id, xid, epoch, created_at, type, payload) VALUES ('00000000-0000-7000-8000-000000000001', '99999999999', outbox.epoch() # 1, now(), 'dump.other', '1');
SELECT type FROM outbox.event WHERE type LIKE 'dump.%' ORDER BY id;
ROLLBACK;

\echo -- indexes of a DBA are maintained, large payloads are stored
CREATE INDEX event_type_idx ON outbox.event_0 ((upper(type))) WHERE key IS NOT NULL;
SELECT outbox.enqueue('big.one', to_jsonb(string_agg(md5(i::text), '')), key => 'k') IS NOT NULL AS enqueued FROM generate_series(1, 10000) AS i;
SET enable_seqscan = off;
SELECT length(payload #>> '{}') FROM outbox.event_0 WHERE upper(type) = 'BIG.ONE' AND key IS NOT NULL;
RESET enable_seqscan;
DROP INDEX outbox.event_type_idx;

\echo -- a rolled back DROP or CREATE EXTENSION leaves no trace in the session
BEGIN;
DROP EXTENSION outbox CASCADE;
ROLLBACK;
SELECT outbox.enqueue('still.there', '1') IS NOT NULL AS enqueued;
DROP EXTENSION outbox CASCADE;
BEGIN;
CREATE EXTENSION outbox;
SELECT outbox.enqueue('not.for.long', '1') IS NOT NULL AS enqueued;
ROLLBACK;
CREATE EXTENSION outbox;
SELECT outbox.enqueue('here.to.stay', '1') IS NOT NULL AS enqueued;
SELECT type FROM outbox.event;
DROP EXTENSION outbox CASCADE;
