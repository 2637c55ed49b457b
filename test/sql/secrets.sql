-- Signing secrets and static headers: what is accepted, stored and shown.  Nothing is delivered here, and there is no key file: what is stored is plain.
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
    RETURN regexp_replace(concat_ws(' | ', state, message, NULLIF(detail, ''), NULLIF(hint, '')), 'until [^;]+;', 'until then;');
END
$$;
-- the signing secrets of a subscription, newest first: is it this one, and for how many hours does it go on
CREATE FUNCTION pg_temp.signing(name text) RETURNS TABLE (secret text, hours integer) LANGUAGE sql AS $$
    SELECT outbox._secret_text(k.secret), round(extract(epoch FROM k.expires_at - now()) / 3600)
      FROM outbox.secret k JOIN outbox.subscription s ON s.id = k.subscription_id WHERE s.name = $1 AND k.kind = 'signing' ORDER BY k.id DESC
$$;
\pset format unaligned
\pset tuples_only on
\set one whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
\set two whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
\set three whsec_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB
\set four whsec_CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC

SELECT outbox.subscribe('rotated', 'https://example.com/hook', secret => :'one') = :'one';

\echo -- rotation: the new one is shown once, and the old one goes on for a day
SELECT outbox.rotate_secret('rotated', secret => :'two') = :'two';
SELECT * FROM pg_temp.signing('rotated');
\echo -- a shorter overlap shortens, a longer one does not lengthen
SELECT outbox.rotate_secret('rotated', '48 h', :'three') = :'three';
SELECT * FROM pg_temp.signing('rotated');
SELECT outbox.rotate_secret('rotated', overlap => '2 h', secret => :'four') = :'four';
SELECT * FROM pg_temp.signing('rotated');
\echo -- four sign at a time
SELECT pg_temp.refusal($$SELECT outbox.rotate_secret('rotated')$$);
SELECT count(*) FROM pg_temp.signing('rotated');
\echo -- what has expired does not count, and maintenance removes it
UPDATE outbox.secret SET expires_at = now() - interval '1 s' WHERE subscription_id = (SELECT id FROM outbox.subscription WHERE name = 'rotated') AND expires_at IS NOT NULL;
SELECT action, count, detail FROM outbox.maintain() WHERE detail LIKE '%secret%';
SELECT count(*) FROM pg_temp.signing('rotated');
\echo -- no overlap: the others stop at once
SELECT outbox.rotate_secret('rotated') ~ '^whsec_[A-Za-z0-9+/]{43}=$', count(*) FROM pg_temp.signing('rotated');
SELECT outbox.rotate_secret('rotated', overlap => '0') AS generated \gset
SELECT secret = :'generated', hours FROM pg_temp.signing('rotated');
\echo -- NULLs stand for the defaults
SELECT outbox.rotate_secret('rotated', NULL, NULL) ~ '^whsec_[A-Za-z0-9+/]{43}=$';
SELECT hours FROM pg_temp.signing('rotated');

\echo -- refusals
SELECT pg_temp.refusal(command) FROM unnest(ARRAY[
    'SELECT outbox.rotate_secret(NULL)', 'SELECT outbox.rotate_secret(''nobody'')', 'SELECT outbox.rotate_secret(''rotated'', ''-1 s'')', 'SELECT outbox.rotate_secret(''rotated'', ''31 days'')',
    'SELECT outbox.rotate_secret(''rotated'', secret => ''hunter2'')', 'SELECT outbox.rotate_secret(''rotated'', secret => ''whsec_AAAA'')']) AS command;
SELECT count(*) FROM pg_temp.signing('rotated');

\echo -- recorded, without the secret
SELECT role = current_user, action, selector, count FROM outbox.operation WHERE subscription = 'rotated' ORDER BY id;

\echo -- views show the last four characters, and the names of headers
SELECT outbox.rotate_secret('rotated', overlap => '0', secret => :'one') = :'one';
SELECT secret_hint, header_names FROM outbox.subscription_status WHERE name = 'rotated';
SELECT outbox.alter_subscription('rotated', headers => '{"Authorization": "Bearer token-9", "x-shop": "7 %"}');
SELECT secret_hint, header_names FROM outbox.subscription_status WHERE name = 'rotated';
SELECT convert_from(secret, 'UTF8'), hint, key_id, expires_at FROM outbox.secret WHERE kind = 'headers';
\echo -- given anew they are replaced, all of them
SELECT outbox.alter_subscription('rotated', headers => '{"x-other": ""}');
SELECT header_names FROM outbox.subscription_status WHERE name = 'rotated';
SELECT outbox.alter_subscription('rotated', timeout => '7 s');
SELECT header_names FROM outbox.subscription_status WHERE name = 'rotated';
SELECT outbox.alter_subscription('rotated', reset => '{headers,timeout}');
SELECT header_names IS NULL, (SELECT timeout FROM outbox.subscription WHERE name = 'rotated') FROM outbox.subscription_status WHERE name = 'rotated';
SELECT outbox.subscribe('tokens', 'https://example.com/hook', headers => '{"Authorization": "Bearer Gr\u00fc\u00dfe"}') IS NOT NULL;
SELECT header_names, (SELECT convert_from(secret, 'UTF8') FROM outbox.secret WHERE kind = 'headers') FROM outbox.subscription_status WHERE name = 'tokens';
SELECT outbox.alter_subscription('tokens', headers => '{}');
SELECT header_names IS NULL FROM outbox.subscription_status WHERE name = 'tokens';

\echo -- headers that cannot be
SELECT pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L, headers => %L)', 'x', 'https://example.com/', headers)) FROM unnest(ARRAY[
    'null', '[]', '"x"', '{"": "hunter2"}', '{"a b": "hunter2"}', '{"a:": "hunter2"}', '{"Host": "hunter2"}', '{"Content-Type": "hunter2"}', '{"webhook-signature": "hunter2"}', '{"ce-id": "hunter2"}',
    '{"Proxy-Authorization": "hunter2"}', '{"X-A": "1", "x-a": "hunter2"}', '{"x": 7}', '{"x": null}', '{"x": ["hunter2"]}', '{"x": {"y": "hunter2"}}', '{"x": " hunter2"}', '{"x": "hunter2\r\nHost: evil"}',
    '{"x": "hunter2\u0001"}', json_build_object('x', repeat('x', 8193))::text, json_build_object('x', repeat('x', 8000), 'y', repeat('x', 200))::text,
    (SELECT json_object_agg('x' || i, 'y') FROM generate_series(1, 33) AS i)::text]) AS headers;
SELECT pg_temp.refusal(format('SELECT outbox.subscribe(%L, %L, headers => %L)', 'x' || length(headers), 'https://example.com/', headers)) FROM unnest(ARRAY[
    json_build_object('x', repeat('x', 8188))::text, (SELECT json_object_agg('x' || i, 'y') FROM generate_series(1, 32) AS i)::text]) AS headers;

\echo -- gone with the subscription
SELECT outbox.unsubscribe(name) FROM outbox.subscription WHERE name IN ('rotated', 'tokens') OR name LIKE 'x%';
SELECT count(*) FROM outbox.secret AS k WHERE NOT EXISTS (SELECT FROM outbox.subscription AS s WHERE s.id = k.subscription_id);

\echo -- the key file: only superusers see where it is; a path must be absolute
SELECT outbox._key_problem() IS NULL;
CREATE ROLE regress_outbox_curious;
SET ROLE regress_outbox_curious;
SELECT left(pg_temp.refusal('SHOW outbox.secret_key_file'), 5);
SELECT pg_temp.refusal('SET outbox.secret_key_file = ''/tmp/x''');
RESET ROLE;
SELECT pg_temp.refusal('SET outbox.secret_key_file = ''/tmp/x''');
\set ON_ERROR_STOP off
ALTER SYSTEM SET outbox.secret_key_file = 'outbox.key';
\set ON_ERROR_STOP on
DROP ROLE regress_outbox_curious;
