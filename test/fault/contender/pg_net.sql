-- The extension pg_net, called in the producer's transaction; it sends after the commit, once.
\ir destinations.sql
CREATE EXTENSION pg_net;
CREATE EXTENSION pgcrypto;

CREATE FUNCTION outbox.enqueue(type text, payload jsonb, key text = NULL, headers jsonb = NULL) RETURNS uuid LANGUAGE plpgsql AS $$
	DECLARE
		id uuid := gen_random_uuid();
		at text := extract(epoch FROM clock_timestamp())::bigint;
		signature text;
		d record;
	BEGIN
		FOR d IN SELECT * FROM outbox.destination WHERE $1 = ANY (types) LOOP
			signature := encode(public.hmac(convert_to(id || '.' || at || '.' || $2, 'UTF8'), decode(substr(d.secret, 7), 'base64'), 'sha256'), 'base64');
			PERFORM net.http_post(d.url, $2, headers => jsonb_build_object('content-type', 'application/json', 'webhook-id', id, 'webhook-timestamp', at, 'webhook-signature', 'v1,' || signature));
		END LOOP;
		RETURN id;
	END
$$;

CREATE FUNCTION outbox.enqueue_many(events jsonb) RETURNS uuid[] LANGUAGE sql AS $$
	SELECT array_agg(outbox.enqueue(value->>'type', value->'payload', value->>'key') ORDER BY n) FROM jsonb_array_elements(events) WITH ORDINALITY AS event(value, n)
$$;
