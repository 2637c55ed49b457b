-- The ring: rotation, sealing, and retirement only on proof.  No worker runs here; the cursors it would have written are written by hand, and old
-- events come as a restored dump would bring them.
\set ON_ERROR_STOP on
-- a database of its own: tick numbers begin at 1
SELECT current_database() AS home \gset
CREATE DATABASE outbox_ring TEMPLATE template0;
\c outbox_ring
SET client_min_messages = warning;
CREATE EXTENSION outbox;
\pset format unaligned
\pset null -

-- an old event, in a segment
CREATE FUNCTION pg_temp.restore(segment int, number int) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    id uuid := format('0160%s-0000-7000-8000-%s', to_char(number, 'FM0000'), to_char(segment, 'FM000000000000'));   -- 2017
BEGIN
    EXECUTE format('INSERT INTO outbox.event_%s (id, xid, epoch, created_at, type, payload) VALUES ($1, ''3'', outbox.epoch(), ''2018-01-01'', ''old.one'', ''1'')', segment) USING id;
    RETURN id;
END
$$;
-- a cursor; the head is subscription 0
CREATE FUNCTION pg_temp.place(subscription int, at_head boolean, base bigint, tick bigint, after uuid) RETURNS void LANGUAGE sql AS $$
    INSERT INTO outbox.cursor_0 (seq, epoch, subscription_id, at_head, base, tick, after, "offset", at)
    SELECT coalesce(max(c.seq), 0) + 1, outbox.epoch(), $1, $2, $3, $4, $5, 0, now() FROM outbox.cursor AS c
$$;
CREATE TEMP VIEW round AS SELECT action, segment, detail, CASE WHEN action IN ('kept', 'deleted') THEN count END AS count FROM outbox.maintain();

\echo -- nothing to do
SELECT * FROM round;
SELECT segment, is_current, sealed, seal_tick, first_id, last_id FROM outbox._segments() WHERE segment IN (0, 1, 15);

\echo -- a segment with an old event is left, and sealed
SELECT outbox.enqueue('new.one', '1') IS NOT NULL AS enqueued;
SELECT pg_temp.restore(0, 1);
SELECT * FROM round;
SELECT segment, is_current, sealed, seal_tick, first_id, last_id IS NOT NULL AS filled FROM outbox._segments() WHERE segment IN (0, 1, 2);
SELECT outbox.enqueue('new.two', '1') IS NOT NULL AS enqueued;
SELECT tableoid::regclass, type FROM outbox.event ORDER BY id;

\echo -- a log that was never read is not emptied
SELECT pg_temp.restore(7, 1);
SELECT * FROM round;

\echo -- without subscriptions, the time decides
SELECT pg_temp.place(0, true, 0, 0, NULL);
SELECT * FROM round;
SELECT count(*) FROM outbox.event_7;

\echo -- a subscription without a cursor holds everything
SELECT outbox.subscribe('slow', 'https://example.com/') IS NOT NULL AS made;
SELECT id AS slow FROM outbox.subscription \gset
SELECT pg_temp.place(0, true, 5, 5, NULL);
SELECT pg_temp.restore(7, 2) AS old \gset
SELECT * FROM round;

\echo -- so does one that has not come to the tick after sealing, nor to the end of the segment
SELECT pg_temp.place(:slow, false, 0, 1, '00000000-0000-7000-8000-000000000000');
SELECT * FROM round;

\echo -- one that has the newest event behind it does not
SELECT pg_temp.place(:slow, false, 0, 1, :'old');
SELECT * FROM round;

\echo -- nor one that is past the tick
SELECT pg_temp.restore(7, 3) IS NOT NULL AS restored;
SELECT pg_temp.place(:slow, false, 1, 1, NULL);
SELECT * FROM round;

\echo -- at the head, it is where the head is
SELECT pg_temp.restore(7, 4) IS NOT NULL AS restored;
SELECT pg_temp.place(:slow, true, NULL, NULL, NULL), pg_temp.place(0, true, 0, 0, NULL);
SELECT * FROM round;
SELECT pg_temp.place(0, true, 6, 6, NULL);
SELECT * FROM round;

\echo -- what a delivery points to is kept until the delivery goes
SELECT pg_temp.restore(8, 5) AS dead \gset
SELECT pg_temp.restore(8, 6) IS NOT NULL AS restored;
INSERT INTO outbox.delivery (subscription_id, event_id, status, attempts, ended_at) VALUES (:slow, :'dead', 'dead', 25, now());
SELECT * FROM round;
SELECT id = :'dead' AS the_dead_one FROM outbox.kept_event;
UPDATE outbox.delivery SET ended_at = now() - interval '31 days';
-- but a dead letter whose event is in the log does not go before it
SELECT id AS young FROM outbox.event WHERE type = 'new.one' \gset
INSERT INTO outbox.delivery (subscription_id, event_id, status, attempts, ended_at) VALUES (:slow, :'young', 'dead', 25, now() - interval '31 days');
SELECT * FROM round;
SELECT event_id = :'young' AS young FROM outbox.delivery;
DELETE FROM outbox.delivery;
SELECT indexdef FROM pg_indexes WHERE indexname = 'delivery_ended_at_idx';
INSERT INTO outbox.delivery (subscription_id, event_id, status, attempts) VALUES (-1, :'dead', 'retrying', 1);
SELECT * FROM round;

\echo -- expired attempts
INSERT INTO outbox.attempt_log_1 (event_id, at, subscription_id, duration, attempt, outcome) VALUES (:'dead', now() - interval '30 days', :slow, 1, 1, 0);
INSERT INTO outbox.attempt_log_2 (event_id, at, subscription_id, duration, attempt, outcome) VALUES (:'dead', now() - interval '30 days', :slow, 1, 1, 0), (:'dead', now(), :slow, 1, 1, 0);
INSERT INTO outbox.attempt_log_3 (event_id, at, subscription_id, duration, attempt, outcome) VALUES (:'dead', now() - interval '30 days', :slow, 1, 1, 0);
SELECT count(*) BETWEEN 1 AND 2 AS emptied FROM round WHERE action = 'emptied';
SELECT count(*) FROM outbox.attempt_log_2;

\echo -- the new events are where they were
SELECT type FROM outbox.event WHERE type LIKE 'new.%' ORDER BY id;

\echo -- where it cannot be trusted
\set ON_ERROR_STOP off
BEGIN;
SELECT * FROM round;
ROLLBACK;
SET default_transaction_isolation = 'repeatable read';
SELECT * FROM round;
RESET default_transaction_isolation;
SELECT outbox.enqueue('same.transaction', '1') IS NOT NULL AS enqueued, (SELECT count(*) FROM outbox.maintain());
\c :home
DROP DATABASE outbox_ring;
