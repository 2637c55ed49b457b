-- Subscriptions: what subscribe() and its siblings accept, store and refuse.  Nothing is delivered here: this database is not armed.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;

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

\echo -- the secret is shown once, and is 32 random bytes
SELECT outbox.subscribe('plain', 'https://example.com/hook') ~ '^whsec_[A-Za-z0-9+/]{43}=$';
SELECT count(DISTINCT outbox._new_secret()), min(octet_length(outbox._new_secret())) FROM generate_series(1, 100);
SELECT outbox.subscribe('own-secret', 'https://example.com/hook', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');
SELECT encode(k.secret, 'base64') FROM outbox.secret k JOIN outbox.subscription s ON s.id = k.subscription_id WHERE s.name = 'own-secret';

\echo -- the defaults
\pset format aligned
\x on
SELECT kind, url, tenant, types, ordering, on_dead, network, ports, max_in_flight, timeout, connect_timeout, retry_base, retry_factor, retry_max, retry_jitter, max_attempts,
       give_up_after, fatal_statuses, max_blocked, response_kept, filter, format, batch_size, batch_bytes, batch_linger, rate_limit, breaker_threshold, breaker_probe, breaker_max,
       disable_after, ca, state, reason, labels, description, start_epoch = outbox.epoch() AS our_epoch,
       start_snapshot IS NOT NULL AS from_now, start_next IS NOT NULL AS next, start_clock IS NOT NULL AS clock, start_after
  FROM outbox.subscription WHERE name = 'plain';

\echo -- every option
SELECT outbox.subscribe('full', 'https://hooks.example.com:8443/path?query=1', types => '{order.*,invoice.**}', tenant => 'acme', ordering => 'none', on_dead => 'block',
    starting => '2026-01-02 03:04:05.678+00', max_in_flight => 3, timeout => '1 min', connect_timeout => '10 s', retry_base => '1 day', retry_factor => 1.5, retry_max => '2 days', retry_jitter => 0,
    max_attempts => 7, give_up_after => '7 days', fatal_statuses => '{400,422}', max_blocked => 20, response_kept => 0, network => 'private', ports => '{8443}',
    format => 'batch', batch_size => 10, batch_bytes => 2048, batch_linger => '1 s', rate_limit => 0.1, breaker_threshold => 0, breaker_probe => '1 h', disable_after => '0',
    ca => E'-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----',
    labels => '{"team": "billing"}', description => 'invoices', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw') IS NOT NULL AS made;
SELECT kind, url, tenant, types, ordering, on_dead, network, ports, max_in_flight, timeout, connect_timeout, retry_base, retry_factor, retry_max, retry_jitter, max_attempts,
       give_up_after, fatal_statuses, max_blocked, response_kept, format, batch_size, batch_bytes, batch_linger, rate_limit, breaker_threshold, breaker_probe, breaker_max,
       disable_after, ca, labels, description, start_snapshot, outbox._event_time(start_after) = '2026-01-02 03:04:05.678+00' AS starts_then
  FROM outbox.subscription WHERE name = 'full';
\x off
\pset format unaligned

\echo -- earliest excludes nothing; a time is the lowest id of its instant
SELECT outbox.subscribe('early', 'https://example.com/hook', starting => 'earliest') IS NOT NULL;
SELECT start_snapshot IS NULL, start_after IS NULL FROM outbox.subscription WHERE name = 'early';
SELECT outbox._lowest_id(outbox._clock_at('1970-01-01 00:00:00+00')), outbox._lowest_id(outbox._clock_at('2026-01-01 00:00:00.1235+00'));

\echo -- names are unique
SELECT pg_temp.refusal($$SELECT outbox.subscribe('plain', 'https://example.com/hook')$$);
SELECT outbox.subscribe('plain', 'https://elsewhere.example.com/', if_not_exists => true) IS NULL;
SELECT url FROM outbox.subscription WHERE name = 'plain';

\echo -- names
SELECT pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L)', name, 'https://example.com/'))
  FROM unnest(ARRAY[NULL, '', 'with space', 'ümlaut', 'slash/', repeat('x', 129), E'line\n']) AS name;
SELECT pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L)', name, 'https://example.com/')) FROM unnest(ARRAY['Az0_.:-', repeat('x', 128)]) AS name;

\echo -- URLs
SELECT pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L)', 'x', url))
  FROM unnest(ARRAY[NULL, '', 'example.com', 'ftp://example.com/', 'https:/example.com', 'https://', 'https:///path', 'https://user@example.com/', 'https://user:secret@example.com/',
                    'https://example.com/#fragment', 'https://example.com/a b', E'https://example.com/\r\nHost: evil', 'https://exämple.com/', 'https://example.com\@evil.com/',
                    'https://example.com:/', 'https://example.com:0/', 'https://example.com:65536/', 'https://example.com:443x/', 'https://-example.com/', 'https://[::1', 'https://exa mple.com',
                    'https://example.com/' || repeat('x', 2048), 'http://example.com/', 'https://example.com:8443/', 'https://example.com/"quote"']) AS url;
SELECT url, pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L)', 'url-' || n, url))
  FROM unnest(ARRAY['https://example.com', 'HTTPS://Example.COM/', 'https://example.com?q', 'https://example.com:443/', 'https://[2001:db8::1]/', 'https://192.0.2.1/', 'https://localhost/',
                    'https://my_service/%20', 'https://example.com./', 'https://example.com/@user']) WITH ORDINALITY AS u (url, n);
SELECT pg_temp.refusal($$SELECT outbox.subscribe('inside', 'http://localhost:8080/', network => 'private')$$);

\echo -- options
SELECT left(option, 60), pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L, %s)', 'x', 'https://example.com/', option))
  FROM unnest(ARRAY['ordering => ''fifo''', 'on_dead => ''stop''', 'network => ''any''', 'starting => ''soon''', 'starting => ''infinity''', 'starting => ''1969-12-31 00:00+00''',
                    'max_in_flight => 0', 'max_in_flight => 1001', 'timeout => ''0''', 'timeout => ''11 min''', 'connect_timeout => ''16 s''', 'timeout => ''1 s'', connect_timeout => ''2 s''',
                    'retry_base => ''0''', 'retry_base => ''-1 s''', 'retry_base => ''5 h'', retry_max => ''4 h''', 'retry_max => ''31 days''', 'retry_factor => 0.5', 'retry_factor => ''NaN''',
                    'retry_jitter => 1.5', 'retry_jitter => -0.1', 'max_attempts => 0', 'max_attempts => 1001', 'give_up_after => ''1 s''', 'give_up_after => ''-1 s''', 'give_up_after => ''2 years''', 'give_up_after => ''15 days''',
                    'fatal_statuses => ''{200}''', 'fatal_statuses => ''{429}''', 'fatal_statuses => ''{410}''', 'fatal_statuses => ''{NULL}''', 'fatal_statuses => ''{{400},{401}}''',
                    'max_blocked => 0', 'response_kept => 65537', 'format => ''xml''', 'batch_size => 0', 'batch_size => 10001', 'batch_bytes => 1023', 'batch_bytes => 16777217',
                    'batch_linger => ''11 s''', 'rate_limit => 0', 'rate_limit => ''NaN''', 'rate_limit => 1000001', 'breaker_threshold => -1', 'breaker_probe => ''0''', 'breaker_probe => ''1 h'', breaker_max => ''1 min''',
                    'breaker_max => ''31 days''', 'disable_after => ''1 ms''', 'disable_after => ''-1 s''', 'ca => ''x''', format('ca => %L', repeat('-----BEGIN CERTIFICATE-----', 2500)), 'ports => ''{}''', 'ports => ''{0}''', 'ports => ''{443,NULL}''', 'ports => ''{80}''',
                    'tenant => ''''', format('tenant => %L', repeat('x', 129)), 'labels => ''[]''', format('labels => %L', json_build_object('x', repeat('x', 8192))), 'secret => ''secret''',
                    'secret => ''whsec_AAAA''', 'secret => ''whsec_!!!!''', 'secret => ''whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS''', format('description => %L', repeat('x', 8193))]) AS option;
SELECT option, left(pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L, %s)', 'x', 'https://example.com/', option)), 5)
  FROM unnest(ARRAY['types => ''{}''', 'types => ''{NULL}''', 'types => ''{order..paid}''', 'types => ''{{a},{b}}''', 'types => ''{""}''']) AS option;
SELECT left(option, 60), pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L, %s)', 'option-' || n, 'https://example.com/', option))
  FROM unnest(ARRAY['timeout => ''1 s''', 'retry_base => ''6 h''', 'give_up_after => ''0''', 'fatal_statuses => ''{300,400,501}''', 'starting => ''yesterday''', 'starting => ''now''',
                    'types => NULL', 'secret => ''whsec_' || translate(encode(decode(repeat('00', 64), 'hex'), 'base64'), E'\n', '') || ''''
                   ]) WITH ORDINALITY AS o (option, n);

\echo -- changes: only what is given; reset; the whole is checked again
SELECT outbox.alter_subscription('plain', timeout => '20 s', description => 'changed');
SELECT url, types, timeout, connect_timeout, description FROM outbox.subscription WHERE name = 'plain';
SELECT count(*) FROM outbox.subscription_match;
SELECT outbox.alter_subscription('full', reset => '{timeout,connect_timeout,retry_base,retry_max,network,labels,description,rate_limit,ca,format}', max_in_flight => 4);
SELECT rate_limit, ca, format, batch_size, timeout, connect_timeout, retry_base, retry_max, network, labels, description, max_in_flight FROM outbox.subscription WHERE name = 'full';
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription('full', reset => '{ports}')$$);
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription('full', reset => '{url}')$$);
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription('full', reset => '{NULL}')$$);
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription('full', connect_timeout => '20 s')$$);
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription('nobody', timeout => '20 s')$$);
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription(NULL)$$);


\echo -- what is given must go with what is there
SELECT change, pg_temp.refusal(format('SELECT outbox.alter_subscription(%L, %s)', name, change))
  FROM (VALUES ('plain', 'timeout => ''4 s'''), ('plain', 'breaker_probe => ''20 min'''), ('plain', 'retry_base => ''5 h'''), ('plain', 'retry_max => ''1 s'''), ('plain', 'give_up_after => ''15 days'''),
               ('plain', 'url => ''http://example.com/'''), ('plain', 'ports => ''{8443}'''), ('plain', 'headers => ''{"host": "example.com"}'''), ('inside', 'network => ''public'''),
               ('inside', 'reset => ''{network}''')) AS v (name, change);

\echo -- a pull subscription has no option that concerns requests
SELECT outbox.subscribe('pulled') IS NULL;
SELECT pg_temp.refusal(format('SELECT outbox.subscribe(%L, %s)', 'pulled too', option)), pg_temp.refusal(format('SELECT outbox.alter_subscription(%L, %s)', 'pulled', option)) LIKE '22023 | % | %' AS altered
  FROM unnest(ARRAY['network => ''private''', 'ports => ''{443}''', 'ca => ''x''', 'headers => ''{}''', 'timeout => ''1 s''', 'connect_timeout => ''1 s''', 'response_kept => 0', 'fatal_statuses => ''{400}''',
                    'max_in_flight => 1', 'rate_limit => 1', 'format => ''batch''', 'batch_size => 1', 'batch_bytes => 1024', 'batch_linger => ''0''', 'breaker_threshold => 0', 'breaker_probe => ''1 s''',
                    'breaker_max => ''1 h''', 'disable_after => ''0''']) AS option;
SELECT pg_temp.refusal($$SELECT outbox.subscribe('pulled too', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')$$);
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription('pulled', url => 'https://example.com/')$$);
SELECT pg_temp.refusal($$SELECT outbox.alter_subscription('pulled', retry_base => '1 s', max_attempts => 3, give_up_after => '1 h', on_dead => 'block', ordering => 'none', labels => '{}')$$);

\echo -- changed types or tenant: the old rules are kept for what has been committed
SELECT outbox.alter_subscription('full', types => '{order.*,invoice.**}', tenant => 'acme');
SELECT count(*) FROM outbox.subscription_match;
SELECT outbox.alter_subscription('full', types => '{payment.**}');
SELECT outbox.alter_subscription('full', reset => '{tenant}');
SELECT m.version, m.types, m.tenant, m.epoch = outbox.epoch() FROM outbox.subscription_match m JOIN outbox.subscription s ON s.id = m.subscription_id WHERE s.name = 'full' ORDER BY m.version;
SELECT types, tenant FROM outbox.subscription WHERE name = 'full';

\echo -- pause, resume
SELECT outbox.pause('plain', 'maintenance');
SELECT state, reason FROM outbox.subscription WHERE name = 'plain';
SELECT outbox.resume('plain');
SELECT state, reason FROM outbox.subscription WHERE name = 'plain';
UPDATE outbox.subscription SET state = 'disabled', reason = 'gone' WHERE name = 'plain';
SELECT outbox.resume('plain');
SELECT state, reason FROM outbox.subscription WHERE name = 'plain';
SELECT pg_temp.refusal($$SELECT outbox.pause('nobody')$$);
SELECT pg_temp.refusal($$SELECT outbox.resume('nobody')$$);
SELECT pg_temp.refusal($$SELECT outbox.ping('nobody')$$);

\echo -- unsubscribe removes all of it, and is recorded
INSERT INTO outbox.delivery (subscription_id, event_id, status, attempts)
SELECT s.id, ('00000000-0000-7000-8000-00000000000' || n)::uuid, status, 1
  FROM outbox.subscription s, unnest(ARRAY['dead', 'retrying', 'discarded']) WITH ORDINALITY AS d (status, n) WHERE s.name = 'full';
SELECT id AS full_id FROM outbox.subscription WHERE name = 'full' \gset
SELECT outbox.unsubscribe('full'), outbox.unsubscribe('full');
SELECT role = current_user, action, subscription, selector, count FROM outbox.operation WHERE action = 'unsubscribe' ORDER BY id DESC LIMIT 1;
SELECT (SELECT count(*) FROM outbox.secret WHERE subscription_id = :full_id), (SELECT count(*) FROM outbox.subscription_match WHERE subscription_id = :full_id),
       (SELECT count(*) FROM outbox.delivery WHERE subscription_id = :full_id);

\echo -- an aborted subscription leaves nothing
BEGIN;
SELECT outbox.subscribe('aborted', 'https://example.com/hook') IS NOT NULL;
ROLLBACK;
SELECT count(*) FROM outbox.subscription WHERE name = 'aborted';

SELECT count(outbox.unsubscribe(name)) > 0 FROM outbox.subscription;
