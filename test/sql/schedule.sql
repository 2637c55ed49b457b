-- Scheduled events: held apart from the log until they are due, known by one id, cancelled as atomically as they were enqueued.  No worker here: nothing becomes due.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS outbox CASCADE;
CREATE EXTENSION outbox;
\pset format unaligned
\pset null -

\echo -- what is due later is not in the log, and keeps all that it was given
SELECT outbox.enqueue('order.due', '{"n": 1}', key => 'order-1', headers => '{"X-Shop": "7"}', deliver_at => now() + interval '1 hour', tenant => 'acme') AS one \gset
SELECT outbox.enqueue_raw('order.label', '\x000102', 'application/pdf', deliver_at => now() + interval '2 hours') AS raw \gset
INSERT INTO outbox.new_event (type, payload, deliver_at) VALUES ('view.due', '1', now() + interval '3 hours') RETURNING id AS view \gset
SELECT count(*) FROM outbox.event;
SELECT type, key, tenant, payload, body, content_type, headers, epoch = outbox.epoch() AS same_epoch, xid IS NOT NULL AS has_xid,
       round(EXTRACT(epoch FROM deliver_at - created_at) / 3600) AS hours, scheduled_id, dedup_key FROM outbox.scheduled ORDER BY deliver_at;
SELECT id = ANY (ARRAY[:'one', :'raw', :'view']::uuid[]) AS same_id FROM outbox.scheduled;

\echo -- a time that is past, or now, means at once
SELECT outbox.enqueue('past.now', '1', deliver_at => now()) IS NOT NULL AS enqueued;
SELECT outbox.enqueue('past.long', '1', deliver_at => '1970-01-01') IS NOT NULL AS enqueued;
SELECT outbox.enqueue('epoch', '1', deliver_at => '2000-01-01 00:00:00 UTC') IS NOT NULL AS enqueued;
SELECT type, scheduled_id FROM outbox.event ORDER BY id;

\echo -- many at once: each where it belongs, ids in the order of the array
SELECT outbox.enqueue_many(jsonb_build_array(
    jsonb_build_object('type', 'many.later', 'payload', 1, 'deliver_at', now() + interval '1 day'),
    jsonb_build_object('type', 'many.now', 'payload', 2),
    jsonb_build_object('type', 'many.past', 'payload', 3, 'deliver_at', '2001-01-01T00:00:00Z'),
    jsonb_build_object('type', 'many.later', 'payload', 4, 'deliver_at', now() + interval '1 day'))) AS many \gset
SELECT i.n, COALESCE(e.type, s.type) AS type, COALESCE(e.payload, s.payload) AS payload, s.id IS NOT NULL AS scheduled
  FROM unnest(:'many'::uuid[]) WITH ORDINALITY AS i (id, n) LEFT JOIN outbox.event AS e ON e.id = i.id LEFT JOIN outbox.scheduled AS s ON s.id = i.id ORDER BY i.n;
SELECT bool_and(m[i] < m[i + 1]) AS ids_ascend FROM (SELECT :'many'::uuid[] AS m) AS a, generate_series(1, 3) AS i;

\echo -- seen before it is due
SELECT subscription, status, attempts, next_attempt_at - now() BETWEEN interval '50 min' AND interval '1 hour' AS in_an_hour, delivered_at FROM outbox.event_status(:'one');
SELECT what, subscription, regexp_replace(detail, '(until|transaction) .*', '\1 …') AS detail FROM outbox.trace(:'one');

\echo -- cancelled, once; rolled back, it is still there
BEGIN;
SELECT outbox.cancel(:'one');
SELECT status FROM outbox.event_status(:'one');
ROLLBACK;
SELECT status FROM outbox.event_status(:'one');
SELECT outbox.cancel(:'one'), outbox.cancel(:'one') AS again;
SELECT subscription, status, next_attempt_at FROM outbox.event_status(:'one');
SELECT what, subscription, regexp_replace(detail, 'for .*', 'for …') = COALESCE('by ' || CASE what WHEN 'cancelled' THEN current_user END, 'scheduled for …') AS as_expected FROM outbox.trace(:'one');
SELECT status, log_id, role = current_user AS by_me, deliver_at > at AS in_time FROM outbox.unscheduled;
SELECT outbox.cancel(id) AS "of the log" FROM outbox.event ORDER BY id LIMIT 1;
SELECT outbox.cancel('0195cf4e-7d4c-7a31-9a5e-5c4b7f2e8d10') AS "of nothing";
SELECT outbox.cancel(NULL);
BEGIN READ ONLY;
SELECT outbox.cancel(:'raw');
ROLLBACK;

\echo -- as atomic as the rest of its transaction
BEGIN;
SELECT outbox.enqueue('tx.kept', '1', deliver_at => now() + interval '1 hour') IS NOT NULL AS enqueued;
SAVEPOINT s;
SELECT outbox.enqueue('tx.savepoint', '1', deliver_at => now() + interval '1 hour') IS NOT NULL AS enqueued;
ROLLBACK TO s;
SELECT outbox.cancel(outbox.enqueue('tx.own', '1', deliver_at => now() + interval '1 hour')) AS own;
COMMIT;
BEGIN;
SELECT outbox.enqueue('tx.lost', '1', deliver_at => now() + interval '1 hour') IS NOT NULL AS enqueued;
ROLLBACK;
SELECT type FROM outbox.scheduled WHERE type LIKE 'tx.%';

\echo -- overdue is what health() counts; without a worker nothing moves
SELECT value, status FROM outbox.health() WHERE check_name = 'scheduled_overdue';
UPDATE outbox.scheduled SET deliver_at = now() - interval '1 minute' WHERE type LIKE 'many.%';
SELECT value, status, action IS NOT NULL AS action FROM outbox.health() WHERE check_name = 'scheduled_overdue';

\echo -- a backlog of a restored dump is left alone if asked for; what was scheduled here is not
BEGIN;
UPDATE outbox.scheduled SET epoch = epoch # 1 WHERE type LIKE 'many.%';
SELECT outbox.start(skip_backlog => true);
SELECT type FROM outbox.scheduled ORDER BY type;
SELECT status, count(*) FROM outbox.unscheduled GROUP BY status ORDER BY status;
SELECT count FROM outbox.operation WHERE action = 'start';
SELECT DISTINCT s.status FROM outbox.unscheduled AS u CROSS JOIN LATERAL outbox.event_status(u.id) AS s WHERE u.status = 'discarded';
ROLLBACK;

\echo -- what was cancelled is forgotten in time
UPDATE outbox.unscheduled SET at = at - interval '4 days' WHERE status = 'cancelled';
SELECT action, count, detail FROM outbox.maintain() WHERE action = 'expired';
SELECT count(*) FROM outbox.unscheduled;
DROP EXTENSION outbox CASCADE;
