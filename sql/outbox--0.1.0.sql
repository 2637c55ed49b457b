/* outbox--0.1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION outbox" to load this file. \quit

-- Nothing in here trusts the search path: every name is qualified, and the path itself is the safest one.
SET LOCAL search_path = pg_catalog, pg_temp;

-- ===== identity ==========================================================================================================

-- The epoch: the random identity of this installation in this database. A constant in a function made here, so that a restored dump (which
-- runs this script again) gets a new one, while a TEMPLATE clone and pg_upgrade keep it.
DO $make_epoch$
BEGIN
    EXECUTE pg_catalog.format(
        'CREATE FUNCTION outbox.epoch() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS %L',
        pg_catalog.format('SELECT %s::pg_catalog.int8',
            (('x' || pg_catalog.substr(pg_catalog.replace(pg_catalog.gen_random_uuid()::pg_catalog.text, '-', ''), 1, 8)
                  || pg_catalog.substr(pg_catalog.replace(pg_catalog.gen_random_uuid()::pg_catalog.text, '-', ''), 1, 8))::pg_catalog.bit(64)::pg_catalog.int8
             & 9223372036854775807)));
END
$make_epoch$;
COMMENT ON FUNCTION outbox.epoch() IS 'The random identity of this installation of outbox in this database';

-- ===== the event log =====================================================================================================

-- One row per event, insert-only. The rows live in a fixed ring of segments (children), written by outbox.enqueue() only.
CREATE TABLE outbox.event (
    id           uuid        NOT NULL,   -- version 7, strictly increasing within the database
    xid          xid8        NOT NULL,   -- top-level transaction that enqueued it
    epoch        bigint      NOT NULL,   -- installation that enqueued it
    created_at   timestamptz NOT NULL,
    type         text        NOT NULL,
    key          text,                   -- ordering key
    tenant       text,
    payload      jsonb,                  -- either this …
    body         bytea,                  -- … or this, with its content_type
    content_type text,
    headers      jsonb,                  -- object of strings
    traceparent  text                    -- W3C trace context of the producer
) USING heap WITH (autovacuum_enabled = off, vacuum_truncate = off);

DO $make_segments$
BEGIN
    FOR segment IN 0 .. 15 LOOP   -- OUTBOX_SEGMENTS in bell.h
        EXECUTE pg_catalog.format('CREATE TABLE outbox.event_%s (PRIMARY KEY (id)) INHERITS (outbox.event) USING heap WITH (autovacuum_enabled = off, vacuum_truncate = off)', segment);
        EXECUTE pg_catalog.format('CREATE INDEX event_%s_xid_id_idx ON outbox.event_%s (xid, id)', segment, segment);
        PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('outbox.event_%s', segment)::pg_catalog.regclass, '');
    END LOOP;
END
$make_segments$;

-- Events that a delivery still points to after their segment was emptied. No tick reads it, and it is no child of event.
CREATE TABLE outbox.kept_event (LIKE outbox.event, PRIMARY KEY (id));
SELECT pg_catalog.pg_extension_config_dump('outbox.kept_event', '');

-- ===== subscriptions =====================================================================================================

CREATE TABLE outbox.subscription (
    id               integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name             text        NOT NULL UNIQUE,
    kind             text        NOT NULL CHECK (kind IN ('push', 'pull')),
    url              text,                     -- push only; a secret: views show scheme and host
    tenant           text,                     -- NULL: events of every tenant
    types            text[]      NOT NULL,
    ordering         text        NOT NULL CHECK (ordering IN ('key', 'none')),
    on_dead          text        NOT NULL CHECK (on_dead IN ('skip', 'block')),
    network          text        NOT NULL CHECK (network IN ('public', 'private')),
    ports            integer[]   NOT NULL,
    max_in_flight    integer     NOT NULL,
    timeout          interval    NOT NULL,
    connect_timeout  interval    NOT NULL,
    retry_base       interval    NOT NULL,
    retry_factor     float8      NOT NULL,
    retry_max        interval    NOT NULL,
    retry_jitter     float8      NOT NULL,
    max_attempts     integer     NOT NULL,
    give_up_after    interval    NOT NULL,
    fatal_statuses   integer[]   NOT NULL,
    max_blocked      integer     NOT NULL,
    response_kept    integer     NOT NULL,     -- bytes
    state            text        NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled')),
    reason           text,                     -- of the state
    state_since      timestamptz NOT NULL DEFAULT pg_catalog.now(),
    labels           jsonb,
    description      text,
    created_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    -- where it starts: what this snapshot saw is not for it (NULL: nothing is excluded), nor is what is older than start_after
    start_epoch      bigint      NOT NULL,
    start_snapshot   pg_snapshot,
    start_next       xid8,
    start_clock      bigint,
    start_after      uuid
);
SELECT pg_catalog.pg_extension_config_dump('outbox.subscription', '');

-- Earlier matching rules of a subscription: they apply to what `until` saw (alter_subscription's snapshot).
CREATE TABLE outbox.subscription_match (
    subscription_id  integer     NOT NULL,
    version          integer     NOT NULL,     -- ascending: older first
    types            text[]      NOT NULL,
    tenant           text,
    epoch            bigint      NOT NULL,
    until_snapshot   pg_snapshot NOT NULL,
    until_next       xid8        NOT NULL,
    until_clock      bigint      NOT NULL,
    PRIMARY KEY (subscription_id, version)
);
SELECT pg_catalog.pg_extension_config_dump('outbox.subscription_match', '');

-- Signing secrets, the newest first in use; an older one signs too until it expires.
CREATE TABLE outbox.secret (
    id               integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id  integer     NOT NULL,
    secret           bytea       NOT NULL,     -- the key bytes behind whsec_
    created_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    expires_at       timestamptz               -- NULL: the current one
);
SELECT pg_catalog.pg_extension_config_dump('outbox.secret', '');

-- ===== where subscriptions are ===========================================================================================

-- Ticks that a cursor refers to. Two tables in turn: the worker writes one full state into the empty one, then empties the other.
CREATE TABLE outbox.tick (
    tick      bigint      NOT NULL,
    epoch     bigint      NOT NULL,
    snapshot  pg_snapshot NOT NULL,
    next      xid8        NOT NULL,    -- first xid not yet assigned then
    clock     bigint      NOT NULL,    -- id clock then
    "offset"  bigint      NOT NULL,    -- events ticked up to its end
    at        timestamptz NOT NULL
) USING heap WITH (autovacuum_enabled = off);

-- Cursors, append-only: the row with the highest seq of a subscription counts. Subscription 0 is the head.
-- All that `base` saw is done; of what `tick` saw and base did not, all up to `after` is done (all of it: base = tick).
-- at_head: the subscription is wherever the head is.
CREATE TABLE outbox.cursor (
    seq              bigint      NOT NULL,
    epoch            bigint      NOT NULL,
    subscription_id  integer     NOT NULL,
    at_head          boolean     NOT NULL,
    base             bigint,           -- tick number; 0: the subscription's start
    tick             bigint,           -- tick number
    after            uuid,
    "offset"         bigint      NOT NULL,
    at               timestamptz NOT NULL
) USING heap WITH (autovacuum_enabled = off);

CREATE TABLE outbox.tick_0 (PRIMARY KEY (epoch, tick)) INHERITS (outbox.tick) USING heap WITH (autovacuum_enabled = off);
CREATE TABLE outbox.tick_1 (PRIMARY KEY (epoch, tick)) INHERITS (outbox.tick) USING heap WITH (autovacuum_enabled = off);
CREATE TABLE outbox.cursor_0 (PRIMARY KEY (epoch, subscription_id, seq)) INHERITS (outbox.cursor) USING heap WITH (autovacuum_enabled = off);
CREATE TABLE outbox.cursor_1 (PRIMARY KEY (epoch, subscription_id, seq)) INHERITS (outbox.cursor) USING heap WITH (autovacuum_enabled = off);
SELECT pg_catalog.pg_extension_config_dump('outbox.tick_0', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.tick_1', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.cursor_0', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.cursor_1', '');

-- ===== exceptions ========================================================================================================

-- An (event, subscription) that its cursor has passed and that is not delivered.
CREATE TABLE outbox.delivery (
    subscription_id  integer     NOT NULL,
    event_id         uuid        NOT NULL,
    status           text        NOT NULL CHECK (status IN ('sending', 'retrying', 'blocked', 'leased', 'dead', 'discarded')),
    key              text,                   -- the event's ordering key, if the subscription orders by it
    attempts         integer     NOT NULL,
    first_attempt_at timestamptz,
    next_attempt_at  timestamptz,            -- retrying: when; dead, discarded, blocked: NULL
    last_status_code integer,
    last_error       text,
    reason           text,                   -- dead: why it was given up
    ended_at         timestamptz,            -- dead, discarded: when
    PRIMARY KEY (subscription_id, event_id)
);
CREATE INDEX delivery_event_id_idx ON outbox.delivery (event_id);
CREATE INDEX delivery_open_idx ON outbox.delivery (subscription_id, event_id) WHERE status NOT IN ('dead', 'discarded');
SELECT pg_catalog.pg_extension_config_dump('outbox.delivery', '');

-- The attempt log: one row per HTTP exchange (and event in it), append-only, a ring emptied by TRUNCATE.
CREATE TABLE outbox.attempt_log (
    event_id         uuid        NOT NULL,
    at               timestamptz NOT NULL,   -- begin
    subscription_id  integer     NOT NULL,
    duration         integer     NOT NULL,   -- microseconds
    attempt          smallint    NOT NULL,   -- 1: the first
    status_code      smallint,               -- NULL: no answer
    outcome          smallint    NOT NULL,   -- OutboxOutcome of verdict.h
    error            text,
    response         bytea                   -- the first bytes of the answer's body
) USING heap WITH (autovacuum_enabled = off);

DO $make_attempts$
BEGIN
    FOR part IN 0 .. 3 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE outbox.attempt_log_%s () INHERITS (outbox.attempt_log) USING heap WITH (autovacuum_enabled = off)', part);
        EXECUTE pg_catalog.format('CREATE INDEX attempt_log_%s_event_id_idx ON outbox.attempt_log_%s (event_id)', part, part);
        PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('outbox.attempt_log_%s', part)::pg_catalog.regclass, '');
    END LOOP;
END
$make_attempts$;

-- What operators did to events: redrive, discard, skipped backlogs.
CREATE TABLE outbox.operation (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT pg_catalog.now(),
    role          text        NOT NULL,
    action        text        NOT NULL,
    subscription  text,
    selector      jsonb       NOT NULL,
    count         bigint      NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('outbox.operation', '');

-- Ranges that a subscription gave up because it was too far behind.
CREATE TABLE outbox.gap (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription  text        NOT NULL,
    at            timestamptz NOT NULL DEFAULT pg_catalog.now(),
    from_id       uuid,
    to_id         uuid,
    events        bigint,
    reason        text        NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('outbox.gap', '');
