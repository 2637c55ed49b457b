-- Idempotency keys: what begin_request() says, who may finish, and what is refused.
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
    RETURN concat_ws(' | ', state, message, NULLIF(regexp_replace(detail, '(finished at) .*', '\1 (time)'), ''), NULLIF(hint, ''));
END
$$;
-- What a caller sees, its times as "ahead" and tokens as "higher"
CREATE FUNCTION pg_temp.begin(scope text, key text, request text) RETURNS text LANGUAGE sql AS $$
    SELECT concat_ws(' ', b.state, b.response::text, b.status::text, CASE WHEN b.token IS NOT NULL THEN 'with a token' END,
                     CASE WHEN b.takeover_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 min' THEN 'for a minute' END)
      FROM outbox.begin_request(scope, key, sha256(request::bytea)) AS b
$$;
ALTER SEQUENCE outbox.idempotency_key_token RESTART;

\echo -- all in one transaction
BEGIN;
SELECT state, response, status, token, takeover_at - now() BETWEEN '59 s' AND '61 s' AS a_minute FROM outbox.begin_request('acme', 'k1', sha256('POST /orders 1'));
SELECT pg_temp.begin('acme', 'k1', 'POST /orders 1') AS the_same_in_its_own_transaction;
SELECT outbox.finish_request('acme', 'k1', 1, '{"order": 1}', 201);
COMMIT;
SELECT pg_temp.begin('acme', 'k1', 'POST /orders 1');
SELECT pg_temp.begin('acme', 'k1', 'POST /orders 2');
SELECT pg_temp.begin('zeta', 'k1', 'POST /orders 1') AS other_scope;
BEGIN;
SELECT pg_temp.begin('acme', 'rolled back', 'x');
ROLLBACK;
SELECT pg_temp.begin('acme', 'rolled back', 'y');

\echo -- claimed, in progress, finished
SELECT token AS k2 FROM outbox.begin_request('acme', 'k2', 'f') \gset
SELECT state, token, takeover_at > now() AS ahead FROM outbox.begin_request('acme', 'k2', 'f');
SELECT state FROM outbox.begin_request('acme', 'k2', 'g');
SELECT outbox.finish_request('acme', 'k2', :k2, NULL, 204);
SELECT state, response, status, token, takeover_at FROM outbox.begin_request('acme', 'k2', 'f');
SELECT pg_temp.refusal(format('SELECT outbox.finish_request(%L, %L, %s, NULL, 200)', 'acme', 'k2', :k2)) AS twice, pg_temp.refusal(format('SELECT outbox.fail_request(%L, %L, %s)', 'acme', 'k2', :k2)) AS too_late;

\echo -- given up: the key is free, for another request too
SELECT token AS k3 FROM outbox.begin_request('acme', 'k3', 'f') \gset
SELECT outbox.fail_request('acme', 'k3', :k3);
SELECT pg_temp.refusal(format('SELECT outbox.finish_request(%L, %L, %s, NULL, 200)', 'acme', 'k3', :k3)) AS given_up;
SELECT state, token > :k3 AS higher FROM outbox.begin_request('acme', 'k3', 'g');

\echo -- taken over when the lease is over, and fenced
SET outbox.request_lease = '10min';
SELECT token AS k4, takeover_at > now() + interval '9 min' AS ten_minutes FROM outbox.begin_request('acme', 'k4', 'f') \gset
\echo :ten_minutes
RESET outbox.request_lease;
UPDATE outbox.idempotency_key SET takeover_at = now() - interval '1 s' WHERE key = 'k4';
SELECT state FROM outbox.begin_request('acme', 'k4', 'g') AS another_request_is_a_mismatch;
SELECT state, token AS k4b, token > :k4 AS higher FROM outbox.begin_request('acme', 'k4', 'f') \gset
\echo :state :higher
SELECT pg_temp.refusal(format('SELECT outbox.finish_request(%L, %L, %s, NULL, 200)', 'acme', 'k4', :k4)) LIKE '55006 | the request was taken over | It belongs to the caller with token %' AS finish_is_refused,
       pg_temp.refusal(format('SELECT outbox.fail_request(%L, %L, %s)', 'acme', 'k4', :k4)) LIKE '55006 | the request was taken over |%' AS fail_is_refused;
SELECT outbox.finish_request('acme', 'k4', :k4b, '"by the second"', 200);
SELECT pg_temp.refusal(format('SELECT outbox.finish_request(%L, %L, %s, NULL, 200)', 'acme', 'k4', :k4)) LIKE '55006 |%' AS still_refused;
SELECT pg_temp.begin('acme', 'k4', 'f') IS NOT NULL AS asked, response FROM outbox.begin_request('acme', 'k4', 'f');

\echo -- late, but not taken over
SELECT token AS k5 FROM outbox.begin_request('acme', 'k5', 'f') \gset
UPDATE outbox.idempotency_key SET takeover_at = now() - interval '1 h' WHERE key = 'k5';
SELECT outbox.finish_request('acme', 'k5', :k5, '5', 200);
SELECT state, response FROM outbox.begin_request('acme', 'k5', 'f');

\echo -- characters, not bytes
SELECT pg_temp.begin(repeat('ä', 255), repeat('🔑', 255), 'x');
SELECT pg_temp.begin(repeat('ä', 255), repeat('🔑', 255), 'x') IS NOT NULL AS found;

\echo -- arguments may have a collation of their own
SELECT state, outbox.finish_request('s' COLLATE "POSIX", 'c' COLLATE "POSIX", token, NULL, 200) FROM outbox.begin_request('s' COLLATE "POSIX", 'c' COLLATE "POSIX", 'f');
SELECT state, outbox.fail_request('s' COLLATE "POSIX", 'd' COLLATE "POSIX", token) FROM outbox.begin_request('s' COLLATE "POSIX", 'd' COLLATE "POSIX", 'f');

\echo -- refusals
SELECT left(command, 60) AS command, pg_temp.refusal('SELECT outbox.' || command) FROM unnest(ARRAY[
    'begin_request(NULL, ''k'', ''f'')', 'begin_request(''s'', NULL, ''f'')', 'begin_request(''s'', ''k'', NULL)', 'begin_request('''', ''k'', ''f'')', 'begin_request(''s'', '''', ''f'')',
    'begin_request(''s'', repeat(''k'', 256), ''f'')', 'begin_request(''s'', ''k'', '''')', 'begin_request(''s'', ''k'', repeat(''f'', 65)::bytea)',
    'finish_request(NULL, ''k'', 1, NULL, 200)', 'finish_request(''s'', ''none'', 1, NULL, 200)', 'finish_request(''s'', ''k'', 1, NULL, NULL)', 'finish_request(''s'', ''k'', 1, NULL, 99)', 'finish_request(''s'', ''k'', 1, NULL, 600)',
    'finish_request(''s'', ''k'', 1, to_jsonb(repeat(''x'', 1024 * 1024)), 200)', 'fail_request(''s'', ''none'', 1)', 'fail_request(''s'', '''', 1)']) AS command;
SELECT token AS k6 FROM outbox.begin_request('acme', 'k6', 'f') \gset
SELECT pg_temp.refusal('SELECT outbox.finish_request(''acme'', ''k6'', NULL, NULL, 200)') LIKE '55006 |%' AS no_token;
BEGIN READ ONLY;
SELECT pg_temp.refusal('SELECT outbox.begin_request(''s'', ''new'', ''f'')');
ROLLBACK;

\echo -- kept for outbox.request_retention
UPDATE outbox.idempotency_key SET finished_at = now() - interval '23 h' WHERE key = 'k1';
UPDATE outbox.idempotency_key SET finished_at = now() - interval '25 h', takeover_at = now() - interval '1 h' WHERE key = 'k2';
UPDATE outbox.idempotency_key SET takeover_at = now() - interval '23 h', claimed_at = now() - interval '30 h' WHERE key = 'k3';
UPDATE outbox.idempotency_key SET takeover_at = now() - interval '25 h' WHERE key = 'k6';
SELECT action, count, detail FROM outbox.maintain() WHERE action = 'expired';
SELECT key FROM outbox.idempotency_key WHERE scope = 'acme' AND key LIKE 'k%' ORDER BY key;
SELECT pg_temp.refusal(format('SELECT outbox.finish_request(%L, %L, %s, NULL, 200)', 'acme', 'k6', :k6)) AS expired;
SELECT pg_temp.begin('acme', 'k2', 'other') AS a_new_request;
DELETE FROM outbox.idempotency_key;
