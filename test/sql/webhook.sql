-- verify_webhook(): what it takes for a signature, what it does not, and what is an error.
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

-- HMAC-SHA256 from sha256() alone: what is tested has nothing in common with it.
CREATE FUNCTION pg_temp.hmac(data bytea, key bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    inner_pad bytea := ''; outer_pad bytea := ''; byte integer;
BEGIN
    IF octet_length(key) > 64 THEN key := sha256(key); END IF;
    FOR i IN 0 .. 63 LOOP
        byte := CASE WHEN i < octet_length(key) THEN get_byte(key, i) ELSE 0 END;
        inner_pad := inner_pad || set_byte('\x00', 0, byte # 54);
        outer_pad := outer_pad || set_byte('\x00', 0, byte # 92);
    END LOOP;
    RETURN sha256(outer_pad || sha256(inner_pad || data));
END
$$;
CREATE FUNCTION pg_temp.signature(id text, at text, body bytea, key bytea) RETURNS text LANGUAGE sql AS
$$ SELECT 'v1,' || encode(pg_temp.hmac(convert_to(id || '.' || at || '.', 'UTF8') || body, key), 'base64') $$;

\echo -- the vector that the libraries of Standard Webhooks share
\set secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
SELECT decode(substr(:'secret', 7), 'base64') AS key \gset
\set body '{"test": 2432232314}'
SELECT pg_temp.signature('msg_p5jXN8AQM9LWM0D4loKWxJek', '1614265330', :'body', :'key'::bytea) = 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=' AS the_reference_is_right;
-- it is of 2021, and no tolerance goes that far; the others are of now
SELECT outbox.verify_webhook(jsonb_build_object('webhook-id', 'msg_p5jXN8AQM9LWM0D4loKWxJek', 'webhook-timestamp', '1614265330', 'webhook-signature', 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='), :'body', :'secret', '1 day');

-- A request of so many seconds ago, signed with the key; what is given replaces headers.
CREATE FUNCTION pg_temp.request(ago integer DEFAULT 0, replaced jsonb DEFAULT '{}', body bytea DEFAULT '{"test": 2432232314}', key bytea DEFAULT decode('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64')) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('webhook-id', 'msg_1', 'webhook-timestamp', at, 'webhook-signature', pg_temp.signature('msg_1', at, body, key), 'content-type', 'application/json') || replaced
      FROM (SELECT (floor(extract(epoch FROM clock_timestamp())) - ago)::bigint::text AS at) AS t
$$;
CREATE FUNCTION pg_temp.renamed(request jsonb, old text, new text) RETURNS jsonb LANGUAGE sql AS $$ SELECT request - old || jsonb_build_object(new, request -> old) $$;
CREATE FUNCTION pg_temp.with_signature(request jsonb, signature text) RETURNS jsonb LANGUAGE sql AS $$ SELECT request || jsonb_build_object('webhook-signature', replace(signature, '*', request ->> 'webhook-signature')) $$;
CREATE FUNCTION pg_temp.verify(request jsonb, body bytea DEFAULT '{"test": 2432232314}', secret text DEFAULT 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', tolerance interval DEFAULT '5 min') RETURNS boolean
LANGUAGE sql AS $$ SELECT outbox.verify_webhook(request, body, secret, tolerance) $$;

\echo -- right
SELECT pg_temp.verify(pg_temp.request());
SELECT pg_temp.verify(pg_temp.renamed(pg_temp.renamed(pg_temp.renamed(pg_temp.request(), 'webhook-id', 'Webhook-Id'), 'webhook-timestamp', 'WEBHOOK-TIMESTAMP'), 'webhook-signature', 'Webhook-Signature')) AS any_case;
SELECT pg_temp.verify(pg_temp.request(), secret => 'MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw') AS without_prefix;
SELECT bool_and(pg_temp.verify(pg_temp.request(key => k), secret => s)) AS any_padding
  FROM (SELECT k, s FROM unnest(ARRAY['\x000102030405060708090a0b0c0d0e0f101112131415161718'::bytea, '\x000102030405060708090a0b0c0d0e0f10111213141516171819']) AS k,
               LATERAL unnest(ARRAY['whsec_' || encode(k, 'base64'), rtrim(encode(k, 'base64'), '=')]) AS s) AS c;
SELECT pg_temp.verify(pg_temp.request(key => convert_to(repeat('k', 100), 'UTF8')), secret => 'whsec_' || translate(encode(convert_to(repeat('k', 100), 'UTF8'), 'base64'), E'\n', '')) AS long_key;
SELECT s, pg_temp.verify(pg_temp.with_signature(pg_temp.request(), s)) AS several FROM unnest(ARRAY['v2,abcdef *', '* v1a,hnO3f9T8', 'v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= *', 'v1, v1 , *  x', '  *']) AS s;
SELECT pg_temp.verify(jsonb_set(pg_temp.request(), '{webhook-signature}', jsonb_build_array('v1,x', pg_temp.request() -> 'webhook-signature'))) AS list;
SELECT pg_temp.verify(pg_temp.request(body => b), body => b) AS any_body FROM unnest(ARRAY['\x'::bytea, '\x00ff00', convert_to(repeat('body', 100000), 'UTF8')]) AS b;
SELECT pg_temp.verify(pg_temp.request(ago)) AS within, ago FROM unnest(ARRAY[0, 295, -295]) AS ago;
SELECT pg_temp.verify(pg_temp.request(86390), tolerance => '1 day') AS wide;

\echo -- wrong
SELECT pg_temp.verify(pg_temp.request(ago)) AS within, ago FROM unnest(ARRAY[301, -305, 86400]) AS ago;
SELECT pg_temp.verify(pg_temp.request(2), tolerance => '1 s') AS narrow;
SELECT pg_temp.verify(pg_temp.request(), body => '{"test": 2432232315}') AS other_body, pg_temp.verify(pg_temp.request(), secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx') AS other_secret,
       pg_temp.verify(pg_temp.request(replaced => '{"webhook-id": "msg_2"}')) AS other_id;
SELECT missing, pg_temp.verify(pg_temp.request() - missing) FROM unnest(ARRAY['webhook-id', 'webhook-timestamp', 'webhook-signature']) AS missing;
SELECT name, value, pg_temp.verify(pg_temp.request(replaced => jsonb_build_object(name, value)))
  FROM unnest(ARRAY['webhook-id', 'webhook-timestamp', 'webhook-signature']) AS name, unnest(ARRAY['""', '[]', '{}', 'null', '17', 'true', '["a", "b"]', '[["a"]]', '"hello"']::jsonb[]) AS value;
SELECT form, pg_temp.verify(pg_temp.request(replaced => jsonb_build_object('webhook-timestamp', at, 'webhook-signature', pg_temp.signature('msg_1', at, '{"test": 2432232314}', decode('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64')))))
  FROM unnest(ARRAY['%s', '+%s', ' %s', '%s.0', '%se0', '-%s', '%s ', '0x%s', '99999999999999999999%s']) AS form, LATERAL (SELECT replace(form, '%s', floor(extract(epoch FROM clock_timestamp()))::bigint::text) AS at) AS t;
SELECT s, pg_temp.verify(pg_temp.with_signature(pg_temp.request(), s)) FROM unnest(ARRAY['', ' ', 'v1', 'v1,', 'v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=', '*x', 'x*', 'v2*', 'V*', E'*\t']) AS s;
SELECT pg_temp.verify(pg_temp.with_signature(pg_temp.request(), rtrim(pg_temp.request() ->> 'webhook-signature', '='))) AS without_padding;
SELECT pg_temp.verify(pg_temp.with_signature(pg_temp.request(), substr(pg_temp.request() ->> 'webhook-signature', 4))) AS without_version;
SELECT pg_temp.verify(pg_temp.request() || jsonb_build_object('Webhook-Id', 'msg_1')) AS twice;
SELECT pg_temp.verify('{}') AS empty;

\echo -- errors
SELECT command, pg_temp.refusal('SELECT outbox.verify_webhook' || command) FROM unnest(ARRAY[
    '(NULL, ''x'', ''whsec_AAAA'')', '(''{}'', NULL, ''whsec_AAAA'')', '(''{}'', ''x'', NULL)', '(''{}'', ''x'', ''whsec_AAAA'', NULL)',
    '(''[]'', ''x'', ''whsec_AAAA'')', '(''"x"'', ''x'', ''whsec_AAAA'')', '(''null'', ''x'', ''whsec_AAAA'')',
    '(''{}'', ''x'', '''')', '(''{}'', ''x'', ''whsec_'')', '(''{}'', ''x'', ''whsec_===='')', '(''{}'', ''x'', ''whsec_A'')', '(''{}'', ''x'', ''whsec_AAAAA'')', '(''{}'', ''x'', ''whsec_AA*A'')',
    '(''{}'', ''x'', ''whsec_AA AA'')', '(''{}'', ''x'', ''whsec_AA=A'')', '(''{}'', ''x'', ''whsk_AAAA'')', '(''{}'', ''x'', ''AAAé'')',
    '(''{}'', ''x'', ''whsec_AAAA'', ''-1 s'')', '(''{}'', ''x'', ''whsec_AAAA'', ''1 day 1 s'')', '(''{}'', ''x'', ''whsec_AAAA'', ''1 month -29 days'')', '(''{}'', ''x'', ''whsec_AAAA'', ''2000000000 days'')']) AS command;
\echo -- also in read-only transactions
BEGIN READ ONLY;
SELECT pg_temp.verify(pg_temp.request());
COMMIT;
