-- Where an event is: positions, rules and rows decide.  No worker runs here; what it would have written is written by hand.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
\pset format unaligned
\pset null -

\echo -- an event before, and one after the subscriptions
SELECT outbox.enqueue('order.paid', '{"n": 0}', tenant => 'acme') AS before \gset
SELECT outbox.subscribe('all', 'https://hooks.example.com/T123/secret', labels => '{"team": "billing"}') IS NOT NULL AS "all",
       outbox.subscribe('invoices', 'https://example.com/', types => '{invoice.**}') IS NOT NULL AS invoices,
       outbox.subscribe('other-tenant', 'https://example.com/', tenant => 'zeta') IS NOT NULL AS other_tenant,
       outbox.subscribe('earliest', 'https://example.com/', starting => 'earliest', on_dead => 'block') IS NOT NULL AS earliest,
       outbox.subscribe('tomorrow', 'https://example.com/', starting => (now() + '1 day')::text) IS NOT NULL AS tomorrow;
SELECT outbox.enqueue('order.paid', '{"n": 1}', key => 'k1', tenant => 'acme') AS first \gset
SELECT outbox.enqueue('order.paid', '{"n": 2}', key => 'k1', tenant => 'acme') AS second \gset
SELECT outbox.ping('all') AS ping \gset
SELECT subscription, status FROM outbox.event_status(:'before');
SELECT * FROM outbox.event_status(:'first');
SELECT subscription, status FROM outbox.event_status(:'ping');
SELECT count(*) FROM outbox.event_status('00000000-0000-7000-8000-000000000000');
SELECT count(*) FROM outbox.event_status(NULL);

\echo -- own events of the subscribing transaction, and those that commit later, are included
BEGIN;
SELECT outbox.subscribe('own', 'https://example.com/') IS NOT NULL AS own;
SELECT outbox.enqueue('order.paid', '{"n": 3}') AS third \gset
COMMIT;
SELECT subscription, status FROM outbox.event_status(:'third') WHERE subscription = 'own';
SELECT subscription, status FROM outbox.event_status(:'second') WHERE subscription = 'own';

\echo -- rules apply from their change on
SELECT outbox.alter_subscription('invoices', types => '{order.**}');
SELECT outbox.enqueue('order.paid', '{"n": 4}') AS fourth \gset
SELECT outbox.alter_subscription('invoices', tenant => 'zeta');
SELECT outbox.enqueue('order.paid', '{"n": 5}') AS fifth \gset
SELECT n, status FROM (VALUES (1, :'first'::uuid), (4, :'fourth'), (5, :'fifth')) AS e (n, id), outbox.event_status(id) WHERE subscription = 'invoices' ORDER BY n;

\echo -- positions: a tick that has seen all, and one that had seen nothing of it
DELETE FROM outbox.cursor;   -- a worker may have been here
DELETE FROM outbox.tick;
INSERT INTO outbox.tick_0 (tick, epoch, snapshot, next, clock, "offset", at)
SELECT 1, outbox.epoch(), start_snapshot, start_next, start_clock, 1, now() FROM outbox.subscription WHERE name = 'all'
UNION ALL
SELECT 2, outbox.epoch(), p.snapshot, p.next, p.clock, 7, now() FROM outbox._position_now() AS p;
CREATE FUNCTION pg_temp.put_cursor(seq bigint, subscription text, at_head boolean, base bigint, tick bigint, after uuid, passed bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO outbox.cursor_0 (seq, epoch, subscription_id, at_head, base, tick, after, "offset", at)
    SELECT seq, outbox.epoch(), COALESCE((SELECT s.id FROM outbox.subscription AS s WHERE s.name = subscription), 0), at_head, base, tick, after, passed, now()
$$;
\echo -- within the window: up to the first event
SELECT pg_temp.put_cursor(1, 'all', false, 1, 2, :'first', 2);
SELECT n, status FROM (VALUES (1, :'first'::uuid), (2, :'second'), (3, :'third')) AS e (n, id), outbox.event_status(id) WHERE subscription = 'all' ORDER BY n;
\echo -- an older row does not count, nor does one of another epoch
SELECT pg_temp.put_cursor(0, 'all', false, 2, 2, NULL, 7);
INSERT INTO outbox.cursor_0 SELECT 9, outbox.epoch() - 1, subscription_id, at_head, 2, 2, NULL, 7, now() FROM outbox.cursor_0 WHERE seq = 1;
SELECT n, status FROM (VALUES (1, :'first'::uuid), (2, :'second'), (3, :'third')) AS e (n, id), outbox.event_status(id) WHERE subscription = 'all' ORDER BY n;
\echo -- at the head
SELECT pg_temp.put_cursor(2, 'all', true, NULL, NULL, NULL, 7);
SELECT pg_temp.put_cursor(3, NULL, false, 1, 2, :'second', 3);
SELECT n, status FROM (VALUES (1, :'first'::uuid), (2, :'second'), (3, :'third')) AS e (n, id), outbox.event_status(id) WHERE subscription = 'all' ORDER BY n;
SELECT pg_temp.put_cursor(4, NULL, false, 2, 2, NULL, 7);
SELECT n, status FROM (VALUES (1, :'first'::uuid), (2, :'second'), (3, :'third')) AS e (n, id), outbox.event_status(id) WHERE subscription = 'all' ORDER BY n;
\echo -- from the start on: base 0
SELECT pg_temp.put_cursor(5, 'all', false, 0, 2, :'first', 2);
SELECT n, status FROM (VALUES (1, :'first'::uuid), (2, :'second'), (3, :'third')) AS e (n, id), outbox.event_status(id) WHERE subscription = 'all' ORDER BY n;

\echo -- an attempt that succeeded counts before the cursor is written
INSERT INTO outbox.attempt_log_0 (event_id, at, subscription_id, duration, attempt, status_code, outcome, error, response)
SELECT :'second'::uuid, '2026-01-01 00:00:00+00'::timestamptz, id, 1500000, 1, 503, 3, 'HTTP status 503', '\x627573790aff'::bytea FROM outbox.subscription WHERE name = 'all'
UNION ALL
SELECT :'second'::uuid, '2026-01-01 00:00:10+00'::timestamptz, id, 250000, 2, 204, 0, NULL, NULL FROM outbox.subscription WHERE name = 'all';
SELECT status, attempts, last_status_code, last_error, next_attempt_at, delivered_at = '2026-01-01 00:00:10.25+00' AS delivered_then FROM outbox.event_status(:'second') WHERE subscription = 'all';
SELECT subscription, attempt, outcome, status_code, duration, error, response FROM outbox.attempt WHERE event_id = :'second' ORDER BY at;

\echo -- a row decides, whatever the cursor says; a dead letter holds its key where on_dead is block
INSERT INTO outbox.delivery (subscription_id, event_id, status, key, attempts, first_attempt_at, next_attempt_at, last_status_code, last_error, reason, ended_at)
SELECT s.id, d.event_id, d.status, d.key, d.attempts, d.first_at, d.next_at, d.code, d.error, d.reason, d.ended_at
  FROM (VALUES ('all', :'first'::uuid, 'retrying', 'k1', 2, '2026-01-01 00:00+00'::timestamptz, '2026-01-01 00:05+00'::timestamptz, NULL::integer, 'timeout', NULL, NULL::timestamptz),
               ('all', :'second', 'blocked', 'k1', 0, NULL, NULL, NULL, NULL, NULL, NULL),
               ('all', :'third', 'sending', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL),
               ('earliest', :'first', 'dead', 'k1', 25, '2026-01-01 00:00+00', NULL, 500, 'HTTP status 500', 'max_attempts', '2026-01-02 00:00+00'),
               ('earliest', :'third', 'discarded', NULL, 1, '2026-01-01 00:00+00', NULL, 500, 'HTTP status 500', NULL, '2026-01-02 00:00+00'))
       AS d (subscription, event_id, status, key, attempts, first_at, next_at, code, error, reason, ended_at)
  JOIN outbox.subscription AS s ON s.name = d.subscription;
SELECT n, subscription, status, attempts, last_status_code, last_error, next_attempt_at IS NOT NULL AS waits, delivered_at
  FROM (VALUES (1, :'first'::uuid), (2, :'second'), (3, :'third')) AS e (n, id), outbox.event_status(id) WHERE subscription IN ('all', 'earliest') ORDER BY subscription, n;
SELECT subscription, status, attempts, next_attempt_at IS NOT NULL AS waits, last_error FROM outbox.delivery_status ORDER BY subscription, event_id;
SELECT event_id = :'first' AS first, subscription, reason, attempts, died_at = '2026-01-02 00:00+00' AS died_then, last_status_code, last_error, type, key, tenant FROM outbox.dead_letter;
SELECT subscription, key, head_event_id = :'first' AS first, waiting, since = '2026-01-01 00:00+00' AS since_then, next_attempt_at = '2026-01-01 00:05+00' AS next_then FROM outbox.blocked_key ORDER BY subscription;

\echo -- subscriptions: how they are, and no more of a URL than scheme and host
SELECT outbox.pause('tomorrow', 'not yet');
SELECT name, kind, url, tenant, labels, state, reason, CASE name WHEN 'all' THEN lag_events END AS lag_events, lag_seconds >= 0 AS lag_seconds, in_flight, dead, blocked_keys, pinned_bytes >= 0 AS pinned_bytes, last_success_at, last_error
  FROM outbox.subscription_status WHERE name IN ('all', 'earliest', 'tomorrow') ORDER BY name;

\echo -- a life, as it is told
SELECT what, subscription, regexp_replace(regexp_replace(replace(detail, :'first', 'FIRST'), 'transaction \d+', 'transaction N'), 'until .*', 'until then') AS detail FROM outbox.trace(:'second') WHERE subscription IS NULL OR subscription IN ('all', 'invoices') ORDER BY what IN ('blocked'), at, what;
SELECT what, subscription, regexp_replace(regexp_replace(detail, 'transaction \d+', 'transaction N'), ' than .*, where', ' than then, where') AS detail
  FROM outbox.trace(:'first') WHERE subscription IS NULL OR subscription IN ('earliest', 'tomorrow', 'own') ORDER BY what = 'dead', what, subscription;
SELECT what, subscription, detail FROM outbox.trace(:'ping') WHERE what <> 'enqueued' ORDER BY at, what;
SELECT count(*) FROM outbox.trace('00000000-0000-7000-8000-000000000000');

\echo -- a dead letter that has expired was not delivered; where the event is still in the log, its dead letter has not expired
BEGIN;
INSERT INTO outbox.kept_event SELECT '00000000-0000-7000-8000-000000000002', xid, epoch, created_at, type, key, tenant, payload FROM outbox.event WHERE id = :'first';
SELECT pg_temp.put_cursor(6, 'earliest', false, 2, 2, NULL, 7);
INSERT INTO outbox.attempt_log_0 (event_id, at, subscription_id, duration, attempt, status_code, outcome, error)
SELECT e.id, '2026-01-01', s.id, 1, 25, 500, 3, 'HTTP status 500' FROM outbox.subscription AS s, (VALUES ('00000000-0000-7000-8000-000000000002'::uuid), (:'second')) AS e (id) WHERE s.name = 'earliest';
SELECT subscription, status, attempts, last_error FROM outbox.event_status('00000000-0000-7000-8000-000000000002') WHERE subscription IN ('all', 'earliest');
SELECT what, detail FROM outbox.trace('00000000-0000-7000-8000-000000000002') WHERE subscription = 'earliest' AND what NOT IN ('matched', 'attempt');
SELECT status FROM outbox.event_status(:'second') WHERE subscription = 'earliest';
ROLLBACK;

\echo -- outcomes have their names
SELECT array_agg(outbox._outcome_name(n::smallint) ORDER BY n) FROM generate_series(0, 12) AS n;

\echo -- the log is not changed by hand
\set ON_ERROR_STOP off
\set SHOW_CONTEXT never
UPDATE outbox.event SET type = 'changed' WHERE id = :'first';
\echo :SQLSTATE
DELETE FROM outbox.event WHERE id = :'first';
\echo :SQLSTATE
INSERT INTO outbox.event (type, payload) VALUES ('order.paid', '{}');
\echo :SQLSTATE
TRUNCATE outbox.event;
\echo :SQLSTATE
\set ON_ERROR_STOP on
\echo -- but a dump brings its rows, of another epoch, back
BEGIN;
INSERT INTO outbox.event_15 (id, xid, epoch, created_at, type, payload) VALUES ('00000000-0000-7000-8000-000000000001', '3', outbox.epoch() - 1, '1970-01-01', 'restored', '{}');
SELECT subscription, status FROM outbox.event_status('00000000-0000-7000-8000-000000000001') WHERE subscription IN ('all', 'tomorrow');
SELECT outbox.start(skip_backlog => true);
SELECT subscription, status FROM outbox.event_status('00000000-0000-7000-8000-000000000001') WHERE subscription IN ('all', 'tomorrow');
ROLLBACK;

DELETE FROM outbox.cursor_0;
DELETE FROM outbox.tick_0;
DELETE FROM outbox.attempt_log_0;
SELECT count(outbox.unsubscribe(name)) FROM outbox.subscription;
