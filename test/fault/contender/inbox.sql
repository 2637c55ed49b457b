-- A home-made inbox, for the receiver that has effects.
CREATE SCHEMA outbox;
CREATE TABLE outbox.inbox (consumer text, message_id text, accepted_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (consumer, message_id));
CREATE FUNCTION outbox.accept(consumer text, message_id text) RETURNS boolean LANGUAGE sql AS $$
	WITH new AS (INSERT INTO outbox.inbox VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true) SELECT EXISTS (SELECT FROM new)
$$;
