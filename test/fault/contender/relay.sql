-- A home-made outbox: a row per message and destination, written in the producer's transaction. relay.js sends them.
\ir destinations.sql
CREATE TABLE outbox.message (
	seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	id uuid NOT NULL,
	destination text NOT NULL,
	type text NOT NULL,
	key text,
	payload jsonb NOT NULL,
	headers jsonb,
	created_at timestamptz NOT NULL DEFAULT now(),
	attempts int NOT NULL DEFAULT 0,
	next_attempt_at timestamptz NOT NULL DEFAULT now(),
	sent_at timestamptz
);
CREATE INDEX ON outbox.message (seq) WHERE sent_at IS NULL;
CREATE INDEX ON outbox.message (sent_at) WHERE sent_at IS NOT NULL;

CREATE FUNCTION outbox.enqueue(type text, payload jsonb, key text = NULL, headers jsonb = NULL) RETURNS uuid LANGUAGE sql AS $$
	WITH new AS MATERIALIZED (SELECT gen_random_uuid() AS id),
		written AS (
			INSERT INTO outbox.message (id, destination, type, key, payload, headers)
			SELECT new.id, d.name, $1, $3, $2, $4 FROM new, outbox.destination d WHERE $1 = ANY (d.types))
	SELECT id FROM new
$$;

CREATE FUNCTION outbox.enqueue_many(events jsonb) RETURNS uuid[] LANGUAGE sql AS $$
	WITH new AS MATERIALIZED (SELECT gen_random_uuid() AS id, value, n FROM jsonb_array_elements(events) WITH ORDINALITY AS event(value, n)),
		written AS (
			INSERT INTO outbox.message (id, destination, type, key, payload)
			SELECT new.id, d.name, value->>'type', value->>'key', value->'payload' FROM new JOIN outbox.destination d ON value->>'type' = ANY (d.types) ORDER BY n)
	SELECT array_agg(id ORDER BY n) FROM new
$$;
