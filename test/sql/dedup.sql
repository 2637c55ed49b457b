-- Deduplication when enqueueing: a dedup_key stands for one event of its type and tenant, for outbox.dedup_window.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS outbox CASCADE;
CREATE EXTENSION outbox;
\pset format unaligned
\pset null -

\echo -- the same key: the id of the first event, and nothing is added
SELECT outbox.enqueue('order.paid', '1', dedup_key => 'k') AS first \gset
SELECT outbox.enqueue('order.paid', '2', dedup_key => 'k') = :'first' AS same, outbox.enqueue('order.paid', '3', key => 'x', dedup_key => 'k') = :'first' AS same;
SELECT outbox.enqueue_raw('order.paid', 'x', 'text/plain', dedup_key => 'k') = :'first' AS same;
INSERT INTO outbox.new_event (type, payload, dedup_key) VALUES ('order.paid', '4', 'k') RETURNING id = :'first' AS same;
SELECT payload FROM outbox.event;
\echo -- another type, tenant or key: another event; keys are bytes
SELECT count(DISTINCT id) FROM (VALUES (outbox.enqueue('order.sent', '1', dedup_key => 'k')), (outbox.enqueue('order.paid', '1', dedup_key => 'k', tenant => 'a')),
    (outbox.enqueue('order.paid', '1', dedup_key => 'k', tenant => 'b')), (outbox.enqueue('order.paid', '1', dedup_key => 'K')), (outbox.enqueue('order.paid', '1', dedup_key => 'k ')),
    (outbox.enqueue('order.paid', '1')), (outbox.enqueue('order.paid', '1')), (:'first')) AS x (id);

\echo -- a duplicate writes nothing
SELECT count(*) AS events FROM outbox.event \gset
-- (the server counts what a transaction has not reported yet: hence the differences)
BEGIN;
SELECT n_tup_ins AS ins, n_tup_upd + n_tup_del AS del FROM pg_stat_xact_all_tables WHERE relid = 'outbox.dedup'::regclass \gset
SELECT count(DISTINCT outbox.enqueue('order.paid', to_jsonb(i), dedup_key => 'k')) FROM generate_series(1, 100) AS i;
SELECT n_tup_ins - :ins AS inserted, n_tup_upd + n_tup_del - :del AS deleted FROM pg_stat_xact_all_tables WHERE relid = 'outbox.dedup'::regclass;
SELECT outbox.enqueue('order.paid', '1', dedup_key => 'k2') IS NOT NULL AS enqueued;
SELECT n_tup_ins - :ins AS inserted, n_tup_upd + n_tup_del - :del AS deleted FROM pg_stat_xact_all_tables WHERE relid = 'outbox.dedup'::regclass;
COMMIT;
SELECT count(*) - :events AS added FROM outbox.event;

\echo -- many at once, also against itself, in the order of the array
SELECT outbox.enqueue_many('[{"type": "m", "payload": 1, "dedup_key": "b"}, {"type": "m", "payload": 2, "dedup_key": "a"}, {"type": "m", "payload": 3, "dedup_key": "b"},
                             {"type": "m", "payload": 4}, {"type": "m", "payload": 5, "dedup_key": "a"}, {"type": "order.paid", "payload": 6, "dedup_key": "k"}]') AS many \gset
SELECT m[1] = m[3] AS b, m[2] = m[5] AS a, m[6] = :'first' AS k, m[1] < m[2] AND m[2] < m[4] AS ascend FROM (SELECT :'many'::uuid[] AS m) AS x;
SELECT payload FROM outbox.event WHERE type = 'm' ORDER BY id;

\echo -- of the own transaction, before it is committed; not what was rolled back
BEGIN;
SELECT outbox.enqueue('tx', '1', dedup_key => 'own') AS own \gset
SELECT outbox.enqueue('tx', '2', dedup_key => 'own') = :'own' AS same;
SAVEPOINT s;
SELECT outbox.enqueue('tx', '3', dedup_key => 'savepoint') AS lost \gset
ROLLBACK TO s;
SELECT outbox.enqueue('tx', '4', dedup_key => 'savepoint') <> :'lost' AS another;
ROLLBACK;
SELECT outbox.enqueue('tx', '5', dedup_key => 'own') <> :'own' AS another;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT outbox.enqueue('tx', '6', dedup_key => 'serializable') AS own \gset
SELECT outbox.enqueue('tx', '7', dedup_key => 'serializable') = :'own' AS same, outbox.enqueue('order.paid', '7', dedup_key => 'k') = :'first' AS same;
COMMIT;
SELECT payload FROM outbox.event WHERE type = 'tx' ORDER BY id;

\echo -- the window ends: the key is free, whether maintenance was there or not
UPDATE outbox.dedup SET at = at - interval '1 day' WHERE type = 'm' AND dedup_key = 'a' OR type = 'order.sent';
SELECT outbox.enqueue('m', '8', dedup_key => 'a') AS later \gset
SELECT :'later' <> (:'many'::uuid[])[2] AS another, outbox.enqueue('m', '9', dedup_key => 'a') = :'later' AS same, outbox.enqueue('m', '9', dedup_key => 'b') = (:'many'::uuid[])[1] AS same;
SELECT action, count, detail FROM outbox.maintain() WHERE action = 'expired';
SELECT outbox.enqueue('order.sent', '2', dedup_key => 'k') IS NOT NULL AS enqueued;
SELECT payload FROM outbox.event WHERE type = 'order.sent' ORDER BY id;

\echo -- with deliver_at: the key stands for the scheduled event; cancelled, it is free
SELECT outbox.enqueue('later', '1', deliver_at => now() + interval '1 hour', dedup_key => 's') AS scheduled \gset
SELECT outbox.enqueue('later', '2', deliver_at => now() + interval '2 hours', dedup_key => 's') = :'scheduled' AS same, outbox.enqueue('later', '3', dedup_key => 's') = :'scheduled' AS same;
SELECT payload, dedup_key FROM outbox.scheduled;
SELECT outbox.cancel(:'scheduled');
SELECT outbox.enqueue('later', '4', dedup_key => 's', tenant => 't') IS NOT NULL AS enqueued, outbox.enqueue('later', '5', dedup_key => 's') <> :'scheduled' AS another;
SELECT type, payload FROM outbox.event WHERE type = 'later' ORDER BY id;
DROP EXTENSION outbox CASCADE;
