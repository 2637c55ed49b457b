-- health(): every check that needs no worker is driven to warning or critical, and back.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
\pset format unaligned
\pset null -

\echo -- nothing to complain of
SELECT check_name, status, threshold, action FROM outbox.health() WHERE check_name NOT IN ('log_size', 'log_pinned');
SELECT check_name, threshold = n * pg_size_bytes(current_setting('outbox.segment_size')) AS by_segment_size FROM outbox.health() JOIN (VALUES ('log_size', 12), ('log_pinned', 4)) AS t (name, n) ON name = check_name;

\echo -- armed: subscriptions, and nothing delivers
SELECT outbox.subscribe('healthy', 'https://example.com/', starting => 'earliest') IS NOT NULL AS made;
SELECT outbox.enqueue('order.paid', '{}') AS id \gset
SELECT status, value, detail, action FROM outbox.health() WHERE check_name = 'armed';

\echo -- thresholds can be given
CREATE FUNCTION pg_temp.state(name text, warning text, critical text) RETURNS text LANGUAGE sql AS $$
    SELECT concat_ws(' ', h.check_name, h.status, h.threshold, h.action IS NOT NULL)
      FROM outbox.health(format('{"%s": {"warning": %s, "critical": %s}}', name, warning, critical)::jsonb) AS h WHERE h.check_name = name
$$;
SELECT pg_temp.state(name, '0', 'null'), pg_temp.state(name, '0', '0'), pg_temp.state(name, 'null', 'null')
  FROM unnest(ARRAY['preload', 'versions', 'launcher', 'worker_slots', 'armed', 'oldest_undelivered', 'log_size', 'log_pinned', 'oldest_prepared_xact', 'dead_letters', 'disabled', 'maintenance_age']) AS name;
SELECT check_name, status FROM outbox.health('{"log_size": {"critical": 1}}') WHERE check_name = 'log_size';

\echo -- the oldest event that somebody has not done
SELECT subject, value >= 0 AS age FROM outbox.health() WHERE check_name = 'oldest_undelivered';
SELECT outbox.pause('healthy');
SELECT subject FROM outbox.health() WHERE check_name = 'oldest_undelivered';

\echo -- disabled, and resumed
UPDATE outbox.subscription SET state = 'disabled', reason = 'gone' WHERE name = 'healthy';
SELECT status, subject, value, action FROM outbox.health() WHERE check_name = 'disabled';
SELECT outbox.resume('healthy');
SELECT status, subject, value FROM outbox.health() WHERE check_name = 'disabled';

\echo -- a dead letter, and discarded
INSERT INTO outbox.delivery (subscription_id, event_id, status, attempts, reason, ended_at) SELECT id, :'id', 'dead', 1, 'max_attempts', now() FROM outbox.subscription WHERE name = 'healthy';
SELECT status, subject, value, action FROM outbox.health() WHERE check_name = 'dead_letters';
SELECT outbox.discard('healthy');
SELECT status, subject, value FROM outbox.health() WHERE check_name = 'dead_letters';

\echo -- versions that differ
BEGIN;
UPDATE pg_extension SET extversion = '9.9' WHERE extname = 'outbox';
SELECT status, detail LIKE '%the extension 9.9' AS detail, action FROM outbox.health() WHERE check_name = 'versions';
ROLLBACK;
SELECT status FROM outbox.health() WHERE check_name = 'versions';

\echo -- invalid thresholds
\set ON_ERROR_STOP off
\set SHOW_CONTEXT never
SELECT outbox.health('{"no_such_check": {"warning": 1}}');
\echo :SQLSTATE
SELECT outbox.health('[]');
\echo :SQLSTATE
SELECT outbox.health('"tick_age"');
\echo :SQLSTATE
SELECT outbox.health('{"tick_age": 5}');
\echo :SQLSTATE
SELECT outbox.health('{"tick_age": {"fatal": 5}}');
\echo :SQLSTATE
SELECT outbox.health('{"tick_age": {"warning": "5"}}');
\echo :SQLSTATE
\set ON_ERROR_STOP on

SELECT count(outbox.unsubscribe(name)) FROM outbox.subscription;
SELECT status FROM outbox.health() WHERE check_name = 'armed';
