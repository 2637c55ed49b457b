-- What operators do to events: redrive, discard; and arming.
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

SELECT COALESCE(max(id), 0) AS begin FROM outbox.operation \gset
\echo -- nothing there: what cannot be selected by is refused all the same
SELECT count(*) FROM outbox.delivery;
SELECT f, args, pg_temp.refusal(format('SELECT outbox.%s(%s)', f, args)) FROM unnest(ARRAY['redrive', 'discard']) AS f,
       unnest(ARRAY['', '''nobody''', '''nobody'', dry_run => true', 'reason => ''gone'', max_events => -1', 'types => ''{a..b}''', 'types => ''{a,NULL}''', 'types => ''{}''', 'reason => ''gone'', dry_run => true']) AS args;

SELECT outbox.subscribe('one', 'https://example.com/') IS NOT NULL AS one, outbox.subscribe('two', 'https://example.com/') IS NOT NULL AS two;
SELECT outbox.enqueue('order.paid', '{}', key => 'k', tenant => 'acme') AS a \gset
SELECT outbox.enqueue('order.sent', '{}', key => 'k', tenant => 'acme') AS b \gset
SELECT outbox.enqueue('invoice.made', '{}', tenant => 'zeta') AS c \gset
SELECT '00000000-0000-7000-8000-00000000000f'::uuid AS gone \gset
CREATE TEMP VIEW state AS
SELECT s.name AS subscription, e.type, d.status, d.attempts, d.first_attempt_at IS NOT NULL AS begun, d.next_attempt_at = now() AS due, d.reason, d.ended_at IS NOT NULL AS ended, d.last_error
  FROM outbox.delivery d JOIN outbox.subscription s ON s.id = d.subscription_id LEFT JOIN outbox.event e ON e.id = d.event_id ORDER BY s.name, d.event_id;
INSERT INTO outbox.delivery (subscription_id, event_id, status, key, attempts, first_attempt_at, next_attempt_at, last_error, reason, ended_at)
SELECT s.id, d.event_id, d.status, d.key, d.attempts, '2026-01-01', d.next_at::timestamptz, 'timeout', d.reason, d.ended_at::timestamptz
  FROM (VALUES ('one', :'a'::uuid, 'dead', 'k', 25, NULL, 'max_attempts', '2026-01-02'),
               ('one', :'b', 'retrying', 'k', 3, '2026-01-03', NULL, NULL),
               ('one', :'gone', 'dead', NULL, 25, NULL, 'max_attempts', '2026-01-02'),
               ('two', :'a', 'dead', 'k', 1, NULL, 'fatal_status', '2026-01-02'),
               ('two', :'b', 'discarded', 'k', 1, NULL, NULL, '2026-01-02'),
               ('two', :'c', 'dead', NULL, 1, NULL, 'fatal_status', '2026-01-02')) AS d (subscription, event_id, status, key, attempts, next_at, reason, ended_at)
  JOIN outbox.subscription AS s ON s.name = d.subscription;

\echo -- something must be selected
SELECT pg_temp.refusal('SELECT outbox.redrive()');
SELECT pg_temp.refusal('SELECT outbox.discard(max_events => 1, dry_run => true)');
SELECT pg_temp.refusal('SELECT outbox.redrive(''nobody'')');
SELECT pg_temp.refusal('SELECT outbox.redrive(''one'', max_events => -1)');
SELECT left(pg_temp.refusal('SELECT outbox.redrive(types => ''{order..paid}'')'), 5);

\echo -- selectors narrow each other; what no longer exists cannot be redriven; dry_run changes nothing
SELECT outbox.redrive('one', dry_run => true) AS one, outbox.redrive('two', dry_run => true) AS two, outbox.redrive(reason => 'fatal_status', dry_run => true) AS fatal,
       outbox.redrive(ids => ARRAY[:'a', :'b', :'gone']::uuid[], dry_run => true) AS ids, outbox.redrive(types => '{order.*}', dry_run => true) AS orders,
       outbox.redrive(tenant => 'zeta', dry_run => true) AS zeta, outbox.redrive('one', tenant => 'zeta', dry_run => true) AS one_zeta, outbox.redrive('two', max_events => 1, dry_run => true) AS at_most,
       outbox.redrive(since => outbox._event_time(:'c') - interval '1 day', until => outbox._event_time(:'c') + interval '1 day', dry_run => true) AS around,
       outbox.redrive(since => '1960-01-01', dry_run => true) AS since_1960, outbox.redrive(since => '-infinity', until => 'infinity', dry_run => true) AS ever,
       outbox.redrive(until => outbox._event_time(:'a') - interval '1 day', dry_run => true) AS before, outbox.redrive(since => outbox._event_time(:'c') + interval '1 day', dry_run => true) AS after,
       outbox.redrive(ids => '{}', dry_run => true) AS nothing;
SELECT outbox.discard('one', dry_run => true) AS dead, outbox.discard('one', ids => ARRAY[:'a', :'b']::uuid[], dry_run => true) AS named;
SELECT count(*) FROM outbox.operation WHERE id > :begin AND action IN ('redrive', 'discard');
SELECT * FROM state;

\echo -- counting writes nothing
BEGIN READ ONLY;
SELECT outbox.redrive('two', dry_run => true), outbox.discard('two', dry_run => true);
ROLLBACK;

\echo -- redrive: the whole policy again
BEGIN;
SELECT outbox.redrive('two', reason => 'fatal_status', max_events => 1);
SELECT * FROM state;
COMMIT;
SELECT outbox.redrive('two', types => '{**}');
SELECT outbox.redrive('two', types => '{**}');

\echo -- discard: dead ones, and waiting ones that are named
SELECT outbox.discard('one');
SELECT outbox.discard(ids => ARRAY[:'b']::uuid[]);
SELECT * FROM state;
SELECT action, role = current_user AS role, subscription, jsonb_set(selector, '{ids}', '["b"]', false) AS selector, count FROM outbox.operation WHERE id > :begin AND action IN ('redrive', 'discard') ORDER BY id;

\echo -- an argument may have a collation of its own
SELECT call, pg_temp.refusal('SELECT outbox.' || call) FROM unnest(ARRAY['pause(''one'' COLLATE "POSIX", ''x'')', 'resume(''one'' COLLATE "POSIX")', 'redrive(''one'' COLLATE "POSIX")', 'alter_subscription(''one'' COLLATE "POSIX", max_attempts => 3)',
    'subscribe(''three'' COLLATE "POSIX", ''https://example.com/'')', 'unsubscribe(''three'' COLLATE "POSIX")']) AS call;

\echo -- arming is a setting of the database
SELECT pg_temp.refusal('SELECT outbox._arm(NULL)');
SELECT outbox.start();
SELECT replace(unnest(setconfig), outbox.epoch()::text, 'EPOCH') AS setting FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE d.datname = current_database() AND setrole = 0 AND setconfig::text LIKE '%outbox.armed%';
SELECT outbox.stop();
SELECT count(*) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE d.datname = current_database() AND setconfig::text LIKE '%outbox.armed%';
SELECT action, selector - 'epoch' AS selector FROM outbox.operation WHERE action IN ('start', 'stop') ORDER BY id DESC LIMIT 2;


-- a worker that was started in between shall not write into the next test
DO $$
BEGIN
    FOR i IN 1 .. 3000 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'outbox delivery%');
        PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
    END LOOP;
END
$$;

SELECT count(outbox.unsubscribe(name)) FROM outbox.subscription;
