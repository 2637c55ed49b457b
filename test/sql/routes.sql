-- Routing: filters, dry runs, why an event was not delivered, and how many subscriptions there may be.  Nothing is delivered here: this database is not armed.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
SELECT count(outbox.unsubscribe(name)) * 0 AS before FROM outbox.subscription;

-- a refusal in one line: SQLSTATE, message, detail, hint
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
\pset format unaligned
\pset tuples_only on

\echo -- a predicate must be true, any other path find something; errors and missing payloads do not match
CREATE FUNCTION pg_temp.passes(filter jsonpath, payload jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    answer text;
BEGIN
    PERFORM outbox.subscribe('probe', filter => passes.filter);
    SELECT CASE WHEN r.matches THEN 'matches' ELSE r.reason END INTO answer FROM outbox.routes('any.type', passes.payload) AS r WHERE r.subscription = 'probe';
    PERFORM outbox.unsubscribe('probe');
    RETURN answer;
END
$$;
SELECT f.filter, f.payload, pg_temp.passes(f.filter::jsonpath, f.payload::jsonb) FROM (VALUES
    (1, '$.amount > 100', '{"amount": 101}'),
    (2, '$.amount > 100', '{"amount": 100}'),
    (3, '$.amount > 100', '{"amount": "much"}'),
    (4, '$.amount > 100', '{}'),
    (5, '$.amount > 100', NULL),
    (6, '$.amount > 100', 'null'),
    (7, '$.amount ? (@ > 100)', '{"amount": 101}'),
    (8, '$.amount ? (@ > 100)', '{"amount": 100}'),
    (9, '$.items[*] ? (@.price > 5)', '{"items": [{"price": 1}, {"price": 9}]}'),
    (10, '$.items[*] ? (@.price > 5)', '{"items": [{"price": 1}]}'),
    (11, '$.paid', '{"paid": false}'),
    (12, '$.paid', '{"amount": 1}'),
    (13, '$.paid == true', '{"paid": false}'),
    (14, '$.paid == true', '{"paid": true}'),
    (15, 'strict $.a.b == 1', '{"a": 1}'),
    (16, 'strict $.a.b', '{"a": 1}'),
    (17, '$.a == 1 && $.b == 2', '{"a": 1, "b": 2}'),
    (18, '!($.a == 1)', '{"a": 1}'),
    (19, '!($.a == 1)', '{}'),
    (20, 'exists($.a)', '{"a": null}'),
    (21, '($.a == 1) is unknown', '{"a": []}'),
    (22, '($.a == 1).type()', '{}'),
    (23, '$.name like_regex "^A"', '{"name": "Anna"}'),
    (24, '$.name like_regex "^A"', '{"name": "Bert"}'),
    (25, '$.name starts with "B"', '{"name": "Bert"}'),
    (26, '1 / $.n > 0', '{"n": 0}'),
    (27, '$.at.datetime() < "2026-01-01 00:00:00+00".datetime()', '{"at": "2025-01-01 00:00:00"}'),
    (28, '$.name > "B"', '{"name": "Bert"}'),
    (29, '$.**.deep == 1', '{"a": {"b": [{"deep": 1}]}}')
  ) AS f (n, filter, payload) ORDER BY f.n;

\echo -- what cannot be a filter
SELECT pg_temp.refusal($$SELECT outbox.subscribe('bad', filter => '$.amount > $limit')$$);
SELECT pg_temp.refusal($$SELECT outbox.subscribe('bad', filter => '$.amount > 1 || $."a b" == $"x y"')$$);
SELECT pg_temp.refusal($$SELECT outbox.subscribe('good', filter => '$.a == "$\"x" && $.b == "$" && $."$c" == "\"$x"')$$);
SELECT outbox.unsubscribe('good');
SELECT split_part(pg_temp.refusal(format('SELECT outbox.subscribe(%L, filter => %L)', 'bad', '$.a == "' || repeat('x', 9000) || '"')), ' | ', 1);
SELECT split_part(pg_temp.refusal($$SELECT outbox.subscribe('bad', filter => '$.a >')$$), ' | ', 1);

\echo -- routes: every subscription, whether it matches, and why not
SELECT outbox.subscribe('all');
SELECT outbox.subscribe('big', types => '{order.**}', filter => '$.amount > 100');
SELECT outbox.subscribe('mine', tenant => 'acme', types => '{order.*}', filter => '$.amount > 100');
SELECT outbox.subscribe('held', types => '{order.paid}');
SELECT outbox.pause('held', 'on holiday');
CREATE VIEW pg_temp.paused AS SELECT state_since::text AS since FROM outbox.subscription WHERE name = 'held';
SELECT r.subscription, r.kind, r.matches, r.reason, replace(r.detail, p.since, 'THEN') FROM outbox.routes('order.paid', '{"amount": 200}', 'acme') AS r, pg_temp.paused AS p;
\echo -
SELECT r.subscription, r.matches, r.reason, replace(r.detail, p.since, 'THEN') FROM outbox.routes('order.paid', '{"amount": 1}', 'other') AS r, pg_temp.paused AS p;
\echo -
SELECT r.subscription, r.matches, r.reason FROM outbox.routes('invoice.sent') AS r;
SELECT pg_temp.refusal($$SELECT outbox.routes('order..paid')$$);
SELECT pg_temp.refusal($$SELECT outbox.routes('outbox.ping')$$);
SELECT pg_temp.refusal($$SELECT outbox.routes(NULL)$$);

\echo -- a changed filter is for what commits from now on: event_status() and trace() know the old one
CREATE TABLE pg_temp.id (what text, id uuid);
INSERT INTO pg_temp.id SELECT 'before ' || n, outbox.enqueue('order.paid', jsonb_build_object('amount', n)) FROM unnest('{1,200}'::int[]) AS n;
SELECT outbox.alter_subscription('big', filter => '$.amount < 100');
SELECT filter, met FROM outbox.subscription_match;
SELECT outbox.alter_subscription('big', filter => '$.amount < 100', labels => '{}');
SELECT count(*) FROM outbox.subscription_match;
INSERT INTO pg_temp.id SELECT 'after ' || n, outbox.enqueue('order.paid', jsonb_build_object('amount', n)) FROM unnest('{1,200}'::int[]) AS n;
INSERT INTO pg_temp.id SELECT 'raw', outbox.enqueue_raw('order.paid', '{"amount": 1}', 'application/json');
SELECT i.what, s.status FROM pg_temp.id AS i, outbox.event_status(i.id) AS s WHERE s.subscription = 'big' ORDER BY i.id;
SELECT i.what, t.what, t.detail FROM pg_temp.id AS i, outbox.trace(i.id) AS t WHERE t.subscription = 'big' AND t.what LIKE '%matched' ORDER BY i.id;
SELECT outbox.alter_subscription('big', reset => '{filter}');
SELECT filter IS NULL FROM outbox.subscription WHERE name = 'big';
SELECT outbox.enqueue_raw('order.paid', '\x00', 'application/octet-stream') AS id \gset
SELECT s.status FROM outbox.event_status(:'id') AS s WHERE s.subscription = 'big';

\echo -- trace: what it waits for
SELECT t.subscription, t.what, replace(t.detail, p.since, 'THEN') FROM pg_temp.id AS i, outbox.trace(i.id) AS t, pg_temp.paused AS p WHERE i.what = 'before 200' AND t.subscription IN ('all', 'held') AND t.what = 'pending';

\echo -- how many a tenant may have
SHOW outbox.max_subscriptions_per_tenant;
SELECT count(outbox.subscribe('crowd' || i, tenant => 'crowd')) FROM generate_series(1, 50) AS i;
SELECT pg_temp.refusal($$SELECT outbox.subscribe('crowd51', tenant => 'crowd')$$);
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription('all', tenant => 'crowd')$$);
SELECT outbox.alter_subscription('crowd1', tenant => 'crowd', types => '{a}');
SELECT outbox.subscribe('crowd1', tenant => 'crowd', if_not_exists => true);
SELECT outbox.subscribe('elsewhere', tenant => 'crow');
SELECT outbox.unsubscribe('crowd2');
SELECT outbox.alter_subscription('all', tenant => 'crowd');
SELECT pg_temp.refusal($$SELECT outbox.subscribe('crowd51', tenant => 'crowd')$$) <> 'accepted';
SELECT count(*) FROM outbox.subscription WHERE tenant = 'crowd';

\echo -- wait_delivered: what it refuses
SELECT pg_temp.refusal($$CALL outbox.wait_delivered('00000000-0000-7000-8000-000000000000', '1 s')$$);
\set VERBOSITY default
\set ON_ERROR_STOP off
BEGIN;
CALL outbox.wait_delivered('00000000-0000-7000-8000-000000000000', '1 s');
ROLLBACK;
CALL outbox.wait_delivered('00000000-0000-7000-8000-000000000000', '1 s');
CALL outbox.wait_delivered(NULL, '1 s');
CALL outbox.wait_delivered('00000000-0000-7000-8000-000000000000', NULL);
CALL outbox.wait_delivered('00000000-0000-7000-8000-000000000000', '-1 s');
DO $$ DECLARE d boolean; BEGIN CALL outbox.wait_delivered(outbox.enqueue('order.paid', '1'), '1 s', d); END $$;
\set ON_ERROR_STOP on

SELECT count(outbox.unsubscribe(name)) FROM outbox.subscription;
\echo -- nobody wants it: it is delivered to all who do
SELECT outbox.enqueue('order.paid', '1') AS id \gset
CALL outbox.wait_delivered(:'id', '0');
SELECT outbox.subscribe('paused');
SELECT outbox.enqueue('order.paid', '1') AS id \gset
CALL outbox.wait_delivered(:'id', '0');
CALL outbox.wait_delivered(:'id', '10 ms');
SELECT outbox.unsubscribe('paused');
