/* outbox--0.1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION outbox" to load this file. \quit

-- Nothing in here trusts the search path: every name is qualified, and the path itself is the safest one.
SET LOCAL search_path = pg_catalog, pg_temp;

-- The schema may have been there before: CREATE EXTENSION makes it, a restored dump has made it. Whoever owns it could replace what is in it, and whoever may create in it could
-- get between. So it must belong to a superuser, be closed to others, and hold nothing. (In one that this transaction made nobody else has been; what default
-- privileges gave to others on it is revoked at the end.)
DO $check_schema$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) n.nspowner
                WHERE n.nspname OPERATOR(pg_catalog.=) 'outbox' AND NOT r.rolsuper)
       OR EXISTS (SELECT FROM pg_catalog.pg_namespace AS n CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS a
                   WHERE n.nspname OPERATOR(pg_catalog.=) 'outbox' AND pg_catalog.age(n.xmin) OPERATOR(pg_catalog.>) 0
                     AND a.privilege_type OPERATOR(pg_catalog.=) 'CREATE' AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner) THEN
        RAISE insufficient_privilege USING MESSAGE = 'schema "outbox" is not safe for this extension',
            DETAIL = 'It belongs to a role that is not a superuser, or others than its owner may create objects in it.',
            HINT = 'Drop the schema, or give it to a superuser and revoke CREATE on it from all others.';
    ELSIF EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                   WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid OPERATOR(pg_catalog.=) 'outbox'::pg_catalog.regnamespace
                     AND d.classid OPERATOR(pg_catalog.<>) 'pg_catalog.pg_extension'::pg_catalog.regclass
                     AND d.classid OPERATOR(pg_catalog.<>) 'pg_catalog.pg_default_acl'::pg_catalog.regclass) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'schema "outbox" is not empty',
            DETAIL = 'What is in it could be taken for a part of the extension.', HINT = 'Move what is in it to another schema, or drop it.';
    END IF;
END
$check_schema$;
COMMENT ON SCHEMA outbox IS 'outbox: events committed with your data reach webhooks';

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
    payload      jsonb,                  -- either this ...
    body         bytea,                  -- ... or this, with its content_type
    content_type text,
    headers      jsonb,                  -- object of strings
    traceparent  text,                   -- W3C trace context of the producer
    scheduled_id uuid                    -- of a scheduled event: the id that enqueue() returned
) USING heap WITH (autovacuum_enabled = off, vacuum_truncate = off);
-- The parent is always empty. With indexes of its own, no plan over the whole log needs a sequential scan.
CREATE INDEX event_id_idx ON outbox.event (id);
CREATE INDEX event_xid_id_idx ON outbox.event (xid, id);

DO $make_segments$
BEGIN
    FOR segment IN 0 .. 15 LOOP   -- OUTBOX_SEGMENTS in bell.h
        EXECUTE pg_catalog.format('CREATE TABLE outbox.event_%s (PRIMARY KEY (id)) INHERITS (outbox.event) USING heap WITH (autovacuum_enabled = off, vacuum_truncate = off)', segment);
        -- no two entries are equal: to look for equal ones before each split is in vain
        EXECUTE pg_catalog.format('CREATE INDEX event_%s_xid_id_idx ON outbox.event_%s (xid, id) WITH (deduplicate_items = off)', segment, segment);
        PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('outbox.event_%s', segment)::pg_catalog.regclass, '');
    END LOOP;
END
$make_segments$;

COMMENT ON TABLE outbox.event IS 'The event log: every event recorded and not yet retired. Insert-only; written by enqueue() alone. Its rows are in the segments event_0 ... event_15.';
COMMENT ON COLUMN outbox.event.id IS 'Its place in the log: UUID version 7, strictly increasing within the database. Unless there is a scheduled_id, also its id for everybody: webhook-id and ce-id.';
COMMENT ON COLUMN outbox.event.xid IS 'The transaction that recorded it (top level)';
COMMENT ON COLUMN outbox.event.epoch IS 'The installation that recorded it: epoch()';
COMMENT ON COLUMN outbox.event.created_at IS 'When it was enqueued (not: committed, nor due)';
COMMENT ON COLUMN outbox.event.type IS 'Its type: dot-separated words';
COMMENT ON COLUMN outbox.event.key IS 'Ordering key; NULL: not ordered';
COMMENT ON COLUMN outbox.event.tenant IS 'Whose event it is';
COMMENT ON COLUMN outbox.event.payload IS 'The body, if it is JSON';
COMMENT ON COLUMN outbox.event.body IS 'The body, if it is not (enqueue_raw)';
COMMENT ON COLUMN outbox.event.content_type IS 'Of body';
COMMENT ON COLUMN outbox.event.headers IS 'HTTP fields to send with it: an object of strings';
COMMENT ON COLUMN outbox.event.traceparent IS 'W3C trace context of the producer';
COMMENT ON COLUMN outbox.event.scheduled_id IS 'Of an event that was scheduled: the id that enqueue() returned, and that webhook-id, ce-id and every function and view know it by; NULL: id';
DO $describe_segments$
BEGIN
    FOR segment IN 0 .. 15 LOOP
        EXECUTE pg_catalog.format('COMMENT ON TABLE outbox.event_%s IS %L', segment, 'A segment of the event log: read and write outbox.event instead');
    END LOOP;
END
$describe_segments$;

-- Events that a delivery still points to after their segment was emptied. No tick reads it, and it is no child of event.
CREATE TABLE outbox.kept_event (LIKE outbox.event INCLUDING COMMENTS, PRIMARY KEY (id));
SELECT pg_catalog.pg_extension_config_dump('outbox.kept_event', '');
COMMENT ON TABLE outbox.kept_event IS 'Events that a row of delivery still points to, after their segment was emptied';

-- Scheduled events wait here, with the columns of an event, until the worker moves them into the log. Written by enqueue() only.
CREATE TABLE outbox.scheduled (
    LIKE outbox.event INCLUDING COMMENTS,
    deliver_at  timestamptz NOT NULL,
    dedup_key   text,
    PRIMARY KEY (id)
) USING heap WITH (vacuum_truncate = off);
CREATE INDEX scheduled_deliver_at_id_idx ON outbox.scheduled (deliver_at, id);
SELECT pg_catalog.pg_extension_config_dump('outbox.scheduled', '');

COMMENT ON TABLE outbox.scheduled IS 'Events that are not due yet';
COMMENT ON COLUMN outbox.scheduled.id IS 'As enqueue() returned it: kept for life';
COMMENT ON COLUMN outbox.scheduled.scheduled_id IS 'Always NULL here';
COMMENT ON COLUMN outbox.scheduled.deliver_at IS 'When it is due';
COMMENT ON COLUMN outbox.scheduled.dedup_key IS 'As it was given to enqueue(): cancel() frees it';

-- What became of them: which event of the log, or that they never will be one.
CREATE TABLE outbox.unscheduled (
    id          uuid        NOT NULL PRIMARY KEY,
    status      text        NOT NULL CHECK (status IN ('moved', 'cancelled', 'discarded')),
    log_id      uuid,                    -- moved: event.id
    deliver_at  timestamptz NOT NULL,
    at          timestamptz NOT NULL,
    role        text                     -- cancelled, discarded: who
) USING heap WITH (vacuum_truncate = off);
CREATE INDEX unscheduled_log_id_idx ON outbox.unscheduled (log_id);
CREATE INDEX unscheduled_at_idx ON outbox.unscheduled (at) WHERE log_id IS NULL;
SELECT pg_catalog.pg_extension_config_dump('outbox.unscheduled', '');

COMMENT ON TABLE outbox.unscheduled IS 'What became of scheduled events: moved into the log, cancelled, or discarded; kept while the event is in the log, else for outbox.event_retention';
COMMENT ON COLUMN outbox.unscheduled.id IS 'As enqueue() returned it';
COMMENT ON COLUMN outbox.unscheduled.status IS 'moved (into the log), cancelled (by cancel()), or discarded (by start(skip_backlog => true))';
COMMENT ON COLUMN outbox.unscheduled.log_id IS 'moved: its event.id';
COMMENT ON COLUMN outbox.unscheduled.deliver_at IS 'When it was to be due';
COMMENT ON COLUMN outbox.unscheduled.at IS 'When that happened';
COMMENT ON COLUMN outbox.unscheduled.role IS 'cancelled, discarded: the role it was done as';

-- Keys of enqueue() that are taken. Compared as bytes. Written by enqueue() and cancel() only.
CREATE TABLE outbox.dedup (
    dedup_key  text COLLATE pg_catalog."C" NOT NULL,
    type       text COLLATE pg_catalog."C" NOT NULL,
    tenant     text COLLATE pg_catalog."C" NOT NULL,   -- empty: none
    event_id   uuid        NOT NULL,
    at         timestamptz NOT NULL,
    PRIMARY KEY (dedup_key, type, tenant)
) USING heap WITH (vacuum_truncate = off);
CREATE INDEX dedup_at_idx ON outbox.dedup (at);
SELECT pg_catalog.pg_extension_config_dump('outbox.dedup', '');

COMMENT ON TABLE outbox.dedup IS 'The dedup_keys of events, for outbox.dedup_window; removed by maintenance';
COMMENT ON COLUMN outbox.dedup.dedup_key IS 'As it was given to enqueue(), unique for type and tenant';
COMMENT ON COLUMN outbox.dedup.type IS 'Of the event';
COMMENT ON COLUMN outbox.dedup.tenant IS 'Of the event; empty: none';
COMMENT ON COLUMN outbox.dedup.event_id IS 'The event that has the key';
COMMENT ON COLUMN outbox.dedup.at IS 'When that was enqueued';

-- ===== subscriptions =====================================================================================================

CREATE TABLE outbox.subscription (
    id               integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name             text COLLATE "C" NOT NULL UNIQUE,   -- no index of ours depends on how an operating system sorts: another one may come with an upgrade
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
    filter           jsonpath,                 -- NULL: whatever the payload
    format           text        NOT NULL CHECK (format IN ('binary', 'structured', 'batch')),
    batch_size       integer     NOT NULL,     -- events
    batch_bytes      integer     NOT NULL,
    batch_linger     interval    NOT NULL,
    rate_limit       float8,                   -- requests per second; NULL: none
    breaker_threshold integer    NOT NULL,
    breaker_probe    interval    NOT NULL,
    breaker_max      interval    NOT NULL,
    disable_after    interval    NOT NULL,
    ca               text,                     -- PEM; NULL: the system's
    state            text        NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled')),
    reason           text,                     -- of the state
    state_since      timestamptz NOT NULL DEFAULT pg_catalog.now(),
    paused_by_all    boolean     NOT NULL DEFAULT false,
    failing_since    timestamptz,
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
CREATE INDEX subscription_tenant_idx ON outbox.subscription (tenant COLLATE "C");
SELECT pg_catalog.pg_extension_config_dump('outbox.subscription', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.subscription_id_seq', '');   -- a restored copy does not use an id twice

COMMENT ON TABLE outbox.subscription IS 'Named readers of the event log. Changed by subscribe(), alter_subscription(), pause(), resume(), unsubscribe(); seen in subscription_status.';
COMMENT ON COLUMN outbox.subscription.id IS 'Number, never used again';
COMMENT ON COLUMN outbox.subscription.name IS 'Name, unique';
COMMENT ON COLUMN outbox.subscription.kind IS 'push (has a URL) or pull (drained by SQL)';
COMMENT ON COLUMN outbox.subscription.url IS 'Of the webhook receiver: a secret';
COMMENT ON COLUMN outbox.subscription.tenant IS 'Only events of this tenant; NULL: of every tenant, and without one';
COMMENT ON COLUMN outbox.subscription.types IS 'Patterns of the types it wants';
COMMENT ON COLUMN outbox.subscription.ordering IS 'key: events with the same key one after the other; none';
COMMENT ON COLUMN outbox.subscription.on_dead IS 'After a dead letter: skip to the key''s next event, or block the key';
COMMENT ON COLUMN outbox.subscription.network IS 'public: https, permitted ports, no internal addresses; private';
COMMENT ON COLUMN outbox.subscription.ports IS 'Ports permitted under public';
COMMENT ON COLUMN outbox.subscription.max_in_flight IS 'Requests at a time';
COMMENT ON COLUMN outbox.subscription.timeout IS 'For a whole exchange';
COMMENT ON COLUMN outbox.subscription.connect_timeout IS 'For name resolution, connection and TLS';
COMMENT ON COLUMN outbox.subscription.retry_base IS 'Delay after the first failure';
COMMENT ON COLUMN outbox.subscription.retry_factor IS 'Growth of the delay with each further failure';
COMMENT ON COLUMN outbox.subscription.retry_max IS 'Longest delay, also of a Retry-After';
COMMENT ON COLUMN outbox.subscription.retry_jitter IS 'Part of each delay by which it is spread, 0 to 1';
COMMENT ON COLUMN outbox.subscription.max_attempts IS 'Then it is a dead letter';
COMMENT ON COLUMN outbox.subscription.give_up_after IS 'Since the first attempt: then it is a dead letter; 0: never';
COMMENT ON COLUMN outbox.subscription.fatal_statuses IS 'HTTP statuses that make a dead letter at once';
COMMENT ON COLUMN outbox.subscription.max_blocked IS 'Undelivered events it may go past; then it waits';
COMMENT ON COLUMN outbox.subscription.response_kept IS 'Bytes of an answer''s body that are kept';
COMMENT ON COLUMN outbox.subscription.filter IS 'What the payload must fulfil; NULL: any payload, or none';
COMMENT ON COLUMN outbox.subscription.format IS 'CloudEvents mode: binary, structured, or batch';
COMMENT ON COLUMN outbox.subscription.batch_size IS 'Events in a batch, at most';
COMMENT ON COLUMN outbox.subscription.batch_bytes IS 'Bytes of a batch, at most, unless one event is larger';
COMMENT ON COLUMN outbox.subscription.batch_linger IS 'How long a batch that is not full waits for more';
COMMENT ON COLUMN outbox.subscription.rate_limit IS 'Requests per second; NULL: no limit';
COMMENT ON COLUMN outbox.subscription.breaker_threshold IS 'Transient failures in a row that open the circuit breaker; 0: it never opens';
COMMENT ON COLUMN outbox.subscription.breaker_probe IS 'From opening to the first probe';
COMMENT ON COLUMN outbox.subscription.breaker_max IS 'Longest time between probes';
COMMENT ON COLUMN outbox.subscription.disable_after IS 'Nothing but failures for so long disable it; 0: never';
COMMENT ON COLUMN outbox.subscription.ca IS 'Certificates, PEM, by which the receiver is verified; NULL: the system''s';
COMMENT ON COLUMN outbox.subscription.state IS 'active, paused, or disabled (see reason)';
COMMENT ON COLUMN outbox.subscription.reason IS 'Why it is paused or disabled';
COMMENT ON COLUMN outbox.subscription.state_since IS 'When the state was entered, or confirmed by resume()';
COMMENT ON COLUMN outbox.subscription.paused_by_all IS 'By pause_all(): resume_all() resumes it';
COMMENT ON COLUMN outbox.subscription.failing_since IS 'When the first failure began after which there was no success, if that is a while ago; written by the worker';
COMMENT ON COLUMN outbox.subscription.labels IS 'The user''s, a JSON object';
COMMENT ON COLUMN outbox.subscription.description IS 'The user''s';
COMMENT ON COLUMN outbox.subscription.created_at IS 'When subscribe() was called';
COMMENT ON COLUMN outbox.subscription.start_epoch IS 'In which installation; in another the start excludes nothing';
COMMENT ON COLUMN outbox.subscription.start_snapshot IS 'What this snapshot saw is not for it; NULL: nothing is excluded';
COMMENT ON COLUMN outbox.subscription.start_next IS 'First xid not assigned at start_snapshot';
COMMENT ON COLUMN outbox.subscription.start_clock IS 'Id clock at start_snapshot';
COMMENT ON COLUMN outbox.subscription.start_after IS 'Events with lower ids are not for it; NULL: none is excluded';

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
    met              boolean     NOT NULL DEFAULT false,
    filter           jsonpath,
    PRIMARY KEY (subscription_id, version)
);
SELECT pg_catalog.pg_extension_config_dump('outbox.subscription_match', '');

COMMENT ON TABLE outbox.subscription_match IS 'Earlier matching rules of a subscription, for events that were committed under them; removed when the log has none of those any more';
COMMENT ON COLUMN outbox.subscription_match.subscription_id IS 'Whose';
COMMENT ON COLUMN outbox.subscription_match.version IS 'Ascending: the lowest whose until_snapshot sees an event applies to it';
COMMENT ON COLUMN outbox.subscription_match.types IS 'The types it wanted';
COMMENT ON COLUMN outbox.subscription_match.tenant IS 'The tenant it had';
COMMENT ON COLUMN outbox.subscription_match.filter IS 'The filter it had';
COMMENT ON COLUMN outbox.subscription_match.epoch IS 'The installation that until_snapshot belongs to';
COMMENT ON COLUMN outbox.subscription_match.until_snapshot IS 'What this snapshot saw is matched by these rules';
COMMENT ON COLUMN outbox.subscription_match.until_next IS 'First xid not assigned then';
COMMENT ON COLUMN outbox.subscription_match.until_clock IS 'Id clock then';
COMMENT ON COLUMN outbox.subscription_match.met IS 'The worker knows of the change: until_snapshot is the last tick that it matched by these rules';

-- What a subscription has that must not be seen: signing secrets (the newest is the current one; an older one signs too until it expires), and the headers it sends.
CREATE TABLE outbox.secret (
    id               integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id  integer     NOT NULL,
    kind             text        NOT NULL CHECK (kind IN ('signing', 'headers')),
    secret           bytea       NOT NULL,     -- the key bytes behind whsec_, or header lines; encrypted if there is a key_id
    key_id           text,                     -- NULL: plain
    hint             text[]      NOT NULL,     -- what views may show
    created_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    expires_at       timestamptz               -- NULL: the current one
);
CREATE INDEX secret_subscription_id_idx ON outbox.secret (subscription_id);
SELECT pg_catalog.pg_extension_config_dump('outbox.secret', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.secret_id_seq', '');

COMMENT ON TABLE outbox.secret IS 'Signing secrets and static headers. Granted to nobody; dumps and base backups contain them as they are here: encrypted with a key that is not in the database, if outbox.secret_key_file is set, else plain.';
COMMENT ON COLUMN outbox.secret.id IS 'Ascending: the highest of a subscription is the newest';
COMMENT ON COLUMN outbox.secret.subscription_id IS 'Whose';
COMMENT ON COLUMN outbox.secret.kind IS 'signing: a secret that signs; headers: the static headers';
COMMENT ON COLUMN outbox.secret.secret IS 'signing: the key bytes, what whsec_ is the base64 of; headers: lines "name: value", in UTF-8. With a key_id: nonce, ciphertext and tag of that (AES-256-GCM; bound to kind and subscription)';
COMMENT ON COLUMN outbox.secret.key_id IS 'Which key of outbox.secret_key_file opens it; NULL: it is plain';
COMMENT ON COLUMN outbox.secret.hint IS 'What views may show: the last four characters of a signing secret, the names of headers';
COMMENT ON COLUMN outbox.secret.created_at IS 'When it came into use';
COMMENT ON COLUMN outbox.secret.expires_at IS 'Until when it signs beside a newer one; NULL: the current one';

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
ALTER TABLE outbox.cursor REPLICA IDENTITY FULL;    -- it has no rows, but without one, a publication FOR ALL TABLES forbids DELETE FROM outbox.cursor
SELECT pg_catalog.pg_extension_config_dump('outbox.tick_0', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.tick_1', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.cursor_0', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.cursor_1', '');

COMMENT ON TABLE outbox.tick IS 'Ticks (snapshots with a number) that a cursor refers to; rows are in tick_0 and tick_1';
COMMENT ON COLUMN outbox.tick.tick IS 'Its number, ascending';
COMMENT ON COLUMN outbox.tick.epoch IS 'The installation';
COMMENT ON COLUMN outbox.tick.snapshot IS 'What it sees';
COMMENT ON COLUMN outbox.tick.next IS 'First xid not assigned then';
COMMENT ON COLUMN outbox.tick.clock IS 'Id clock then';
COMMENT ON COLUMN outbox.tick."offset" IS 'Events ticked up to its end';
COMMENT ON COLUMN outbox.tick.at IS 'When it was taken';
COMMENT ON TABLE outbox.tick_0 IS 'Written in turn with tick_1; read outbox.tick';
COMMENT ON TABLE outbox.tick_1 IS 'Written in turn with tick_0; read outbox.tick';
COMMENT ON TABLE outbox.cursor IS 'How far each subscription is, append-only: the row with the highest seq counts; rows are in cursor_0 and cursor_1';
COMMENT ON COLUMN outbox.cursor.seq IS 'Ascending: the highest of a subscription counts';
COMMENT ON COLUMN outbox.cursor.epoch IS 'The installation';
COMMENT ON COLUMN outbox.cursor.subscription_id IS 'Whose; 0: the head, which is where all are that have nothing to do';
COMMENT ON COLUMN outbox.cursor.at_head IS 'It is wherever the head is';
COMMENT ON COLUMN outbox.cursor.base IS 'A tick: all that it saw is done; 0: the subscription''s start';
COMMENT ON COLUMN outbox.cursor.tick IS 'A tick: of what it saw and base did not, all up to after is done; equal to base: all of it';
COMMENT ON COLUMN outbox.cursor.after IS 'The last event done of that window';
COMMENT ON COLUMN outbox.cursor."offset" IS 'Events it has read past';
COMMENT ON COLUMN outbox.cursor.at IS 'When this was written';
COMMENT ON TABLE outbox.cursor_0 IS 'Written in turn with cursor_1; read outbox.cursor';
COMMENT ON TABLE outbox.cursor_1 IS 'Written in turn with cursor_0; read outbox.cursor';

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
    log_id           uuid,                   -- of a scheduled event: event.id
    replay           bigint,                 -- the replay that made it; NULL: none
    PRIMARY KEY (subscription_id, event_id)
);
CREATE INDEX delivery_event_id_idx ON outbox.delivery (event_id);
CREATE INDEX delivery_open_idx ON outbox.delivery (subscription_id, event_id) WHERE status NOT IN ('dead', 'discarded');
CREATE INDEX delivery_dead_idx ON outbox.delivery (subscription_id, ended_at) WHERE status = 'dead';
CREATE INDEX delivery_ended_at_idx ON outbox.delivery (ended_at) WHERE status IN ('dead', 'discarded');
SELECT pg_catalog.pg_extension_config_dump('outbox.delivery', '');

COMMENT ON TABLE outbox.delivery IS 'Events that a cursor has passed and that are not delivered; seen in delivery_status, dead_letter and blocked_key';
COMMENT ON COLUMN outbox.delivery.subscription_id IS 'For whom';
COMMENT ON COLUMN outbox.delivery.event_id IS 'The event';
COMMENT ON COLUMN outbox.delivery.status IS 'sending (in flight for long), retrying, blocked (behind another event of its key), leased, dead, discarded';
COMMENT ON COLUMN outbox.delivery.key IS 'The event''s ordering key, if the subscription orders by it';
COMMENT ON COLUMN outbox.delivery.attempts IS 'Made so far, since the last redrive';
COMMENT ON COLUMN outbox.delivery.first_attempt_at IS 'When the first of them began: give_up_after counts from here';
COMMENT ON COLUMN outbox.delivery.next_attempt_at IS 'retrying: when it is tried again';
COMMENT ON COLUMN outbox.delivery.last_status_code IS 'HTTP status of the last attempt';
COMMENT ON COLUMN outbox.delivery.last_error IS 'How the last attempt failed';
COMMENT ON COLUMN outbox.delivery.reason IS 'dead: why it was given up';
COMMENT ON COLUMN outbox.delivery.ended_at IS 'dead, discarded: when';
COMMENT ON COLUMN outbox.delivery.log_id IS 'Of an event that was scheduled: its place in the log, event.id; NULL: event_id';
COMMENT ON COLUMN outbox.delivery.replay IS 'The replay on whose behalf it is, or was last redriven; NULL: none';

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
    response         bytea,                  -- the first bytes of the answer's body
    replay           boolean     NOT NULL DEFAULT false
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

COMMENT ON TABLE outbox.attempt_log IS 'The attempt log, as the worker writes it; read the view attempt. Rows are in attempt_log_0 ... attempt_log_3.';
COMMENT ON COLUMN outbox.attempt_log.event_id IS 'The event';
COMMENT ON COLUMN outbox.attempt_log.at IS 'When the attempt began';
COMMENT ON COLUMN outbox.attempt_log.subscription_id IS 'To whom';
COMMENT ON COLUMN outbox.attempt_log.duration IS 'Microseconds';
COMMENT ON COLUMN outbox.attempt_log.attempt IS 'Its number, from 1';
COMMENT ON COLUMN outbox.attempt_log.status_code IS 'HTTP status; NULL without an answer';
COMMENT ON COLUMN outbox.attempt_log.outcome IS 'OutboxOutcome of src/delivery/verdict.h: 0 is delivered';
COMMENT ON COLUMN outbox.attempt_log.error IS 'What went wrong';
COMMENT ON COLUMN outbox.attempt_log.response IS 'The first bytes of the answer''s body';
COMMENT ON COLUMN outbox.attempt_log.replay IS 'On behalf of replay()';
DO $describe_attempts$
BEGIN
    FOR part IN 0 .. 3 LOOP
        EXECUTE pg_catalog.format('COMMENT ON TABLE outbox.attempt_log_%s IS %L', part, 'A part of the attempt log: read outbox.attempt instead');
    END LOOP;
END
$describe_attempts$;

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
SELECT pg_catalog.pg_extension_config_dump('outbox.operation_id_seq', '');

COMMENT ON TABLE outbox.operation IS 'What operators did: start, stop, pause_all, resume_all, redrive, discard, unsubscribe, rotate_secret, replay';
COMMENT ON COLUMN outbox.operation.id IS 'Number';
COMMENT ON COLUMN outbox.operation.at IS 'When: the beginning of its transaction';
COMMENT ON COLUMN outbox.operation.role IS 'Who: the role it was done as';
COMMENT ON COLUMN outbox.operation.action IS 'start, stop, pause_all, resume_all, redrive, discard, unsubscribe, rotate_secret, replay and how it ended (replay_done, replay_expired), or cancel_replay';
COMMENT ON COLUMN outbox.operation.subscription IS 'The subscription, if one was named';
COMMENT ON COLUMN outbox.operation.selector IS 'The arguments that were given';
COMMENT ON COLUMN outbox.operation.count IS 'How many events it concerned; of pause_all and resume_all, how many subscriptions';

-- Ranges that a subscription gave up because it was too far behind: the events that its new position has passed and its old one had not, without a row in delivery.
CREATE TABLE outbox.gap (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription     text        NOT NULL,
    at               timestamptz NOT NULL DEFAULT pg_catalog.now(),
    from_id          uuid,
    to_id            uuid,
    from_time        timestamptz,
    to_time          timestamptz,
    events           bigint,
    reason           text        NOT NULL,
    subscription_id  integer     NOT NULL,
    epoch            bigint      NOT NULL,
    base             pg_snapshot,              -- the old position, as in cursor and tick ...
    upper            pg_snapshot,
    after            uuid,
    until            pg_snapshot               -- ... and what the tick of the new one sees
);
CREATE INDEX gap_subscription_id_idx ON outbox.gap (subscription_id);
SELECT pg_catalog.pg_extension_config_dump('outbox.gap', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.gap_id_seq', '');

COMMENT ON TABLE outbox.gap IS 'Ranges of the event log that a subscription gave up because it was too far behind (outbox.max_backlog_age, outbox.max_backlog_size). Kept for outbox.dead_letter_retention, and while the log has events that old.';
COMMENT ON COLUMN outbox.gap.id IS 'Number';
COMMENT ON COLUMN outbox.gap.subscription IS 'Who gave it up: its name then';
COMMENT ON COLUMN outbox.gap.at IS 'When';
COMMENT ON COLUMN outbox.gap.from_id IS 'The first event given up, or (events is NULL) the last one before it; NULL: from the beginning of the log';
COMMENT ON COLUMN outbox.gap.to_id IS 'No later event was given up; NULL: all that came with a restored dump';
COMMENT ON COLUMN outbox.gap.from_time IS 'The instant in from_id';
COMMENT ON COLUMN outbox.gap.to_time IS 'The instant in to_id';
COMMENT ON COLUMN outbox.gap.events IS 'How many events of it were for the subscription; NULL: too many to count';
COMMENT ON COLUMN outbox.gap.reason IS 'max_backlog_age or max_backlog_size';
COMMENT ON COLUMN outbox.gap.subscription_id IS 'Who gave it up';
COMMENT ON COLUMN outbox.gap.epoch IS 'The installation whose events were given up';
COMMENT ON COLUMN outbox.gap.base IS 'What this snapshot sees was done before; NULL: nothing';
COMMENT ON COLUMN outbox.gap.upper IS 'What this snapshot sees was done before, up to after';
COMMENT ON COLUMN outbox.gap.after IS 'See upper';
COMMENT ON COLUMN outbox.gap.until IS 'What this snapshot sees was given up, up to to_id; NULL: everything';

-- Ranges of the log that subscriptions are to get once more; src/delivery/replay.c goes through them. A row that is at its end is deleted, and operation says so.
CREATE TABLE outbox.replay (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription     text        NOT NULL,
    role             text        NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    since            timestamptz NOT NULL,
    until_time       timestamptz NOT NULL,
    types            text[],
    events           bigint      NOT NULL,
    replayed         bigint      NOT NULL DEFAULT 0,
    subscription_id  integer     NOT NULL,
    place            uuid        NOT NULL,
    until            uuid        NOT NULL,
    taken            boolean     NOT NULL DEFAULT false,
    base             pg_snapshot,
    upper            pg_snapshot,
    after            uuid
);
COMMENT ON TABLE outbox.replay IS 'Replays that are under way, see replay(). Those of a subscription go one after the other. Of this server: a dump does not contain them';
COMMENT ON COLUMN outbox.replay.id IS 'Number';
COMMENT ON COLUMN outbox.replay.subscription IS 'Who gets events once more';
COMMENT ON COLUMN outbox.replay.role IS 'Who asked for it';
COMMENT ON COLUMN outbox.replay.created_at IS 'When: the beginning of its transaction';
COMMENT ON COLUMN outbox.replay.since IS 'Events recorded from here on';
COMMENT ON COLUMN outbox.replay.until_time IS 'Events recorded before this';
COMMENT ON COLUMN outbox.replay.types IS 'Only of these types; NULL: all that the subscription wants';
COMMENT ON COLUMN outbox.replay.events IS 'How many there were in the log, as replay() said';
COMMENT ON COLUMN outbox.replay.replayed IS 'How many have been handed to the subscription so far';
COMMENT ON COLUMN outbox.replay.subscription_id IS 'The subscription';
COMMENT ON COLUMN outbox.replay.place IS 'All events up to this id have been looked at';
COMMENT ON COLUMN outbox.replay.until IS 'Ids from here on are not part of it';
COMMENT ON COLUMN outbox.replay.taken IS 'The worker has taken it up: what the cursor had passed then is replayed';
COMMENT ON COLUMN outbox.replay.base IS 'That cursor: what this snapshot sees had been passed';
COMMENT ON COLUMN outbox.replay.upper IS 'That cursor: and of what this snapshot sees';
COMMENT ON COLUMN outbox.replay.after IS 'That cursor: all up to this id';

-- When no delivery worker ran: an event does not age for the backlog bound meanwhile.
CREATE TABLE outbox.outage (
    epoch  bigint      NOT NULL,
    began  timestamptz NOT NULL,
    ended  timestamptz NOT NULL,
    PRIMARY KEY (epoch, began)
);
COMMENT ON TABLE outbox.outage IS 'Times in which no delivery worker ran, as each worker found out at its start; they do not count for outbox.max_backlog_age. Of this server: a dump does not contain them';
COMMENT ON COLUMN outbox.outage.epoch IS 'The installation';
COMMENT ON COLUMN outbox.outage.began IS 'When the worker before recorded a cursor for the last time; -infinity: there was none';
COMMENT ON COLUMN outbox.outage.ended IS 'When a worker started';

-- ===== the library =======================================================================================================

-- What is written in C. Functions whose names begin with _ are for the ones further down; nobody needs to call them.
-- Arguments are checked in C, where the refusals have their SQLSTATE, detail and hint.

CREATE FUNCTION outbox.enqueue(type text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL, deliver_at timestamptz DEFAULT NULL,
                               dedup_key text DEFAULT NULL, tenant text DEFAULT NULL)
RETURNS uuid LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_enqueue';
COMMENT ON FUNCTION outbox.enqueue(text, jsonb, text, jsonb, timestamptz, text, text) IS
'Records an event in the current transaction: it exists if and only if that commits. Returns its id.
type: dot-separated words of printable characters, at most 255 bytes. payload: JSON, at most outbox.max_payload. key: ordering key, at most 1 kB.
headers: an object of strings, sent as HTTP fields. tenant: at most 128 bytes.
deliver_at: not before this time, at most ten years ahead; a time that is past means at once. Until then the event waits apart from the log, and cancel() takes it back; it keeps this id.
dedup_key: at most 255 characters. An event of the same type and tenant that was enqueued with the same key less than outbox.dedup_window ago is returned instead (its id), and nothing is
recorded. Waits for a transaction that has used the key and is still open. Above READ COMMITTED, raises 40001 if that is one the snapshot of this transaction does not see.
Refuses an invalid argument with 22023 or 22004, a payload that is too large with 54000, read-only transactions and standbys with 25006.';

CREATE FUNCTION outbox.enqueue_raw(type text, body bytea, content_type text, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
                                   deliver_at timestamptz DEFAULT NULL, dedup_key text DEFAULT NULL, tenant text DEFAULT NULL)
RETURNS uuid LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_enqueue_raw';
COMMENT ON FUNCTION outbox.enqueue_raw(text, bytea, text, text, jsonb, timestamptz, text, text) IS
'As enqueue(), for a body that is not JSON: its bytes are sent as they are, with this content_type.';

CREATE FUNCTION outbox.enqueue_many(events jsonb)
RETURNS uuid[] LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_enqueue_many';
COMMENT ON FUNCTION outbox.enqueue_many(jsonb) IS
'Records many events at once. events: an array of objects with the argument names of enqueue(); an unknown member is an error. Returns the ids, in the order of the array.';

CREATE FUNCTION outbox._new_event() RETURNS trigger LANGUAGE C AS 'MODULE_PATHNAME', 'outbox_new_event';
COMMENT ON FUNCTION outbox._new_event() IS 'INSERT into the view new_event becomes enqueue()';

CREATE FUNCTION outbox._capture() RETURNS trigger LANGUAGE C AS 'MODULE_PATHNAME', 'outbox_captured_change';
COMMENT ON FUNCTION outbox._capture() IS
'A change of a captured table becomes an event. Its triggers are made by capture(): their arguments are the type; the number of key columns and their names; the number of columns, or *, and their names.';

CREATE FUNCTION outbox._check_capture_type(type text) RETURNS void LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_check_capture_type';
COMMENT ON FUNCTION outbox._check_capture_type(text) IS 'Refuses what cannot be the type of captured changes (22023); a last word * stands for the operation';

CREATE FUNCTION outbox._check_limits(tenant text) RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_check_limits';
COMMENT ON FUNCTION outbox._check_limits(text) IS 'Refuses (54000) more subscriptions than outbox.max_subscriptions, or more with this tenant than outbox.max_subscriptions_per_tenant; to be called when the row is written';

CREATE FUNCTION outbox._check_type(type text) RETURNS void LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_check_type';
COMMENT ON FUNCTION outbox._check_type(text) IS 'Refuses what cannot be the type of an event (22023)';

CREATE FUNCTION outbox._refuse_event_change() RETURNS trigger LANGUAGE C AS 'MODULE_PATHNAME', 'outbox_refuse_event_change';
COMMENT ON FUNCTION outbox._refuse_event_change() IS 'Refuses to change the event log by hand (55000), with a hint';

CREATE FUNCTION outbox._changed() RETURNS trigger LANGUAGE C AS 'MODULE_PATHNAME', 'outbox_changed';
COMMENT ON FUNCTION outbox._changed() IS 'Tells the delivery worker, at commit, that subscriptions or deliveries have changed';

CREATE FUNCTION outbox.maintain(OUT action text, OUT segment integer, OUT count bigint, OUT detail text)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_maintain';
COMMENT ON FUNCTION outbox.maintain() IS
'One round of maintenance of the event log: rotates, seals and empties segments, and says what it did. The delivery worker does this by itself unless outbox.auto_maintain is off.
A segment that is in use is left for a later round. For the small tables it may wait, one second at most for each (55P03). Refused inside a transaction block, after a write (25001),
and above READ COMMITTED (25000). Call it as a statement of its own: inside a function or a DO block its locks last until the end of the outer statement.';

CREATE FUNCTION outbox._segments(OUT segment integer, OUT relation regclass, OUT is_current boolean, OUT sealed boolean, OUT seal_tick bigint,
                                 OUT first_id uuid, OUT last_id uuid, OUT bytes bigint)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_segments';
COMMENT ON FUNCTION outbox._segments() IS 'The segments of the event log: what is in them, and the first tick that begins after each was sealed; first_id and last_id are NULL in an empty one';

CREATE FUNCTION outbox._record_ping(subscription text) RETURNS uuid LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_ping';
COMMENT ON FUNCTION outbox._record_ping(text) IS 'Records an event of type outbox.ping that goes to this subscription alone';

CREATE FUNCTION outbox._arm(armed boolean) RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_arm';
COMMENT ON FUNCTION outbox._arm(boolean) IS 'Tells the launcher, at commit, that this database was armed or disarmed';

CREATE FUNCTION outbox._hold_log() RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_hold_log';
COMMENT ON FUNCTION outbox._hold_log() IS 'From here to the end of the transaction no segment of the log is emptied';

CREATE FUNCTION outbox._position_now(OUT snapshot pg_snapshot, OUT next xid8, OUT clock bigint, OUT epoch bigint)
RETURNS record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_position_now';
COMMENT ON FUNCTION outbox._position_now() IS
'The place in the event log that is now: a new snapshot in which the calling transaction counts as in progress; the first xid not assigned yet; the id clock; the epoch';

CREATE FUNCTION outbox._type_matches(types text[], type text) RETURNS boolean LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_type_matches';
COMMENT ON FUNCTION outbox._type_matches(text[], text) IS 'Does one of these patterns match the type?';

CREATE FUNCTION outbox._filter_matches(filter jsonpath, payload jsonb) RETURNS boolean LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_filter_matches_sql';
COMMENT ON FUNCTION outbox._filter_matches(jsonpath, jsonb) IS 'Does the payload fulfil the filter? A predicate must be true (@@), any other path find something (@?); errors count as no, and so does no payload. NULL is fulfilled by everything.';

-- What delivery does in src/delivery/subscription.c.
CREATE FUNCTION outbox._mismatch(types text[], of_tenant text, filter jsonpath, type text, tenant text, payload jsonb) RETURNS text LANGUAGE sql IMMUTABLE
RETURN CASE WHEN of_tenant IS NOT NULL AND (tenant IS NULL OR tenant OPERATOR(pg_catalog.<>) of_tenant) THEN 'tenant'
            WHEN NOT outbox._type_matches(types, type) THEN 'type'
            WHEN NOT outbox._filter_matches(filter, payload) THEN 'filter' END;
COMMENT ON FUNCTION outbox._mismatch(text[], text, jsonpath, text, text, jsonb) IS 'Which of these rules keeps an event from a subscription: tenant, type or filter; NULL: none does';

CREATE FUNCTION outbox._check_types(types text[]) RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_check_types';
COMMENT ON FUNCTION outbox._check_types(text[]) IS 'Refuses what is not a non-empty list of valid patterns (22023)';

CREATE FUNCTION outbox._acting_role() RETURNS oid LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_acting_role';
COMMENT ON FUNCTION outbox._acting_role() IS 'The role that the session acts as, also inside SECURITY DEFINER functions: for the record, never to decide what is permitted';

CREATE FUNCTION outbox._runtime(OUT subscription_id integer, OUT in_flight integer, OUT exceptions integer, OUT blocked_keys integer, OUT at_head boolean,
                                OUT "offset" bigint, OUT oldest_at timestamptz, OUT last_success_at timestamptz, OUT last_error_at timestamptz,
                                OUT breaker_open_until timestamptz, OUT next_probe_at timestamptz, OUT last_error text)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_runtime';
COMMENT ON FUNCTION outbox._runtime() IS 'What the delivery worker says of each subscription, from shared memory';

CREATE FUNCTION outbox._worker(OUT preloaded boolean, OUT library_version text, OUT launcher_pid integer, OUT worker_pid integer, OUT wanted boolean,
                               OUT trouble text, OUT started_at timestamptz, OUT turn_at timestamptz, OUT tick_at timestamptz, OUT maintained_at timestamptz,
                               OUT tick bigint, OUT "offset" bigint, OUT delivered bigint, OUT failed bigint, OUT in_flight integer, OUT error text,
                               OUT error_at timestamptz)
RETURNS record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_worker_status';
COMMENT ON FUNCTION outbox._worker() IS 'What launcher and delivery worker of this database say of themselves, from shared memory';

CREATE FUNCTION outbox._encrypt(kind text, subscription_id integer, plain bytea, OUT secret bytea, OUT key_id text)
RETURNS record LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_encrypt';
COMMENT ON FUNCTION outbox._encrypt(text, integer, bytea) IS 'A record of outbox.secret as it is to be stored: plain without outbox.secret_key_file. Errors: F0000 if that file cannot be used.';

CREATE FUNCTION outbox._secret_states(of_subscription integer, OUT id integer, OUT subscription_id integer, OUT kind text, OUT state text)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_secret_states';
COMMENT ON FUNCTION outbox._secret_states(integer) IS 'What can be made of a subscription''s records of outbox.secret, or (NULL) of all: encrypted (with the first key), old key, plain, or unreadable';

CREATE FUNCTION outbox._key_problem() RETURNS text LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_key_problem';
COMMENT ON FUNCTION outbox._key_problem() IS 'Why the file that outbox.secret_key_file names cannot be used; empty: it can; NULL: none is named';

CREATE FUNCTION outbox._header_lines(headers jsonb, OUT names text[], OUT lines bytea)
RETURNS record LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_header_lines';
COMMENT ON FUNCTION outbox._header_lines(jsonb) IS 'The static headers of a subscription as lines; refuses (22023) what is not an object of valid headers, without repeating a value';

CREATE FUNCTION outbox._event_time(id uuid) RETURNS timestamptz LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_event_time';
COMMENT ON FUNCTION outbox._event_time(uuid) IS 'The instant in an event id, to the millisecond';

-- ===== producing =========================================================================================================

CREATE FUNCTION outbox.cancel(id uuid) RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    cancelled record;
BEGIN
    IF cancel.id IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'id must not be null', DETAIL = 'It says which event is not to be delivered.', HINT = 'Give the id that outbox.enqueue() returned.';
    END IF;
    DELETE FROM outbox.scheduled AS s WHERE s.id = cancel.id RETURNING s.deliver_at, s.type, s.tenant, s.dedup_key INTO cancelled;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outbox.unscheduled (id, status, deliver_at, at, role)
    VALUES (cancel.id, 'cancelled', cancelled.deliver_at, clock_timestamp(), pg_get_userbyid(outbox._acting_role()));
    IF cancelled.dedup_key IS NOT NULL THEN
        DELETE FROM outbox.dedup AS d
         WHERE d.dedup_key = cancelled.dedup_key AND d.type = cancelled.type AND d.tenant = COALESCE(cancelled.tenant, '') AND d.event_id = cancel.id;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION outbox.cancel(uuid) IS
'Takes back a scheduled event, in the current transaction: true if it was waiting, and now never will be delivered; false if it is in the log already (due), was cancelled before, or is not there.
Its dedup_key is free again. event_status() says cancelled for outbox.event_retention. Errors: 22004 for NULL; above READ COMMITTED 40001 when it became due meanwhile.';

-- For ORMs: INSERT INTO outbox.new_event (type, payload) VALUES (...) RETURNING id. The view itself never shows a row.

-- A session with session_replication_role = replica fires no trigger of a view, and the insert would vanish without a word. What is evaluated all the same says so: the check of
-- the id's domain when a NULL is given or filled in, the default when COPY leaves the column out.
CREATE FUNCTION outbox._refuse_replica() RETURNS uuid LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('session_replication_role') = 'replica' THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'cannot insert into outbox.new_event while session_replication_role is replica',
            DETAIL = 'Triggers do not fire there.', HINT = 'Call outbox.enqueue().';
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox._refuse_replica() IS 'The default of new_event.id: NULL, or an error where the insert would be lost';

CREATE DOMAIN outbox._new_id AS pg_catalog.uuid CONSTRAINT not_in_replica_role CHECK (outbox._refuse_replica() IS NULL);
COMMENT ON DOMAIN outbox._new_id IS 'The type of new_event.id: a uuid, and an error where the insert would be lost';

CREATE VIEW outbox.new_event AS
SELECT NULL::outbox._new_id         AS id,
       NULL::pg_catalog.text        AS type,
       NULL::pg_catalog.jsonb       AS payload,
       NULL::pg_catalog.text        AS key,
       NULL::pg_catalog.jsonb       AS headers,
       NULL::pg_catalog.timestamptz AS deliver_at,
       NULL::pg_catalog.text        AS dedup_key,
       NULL::pg_catalog.text        AS tenant
 WHERE false;
ALTER VIEW outbox.new_event ALTER COLUMN id SET DEFAULT outbox._refuse_replica();

CREATE TRIGGER enqueue INSTEAD OF INSERT ON outbox.new_event FOR EACH ROW EXECUTE FUNCTION outbox._new_event();

COMMENT ON VIEW outbox.new_event IS 'Events to be: an INSERT is a call of enqueue(); RETURNING id gives the id. Always empty.';
COMMENT ON COLUMN outbox.new_event.id IS 'Set by the insert: do not give one';
COMMENT ON COLUMN outbox.new_event.type IS 'As in enqueue()';
COMMENT ON COLUMN outbox.new_event.payload IS 'As in enqueue()';
COMMENT ON COLUMN outbox.new_event.key IS 'As in enqueue()';
COMMENT ON COLUMN outbox.new_event.headers IS 'As in enqueue()';
COMMENT ON COLUMN outbox.new_event.deliver_at IS 'As in enqueue()';
COMMENT ON COLUMN outbox.new_event.dedup_key IS 'As in enqueue(); the id of a duplicate is the first event''s';
COMMENT ON COLUMN outbox.new_event.tenant IS 'As in enqueue()';

-- The log is written by enqueue(), which fires no triggers, and emptied by retirement, which these let through. All else is a mistake, save one: a
-- restored dump brings complete rows of older transactions. (Logical replication and --disable-triggers do not fire these.)
DO $guard_events$
DECLARE
    relation pg_catalog.text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['event'::pg_catalog.text] OPERATOR(pg_catalog.||) ARRAY(SELECT pg_catalog.format('event_%s', i) FROM pg_catalog.generate_series(0, 15) AS i) LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_insert BEFORE INSERT ON outbox.%I FOR EACH ROW EXECUTE FUNCTION outbox._refuse_event_change()', relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON outbox.%I FOR EACH ROW EXECUTE FUNCTION outbox._refuse_event_change()', relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON outbox.%I FOR EACH STATEMENT EXECUTE FUNCTION outbox._refuse_event_change()', relation);
        EXECUTE pg_catalog.format('ALTER TABLE outbox.%I ENABLE ALWAYS TRIGGER refuse_truncate', relation);
    END LOOP;
    -- a publisher that has outbox, too, empties its tables of the same names when it is done with them
    FOREACH relation IN ARRAY '{tick_0,tick_1,cursor_0,cursor_1}'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_replicated BEFORE TRUNCATE ON outbox.%I FOR EACH STATEMENT EXECUTE FUNCTION outbox._refuse_event_change()', relation);
        EXECUTE pg_catalog.format('ALTER TABLE outbox.%I ENABLE REPLICA TRIGGER refuse_replicated', relation);
    END LOOP;
END
$guard_events$;

-- Whoever changes these tables, and however, the worker hears of it when the change commits.
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON outbox.subscription       FOR EACH STATEMENT EXECUTE FUNCTION outbox._changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON outbox.subscription_match FOR EACH STATEMENT EXECUTE FUNCTION outbox._changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON outbox.secret             FOR EACH STATEMENT EXECUTE FUNCTION outbox._changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON outbox.replay             FOR EACH STATEMENT EXECUTE FUNCTION outbox._changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON outbox.delivery           FOR EACH STATEMENT EXECUTE FUNCTION outbox._changed();
ALTER TABLE outbox.subscription       ENABLE ALWAYS TRIGGER changed;   -- also in a session with session_replication_role = replica
ALTER TABLE outbox.subscription_match ENABLE ALWAYS TRIGGER changed;
ALTER TABLE outbox.secret             ENABLE ALWAYS TRIGGER changed;
ALTER TABLE outbox.replay             ENABLE ALWAYS TRIGGER changed;
ALTER TABLE outbox.delivery           ENABLE ALWAYS TRIGGER changed;

-- ===== capturing =========================================================================================================

-- A capture is two triggers on the user's table, made and dropped with the caller's own rights; what it captures stands in their arguments. When columns are renamed or dropped, the
-- library changes the arguments (src/capture_arguments.c).

CREATE FUNCTION outbox._check_capture_columns(source regclass, columns name[], role text) RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one   name;
    state "char";
    seen  name[] := '{}';
BEGIN
    FOREACH one IN ARRAY _check_capture_columns.columns LOOP
        SELECT a.attgenerated INTO state FROM pg_attribute AS a WHERE a.attrelid = source AND a.attname = one AND a.attnum > 0 AND NOT a.attisdropped;
        IF one IS NULL THEN
            RAISE null_value_not_allowed USING MESSAGE = format('%s of a capture must not contain null', role),
                DETAIL = 'Each element is the name of a column.', HINT = 'Leave it out.';
        ELSIF NOT FOUND THEN
            RAISE undefined_column USING MESSAGE = format('column "%s" of table %s does not exist', one, source),
                DETAIL = format('It is among the %s. System columns cannot be captured.', role),
                HINT = CASE WHEN one = '*' THEN 'The array with nothing but *, ''{*}'', stands for all columns.' ELSE 'See \d for the names; they are case-sensitive here.' END;
        ELSIF state = 'v' THEN
            RAISE feature_not_supported USING MESSAGE = format('column "%s" of table %s is virtual', one, source),
                DETAIL = 'It is computed when it is read: triggers do not see its value.', HINT = 'Capture the columns that it is computed from.';
        ELSIF NOT has_column_privilege(source, one::text, 'SELECT') THEN   -- which also refuses what an old snapshot still shows (42703)
            RAISE insufficient_privilege USING MESSAGE = format('permission denied for column "%s" of table %s', one, source),
                DETAIL = 'Who captures a column must be able to read it.', HINT = 'GRANT SELECT on it to the owner of the table, or leave it out.';
        ELSIF one = ANY (seen) THEN
            RAISE duplicate_column USING MESSAGE = format('column "%s" is named twice', one), DETAIL = format('It is among the %s.', role), HINT = 'Name it once.';
        END IF;
        seen := seen || one;
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox._check_capture_columns(regclass, name[], text) IS 'Refuses what are not different columns of the table with a stored value that the caller may read (42703, 42701, 42501, 22004, 0A000)';

-- What may be captured, and by whom: its owner, who may read all of it and let others read it.
CREATE FUNCTION outbox._check_capture_source(source regclass) RETURNS pg_class LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation pg_class;
    what     text;
BEGIN
    SELECT c.* INTO relation FROM pg_class AS c WHERE c.oid = source;
    IF source IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'source of a capture must not be null', DETAIL = 'It is the table.', HINT = 'Give one.';
    ELSIF NOT FOUND THEN
        RAISE undefined_table USING MESSAGE = 'table does not exist', DETAIL = format('No relation has the OID %s.', source::oid), HINT = 'Give the name of a table.';
    ELSIF NOT pg_has_role(relation.relowner, 'USAGE') THEN
        RAISE insufficient_privilege USING MESSAGE = format('must be owner of table %s', source),
            DETAIL = 'Whoever receives the events reads the table through them.', HINT = format('Act as %s, or as a member of that role.', pg_get_userbyid(relation.relowner));
    END IF;

    what := CASE WHEN relation.oid < 16384 OR relation.relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) THEN 'belongs to the system'
                 WHEN EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS x ON x.oid = d.refobjid
                               WHERE d.classid = 'pg_class'::regclass AND d.objid = source AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND x.extname = 'outbox')
                      THEN 'belongs to outbox itself'
                 WHEN relation.relkind = 'v' THEN 'is a view'
                 WHEN relation.relkind = 'm' THEN 'is a materialized view'
                 WHEN relation.relkind = 'f' THEN 'is a foreign table'
                 WHEN relation.relkind NOT IN ('r', 'p') THEN 'is not a table'
                 WHEN relation.relpersistence = 't' THEN 'is a temporary table' END;
    IF what IS NOT NULL THEN
        RAISE wrong_object_type USING MESSAGE = format('%s cannot be captured', source), DETAIL = format('It %s.', what),
            HINT = CASE WHEN relation.relkind IN ('v', 'm') THEN 'Capture the tables that it reads.' ELSE 'Capture ordinary and partitioned tables.' END;
    END IF;
    RETURN relation;
END
$$;
COMMENT ON FUNCTION outbox._check_capture_source(regclass) IS 'Refuses what is not a table of the caller that can be captured (42501, 42809, 42P01, 22004)';

CREATE FUNCTION outbox.capture(source regclass, columns name[], type text DEFAULT NULL, key_columns name[] DEFAULT NULL) RETURNS void LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation  pg_class := outbox._check_capture_source(capture.source);
    name      text     := format('%I.%I', relation.relnamespace::regnamespace::name, relation.relname);
    everything boolean := capture.columns = '{*}';
    captured  regclass;
BEGIN
    EXECUTE format('LOCK TABLE ONLY %s IN SHARE ROW EXCLUSIVE MODE', name);   -- as CREATE TRIGGER does
    IF to_regclass(name) IS DISTINCT FROM source THEN
        RAISE serialization_failure USING MESSAGE = format('table %s has been renamed meanwhile', name), DETAIL = 'Another transaction did so.', HINT = 'Try again.';
    END IF;

    SELECT t.tgrelid INTO captured FROM pg_trigger AS t
     WHERE t.tgfoid = 'outbox._capture()'::regprocedure AND t.tgparentid = 0
       AND (t.tgrelid = source OR t.tgrelid IN (SELECT a.relid FROM pg_partition_ancestors(source) AS a) OR t.tgrelid IN (SELECT p.relid FROM pg_partition_tree(source) AS p))
     ORDER BY t.tgrelid <> source LIMIT 1;
    IF FOUND THEN
        RAISE duplicate_object USING MESSAGE = format('table %s is captured already', source),
            DETAIL = CASE WHEN captured <> source THEN format('It has partitions in common with %s, which is captured.', captured) ELSE 'A table has one capture.' END,
            HINT = format('To capture it anew, first call outbox.release(%L), best in the same transaction.', captured::text);
    END IF;

    IF columns IS NULL OR cardinality(columns) = 0 THEN
        RAISE null_value_not_allowed USING MESSAGE = 'columns of a capture must not be empty', DETAIL = 'What is not named is not captured.',
            HINT = 'Name the columns that are meant for others, or ''{*}'' for all, also those added later.';
    ELSIF NOT everything THEN
        PERFORM outbox._check_capture_columns(source, columns, 'columns');
    ELSIF NOT has_table_privilege(source, 'SELECT') THEN
        RAISE insufficient_privilege USING MESSAGE = format('permission denied for table %s', source),
            DETAIL = 'Who captures all columns must be able to read them all.', HINT = 'GRANT SELECT on it to its owner, or name columns.';
    END IF;

    IF key_columns IS NULL THEN
        SELECT array_agg(a.attname ORDER BY k.place) INTO key_columns
          FROM pg_index AS i CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (number, place) JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
         WHERE i.indrelid = source AND i.indisprimary AND k.place <= i.indnkeyatts;
        IF key_columns IS NULL THEN
            RAISE invalid_parameter_value USING MESSAGE = format('table %s has no primary key', source), DETAIL = 'The key of its changes is what they are delivered in order by.',
                HINT = 'Give key_columns; or key_columns => ''{}'', if order does not matter.';
        END IF;
    ELSIF cardinality(key_columns) > 32 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'key_columns of a capture must not be more than 32', DETAIL = format('They are %s.', cardinality(key_columns)), HINT = 'Name fewer.';
    END IF;
    PERFORM outbox._check_capture_columns(source, key_columns, 'key_columns');

    type := COALESCE(type, format('%s.%s.*', relation.relnamespace::regnamespace::name, relation.relname));
    PERFORM outbox._check_capture_type(type);

    EXECUTE format('CREATE TRIGGER outbox_capture AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION outbox._capture(%s)', name,
        (SELECT string_agg(quote_literal(a.argument), ', ' ORDER BY a.place)
           FROM unnest(ARRAY[type, cardinality(key_columns)::text] || key_columns::text[] || CASE WHEN everything THEN ARRAY['*'] ELSE cardinality(columns)::text || columns::text[] END)
                WITH ORDINALITY AS a (argument, place)));
    EXECUTE format('CREATE TRIGGER outbox_capture_truncate AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION outbox._capture(%L)', name, type);
    EXECUTE format('COMMENT ON TRIGGER outbox_capture ON %s IS %L', name, 'Made by outbox.capture(): changes become events. See outbox.release().');
    EXECUTE format('COMMENT ON TRIGGER outbox_capture_truncate ON %s IS %L', name, 'Made by outbox.capture(): TRUNCATE becomes an event. See outbox.release().');

    IF relation.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = source) THEN
        RAISE WARNING 'rows of tables that inherit from % are not captured', source
            USING DETAIL = 'A trigger fires for the rows of its own table only; partitions are the exception.', HINT = 'Capture those tables too.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.capture(regclass, name[], text, name[]) IS
'From now on each change of a row of the table records an event, in the same transaction: for that it gets two triggers, outbox_capture and outbox_capture_truncate.
columns: what of the row is in the events; ''{*}'' for all columns, also those added later. An update that changes none of them, nor the key, records nothing.
type: of the events; a last word * stands for insert, update, delete or truncate; default schema.table.*, as the names are now. key_columns: their text is the key, in which order changes are delivered;
several make a JSON array; default: the primary key; ''{}'' for none. An update that changes the key has the new one.
payload: {"op", "table", "old", "new", "changed", "old_key"}, each where it applies; values as to_jsonb() has them, times in UTC. Renamed columns are followed; dropped ones are left out from then on.
The caller must own the table and may read the columns. Who writes to it needs no right to enqueue; if the event is refused (54000: too large), so is the change.
Errors: 42501 not the owner, or must not read a column; 42809 not an ordinary or partitioned table, temporary, or of the system; 42710 captured already; 42703, 42701 columns; 22023 type, or no primary key; 22004; 0A000.';

CREATE FUNCTION outbox.release(source regclass) RETURNS void LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    root  regclass;
    found integer := 0;
    one   name;
BEGIN
    IF source IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'source of a capture must not be null', DETAIL = 'It is the table.', HINT = 'Give one.';
    END IF;
    FOR one IN SELECT t.tgname FROM pg_trigger AS t WHERE t.tgrelid = source AND t.tgfoid = 'outbox._capture()'::regprocedure AND t.tgparentid = 0 LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', one, source);
        found := found + 1;
    END LOOP;
    IF found = 0 THEN
        SELECT t.tgrelid INTO root FROM pg_trigger AS t
         WHERE t.tgfoid = 'outbox._capture()'::regprocedure AND t.tgparentid = 0 AND t.tgrelid IN (SELECT a.relid FROM pg_partition_ancestors(source) AS a) LIMIT 1;
        RAISE undefined_object USING MESSAGE = format('table %s is not captured', source),
            DETAIL = CASE WHEN root IS NULL THEN 'It has no trigger of outbox.' ELSE format('It is a partition of %s, which is.', root) END,
            HINT = CASE WHEN root IS NULL THEN 'See outbox.capture().' ELSE format('Call outbox.release(%L).', root::text) END;
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.release(regclass) IS 'Ends the capture of a table: drops its triggers. What has been recorded stays. The caller must own the table. Errors: 42501 not the owner, 42704 not captured.';

-- ===== subscribing =======================================================================================================

-- A subscription is built as a row: defaults first, then what was given, then one check of the whole, because some options limit each other. An option is a column of
-- outbox.subscription, an argument of the same name of subscribe() and alter_subscription(), a default, a check, and a word of _is_option(). No error shows
-- more of a URL than its scheme, host and port, nor anything of a secret.
--
-- What managers call (subscribe and the others) is a thin layer in C, outbox_manage(). It runs with the caller's rights, finds out whether that caller is an operator,
-- and calls the function of the same name with "_" before it, which has that as one more argument, runs as the owner, who alone may touch the tables, and cannot be
-- called by anybody else. Where there are many arguments, those that are not NULL go on as one record (outbox_manage_options()). So a superuser who calls a manager's SECURITY DEFINER function lends it nothing. The layer also keeps the server log from quoting the statement,
-- which may contain a secret, when it fails.

CREATE FUNCTION outbox._default_subscription() RETURNS outbox.subscription LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s outbox.subscription;
BEGIN
    s.kind            := 'push';
    s.types           := '{**}';
    s.ordering        := 'key';
    s.on_dead         := 'skip';
    s.network         := 'public';
    s.ports           := '{443}';
    s.max_in_flight   := 10;
    s.timeout         := '15 s';
    s.connect_timeout := '5 s';
    s.retry_base      := '5 s';
    s.retry_factor    := 4;
    s.retry_max       := '4 h';
    s.retry_jitter    := 0.2;
    s.max_attempts    := 25;
    s.give_up_after   := LEAST('72 h', outbox._max_backlog_age());
    s.fatal_statuses  := '{}';
    s.max_blocked     := 10000;
    s.response_kept   := 1024;
    s.format          := 'binary';
    s.batch_size      := 100;
    s.batch_bytes     := 262144;
    s.batch_linger    := '10 ms';
    s.breaker_threshold := 10;
    s.breaker_probe   := '10 s';
    s.breaker_max     := '10 min';
    s.disable_after   := '120 h';
    s.state           := 'active';
    s.state_since     := now();
    s.paused_by_all   := false;
    s.created_at      := now();
    s.start_epoch     := outbox.epoch();
    RETURN s;
END
$$;
COMMENT ON FUNCTION outbox._default_subscription() IS 'The default of every option of a subscription';

-- What alter_subscription() can change and reset: the columns of outbox.subscription with these names, and headers, which are kept with the secrets.
CREATE FUNCTION outbox._is_option(option text) RETURNS boolean LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
RETURN option = ANY ('{types,tenant,filter,ordering,on_dead,network,ports,ca,max_in_flight,rate_limit,timeout,connect_timeout,retry_base,retry_factor,retry_max,retry_jitter,max_attempts,give_up_after,
                       fatal_statuses,max_blocked,response_kept,headers,format,batch_size,batch_bytes,batch_linger,breaker_threshold,breaker_probe,breaker_max,disable_after,labels,description}'::text[]);
COMMENT ON FUNCTION outbox._is_option(text) IS 'Is this the name of an option of a subscription that has a default?';

CREATE FUNCTION outbox._refuse_option(option text, detail text, hint text) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE invalid_parameter_value USING MESSAGE = format('invalid value for subscription option "%s"', option), DETAIL = detail, HINT = hint;
END
$$;
COMMENT ON FUNCTION outbox._refuse_option(text, text, text) IS 'Raises 22023 for an option of a subscription';

-- Stricter than RFC 3986, so that no two parsers can disagree about the host.
CREATE FUNCTION outbox._check_url(url text, network text, ports integer[]) RETURNS void LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shape CONSTANT text := 'A URL looks like https://host/path or https://host:port/path?query.';
    part  text[];
    port  integer;
BEGIN
    IF octet_length(url) > 2048 THEN
        PERFORM outbox._refuse_option('url', format('The URL has %s bytes; at most 2048 are permitted.', octet_length(url)), 'Use a shorter URL.');
    ELSIF url COLLATE "C" !~ '^[!-~]+$' THEN
        PERFORM outbox._refuse_option('url', 'The URL contains a space, a control character or a character that is not ASCII.', 'Percent-encode such characters.');
    ELSIF url ~ '#' THEN
        PERFORM outbox._refuse_option('url', 'The URL contains a fragment.', 'Leave out "#" and what follows it: it would not be sent.');
    ELSIF url ~ '[\\"<>^`{|}]' THEN
        PERFORM outbox._refuse_option('url', 'The URL contains one of the characters \ " < > ^ ` { | }.', 'Percent-encode such characters.');
    ELSIF url !~* '^https?://' THEN
        PERFORM outbox._refuse_option('url', 'The scheme of the URL is neither https nor http.', shape);
    ELSIF url ~ '^[^:]+://[^/?]*@' THEN
        PERFORM outbox._refuse_option('url', 'The URL contains a user name or password.', 'Receivers know the sender by the signature: leave out what comes before "@".');
    END IF;

    part := regexp_match(url, '^([A-Za-z]+)://(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_.])?)(?::([0-9]{1,5}))?(?:[/?].*)?$');
    IF part IS NULL THEN
        PERFORM outbox._refuse_option('url', 'The URL has no valid host and port.', shape);
    END IF;
    port := COALESCE(part[3]::integer, CASE lower(part[1]) WHEN 'https' THEN 443 ELSE 80 END);
    IF port NOT BETWEEN 1 AND 65535 THEN
        PERFORM outbox._refuse_option('url', format('Port %s is not between 1 and 65535.', port), shape);
    END IF;

    IF network = 'public' AND lower(part[1]) <> 'https' THEN
        PERFORM outbox._refuse_option('url', 'Subscriptions on the public network use https.', 'Use https, or have an operator set network => ''private''.');
    ELSIF network = 'public' AND port <> ALL (ports) THEN
        PERFORM outbox._refuse_option('url', format('Port %s is not among the permitted ports %s.', port, ports), 'Permit it with the option "ports".');
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._check_url(text, text, integer[]) IS
'Refuses (22023) a URL that a subscription with this network and these ports cannot use. Addresses are judged when they are dialled, after DNS.';

-- As much as can be seen without a cryptographic library: complete PEM blocks, each the base64 of one DER SEQUENCE (ITU-T X.690). What the worker's
-- library then cannot use fails as a TLS error that says so.
CREATE FUNCTION outbox._check_ca(ca text) RETURNS void LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shape   CONSTANT text := 'Give the text of a PEM file: lines of base64 between -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----, as they are.';
    begun   CONSTANT bigint := (octet_length(ca) - octet_length(replace(ca, '-----BEGIN ', ''))) / octet_length('-----BEGIN ');
    n       integer := 0;
    encoded text;
    der     bytea;
    size    integer;
BEGIN
    IF octet_length(ca) > 65536 THEN
        PERFORM outbox._refuse_option('ca', format('The certificates have %s bytes; at most 65536 are permitted.', octet_length(ca)), 'Leave out those that have not signed the receiver''s certificate.');
    ELSIF ca LIKE '%PRIVATE KEY-----%' THEN
        PERFORM outbox._refuse_option('ca', 'The text contains a private key.', 'Give certificates only: they are kept, and dumped, as they are.');
    END IF;

    FOR encoded IN
        SELECT m[1] FROM regexp_matches(ca, '(?:^|\n)-----BEGIN CERTIFICATE-----[ \t\r]*\n((?:[A-Za-z0-9+/]{1,250}[= \t\r]*\n)+)-----END CERTIFICATE-----', 'g') m
    LOOP
        n := n + 1;
        BEGIN
            der := decode(encoded, 'base64');
        EXCEPTION WHEN invalid_parameter_value THEN
            der := '';
        END;
        size := CASE WHEN octet_length(der) < 5 OR get_byte(der, 0) <> 48 THEN -1
                     WHEN get_byte(der, 1) < 128 THEN 2 + get_byte(der, 1)
                     WHEN get_byte(der, 1) = 129 THEN 3 + get_byte(der, 2)
                     WHEN get_byte(der, 1) = 130 THEN 4 + get_byte(der, 2) * 256 + get_byte(der, 3)
                     ELSE -1 END;
        IF size <> octet_length(der) THEN
            PERFORM outbox._refuse_option('ca', format('What is in certificate %s is cut off or is no certificate.', n), shape);
        END IF;
    END LOOP;
    IF n = 0 THEN
        PERFORM outbox._refuse_option('ca', 'The text has no certificate in PEM form.', shape);
    ELSIF n <> begun THEN
        PERFORM outbox._refuse_option('ca', format('Of %s PEM blocks only %s are complete certificates.', begun, n), shape);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._check_ca(text) IS 'Refuses (22023) a text that cannot be certificates in PEM form';

CREATE FUNCTION outbox._check_span(option text, span interval, lowest interval, highest interval, bound text DEFAULT NULL) RETURNS void LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF span IS NULL OR span < lowest OR span > highest THEN
        PERFORM outbox._refuse_option(option, format('%s is not between %s and %s.', COALESCE(span::text, 'NULL'), lowest, highest),
                                      format('Choose a value between %s and %s', lowest, highest) || COALESCE(', or change "' || bound || '" as well', '') || '.');
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._check_span(text, interval, interval, interval, text) IS 'Refuses (22023) an interval out of bounds. bound: the option that is one of them';

CREATE FUNCTION outbox._check_number(option text, number float8, lowest float8, highest float8) RETURNS void LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF number IS NULL OR NOT (number BETWEEN lowest AND highest) THEN   -- NaN is larger than all
        PERFORM outbox._refuse_option(option, format('%s is not between %s and %s.', COALESCE(number::text, 'NULL'), lowest, highest), format('Choose a value between %s and %s.', lowest, highest));
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._check_number(text, float8, float8, float8) IS 'Refuses (22023) a number out of bounds';

CREATE FUNCTION outbox._refuse_push_options(kind text, options jsonb) RETURNS void LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    option text;
BEGIN
    IF kind = 'push' THEN
        RETURN;
    ELSIF options ? 'url' THEN
        PERFORM outbox._refuse_option('url', 'A pull subscription cannot become a push subscription.', 'Subscribe anew, under another name.');
    END IF;
    SELECT o INTO option FROM jsonb_object_keys(options) AS o
     WHERE o = ANY ('{network,ports,ca,secret,headers,timeout,connect_timeout,response_kept,fatal_statuses,max_in_flight,rate_limit,format,batch_size,batch_bytes,batch_linger,
                      breaker_threshold,breaker_probe,breaker_max,disable_after}'::text[])
     ORDER BY o LIMIT 1;
    IF FOUND THEN
        PERFORM outbox._refuse_option(option, 'A pull subscription sends nothing: this option is for subscriptions with a URL.', 'Leave it out, or subscribe with a URL.');
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._refuse_push_options(text, jsonb) IS 'Refuses (22023) options that a pull subscription has no use for';

CREATE FUNCTION outbox._check_subscription(s outbox.subscription, operator boolean) RETURNS outbox.subscription LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    port   integer;
    status integer;
BEGIN
    IF s.name IS NULL OR s.name COLLATE "C" !~ '^[A-Za-z0-9_.:-]{1,128}$' THEN
        RAISE invalid_name USING MESSAGE = 'invalid subscription name',
            DETAIL = 'A name has 1 to 128 characters, each a letter, a digit, or one of _ . : -', HINT = 'Choose a name such as billing or crm:eu.';
    END IF;

    IF s.ordering NOT IN ('key', 'none') THEN
        PERFORM outbox._refuse_option('ordering', format('"%s" is not an ordering.', s.ordering), 'Use key or none.');
    ELSIF s.on_dead NOT IN ('skip', 'block') THEN
        PERFORM outbox._refuse_option('on_dead', format('"%s" is not a way to go on.', s.on_dead), 'Use skip (go on with the key''s next event) or block (hold the key back).');
    ELSIF s.network NOT IN ('public', 'private') THEN
        PERFORM outbox._refuse_option('network', format('"%s" is not a network.', s.network), 'Use public or private.');
    ELSIF s.network = 'private' AND NOT operator THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for subscriptions on the private network',
            DETAIL = 'With network => ''private'' the server talks to internal addresses.', HINT = 'Have an operator do this, or use network => ''public''.';
    END IF;

    PERFORM outbox._check_types(s.types);
    IF octet_length(s.tenant) NOT BETWEEN 1 AND 128 THEN
        PERFORM outbox._refuse_option('tenant', format('The tenant has %s bytes.', octet_length(s.tenant)), 'Use 1 to 128 bytes, or leave the option out for events of every tenant.');
    ELSIF jsonb_typeof(s.labels) <> 'object' OR octet_length(s.labels::text) > 8192 THEN
        PERFORM outbox._refuse_option('labels', 'Labels are not a JSON object of at most 8192 bytes.', 'Use an object such as {"team": "billing"}.');
    ELSIF octet_length(s.description) > 8192 THEN
        PERFORM outbox._refuse_option('description', format('The description has %s bytes; at most 8192 are permitted.', octet_length(s.description)), 'Use a shorter description.');
    END IF;

    IF octet_length(s.filter::text) > 8192 THEN
        PERFORM outbox._refuse_option('filter', format('The path has %s bytes; at most 8192 are permitted.', octet_length(s.filter::text)), 'Use a shorter one.');
    ELSIF EXISTS (SELECT FROM regexp_matches(s.filter::text, '\$?"(?:[^"\\]|\\.)*"', 'g') AS quoted WHERE quoted[1] LIKE '$%') THEN
        PERFORM outbox._refuse_option('filter', 'The path has a variable, and there is nothing to give it a value.', 'Write the value into the path.');
    END IF;

    PERFORM outbox._check_number('max_in_flight', s.max_in_flight, 1, 1000);
    PERFORM outbox._check_span('timeout', s.timeout, '100 ms', '10 min');
    PERFORM outbox._check_span('connect_timeout', s.connect_timeout, '100 ms', s.timeout, 'timeout');
    PERFORM outbox._check_span('retry_base', s.retry_base, '1 ms', '1 day');
    PERFORM outbox._check_number('retry_factor', s.retry_factor, 1, 100);
    PERFORM outbox._check_span('retry_max', s.retry_max, s.retry_base, '30 days', 'retry_base');
    PERFORM outbox._check_number('retry_jitter', s.retry_jitter, 0, 1);
    PERFORM outbox._check_number('max_attempts', s.max_attempts, 1, 1000);
    IF s.give_up_after <> '0'::interval THEN   -- 0: never
        PERFORM outbox._check_span('give_up_after', s.give_up_after, s.retry_base, '365 days', 'retry_base');
        -- one that was permitted once does not stand in the way of other changes
        IF s.give_up_after > outbox._max_backlog_age() AND s.give_up_after IS DISTINCT FROM (SELECT t.give_up_after FROM outbox.subscription AS t WHERE t.id = s.id) THEN
            PERFORM outbox._refuse_option('give_up_after', format('%s is longer than outbox.max_backlog_age, which is %s: what waits behind the event would be given up first.', s.give_up_after, outbox._max_backlog_age()),
                                          'Choose a shorter time, or have outbox.max_backlog_age raised.');
        END IF;
    END IF;
    PERFORM outbox._check_number('max_blocked', s.max_blocked, 1, 1000000);
    PERFORM outbox._check_number('response_kept', s.response_kept, 0, 65536);

    IF s.format NOT IN ('binary', 'structured', 'batch') THEN
        PERFORM outbox._refuse_option('format', format('"%s" is not a format.', s.format), 'Use binary, structured, or batch.');
    END IF;
    PERFORM outbox._check_number('batch_size', s.batch_size, 1, 10000);
    PERFORM outbox._check_number('batch_bytes', s.batch_bytes, 1024, 16777216);
    PERFORM outbox._check_span('batch_linger', s.batch_linger, '0', '10 s');
    IF s.rate_limit IS NOT NULL THEN
        PERFORM outbox._check_number('rate_limit', s.rate_limit, 0.001, 1000000);
    END IF;
    PERFORM outbox._check_number('breaker_threshold', s.breaker_threshold, 0, 1000000);
    PERFORM outbox._check_span('breaker_probe', s.breaker_probe, '10 ms', '1 day');
    PERFORM outbox._check_span('breaker_max', s.breaker_max, s.breaker_probe, '30 days', 'breaker_probe');
    IF s.disable_after <> '0'::interval THEN   -- 0: never
        PERFORM outbox._check_span('disable_after', s.disable_after, '1 s', '365 days');
    END IF;
    IF s.ca IS NOT NULL THEN
        PERFORM outbox._check_ca(s.ca);
    END IF;

    IF cardinality(s.ports) NOT BETWEEN 1 AND 100 OR array_ndims(s.ports) <> 1 THEN
        PERFORM outbox._refuse_option('ports', 'The list does not have 1 to 100 elements.', 'List the ports that the URL may use, such as {443,8443}.');
    END IF;
    FOREACH port IN ARRAY s.ports LOOP
        PERFORM outbox._check_number('ports', port, 1, 65535);
    END LOOP;
    IF cardinality(s.fatal_statuses) > 100 OR array_ndims(s.fatal_statuses) > 1 THEN
        PERFORM outbox._refuse_option('fatal_statuses', 'The list has more than 100 elements or more than one dimension.', 'List HTTP statuses, such as {400,422}.');
    END IF;
    FOREACH status IN ARRAY s.fatal_statuses LOOP
        PERFORM outbox._check_number('fatal_statuses', status, 300, 599);
        IF status IN (408, 410, 425, 429) THEN
            PERFORM outbox._refuse_option('fatal_statuses', format('Status %s has a meaning of its own: 408, 425 and 429 are retried, 410 disables the subscription.', status), 'Leave it out.');
        END IF;
    END LOOP;

    IF s.kind = 'push' THEN
        PERFORM outbox._check_url(s.url, s.network, s.ports);
    END IF;

    -- intervals as plain microseconds: neither readers nor arithmetic need to think about days and months
    s.timeout         := make_interval(secs => extract(epoch FROM s.timeout)::float8);
    s.connect_timeout := make_interval(secs => extract(epoch FROM s.connect_timeout)::float8);
    s.retry_base      := make_interval(secs => extract(epoch FROM s.retry_base)::float8);
    s.retry_max       := make_interval(secs => extract(epoch FROM s.retry_max)::float8);
    s.give_up_after   := make_interval(secs => extract(epoch FROM s.give_up_after)::float8);
    s.batch_linger    := make_interval(secs => extract(epoch FROM s.batch_linger)::float8);
    s.breaker_probe   := make_interval(secs => extract(epoch FROM s.breaker_probe)::float8);
    s.breaker_max     := make_interval(secs => extract(epoch FROM s.breaker_max)::float8);
    s.disable_after   := make_interval(secs => extract(epoch FROM s.disable_after)::float8);
    RETURN s;
END
$$;
COMMENT ON FUNCTION outbox._check_subscription(outbox.subscription, boolean) IS
'Refuses (22023, 42602, 42501) a subscription that cannot be, or only by an operator; returns it with its intervals normalized';

-- The 60 clock bits of an instant, and the lowest id with given clock bits (src/event_id.h): so that a time can stand for a place among the ids.
CREATE FUNCTION outbox._clock_at(instant timestamptz) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE WHEN instant <= '1970-01-01 00:00:00+00' THEN 0
            WHEN instant >= '9999-12-31 00:00:00+00' THEN 1152921504606846975
            ELSE (floor(extract(epoch FROM instant) * 1000)::bigint << 12)
               + ((extract(epoch FROM instant) * 1000000)::bigint - floor(extract(epoch FROM instant) * 1000)::bigint * 1000) * 4096 / 1000 END;
COMMENT ON FUNCTION outbox._clock_at(timestamptz) IS 'The clock bits of an id of this instant: 48 bits of Unix milliseconds, 12 of fraction';

CREATE FUNCTION outbox._lowest_id(clock bigint) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN overlay(lpad(to_hex(clock), 15, '0') || '8000000000000000' PLACING '7' FROM 13 FOR 0)::uuid;
COMMENT ON FUNCTION outbox._lowest_id(bigint) IS 'The lowest event id with these clock bits';

CREATE FUNCTION outbox._running_since(instant timestamptz) RETURNS interval LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT clock_timestamp() - instant - COALESCE(sum(LEAST(o.ended, clock_timestamp()) - GREATEST(o.began, instant)), '0')
      FROM outbox.outage AS o WHERE o.epoch = outbox.epoch() AND o.ended > instant AND o.began < clock_timestamp()
$$;
COMMENT ON FUNCTION outbox._running_since(timestamptz) IS 'For how long there has been a delivery worker since an instant: the age of an event for the backlog bound';

CREATE FUNCTION outbox._max_backlog_age() RETURNS interval LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN (SELECT CASE WHEN b.age > '0' THEN GREATEST(b.age, COALESCE(current_setting('outbox.event_retention', true), '3d')::interval) END
          FROM (SELECT COALESCE(current_setting('outbox.max_backlog_age', true), '14d')::interval AS age) AS b);
COMMENT ON FUNCTION outbox._max_backlog_age() IS 'outbox.max_backlog_age, at least outbox.event_retention; NULL: off';

CREATE FUNCTION outbox._new_secret() RETURNS bytea LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
RETURN sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
COMMENT ON FUNCTION outbox._new_secret() IS
'32 random bytes. Each uuid brings 122 bits of the server''s cryptographic generator, three of them more than SHA-256 can hold.';

CREATE FUNCTION outbox._secret_text(secret bytea) RETURNS text LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN 'whsec_' || translate(encode(secret, 'base64'), E'\n', '');
COMMENT ON FUNCTION outbox._secret_text(bytea) IS 'A signing secret as Standard Webhooks writes it';

CREATE FUNCTION outbox._secret_bytes(secret text) RETURNS bytea LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bytes bytea;
BEGIN
    IF secret COLLATE "C" ~ '^whsec_[A-Za-z0-9+/]+={0,2}$' THEN
        BEGIN
            bytes := decode(substr(secret, 7), 'base64');
        EXCEPTION WHEN invalid_parameter_value THEN
            bytes := NULL;
        END;
    END IF;
    IF bytes IS NULL OR octet_length(bytes) NOT BETWEEN 24 AND 64 THEN
        PERFORM outbox._refuse_option('secret', 'A secret is "whsec_" followed by the base64 of 24 to 64 bytes.', 'Leave the option out to have one generated.');
    END IF;
    RETURN bytes;
END
$$;
COMMENT ON FUNCTION outbox._secret_bytes(text) IS 'The key bytes of a signing secret; refuses (22023) any other text without repeating it';

CREATE FUNCTION outbox._store_secret(subscription_id integer, kind text, plain bytea, hint text[]) RETURNS void LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO outbox.secret (subscription_id, kind, secret, key_id, hint)
    SELECT subscription_id, kind, e.secret, e.key_id, hint FROM outbox._encrypt(kind, subscription_id, plain) AS e;
END;
COMMENT ON FUNCTION outbox._store_secret(integer, text, bytea, text[]) IS 'A new record of outbox.secret, encrypted if outbox.secret_key_file is set. Errors: F0000 if that file cannot be used.';

CREATE FUNCTION outbox._store_signing_secret(subscription_id integer, secret bytea) RETURNS text LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shown text := outbox._secret_text(_store_signing_secret.secret);
BEGIN
    PERFORM outbox._store_secret(_store_signing_secret.subscription_id, 'signing', _store_signing_secret.secret, ARRAY[right(shown, 4)]);
    RETURN shown;
END
$$;
COMMENT ON FUNCTION outbox._store_signing_secret(integer, bytea) IS 'Stores a signing secret; returns it as text, to be shown once';

CREATE FUNCTION outbox._store_headers(subscription_id integer, headers jsonb) RETURNS void LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT outbox._store_secret(subscription_id, 'headers', h.lines, h.names) FROM outbox._header_lines(headers) AS h WHERE cardinality(h.names) > 0;
END;
COMMENT ON FUNCTION outbox._store_headers(integer, jsonb) IS 'The static headers of a subscription that has none; NULL or an empty object: it still has none. Errors: as _header_lines() and _store_secret()';

CREATE FUNCTION outbox._subscribe(given record, operator boolean) RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1 AS $$
DECLARE
    options jsonb := to_jsonb(given);
    s       outbox.subscription;
    here    record;
    instant timestamptz;
    key     bytea;
BEGIN
    -- from here to commit no segment is emptied: what this subscription is to read stays
    PERFORM outbox._hold_log();

    s := jsonb_populate_record(outbox._default_subscription(), options);
    s.kind := CASE WHEN options ? 'url' THEN 'push' ELSE 'pull' END;
    PERFORM outbox._refuse_push_options(s.kind, options);
    IF NOT options ? 'connect_timeout' THEN
        s.connect_timeout := LEAST(s.connect_timeout, s.timeout);
    END IF;
    IF NOT options ? 'retry_max' THEN
        s.retry_max := GREATEST(s.retry_max, s.retry_base);
    END IF;
    IF NOT options ? 'breaker_max' THEN
        s.breaker_max := GREATEST(s.breaker_max, s.breaker_probe);
    END IF;
    s := outbox._check_subscription(s, operator);
    IF s.kind = 'push' THEN
        key := COALESCE(outbox._secret_bytes(options->>'secret'), outbox._new_secret());
    END IF;

    IF COALESCE(options->>'starting', 'now') = 'now' THEN
        here := outbox._position_now();
        s.start_epoch    := here.epoch;
        s.start_snapshot := here.snapshot;
        s.start_next     := here.next;
        s.start_clock    := here.clock;
    ELSIF options->>'starting' <> 'earliest' THEN
        BEGIN
            instant := (options->>'starting')::timestamptz;
        EXCEPTION WHEN data_exception THEN
            instant := 'infinity';
        END;
        IF NOT isfinite(instant) OR instant < 'epoch' OR instant > '9999-12-31' THEN
            PERFORM outbox._refuse_option('starting', format('"%s" is not a place in the event log.', options->>'starting'), 'Use now, earliest, or a timestamp.');
        END IF;
        s.start_after := outbox._lowest_id(outbox._clock_at(instant));
    END IF;

    s.id := nextval('outbox.subscription_id_seq'::regclass);
    INSERT INTO outbox.subscription OVERRIDING SYSTEM VALUE SELECT s.* ON CONFLICT ON CONSTRAINT subscription_name_key DO NOTHING;
    IF NOT FOUND THEN
        IF (options->>'if_not_exists')::boolean THEN
            RETURN NULL;
        END IF;
        RAISE duplicate_object USING MESSAGE = format('subscription "%s" already exists', s.name),
            DETAIL = 'Names of subscriptions are unique in a database.', HINT = 'Use alter_subscription() to change it, or if_not_exists => true to leave it alone.';
    END IF;
    PERFORM outbox._check_limits(s.tenant);
    IF s.kind = 'pull' THEN
        RETURN NULL;
    END IF;
    PERFORM outbox._store_headers(s.id, options->'headers');
    RETURN outbox._store_signing_secret(s.id, key);
END
$$;
COMMENT ON FUNCTION outbox._subscribe(record, boolean) IS 'What subscribe() does with the arguments that were given, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.subscribe(
    name text, url text DEFAULT NULL, types text[] DEFAULT '{**}', tenant text DEFAULT NULL, ordering text DEFAULT NULL, on_dead text DEFAULT NULL,
    starting text DEFAULT NULL, max_in_flight integer DEFAULT NULL, timeout interval DEFAULT NULL, connect_timeout interval DEFAULT NULL,
    retry_base interval DEFAULT NULL, retry_factor float8 DEFAULT NULL, retry_max interval DEFAULT NULL, retry_jitter float8 DEFAULT NULL,
    max_attempts integer DEFAULT NULL, give_up_after interval DEFAULT NULL, fatal_statuses integer[] DEFAULT NULL, max_blocked integer DEFAULT NULL,
    response_kept integer DEFAULT NULL, network text DEFAULT NULL, ports integer[] DEFAULT NULL, labels jsonb DEFAULT NULL, description text DEFAULT NULL,
    filter jsonpath DEFAULT NULL, format text DEFAULT NULL, batch_size integer DEFAULT NULL, batch_bytes integer DEFAULT NULL, batch_linger interval DEFAULT NULL,
    rate_limit float8 DEFAULT NULL, breaker_threshold integer DEFAULT NULL, breaker_probe interval DEFAULT NULL, breaker_max interval DEFAULT NULL,
    disable_after interval DEFAULT NULL, ca text DEFAULT NULL, headers jsonb DEFAULT NULL,
    secret text DEFAULT NULL, if_not_exists boolean DEFAULT false)
RETURNS text LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_manage_options';
COMMENT ON FUNCTION outbox.subscribe IS
'Creates a subscription. Returns its signing secret, which is shown only now; NULL for a pull subscription, and if the subscription existed (if_not_exists).
NULL stands for the default, which is in parentheses. Intervals are given with their unit.
name: 1 to 128 of letters, digits, _ . : -
url: of the webhook receiver, at most 2048 bytes. Without one it is a pull subscription: see pull(). What concerns requests is then refused.
types: patterns, at least one; * is one dot-separated word, ** any number of words ({**}).
tenant: only events of this tenant, 1 to 128 bytes (none: of any, or without one).
filter: a jsonpath that the payload must fulfil: a predicate must be true ($.amount > 100, as @@), any other path must find something ($.items[*] ? (@.price > 100), as @?); an error counts as no,
and no event of enqueue_raw() fulfils one. It is evaluated for each event: like_regex and ** can be slow, and hold up the others (none).
starting: now, earliest, or a timestamp (now: this transaction''s own events and all that commit later).
ordering: key, events with the same key one after the other, or none (key).
on_dead: skip, or block what follows a dead letter of the same key (skip).
network: public (https, ports, no internal address) or private (an operator''s right) (public).
ports: permitted under public, 1 to 100 of 1 to 65535 ({443}).
ca: certificates, PEM, at most 64 kB, to verify the receiver by (the system''s).
headers: sent with every request, an object of at most 32 strings, 8 kB in all; they are kept with the secrets, and win over an event''s own (none).
secret: whsec_ and the base64 of 24 to 64 bytes; a generated one is never in the server''s log (generated, 32 bytes).
format: CloudEvents mode, binary, structured or batch (binary).
batch_size: events in a batch, 1 to 10,000 (100).
batch_bytes: bytes of a batch, 1 kB to 16 MB; a single event may have more (262144).
batch_linger: how long a batch waits for more, 0 to 10 s (10 ms).
max_in_flight: requests at a time, 1 to 1000 (10).
rate_limit: requests per second, 0.001 to 1,000,000 (none).
timeout: of a whole request, 100 ms to 10 min (15 s).
connect_timeout: of its beginning, up to TLS, 100 ms to timeout (5 s, or timeout).
retry_base: delay after the first failure, 1 ms to 1 d (5 s).
retry_factor: its growth with each attempt, 1 to 100 (4).
retry_max: longest delay, retry_base to 30 d (4 h, or retry_base).
retry_jitter: part by which each delay is spread, 0 to 1 (0.2).
max_attempts: then it is a dead letter, 1 to 1000 (25).
give_up_after: so it is this long after the first attempt, retry_base to 365 d, and no longer than outbox.max_backlog_age; 0 is never (3 d, or outbox.max_backlog_age).
fatal_statuses: HTTP statuses that are not retried, at most 100 of 300 to 599, not 408, 410, 425, 429 ({}).
max_blocked: undelivered events it may pass, 1 to 1,000,000 (10,000).
breaker_threshold: transient failures in a row that open the circuit breaker, 1 to 1,000,000; 0 is never (10).
breaker_probe: from opening to the first probe, 10 ms to 1 d (10 s).
breaker_max: longest time between probes, breaker_probe to 30 d (10 min, or breaker_probe).
disable_after: nothing but failures for so long, and at least ten, disable it, 1 s to 365 d; 0 is never (5 d).
response_kept: bytes of an answer in attempt, 0 to 65536 (1024).
labels: a JSON object, at most 8 kB (none). description: free text, at most 8 kB (none).
if_not_exists: a subscription of this name is left as it is, and NULL is returned (false).
Errors: 22023 invalid option, 42602 invalid name, 42710 name in use, 42501 private network, 54000 more subscriptions than outbox.max_subscriptions or outbox.max_subscriptions_per_tenant, F0000 outbox.secret_key_file cannot be used; each says what would do. When the call fails, the server log does not quote the statement; but settings that log
statements, such as log_statement and log_min_duration_statement, log this one too, with the whole URL, headers and a given secret: switch them off for it.';

-- Found and locked for a change. Managers manage public subscriptions; those on the private network are an operator's.
CREATE FUNCTION outbox._subscription(name text, operator boolean) RETURNS outbox.subscription LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s outbox.subscription;
BEGIN
    SELECT * INTO s FROM outbox.subscription AS t WHERE t.name = _subscription.name COLLATE "C" FOR UPDATE;
    IF NOT FOUND THEN
        RAISE undefined_object USING MESSAGE = format('subscription "%s" does not exist', _subscription.name),
            DETAIL = 'No subscription has this name.', HINT = 'The view outbox.subscription_status lists the subscriptions.';
    ELSIF s.network = 'private' AND NOT operator THEN
        RAISE insufficient_privilege USING MESSAGE = format('permission denied for subscription "%s"', _subscription.name),
            DETAIL = 'It is on the private network.', HINT = 'Have an operator do this.';
    END IF;
    RETURN s;
END
$$;
COMMENT ON FUNCTION outbox._subscription(text, boolean) IS 'A subscription, locked; refuses unknown names (42704) and private ones of others than operators (42501)';

CREATE FUNCTION outbox._alter_subscription(given record, operator boolean) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1 AS $$
DECLARE
    options jsonb := to_jsonb(given);
    was     outbox.subscription := outbox._subscription(options->>'name', operator);
    s       outbox.subscription := was;
    option  text;
    changed text;
    here    record;
BEGIN
    FOR option IN SELECT jsonb_array_elements_text(options->'reset') LOOP
        IF outbox._is_option(option) IS NOT TRUE THEN
            PERFORM outbox._refuse_option('reset', format('"%s" is not an option that can be reset.', COALESCE(option, 'NULL')), 'Name options that have a default, such as {timeout,tenant}.');
        END IF;
        s := jsonb_populate_record(s, jsonb_build_object(option, to_jsonb(outbox._default_subscription())->option));
    END LOOP;
    PERFORM outbox._refuse_push_options(s.kind, options);
    s := jsonb_populate_record(s, options);
    s := outbox._check_subscription(s, operator);

    -- what is committed so far keeps the rules it was committed under
    IF s.types IS DISTINCT FROM was.types OR s.tenant IS DISTINCT FROM was.tenant OR s.filter::text IS DISTINCT FROM was.filter::text THEN
        here := outbox._position_now();
        INSERT INTO outbox.subscription_match (subscription_id, version, types, tenant, filter, epoch, until_snapshot, until_next, until_clock)
        SELECT s.id, COALESCE(max(m.version), 0) + 1, was.types, was.tenant, was.filter, here.epoch, here.snapshot, here.next, here.clock
          FROM outbox.subscription_match AS m WHERE m.subscription_id = s.id;
    END IF;

    SELECT string_agg(format('%1$I = ($1).%1$I', a.attname), ', ') INTO changed
      FROM pg_attribute AS a WHERE a.attrelid = 'outbox.subscription'::regclass AND (a.attname = 'url' OR outbox._is_option(a.attname));
    EXECUTE 'UPDATE outbox.subscription AS t SET ' || changed || ' WHERE t.id = ($1).id' USING s;
    IF s.tenant <> was.tenant OR was.tenant IS NULL THEN
        PERFORM outbox._check_limits(s.tenant);
    END IF;
    IF options ? 'headers' OR options->'reset' ? 'headers' THEN
        DELETE FROM outbox.secret AS k WHERE k.subscription_id = s.id AND k.kind = 'headers';
        PERFORM outbox._store_headers(s.id, options->'headers');
    END IF;
    IF s.url IS DISTINCT FROM was.url THEN   -- how long the old one has been failing says nothing about the new one
        UPDATE outbox.subscription AS t SET failing_since = NULL WHERE t.id = s.id AND t.failing_since IS NOT NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._alter_subscription(record, boolean) IS 'What alter_subscription() does with the arguments that were given, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.alter_subscription(
    name text, url text DEFAULT NULL, types text[] DEFAULT NULL, tenant text DEFAULT NULL, ordering text DEFAULT NULL, on_dead text DEFAULT NULL,
    max_in_flight integer DEFAULT NULL, timeout interval DEFAULT NULL, connect_timeout interval DEFAULT NULL,
    retry_base interval DEFAULT NULL, retry_factor float8 DEFAULT NULL, retry_max interval DEFAULT NULL, retry_jitter float8 DEFAULT NULL,
    max_attempts integer DEFAULT NULL, give_up_after interval DEFAULT NULL, fatal_statuses integer[] DEFAULT NULL, max_blocked integer DEFAULT NULL,
    response_kept integer DEFAULT NULL, network text DEFAULT NULL, ports integer[] DEFAULT NULL, labels jsonb DEFAULT NULL, description text DEFAULT NULL,
    filter jsonpath DEFAULT NULL, format text DEFAULT NULL, batch_size integer DEFAULT NULL, batch_bytes integer DEFAULT NULL, batch_linger interval DEFAULT NULL,
    rate_limit float8 DEFAULT NULL, breaker_threshold integer DEFAULT NULL, breaker_probe interval DEFAULT NULL, breaker_max interval DEFAULT NULL,
    disable_after interval DEFAULT NULL, ca text DEFAULT NULL, headers jsonb DEFAULT NULL,
    reset text[] DEFAULT NULL)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_manage_options';
COMMENT ON FUNCTION outbox.alter_subscription IS
'Changes the options that are given, and sets those named in reset to their defaults; for their meaning see subscribe().
types, tenant and filter apply to what commits from now on; all else to every request started after this commits. Errors: as subscribe(); 42704 for an unknown name.';

CREATE FUNCTION outbox._unsubscribe(name text, operator boolean) RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s           outbox.subscription;
    undelivered bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM outbox.subscription AS t WHERE t.name = _unsubscribe.name COLLATE "C") THEN
        RETURN false;
    END IF;
    s := outbox._subscription(_unsubscribe.name, operator);
    DELETE FROM outbox.secret AS t WHERE t.subscription_id = s.id;
    DELETE FROM outbox.subscription_match AS t WHERE t.subscription_id = s.id;
    DELETE FROM outbox.replay AS t WHERE t.subscription_id = s.id;
    WITH gone AS (DELETE FROM outbox.delivery AS t WHERE t.subscription_id = s.id RETURNING t.status)
    SELECT count(*) INTO undelivered FROM gone WHERE gone.status <> 'discarded';
    DELETE FROM outbox.subscription AS t WHERE t.id = s.id;
    INSERT INTO outbox.operation (role, action, subscription, selector, count)
    VALUES (pg_get_userbyid(outbox._acting_role()), 'unsubscribe', s.name, jsonb_build_object('subscription', s.name), undelivered);
    RETURN true;
END
$$;
COMMENT ON FUNCTION outbox._unsubscribe(text, boolean) IS 'What unsubscribe() does, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.unsubscribe(name text) RETURNS boolean LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_manage';
COMMENT ON FUNCTION outbox.unsubscribe(text) IS
'Deletes a subscription with its secrets and its undelivered events, and records that in operation. Returns false if there is none. What is in flight may still arrive.';

CREATE FUNCTION outbox._pause(name text, reason text, operator boolean) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s outbox.subscription := outbox._subscription(_pause.name, operator);
BEGIN
    UPDATE outbox.subscription AS t SET state = 'paused', reason = _pause.reason, state_since = now(), paused_by_all = false WHERE t.id = s.id;
END
$$;
COMMENT ON FUNCTION outbox._pause(text, text, boolean) IS 'What pause() does, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.pause(name text, reason text DEFAULT NULL) RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_manage';
COMMENT ON FUNCTION outbox.pause(text, text) IS 'Holds a subscription: nothing is sent to it, its events wait. What is in flight may still arrive. Errors: 42704 for an unknown name.';

CREATE FUNCTION outbox._resume(name text, operator boolean) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s outbox.subscription := outbox._subscription(_resume.name, operator);
BEGIN
    -- an active one too: state_since tells the worker to forget what failed
    UPDATE outbox.subscription AS t SET state = 'active', reason = NULL, state_since = now(), paused_by_all = false, failing_since = NULL WHERE t.id = s.id;
    IF s.state <> 'active' THEN
        -- give_up_after does not count the time in between
        UPDATE outbox.delivery AS d SET first_attempt_at = d.first_attempt_at + (now() - greatest(s.state_since, d.first_attempt_at))
         WHERE d.subscription_id = s.id AND d.status NOT IN ('dead', 'discarded') AND d.first_attempt_at IS NOT NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._resume(text, boolean) IS 'What resume() does, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.resume(name text) RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_manage';
COMMENT ON FUNCTION outbox.resume(text) IS 'Goes on with a paused or disabled subscription where it stopped, and closes an open circuit breaker. Errors: 42704 for an unknown name.';

CREATE FUNCTION outbox._rotate_secret(name text, overlap interval, secret text, operator boolean) RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at_a_time CONSTANT bigint := 4;   -- OUTBOX_MAX_SECRETS of src/delivery/message.h
    s          outbox.subscription := outbox._subscription(_rotate_secret.name, operator);
    span       interval := COALESCE(_rotate_secret.overlap, '24 h');
    until      timestamptz;
    key        bytea := COALESCE(outbox._secret_bytes(_rotate_secret.secret), outbox._new_secret());
    unreadable bigint;
    still      record;
BEGIN
    IF s.kind = 'pull' THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = format('subscription "%s" has no secret', s.name),
            DETAIL = 'It is a pull subscription: it sends nothing that could be signed.', HINT = 'Only subscriptions with a URL have secrets.';
    END IF;
    PERFORM outbox._check_span('overlap', span, '0', '30 days');
    until := clock_timestamp() + span;
    -- two rotations at a time would both leave their secret without an end: above READ COMMITTED this makes the second one fail (40001)
    UPDATE outbox.subscription AS t SET name = t.name WHERE t.id = s.id;

    -- what cannot be read signs nothing: it is replaced, not overlapped
    WITH gone AS (DELETE FROM outbox.secret AS k USING outbox._secret_states(s.id) AS t
                   WHERE k.id = t.id AND t.kind = 'signing' AND t.state = 'unreadable' RETURNING k.id)
    SELECT count(*) INTO unreadable FROM gone;
    DELETE FROM outbox.secret AS k WHERE k.subscription_id = s.id AND k.kind = 'signing' AND (until <= clock_timestamp() OR k.expires_at <= clock_timestamp());
    SELECT count(*) AS secrets, min(k.expires_at) AS first_end INTO still FROM outbox.secret AS k WHERE k.subscription_id = s.id AND k.kind = 'signing';
    IF still.secrets >= at_a_time THEN
        RAISE program_limit_exceeded USING MESSAGE = format('subscription "%s" has too many secrets', s.name),
            DETAIL = format('%s secrets sign its requests now, the first of them until %s; at most %s can.', still.secrets, still.first_end, at_a_time),
            HINT = 'Wait until then, or use overlap => ''0'', which makes all secrets but the new one stop signing at once.';
    END IF;
    UPDATE outbox.secret AS k SET expires_at = LEAST(k.expires_at, until) WHERE k.subscription_id = s.id AND k.kind = 'signing';   -- LEAST() leaves out NULL

    INSERT INTO outbox.operation (role, action, subscription, selector, count)
    VALUES (pg_get_userbyid(outbox._acting_role()), 'rotate_secret', s.name,
            jsonb_build_object('subscription', s.name, 'overlap', span, 'imported', _rotate_secret.secret IS NOT NULL, 'unreadable', unreadable), 0);
    RETURN outbox._store_signing_secret(s.id, key);
END
$$;
COMMENT ON FUNCTION outbox._rotate_secret(text, interval, text, boolean) IS 'What rotate_secret() does, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.rotate_secret(name text, overlap interval DEFAULT '24 h', secret text DEFAULT NULL) RETURNS text
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_manage';
COMMENT ON FUNCTION outbox.rotate_secret(text, interval, text) IS
'Gives a subscription a new signing secret and returns it: it is shown only now. Recorded in operation, without it.
overlap: how long the secrets it has had go on signing beside the new one, 0 to 30 d; 0: they stop at once. Meanwhile every request carries a signature of each, the newest first (Standard Webhooks 1.0.0),
so that the receiver can change over at any moment. At most 4 secrets sign at a time (54000). Secrets that cannot be read are dropped.
secret: to be used instead of a generated one, whsec_ and the base64 of 24 to 64 bytes; it may appear in the server''s statement log.
Applies to every request started after this commits. Errors: 22023 invalid overlap or secret, 42704 unknown name, 42501 a private subscription and no operator, F0000 outbox.secret_key_file cannot be used, 55000 a pull subscription.';

CREATE FUNCTION outbox._ping(name text, operator boolean) RETURNS uuid LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s outbox.subscription := outbox._subscription(_ping.name, operator);
BEGIN
    RETURN outbox._record_ping(s.name);
END
$$;
COMMENT ON FUNCTION outbox._ping(text, boolean) IS 'What ping() does, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.ping(name text) RETURNS uuid LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_manage';
COMMENT ON FUNCTION outbox.ping(text) IS 'Sends an event of type outbox.ping to this subscription alone, to try it out. Returns its id, for event_status() and trace(). Errors: 42704 for an unknown name.';

CREATE FUNCTION outbox._replay(subscription text, since timestamptz, until timestamptz, types text[], operator boolean) RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    s        outbox.subscription := outbox._subscription(_replay.subscription, operator);
    here     record;
    first_id uuid;
    end_id   uuid;
    found    bigint;
BEGIN
    IF _replay.since IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'since must not be null', DETAIL = 'It says from when on events are replayed.', HINT = 'Use -infinity for all that is still in the log.';
    ELSIF _replay.until <= _replay.since THEN
        RAISE invalid_parameter_value USING MESSAGE = 'until must be later than since', DETAIL = format('The range is from %s to %s.', _replay.since, _replay.until),
            HINT = 'Events recorded from since on and before until are replayed; leave until out for all up to now.';
    END IF;
    IF _replay.types IS NOT NULL THEN
        PERFORM outbox._check_types(_replay.types);
    END IF;

    -- from here to commit no segment is emptied, and then the row below holds what it needs
    PERFORM outbox._hold_log();
    here := outbox._position_now();
    first_id := outbox._lowest_id(outbox._clock_at(_replay.since));
    end_id := outbox._lowest_id(LEAST(outbox._clock_at(_replay.until), here.clock + 1));
    SELECT count(*) INTO found
      FROM outbox.event AS e
     WHERE e.id >= first_id AND e.id < end_id AND e.epoch = outbox.epoch() AND e.type <> 'outbox.ping'
       AND (s.tenant IS NULL OR e.tenant = s.tenant)
       AND outbox._type_matches(s.types, e.type) AND outbox._filter_matches(s.filter, e.payload) AND (_replay.types IS NULL OR outbox._type_matches(_replay.types, e.type));

    IF found > 0 THEN
        INSERT INTO outbox.replay (subscription, role, since, until_time, types, events, subscription_id, place, until)
        VALUES (s.name, pg_get_userbyid(outbox._acting_role()), _replay.since, COALESCE(_replay.until, clock_timestamp()), _replay.types, found, s.id, first_id, end_id);
    END IF;
    INSERT INTO outbox.operation (role, action, subscription, selector, count)
    VALUES (pg_get_userbyid(outbox._acting_role()), 'replay', s.name, outbox._selector(s.name, NULL, NULL, _replay.types, NULL, _replay.since, _replay.until, NULL), found);
    RETURN found;
END
$$;
COMMENT ON FUNCTION outbox._replay(text, timestamptz, timestamptz, text[], boolean) IS 'What replay() does, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.replay(subscription text, since timestamptz, until timestamptz DEFAULT NULL, types text[] DEFAULT NULL) RETURNS bigint LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_manage';
COMMENT ON FUNCTION outbox.replay(text, timestamptz, timestamptz, text[]) IS
'Delivers events that are still in the log to one subscription once more: those recorded from since on and before until (NULL: now), of these types (patterns; NULL: all) and for the subscription by its
types, tenant and filter of today, whatever it did with them when they were new; so also what it gave up in a gap, and what was recorded before it began. A dead letter is redriven; what waits for a retry, or was
discarded, or is still ahead of the subscription, is left alone. Same webhook-id, same body, and the field "webhook-replay: true".
Returns how many events of the range are in the log and match types and tenant. They are sent by and by, a few at a time beside what is new, each with the whole retry policy; see the table replay, and operation for the end
(replay_done, replay_expired). Events of a key keep their order among each other, and none is sent while another of its key is in flight; but they may arrive after newer ones.
Paused, a replay waits; it holds what it needs of the log for outbox.max_backlog_age at most. cancel_replay() ends it. Errors: 42704 for an unknown name, 22004 without since, 22023 for an empty range or invalid types.';

CREATE FUNCTION outbox._cancel_replay(subscription text, operator boolean) RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s         outbox.subscription := outbox._subscription(_cancel_replay.subscription, operator);
    cancelled bigint;
    replayed  bigint;
BEGIN
    WITH gone AS (DELETE FROM outbox.replay AS r WHERE r.subscription_id = s.id RETURNING r.replayed)
    SELECT count(*), COALESCE(sum(g.replayed), 0) INTO cancelled, replayed FROM gone AS g;
    IF cancelled > 0 THEN
        INSERT INTO outbox.operation (role, action, subscription, selector, count)
        VALUES (pg_get_userbyid(outbox._acting_role()), 'cancel_replay', s.name, jsonb_build_object('subscription', s.name), replayed);
    END IF;
    RETURN cancelled;
END
$$;
COMMENT ON FUNCTION outbox._cancel_replay(text, boolean) IS 'What cancel_replay() does, once it is known whether the caller is an operator';

CREATE FUNCTION outbox.cancel_replay(subscription text) RETURNS bigint LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_manage';
COMMENT ON FUNCTION outbox.cancel_replay(text) IS
'Ends the replays of a subscription; the few events that have already been handed to it are still sent. Returns how many replays there were; recorded in operation, with the number of events replayed until then.
Errors: 42704 for an unknown name.';

-- ===== operating =========================================================================================================

-- Arming is a setting of the database that names this installation's epoch: a restored copy has another epoch or no such setting, and stays quiet.

CREATE FUNCTION outbox.start(skip_backlog boolean DEFAULT false) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    skipped     bigint := 0;
    unscheduled bigint;
    -- a clone or a base backup continues the installation that it is a copy of: its backlog is what this installation has not delivered
    copied      boolean := COALESCE(start.skip_backlog, false) AND EXISTS (SELECT FROM outbox.cursor AS c WHERE c.epoch = outbox.epoch());
    here        record;
BEGIN
    IF copied AND (EXISTS (SELECT FROM pg_db_role_setting AS r JOIN pg_database AS d ON d.oid = r.setdatabase
                            WHERE d.datname = current_database() AND r.setrole = 0 AND format('outbox.armed=%s', outbox.epoch()) = ANY (r.setconfig))
                   OR COALESCE((outbox._worker()).worker_pid, 0) <> 0) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'the backlog cannot be skipped while delivery is started',
            DETAIL = 'The delivery worker is at it.', HINT = 'Call outbox.stop() first, and wait until the worker has ended. To skip events of one subscription, see outbox.discard() and outbox.unsubscribe().';
    END IF;
    PERFORM outbox._arm(true);
    EXECUTE format('ALTER DATABASE %I SET outbox.armed = %L', current_database(), outbox.epoch()::text);
    IF copied THEN
        -- everybody begins here, as if subscribed now
        here := outbox._position_now();
        UPDATE outbox.delivery AS d SET status = 'discarded', next_attempt_at = NULL, ended_at = now() WHERE d.status NOT IN ('dead', 'discarded');
        GET DIAGNOSTICS skipped = ROW_COUNT;
        UPDATE outbox.subscription AS s SET start_epoch = here.epoch, start_snapshot = here.snapshot, start_next = here.next, start_clock = here.clock, start_after = NULL;
        DELETE FROM outbox.cursor AS c WHERE c.subscription_id <> 0;
        DELETE FROM outbox.replay;
        WITH gone AS (DELETE FROM outbox.scheduled AS s RETURNING s.id, s.deliver_at)
        INSERT INTO outbox.unscheduled (id, status, deliver_at, at, role)
        SELECT g.id, 'discarded', g.deliver_at, clock_timestamp(), pg_get_userbyid(outbox._acting_role()) FROM gone AS g;
        GET DIAGNOSTICS unscheduled = ROW_COUNT;
        skipped := skipped + unscheduled;
    ELSIF start.skip_backlog THEN
        -- what came with a dump: exceptions are discarded, and subscriptions begin with the first event of this installation
        UPDATE outbox.delivery AS d SET status = 'discarded', next_attempt_at = NULL, ended_at = now()
         WHERE d.status NOT IN ('dead', 'discarded')
           AND EXISTS (SELECT FROM outbox._find_event(d.event_id) AS e WHERE e.epoch <> outbox.epoch());
        GET DIAGNOSTICS skipped = ROW_COUNT;
        UPDATE outbox.subscription AS s SET start_epoch = outbox.epoch(), start_snapshot = NULL, start_next = NULL, start_clock = NULL, start_after = NULL
         WHERE s.start_epoch <> outbox.epoch()
           AND NOT EXISTS (SELECT FROM outbox.cursor AS c WHERE c.epoch = outbox.epoch() AND c.subscription_id = s.id);
        WITH gone AS (DELETE FROM outbox.scheduled AS s WHERE s.epoch <> outbox.epoch() RETURNING s.id, s.deliver_at)
        INSERT INTO outbox.unscheduled (id, status, deliver_at, at, role)
        SELECT g.id, 'discarded', g.deliver_at, clock_timestamp(), pg_get_userbyid(outbox._acting_role()) FROM gone AS g;
        GET DIAGNOSTICS unscheduled = ROW_COUNT;
        skipped := skipped + unscheduled;
    ELSE
        UPDATE outbox.scheduled AS s SET epoch = outbox.epoch() WHERE s.epoch <> outbox.epoch();   -- they are this installation's from now on
    END IF;
    INSERT INTO outbox.operation (role, action, selector, count)
    VALUES (pg_get_userbyid(outbox._acting_role()), 'start', jsonb_build_object('skip_backlog', COALESCE(start.skip_backlog, false), 'epoch', outbox.epoch()), skipped);
END
$$;
COMMENT ON FUNCTION outbox.start(boolean) IS
'Starts delivery in this database, now and after every restart of the server, until stop(). Recorded in operation.
skip_backlog: events that were undelivered, or scheduled, when this database was restored from a dump are left alone; without it they are delivered too. In a database that has delivered before (a clone by TEMPLATE, a base
backup, after stop()), these are all that were recorded until now. Errors: 55000 for skip_backlog while delivery is started there, or on a restored copy that is not quiet yet.';

CREATE FUNCTION outbox.stop() RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM outbox._arm(false);
    EXECUTE format('ALTER DATABASE %I RESET outbox.armed', current_database());
    INSERT INTO outbox.operation (role, action, selector, count) VALUES (pg_get_userbyid(outbox._acting_role()), 'stop', '{}', 0);
END
$$;
COMMENT ON FUNCTION outbox.stop() IS 'Stops delivery in this database until start(). Events are still recorded, and wait. Recorded in operation.';

CREATE FUNCTION outbox.pause_all(reason text DEFAULT NULL) RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    paused bigint;
BEGIN
    PERFORM FROM outbox.subscription AS s WHERE s.state = 'active' ORDER BY s.id FOR UPDATE;
    UPDATE outbox.subscription AS s SET state = 'paused', reason = pause_all.reason, state_since = now(), paused_by_all = true WHERE s.state = 'active';
    GET DIAGNOSTICS paused = ROW_COUNT;
    INSERT INTO outbox.operation (role, action, selector, count)
    VALUES (pg_get_userbyid(outbox._acting_role()), 'pause_all', jsonb_strip_nulls(jsonb_build_object('reason', pause_all.reason)), paused);
    RETURN paused;
END
$$;
COMMENT ON FUNCTION outbox.pause_all(text) IS
'Holds all active subscriptions, as pause() holds one, until resume_all(). Their events wait. Returns how many; recorded in operation, whose count this is.
Subscriptions that are made later are not held.';

CREATE FUNCTION outbox.resume_all() RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    resumed bigint;
BEGIN
    PERFORM FROM outbox.subscription AS s WHERE s.paused_by_all ORDER BY s.id FOR UPDATE;
    -- give_up_after does not count the time in between
    UPDATE outbox.delivery AS d SET first_attempt_at = d.first_attempt_at + (now() - greatest(s.state_since, d.first_attempt_at))
      FROM outbox.subscription AS s
     WHERE s.paused_by_all AND d.subscription_id = s.id AND d.status NOT IN ('dead', 'discarded') AND d.first_attempt_at IS NOT NULL;
    UPDATE outbox.subscription AS s SET state = 'active', reason = NULL, state_since = now(), paused_by_all = false, failing_since = NULL WHERE s.paused_by_all;
    GET DIAGNOSTICS resumed = ROW_COUNT;
    INSERT INTO outbox.operation (role, action, selector, count) VALUES (pg_get_userbyid(outbox._acting_role()), 'resume_all', '{}', resumed);
    RETURN resumed;
END
$$;
COMMENT ON FUNCTION outbox.resume_all() IS
'Goes on with the subscriptions that pause_all() held, at their rate limits; those that were paused one by one, or are disabled, stay so. Returns how many; recorded in operation, whose count this is.';

-- redrive() and discard() choose alike: all that is given must hold, and something must be given.
CREATE FUNCTION outbox._check_selector(subscription text, ids uuid[], reason text, types text[], tenant text, since timestamptz, until timestamptz, max_events bigint)
RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF num_nonnulls(subscription, ids, reason, types, tenant, since, until) = 0 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'no events selected',
            DETAIL = 'All of subscription, ids, reason, types, tenant, since and until are NULL.', HINT = 'Name at least one of them; dry_run => true counts without changing anything.';
    ELSIF max_events < 0 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'max_events must not be negative', DETAIL = format('It is %s.', max_events), HINT = 'Leave it out for no limit.';
    END IF;
    IF types IS NOT NULL THEN
        PERFORM outbox._check_types(types);
    END IF;
    IF NOT EXISTS (SELECT FROM outbox.subscription AS s WHERE s.name = subscription COLLATE "C") AND subscription IS NOT NULL THEN
        RAISE undefined_object USING MESSAGE = format('subscription "%s" does not exist', subscription),
            DETAIL = 'No subscription has this name.', HINT = 'The view outbox.subscription_status lists the subscriptions.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._check_selector(text, uuid[], text, text[], text, timestamptz, timestamptz, bigint) IS
'Refuses (22023, 42704) what redrive() and discard() cannot select by. Called by itself: what is only joined to may never be run';

CREATE FUNCTION outbox._select_deliveries(subscription text, ids uuid[], reason text, types text[], tenant text, since timestamptz, until timestamptz,
                                          max_events bigint, any_open boolean, locked boolean)
RETURNS TABLE (subscription_id integer, event_id uuid) LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    IF locked THEN   -- from here to commit no segment is emptied: events that were found stay
        PERFORM outbox._hold_log();
    END IF;

    RETURN QUERY EXECUTE $query$
        SELECT d.subscription_id, d.event_id
          FROM outbox.delivery AS d
         WHERE (d.status = 'dead' OR ($9 AND $2 IS NOT NULL AND d.status IN ('retrying', 'blocked')))
           AND ($1 IS NULL OR d.subscription_id = (SELECT s.id FROM outbox.subscription AS s WHERE s.name = $1))
           AND ($2 IS NULL OR d.event_id = ANY ($2))
           AND ($3 IS NULL OR d.reason = $3)
           AND ($6 IS NULL OR d.event_id >= $6)
           AND ($7 IS NULL OR d.event_id < $7)
           AND EXISTS (SELECT FROM (SELECT e.type, e.tenant FROM outbox.event AS e WHERE e.id = COALESCE(d.log_id, d.event_id)
                                    UNION ALL
                                    SELECT k.type, k.tenant FROM outbox.kept_event AS k WHERE k.id = COALESCE(d.log_id, d.event_id)) AS x
                        WHERE ($5 IS NULL OR x.tenant = $5)
                          AND ($4 IS NULL OR outbox._type_matches($4, x.type)))
         ORDER BY d.event_id
         LIMIT $8 $query$ || CASE WHEN locked THEN 'FOR UPDATE OF d' ELSE '' END
    USING subscription, ids, reason, types, tenant, outbox._lowest_id(outbox._clock_at(since)), outbox._lowest_id(outbox._clock_at(until)), max_events, any_open;
END
$$;
COMMENT ON FUNCTION outbox._select_deliveries(text, uuid[], text, text[], text, timestamptz, timestamptz, bigint, boolean, boolean) IS
'The dead letters (any_open: also the waiting events named by ids) that redrive() or discard() act on, oldest event first; locked: for a change';

CREATE FUNCTION outbox._selector(subscription text, ids uuid[], reason text, types text[], tenant text, since timestamptz, until timestamptz, max_events bigint)
RETURNS jsonb LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN jsonb_strip_nulls(jsonb_build_object('subscription', subscription, 'ids', ids, 'reason', reason, 'types', types, 'tenant', tenant, 'since', since,
                                            'until', until, 'max_events', max_events));
COMMENT ON FUNCTION outbox._selector(text, uuid[], text, text[], text, timestamptz, timestamptz, bigint) IS 'The arguments that were given, as operation.selector records them';

CREATE FUNCTION outbox.redrive(subscription text DEFAULT NULL, ids uuid[] DEFAULT NULL, reason text DEFAULT NULL, types text[] DEFAULT NULL, tenant text DEFAULT NULL,
                               since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, max_events bigint DEFAULT NULL, dry_run boolean DEFAULT false)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    redriven bigint;
BEGIN
    PERFORM outbox._check_selector(redrive.subscription, redrive.ids, redrive.reason, redrive.types, redrive.tenant, redrive.since, redrive.until, redrive.max_events);
    IF redrive.dry_run THEN
        SELECT count(*) INTO redriven
          FROM outbox._select_deliveries(redrive.subscription, redrive.ids, redrive.reason, redrive.types, redrive.tenant, redrive.since, redrive.until, redrive.max_events, false, false);
        RETURN redriven;
    END IF;

    UPDATE outbox.delivery AS d
       SET status = 'retrying', attempts = 0, first_attempt_at = NULL, next_attempt_at = now(), reason = NULL, ended_at = NULL
      FROM outbox._select_deliveries(redrive.subscription, redrive.ids, redrive.reason, redrive.types, redrive.tenant, redrive.since, redrive.until, redrive.max_events, false, true) AS x
     WHERE d.subscription_id = x.subscription_id AND d.event_id = x.event_id;
    GET DIAGNOSTICS redriven = ROW_COUNT;
    INSERT INTO outbox.operation (role, action, subscription, selector, count)
    VALUES (pg_get_userbyid(outbox._acting_role()), 'redrive', redrive.subscription,
            outbox._selector(redrive.subscription, redrive.ids, redrive.reason, redrive.types, redrive.tenant, redrive.since, redrive.until, redrive.max_events), redriven);
    RETURN redriven;
END
$$;
COMMENT ON FUNCTION outbox.redrive(text, uuid[], text, text[], text, timestamptz, timestamptz, bigint, boolean) IS
'Delivers dead letters again, with the subscription''s whole retry policy and the same ids. Returns how many; recorded in operation.
Selectors (at least one; all that are given must hold): subscription, ids (of events), reason (of the dead letter), types (patterns), tenant, since (inclusive) and until (exclusive): when the event was recorded.
max_events: at most so many, oldest first. dry_run: only counts, also in a read-only transaction. Errors: 22023 without a selector, 42704 for an unknown subscription.';

CREATE FUNCTION outbox.discard(subscription text DEFAULT NULL, ids uuid[] DEFAULT NULL, reason text DEFAULT NULL, types text[] DEFAULT NULL, tenant text DEFAULT NULL,
                               since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, max_events bigint DEFAULT NULL, dry_run boolean DEFAULT false)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    discarded bigint;
BEGIN
    PERFORM outbox._check_selector(discard.subscription, discard.ids, discard.reason, discard.types, discard.tenant, discard.since, discard.until, discard.max_events);
    IF discard.dry_run THEN
        SELECT count(*) INTO discarded
          FROM outbox._select_deliveries(discard.subscription, discard.ids, discard.reason, discard.types, discard.tenant, discard.since, discard.until, discard.max_events, true, false);
        RETURN discarded;
    END IF;

    UPDATE outbox.delivery AS d
       SET status = 'discarded', next_attempt_at = NULL, ended_at = now()
      FROM outbox._select_deliveries(discard.subscription, discard.ids, discard.reason, discard.types, discard.tenant, discard.since, discard.until, discard.max_events, true, true) AS x
     WHERE d.subscription_id = x.subscription_id AND d.event_id = x.event_id;
    GET DIAGNOSTICS discarded = ROW_COUNT;
    INSERT INTO outbox.operation (role, action, subscription, selector, count)
    VALUES (pg_get_userbyid(outbox._acting_role()), 'discard', discard.subscription,
            outbox._selector(discard.subscription, discard.ids, discard.reason, discard.types, discard.tenant, discard.since, discard.until, discard.max_events), discarded);
    RETURN discarded;
END
$$;
COMMENT ON FUNCTION outbox.discard(text, uuid[], text, text[], text, timestamptz, timestamptz, bigint, boolean) IS
'Gives up dead letters for good, and events that wait for a retry or behind one if ids names them. Returns how many; recorded in operation. Arguments and errors: as redrive().';

-- ===== seeing: one event =================================================================================================

-- Where an event is for a subscription follows from positions (src/README.md): what the start or the rules exclude is unmatched; what has a row in
-- delivery is what the row says; what the cursor has passed is delivered; all else is pending.

CREATE FUNCTION outbox._log_id(id uuid) RETURNS uuid LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT COALESCE((SELECT u.log_id FROM outbox.unscheduled AS u WHERE u.id = $1), $1)
$$;
COMMENT ON FUNCTION outbox._log_id(uuid) IS 'Where an event is in the log, if it is: event.id';

CREATE FUNCTION outbox._find_event(id uuid) RETURNS SETOF outbox.event LANGUAGE sql STABLE ROWS 1
SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM (SELECT e.* FROM outbox.event AS e WHERE e.id = outbox._log_id($1)
                   UNION ALL
                   SELECT k.* FROM outbox.kept_event AS k WHERE k.id = outbox._log_id($1)) AS x LIMIT 1
$$;
COMMENT ON FUNCTION outbox._find_event(uuid) IS 'An event, wherever it is';

-- The committed cursor of every subscription in an epoch: its own, or the head's if it says so; NULLs without one.
CREATE FUNCTION outbox._cursors(epoch bigint)
RETURNS TABLE (subscription_id integer, at_head boolean, base bigint, tick bigint, after uuid, "offset" bigint) LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    WITH head AS MATERIALIZED (
        SELECT c.base, c.tick, c.after, c."offset" FROM outbox.cursor AS c
         WHERE c.epoch = _cursors.epoch AND c.subscription_id = 0 ORDER BY c.seq DESC LIMIT 1
    )
    SELECT s.id, own.at_head,
           CASE WHEN own.at_head THEN head.base     ELSE own.base     END,
           CASE WHEN own.at_head THEN head.tick     ELSE own.tick     END,
           CASE WHEN own.at_head THEN head.after    ELSE own.after    END,
           CASE WHEN own.at_head THEN head."offset" ELSE own."offset" END
      FROM outbox.subscription AS s
      LEFT JOIN LATERAL (SELECT c.at_head, c.base, c.tick, c.after, c."offset" FROM outbox.cursor AS c
                          WHERE c.epoch = _cursors.epoch AND c.subscription_id = s.id ORDER BY c.seq DESC LIMIT 1) AS own ON true
      LEFT JOIN head ON true
$$;
COMMENT ON FUNCTION outbox._cursors(bigint) IS 'Where each subscription is, by what is committed';

CREATE FUNCTION outbox._routing(id uuid)
RETURNS TABLE (subscription_id integer, subscription text, elsewhere boolean, unmatched text, passed boolean, gap bigint) LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
    SELECT s.id, s.name, addressed.elsewhere,
           CASE WHEN s.start_epoch = e.epoch AND s.start_snapshot IS NOT NULL AND pg_visible_in_snapshot(e.xid, s.start_snapshot)
                    THEN 'it was committed before the subscription began'
                WHEN s.start_epoch = e.epoch AND e.id < s.start_after
                    THEN format('it is older than %s, where the subscription starts', outbox._event_time(s.start_after))
                WHEN e.type = 'outbox.ping'
                    THEN CASE WHEN addressed.elsewhere THEN 'the ping is for another subscription' END
                WHEN addressed.elsewhere
                    THEN format('the subscription is for tenant %s', rule.tenant)
                ELSE CASE outbox._mismatch(rule.types, rule.tenant, rule.filter, e.type, e.tenant, e.payload)
                         WHEN 'type'   THEN format('its types are %s', rule.types)
                         WHEN 'filter' THEN format(CASE WHEN e.payload IS NULL THEN 'without a JSON payload it does not fulfil the filter: %s' ELSE 'its payload does not fulfil the filter: %s' END, rule.filter) END
           END,
           COALESCE(pg_visible_in_snapshot(e.xid, base.snapshot), false)
           OR COALESCE(pg_visible_in_snapshot(e.xid, upper.snapshot) AND (c.base = c.tick OR e.id <= c.after), false),
           (SELECT g.id FROM outbox.gap AS g
             WHERE g.subscription_id = s.id AND g.epoch = e.epoch
               AND COALESCE(pg_visible_in_snapshot(e.xid, g.until) AND e.id <= g.to_id, g.until IS NULL)
               AND NOT COALESCE(pg_visible_in_snapshot(e.xid, g.base), false)
               AND NOT COALESCE(pg_visible_in_snapshot(e.xid, g.upper) AND e.id <= g.after, false)
               -- a restored window is everything there is
               AND NOT COALESCE(g.until IS NULL AND e.id <= g.after, false)
             ORDER BY g.id DESC LIMIT 1)
      FROM outbox._find_event(_routing.id) AS e
     CROSS JOIN LATERAL outbox._cursors(e.epoch) AS c
      JOIN outbox.subscription AS s ON s.id = c.subscription_id
      LEFT JOIN outbox.tick AS base  ON base.epoch = e.epoch AND base.tick = c.base
      LEFT JOIN outbox.tick AS upper ON upper.epoch = e.epoch AND upper.tick = c.tick
      LEFT JOIN LATERAL (SELECT m.version, m.types, m.tenant, m.filter FROM outbox.subscription_match AS m
                          WHERE m.subscription_id = s.id AND m.epoch = e.epoch AND pg_visible_in_snapshot(e.xid, m.until_snapshot)
                          ORDER BY m.version LIMIT 1) AS earlier ON true
     CROSS JOIN LATERAL (SELECT CASE WHEN earlier.version IS NULL THEN s.types  ELSE earlier.types  END AS types,
                                CASE WHEN earlier.version IS NULL THEN s.tenant ELSE earlier.tenant END AS tenant,
                                CASE WHEN earlier.version IS NULL THEN s.filter ELSE earlier.filter END AS filter) AS rule
     CROSS JOIN LATERAL (SELECT CASE WHEN e.type = 'outbox.ping' THEN e.payload IS DISTINCT FROM jsonb_build_object('subscription', s.name)
                                     ELSE COALESCE(rule.tenant <> e.tenant, rule.tenant IS NOT NULL) END AS elsewhere) AS addressed
$$;
COMMENT ON FUNCTION outbox._routing(uuid) IS
'What becomes of an event, for every subscription. elsewhere: another tenant''s, or a ping for another subscription. unmatched: why it is not for this one, else NULL. passed: the committed cursor is past it.
gap: the range that it lies in, of those that the subscription gave up, else NULL';

CREATE FUNCTION outbox.event_status(id uuid)
RETURNS TABLE (subscription text, status text, attempts integer, last_status_code integer, last_error text, next_attempt_at timestamptz, delivered_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
    SELECT r.subscription,
           CASE WHEN d.status = 'sending'         THEN 'pending'
                WHEN d.status IS NOT NULL         THEN d.status
                WHEN success.ended_at IS NOT NULL THEN 'delivered'
                WHEN r.unmatched IS NOT NULL      THEN 'unmatched'
                WHEN r.gap IS NOT NULL            THEN 'expired'
                WHEN r.passed AND newest.attempt IS NOT NULL AND NOT logged.it_is THEN 'expired'
                WHEN r.passed                     THEN 'delivered'
                WHEN skipped.backlog              THEN 'discarded'
                ELSE 'pending' END,
           COALESCE(d.attempts, newest.attempt, 0),
           CASE WHEN d.event_id IS NULL THEN newest.status_code ELSE d.last_status_code END,
           CASE WHEN d.event_id IS NULL THEN newest.error ELSE d.last_error END,
           d.next_attempt_at,
           CASE WHEN d.event_id IS NULL THEN success.ended_at END
      FROM outbox._routing(event_status.id) AS r
      LEFT JOIN outbox.delivery AS d ON d.subscription_id = r.subscription_id AND d.event_id = event_status.id
      LEFT JOIN LATERAL (SELECT a.attempt, a.status_code, a.error FROM outbox.attempt_log AS a
                          WHERE a.event_id = event_status.id AND a.subscription_id = r.subscription_id
                          ORDER BY a.at DESC LIMIT 1) AS newest ON true
      LEFT JOIN LATERAL (SELECT min(a.at + make_interval(secs => a.duration / 1e6)) AS ended_at FROM outbox.attempt_log AS a
                          WHERE a.event_id = event_status.id AND a.subscription_id = r.subscription_id AND a.outcome = 0) AS success ON true
     CROSS JOIN (SELECT EXISTS (SELECT FROM outbox._find_event(event_status.id) AS e
                                  JOIN outbox.operation AS o ON o.action = 'start' AND o.selector @> jsonb_build_object('skip_backlog', true, 'epoch', outbox.epoch())
                                 WHERE e.epoch <> outbox.epoch()) AS backlog) AS skipped
     -- a dead letter outlives its event in the log: where that is still there, what has no row was delivered, though its success be not logged (outbox.attempt_log)
     CROSS JOIN (SELECT EXISTS (SELECT FROM outbox.event AS e WHERE e.id = outbox._log_id(event_status.id)) AS it_is) AS logged
    UNION ALL
    SELECT NULL, 'scheduled', 0, NULL, NULL, s.deliver_at, NULL FROM outbox.scheduled AS s WHERE s.id = event_status.id
    UNION ALL
    SELECT NULL, u.status, 0, NULL, NULL, NULL, NULL FROM outbox.unscheduled AS u WHERE u.id = event_status.id AND u.log_id IS NULL
     ORDER BY 1
$$;
COMMENT ON FUNCTION outbox.event_status(uuid) IS
'Where an event is, a row per subscription; none if the event does not exist (any more). status: pending, retrying, blocked (behind another event of its key), leased, delivered, dead,
discarded, scheduled or cancelled (one row, without a subscription; next_attempt_at: when it is due), expired (it was dead or discarded, and that is forgotten by outbox.dead_letter_retention; or it lies in a gap), or unmatched (not for this subscription). attempts: since the last redrive. delivered_at: when the receiver''s 2xx was complete; NULL if the attempt is no longer logged.';

CREATE FUNCTION outbox.routes(type text, payload jsonb DEFAULT NULL, tenant text DEFAULT NULL)
RETURNS TABLE (subscription text, kind text, matches boolean, reason text, detail text) LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    IF routes.type IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'type must not be null', DETAIL = 'It is the type of the event in question.', HINT = 'Give one, such as order.paid.';
    END IF;
    PERFORM outbox._check_type(routes.type);
    RETURN QUERY
    SELECT s.name, s.kind, m.mismatch IS NULL,
           COALESCE(m.mismatch, CASE WHEN s.state <> 'active' THEN s.state WHEN r.breaker_open_until IS NOT NULL THEN 'open' END),
           CASE WHEN m.mismatch = 'tenant' THEN format('it is for tenant %s', s.tenant)
                WHEN m.mismatch = 'type'   THEN format('its types are %s', s.types)
                WHEN m.mismatch = 'filter' THEN format('its filter is %s', s.filter)
                WHEN s.state <> 'active'   THEN format('the event would wait: %s since %s', s.state, s.state_since) || COALESCE(': ' || s.reason, '')
                WHEN r.breaker_open_until IS NOT NULL THEN format('the event would wait: the circuit breaker is open, at least until %s', r.breaker_open_until) END
      FROM outbox.subscription AS s
      LEFT JOIN outbox._runtime() AS r ON r.subscription_id = s.id
     CROSS JOIN LATERAL (SELECT outbox._mismatch(s.types, s.tenant, s.filter, routes.type, routes.tenant, routes.payload) AS mismatch) AS m
     ORDER BY m.mismatch IS NOT NULL, s.name;
END
$$;
COMMENT ON FUNCTION outbox.routes(text, jsonb, text) IS
'A dry run: which subscriptions would get an event of this type, payload (NULL: none that is JSON) and tenant (NULL: without one), if it were enqueued now. A row per subscription: matches; reason: NULL if it would be
sent at once, type, tenant or filter if it does not match, paused, disabled or open (the circuit breaker) if it would wait; detail says more. Errors: 22023 for what cannot be a type, 22004 for NULL.';

CREATE FUNCTION outbox._delivered(id uuid) RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    answer boolean;
BEGIN
    SELECT CASE WHEN bool_or(e.status IN ('dead', 'discarded', 'expired', 'cancelled')) THEN false
                WHEN bool_and(e.status IN ('delivered', 'unmatched')) THEN true END
      INTO answer
      FROM outbox.event_status(_delivered.id) AS e
    HAVING count(*) > 0;
    IF NOT FOUND THEN
        IF NOT EXISTS (SELECT FROM outbox._find_event(_delivered.id)) THEN
            RAISE undefined_object USING MESSAGE = format('event %s does not exist', COALESCE(_delivered.id::text, 'NULL')),
                DETAIL = 'No event in the log has this id: it was never enqueued, that is not committed, or it has been delivered and removed.', HINT = 'Use the id that enqueue() returned, after its transaction has committed.';
        END IF;
        answer := true;   -- there is no subscription
    END IF;
    RETURN answer;
END
$$;
COMMENT ON FUNCTION outbox._delivered(uuid) IS 'Has every matching subscription the event? false: one will not get it, unless an operator acts; NULL: not yet. Errors: 42704 for an unknown id.';

CREATE PROCEDURE outbox.wait_delivered(id uuid, timeout interval, INOUT delivered boolean DEFAULT NULL) LANGUAGE C AS 'MODULE_PATHNAME', 'outbox_wait_delivered';
COMMENT ON PROCEDURE outbox.wait_delivered(uuid, interval, boolean) IS
'Waits until every matching subscription, push or pull, has the event: delivered is then true (also if no subscription matches). It is false when the timeout is over, and at once when the event is dead, discarded, expired or cancelled:
then it is not delivered unless an operator acts. Pausing, retries and deliver_at are waited for. Waiting holds no snapshot and no lock; it commits, so CALL it as a statement of its own, outside of a transaction block.
For tests, scripts and the occasional request: each look costs an event_status(). Errors: 25001 in a transaction block or one that has written something, 42704 for an unknown id, 22004 for NULL, 22023 for a negative timeout.';

-- Qualified, so that it needs no search path, and queries can be planned through it.
CREATE FUNCTION outbox._outcome_name(outcome smallint) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (ARRAY['delivered', 'http_3xx', 'http_4xx', 'http_5xx', 'gone', 'timeout', 'dns', 'connect', 'tls', 'protocol', 'blocked', 'bad_request', 'internal', 'nack', 'lease_expired'])[outcome OPERATOR(pg_catalog.+) 1];
COMMENT ON FUNCTION outbox._outcome_name(smallint) IS 'The name of an OutboxOutcome (src/delivery/verdict.h)';

CREATE FUNCTION outbox.trace(id uuid) RETURNS TABLE (at timestamptz, what text, subscription text, detail text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
    WITH event AS MATERIALIZED (SELECT e.*, u.deliver_at, COALESCE(u.at, e.created_at) AS logged_at
                                  FROM outbox._find_event(trace.id) AS e LEFT JOIN outbox.unscheduled AS u ON u.id = trace.id),
    routing AS MATERIALIZED (SELECT r.* FROM outbox._routing(trace.id) AS r),
    attempt AS MATERIALIZED (
        SELECT a.*, s.name AS subscription, a.at + make_interval(secs => a.duration / 1e6) AS ended_at, lag(a.at) OVER by_time AS previous_at
          FROM outbox.attempt_log AS a LEFT JOIN outbox.subscription AS s ON s.id = a.subscription_id
         WHERE a.event_id = trace.id
        WINDOW by_time AS (PARTITION BY a.subscription_id ORDER BY a.at)
    ),
    delivery AS MATERIALIZED (
        SELECT d.*, s.name AS subscription, (SELECT max(a.at) FROM attempt AS a WHERE a.subscription_id = d.subscription_id) AS last_at
          FROM outbox.delivery AS d JOIN outbox.subscription AS s ON s.id = d.subscription_id
         WHERE d.event_id = trace.id
    ),
    -- what holds a subscription altogether
    held AS MATERIALIZED (
        SELECT s.id, s.name, CASE WHEN s.state <> 'active'    THEN format('the subscription is %s since %s', s.state, s.state_since) || COALESCE(': ' || s.reason, '')
                                  WHEN w.worker_pid IS NULL   THEN 'no delivery worker is running: see outbox.health()'
                                  WHEN r.breaker_open_until IS NOT NULL THEN format('the circuit breaker is open, at least until %s', r.breaker_open_until) END AS why,
               CASE WHEN NOT r.at_head AND w."offset" > r."offset" THEN format('in the backlog of the subscription, which is %s events behind', w."offset" - r."offset") END AS backlog
          FROM outbox.subscription AS s
         CROSS JOIN outbox._worker() AS w
          LEFT JOIN outbox._runtime() AS r ON r.subscription_id = s.id
    ),
    -- the earliest event of the key that holds this one back, by subscription
    ahead AS MATERIALIZED (
        SELECT DISTINCT ON (d.subscription_id) d.subscription_id, d.event_id, d.key, d.status
          FROM event AS e
          JOIN outbox.delivery AS d ON d.key = e.key AND COALESCE(d.log_id, d.event_id) < e.id
          JOIN outbox.subscription AS s ON s.id = d.subscription_id AND s.ordering = 'key'
         WHERE d.status IN ('retrying', 'sending', 'leased') OR (d.status = 'dead' AND s.on_dead = 'block')
         ORDER BY d.subscription_id, COALESCE(d.log_id, d.event_id)
    ),
    line (at, rank, what, subscription, detail) AS (
        SELECT e.created_at, 1, 'enqueued', NULL,
               format('type %s', e.type) || COALESCE(', key ' || e.key, '') || COALESCE(', tenant ' || e.tenant, '')
               || format(', %s bytes, transaction %s', COALESCE(octet_length(e.body), octet_length(e.payload::text)), e.xid)
          FROM event AS e
        UNION ALL
        SELECT e.logged_at, 1, 'due', NULL, format('scheduled for %s', e.deliver_at) FROM event AS e WHERE e.deliver_at IS NOT NULL
        UNION ALL
        SELECT s.created_at, 1, 'enqueued', NULL,
               format('type %s', s.type) || COALESCE(', key ' || s.key, '') || COALESCE(', tenant ' || s.tenant, '')
               || format(', %s bytes, transaction %s', COALESCE(octet_length(s.body), octet_length(s.payload::text)), s.xid)
          FROM outbox.scheduled AS s WHERE s.id = trace.id
        UNION ALL
        SELECT now(), 8, 'scheduled', NULL, format('until %s', s.deliver_at) FROM outbox.scheduled AS s WHERE s.id = trace.id
        UNION ALL
        SELECT outbox._event_time(u.id), 1, 'enqueued', NULL, format('scheduled for %s', u.deliver_at) FROM outbox.unscheduled AS u WHERE u.id = trace.id AND u.log_id IS NULL
        UNION ALL
        SELECT u.at, 7, u.status, NULL, format('by %s', u.role) FROM outbox.unscheduled AS u WHERE u.id = trace.id AND u.log_id IS NULL
        UNION ALL
        SELECT e.logged_at, 2, CASE WHEN r.unmatched IS NULL THEN 'matched' ELSE 'not matched' END, r.subscription, r.unmatched
          FROM event AS e, routing AS r WHERE NOT r.elsewhere
        UNION ALL
        SELECT e.logged_at, 3, 'not matched', NULL,
               format(CASE WHEN e.type = 'outbox.ping' THEN 'the ping is for another subscription (%s not named)' ELSE 'it belongs to another tenant (%s subscriptions)' END, count(*))
          FROM event AS e, routing AS r WHERE r.elsewhere GROUP BY e.logged_at, e.type
        UNION ALL
        SELECT a.at, 5, 'attempt', a.subscription,
               format('attempt %s%s: %s', a.attempt, CASE WHEN a.replay THEN ' of a replay' END, outbox._outcome_name(a.outcome)) || COALESCE(', status ' || a.status_code, '')
               || format(', %s ms', round(a.duration / 1000.0, 1)) || COALESCE(' (' || a.error || ')', '')
          FROM attempt AS a
        UNION ALL
        SELECT a.ended_at, 6, 'delivered', a.subscription, CASE WHEN a.attempt > 1 THEN format('after %s attempts', a.attempt) END
          FROM attempt AS a WHERE a.outcome = 0
        UNION ALL
        -- counting starts again after a redrive: that tells that one was, and operation tells whose
        SELECT o.at, 4, 'redriven', a.subscription, format('by %s', o.role)
          FROM (SELECT x.subscription, x.previous_at, x.at FROM attempt AS x WHERE x.attempt = 1 AND x.previous_at IS NOT NULL
                UNION ALL
                SELECT d.subscription, d.last_at, 'infinity' FROM delivery AS d WHERE d.attempts = 0 AND d.last_at IS NOT NULL AND d.status IN ('retrying', 'sending')) AS a
         CROSS JOIN LATERAL (SELECT p.at, p.role FROM outbox.operation AS p
                              WHERE p.action = 'redrive' AND p.at > a.previous_at AND p.at <= a.at AND (p.subscription IS NULL OR p.subscription = a.subscription)
                              ORDER BY p.at DESC LIMIT 1) AS o
        UNION ALL
        SELECT d.ended_at, 7, d.status, d.subscription, CASE d.status WHEN 'dead' THEN format('given up: %s, after %s attempts', d.reason, d.attempts) ELSE 'by an operator' END
          FROM delivery AS d WHERE d.status IN ('dead', 'discarded')
        UNION ALL
        SELECT g.at, 7, 'expired', r.subscription, format('given up: the subscription was past outbox.%s (gap %s)', g.reason, g.id)
          FROM routing AS r JOIN outbox.gap AS g ON g.id = r.gap
         WHERE r.unmatched IS NULL AND NOT EXISTS (SELECT FROM delivery AS d WHERE d.subscription_id = r.subscription_id)
        UNION ALL
        SELECT now(), 8, CASE d.status WHEN 'retrying' THEN 'waiting' WHEN 'sending' THEN 'pending' ELSE d.status END, d.subscription,
               CASE d.status WHEN 'retrying' THEN format('for attempt %s, until %s', d.attempts + 1, d.next_attempt_at)
                             WHEN 'sending'  THEN 'the request is in flight'
                             WHEN 'blocked'  THEN COALESCE(format('behind event %s of key %s, which is %s', a.event_id, a.key, a.status), format('behind an earlier event of key %s', d.key))
                             ELSE '' END || COALESCE('; ' || h.why, '')
          FROM delivery AS d JOIN held AS h ON h.id = d.subscription_id LEFT JOIN ahead AS a ON a.subscription_id = d.subscription_id
         WHERE d.status NOT IN ('dead', 'discarded')
        UNION ALL
        SELECT now(), 8, y.status, y.subscription,
               CASE WHEN y.status = 'delivered' THEN 'the attempt is no longer logged'
                    WHEN y.status = 'expired'   THEN 'it was not delivered; its dead letter is past outbox.dead_letter_retention'
                    WHEN y.status = 'discarded' THEN 'with the backlog of a restored dump'
                    ELSE COALESCE(s.why, format('behind event %s of key %s, which is %s', a.event_id, a.key, a.status), s.backlog, 'its turn has not come, or the answer has not been recorded') END
          FROM outbox.event_status(trace.id) AS y JOIN held AS s ON s.name = y.subscription LEFT JOIN ahead AS a ON a.subscription_id = s.id
         WHERE y.status <> 'unmatched'
           AND NOT EXISTS (SELECT FROM routing AS r WHERE r.subscription_id = s.id AND r.gap IS NOT NULL)
           AND NOT EXISTS (SELECT FROM delivery AS d WHERE d.subscription_id = s.id)
           AND NOT EXISTS (SELECT FROM attempt AS a WHERE a.subscription_id = s.id AND a.outcome = 0)
    )
    SELECT l.at, l.what, l.subscription, l.detail FROM line AS l ORDER BY l.at, l.rank, l.subscription
$$;
COMMENT ON FUNCTION outbox.trace(uuid) IS
'The life of one event, in order: enqueued, scheduled, due or cancelled, matched or not and why (types, filter, tenant, subscribed later), each attempt, waiting until when, delivered, dead, given up in a gap, redriven. What it waits for
(its next attempt, an event of its key, the subscription being paused, the circuit breaker, the worker, the backlog) comes with it. What still lies ahead of it comes last, with the time of asking.';

-- ===== seeing: all of it =================================================================================================

-- Views belong to the owner, so they may be granted without their tables. They show scheme and host of a URL, and nothing of a secret.

CREATE VIEW outbox.delivery_status AS
SELECT d.event_id,
       s.name AS subscription,
       CASE d.status WHEN 'sending' THEN 'pending' ELSE d.status END AS status,
       d.attempts,
       d.next_attempt_at,
       d.last_error
  FROM outbox.delivery AS d
  JOIN outbox.subscription AS s ON s.id OPERATOR(pg_catalog.=) d.subscription_id;
COMMENT ON VIEW outbox.delivery_status IS 'Events that a subscription went past without delivering them: waiting, dead or discarded. For any event, ask event_status().';
COMMENT ON COLUMN outbox.delivery_status.event_id IS 'The event';
COMMENT ON COLUMN outbox.delivery_status.subscription IS 'For whom';
COMMENT ON COLUMN outbox.delivery_status.status IS 'pending (in flight for long), retrying, blocked (behind another event of its key), leased, dead or discarded';
COMMENT ON COLUMN outbox.delivery_status.attempts IS 'Made so far, since the last redrive';
COMMENT ON COLUMN outbox.delivery_status.next_attempt_at IS 'retrying: when it is tried again';
COMMENT ON COLUMN outbox.delivery_status.last_error IS 'How the last attempt failed';

CREATE VIEW outbox.dead_letter AS
SELECT d.event_id,
       s.name AS subscription,
       d.reason,
       d.attempts,
       d.ended_at AS died_at,
       d.last_status_code,
       d.last_error,
       e.type,
       e.key,
       e.tenant
  FROM outbox.delivery AS d
  JOIN outbox.subscription AS s ON s.id OPERATOR(pg_catalog.=) d.subscription_id
  LEFT JOIN LATERAL (SELECT x.type, x.key, x.tenant FROM outbox.event AS x WHERE x.id OPERATOR(pg_catalog.=) COALESCE(d.log_id, d.event_id)
                     UNION ALL
                     SELECT k.type, k.key, k.tenant FROM outbox.kept_event AS k WHERE k.id OPERATOR(pg_catalog.=) COALESCE(d.log_id, d.event_id)
                     LIMIT 1) AS e ON true
 WHERE d.status OPERATOR(pg_catalog.=) 'dead';
COMMENT ON VIEW outbox.dead_letter IS 'Deliveries that were given up. They stay until redrive(), discard(), or outbox.dead_letter_retention.';
COMMENT ON COLUMN outbox.dead_letter.event_id IS 'The event';
COMMENT ON COLUMN outbox.dead_letter.subscription IS 'Who did not get it';
COMMENT ON COLUMN outbox.dead_letter.reason IS 'Why it was given up: max_attempts, give_up_after, fatal_status, blocked_address, bad_request or internal';
COMMENT ON COLUMN outbox.dead_letter.attempts IS 'Attempts made';
COMMENT ON COLUMN outbox.dead_letter.died_at IS 'When it was given up';
COMMENT ON COLUMN outbox.dead_letter.last_status_code IS 'HTTP status of the last attempt; NULL without an answer';
COMMENT ON COLUMN outbox.dead_letter.last_error IS 'How the last attempt failed';
COMMENT ON COLUMN outbox.dead_letter.type IS 'Of the event';
COMMENT ON COLUMN outbox.dead_letter.key IS 'Of the event';
COMMENT ON COLUMN outbox.dead_letter.tenant IS 'Of the event';

-- The head of a blocked key is the one that is not itself waiting behind another: it retries, is in flight, or died and holds the key (on_dead = block).
CREATE VIEW outbox.blocked_key AS
SELECT s.name AS subscription,
       held.key,
       held.head_event_id,
       held.waiting,
       COALESCE(head.first_attempt_at, head.next_attempt_at) AS since,
       head.next_attempt_at
  FROM (SELECT d.subscription_id, d.key,
               -- the oldest that holds back; there is no min() of uuid
               (pg_catalog.array_agg(d.event_id ORDER BY COALESCE(d.log_id, d.event_id) USING OPERATOR(pg_catalog.<))
                    FILTER (WHERE d.status OPERATOR(pg_catalog.<>) 'blocked'))[1] AS head_event_id,
               pg_catalog.count(*) FILTER (WHERE d.status OPERATOR(pg_catalog.=) 'blocked') AS waiting
          FROM outbox.delivery AS d
          JOIN outbox.subscription AS o ON o.id OPERATOR(pg_catalog.=) d.subscription_id
         WHERE d.key IS NOT NULL
           AND (d.status OPERATOR(pg_catalog.=) 'retrying' OR d.status OPERATOR(pg_catalog.=) 'blocked'
                OR (o.on_dead OPERATOR(pg_catalog.=) 'block' AND d.status OPERATOR(pg_catalog.=) 'dead'))
         GROUP BY d.subscription_id, d.key) AS held
  JOIN outbox.subscription AS s ON s.id OPERATOR(pg_catalog.=) held.subscription_id
  JOIN outbox.delivery AS head ON head.subscription_id OPERATOR(pg_catalog.=) held.subscription_id AND head.event_id OPERATOR(pg_catalog.=) held.head_event_id
 WHERE s.ordering OPERATOR(pg_catalog.=) 'key';
COMMENT ON VIEW outbox.blocked_key IS 'Keys that are held back by an event that was not delivered';
COMMENT ON COLUMN outbox.blocked_key.subscription IS 'Where';
COMMENT ON COLUMN outbox.blocked_key.key IS 'The ordering key';
COMMENT ON COLUMN outbox.blocked_key.head_event_id IS 'The event that holds it back';
COMMENT ON COLUMN outbox.blocked_key.waiting IS 'How many events the subscription went past that wait behind it';
COMMENT ON COLUMN outbox.blocked_key.since IS 'When its first attempt began';
COMMENT ON COLUMN outbox.blocked_key.next_attempt_at IS 'When it is tried again; NULL: an operator must redrive or discard it';

CREATE VIEW outbox.attempt AS
SELECT a.event_id,
       s.name AS subscription,
       a.attempt::pg_catalog.int4 AS attempt,
       a.at,
       outbox._outcome_name(a.outcome) AS outcome,
       a.status_code::pg_catalog.int4 AS status_code,
       pg_catalog.make_interval(secs => a.duration OPERATOR(pg_catalog./) 1e6::pg_catalog.float8) AS duration,
       a.error,
       pg_catalog.encode(a.response, 'escape') AS response,
       a.replay
  FROM outbox.attempt_log AS a
  LEFT JOIN outbox.subscription AS s ON s.id OPERATOR(pg_catalog.=) a.subscription_id;
COMMENT ON VIEW outbox.attempt IS 'The log of attempts: one row per HTTP exchange and event, kept for outbox.attempt_retention. Find one event''s by event_id.';
COMMENT ON COLUMN outbox.attempt.event_id IS 'The event';
COMMENT ON COLUMN outbox.attempt.subscription IS 'To whom; NULL if it has been unsubscribed';
COMMENT ON COLUMN outbox.attempt.attempt IS 'Its number, from 1; starts again after a redrive';
COMMENT ON COLUMN outbox.attempt.at IS 'When it began';
COMMENT ON COLUMN outbox.attempt.outcome IS 'delivered, http_3xx, http_4xx, http_5xx, gone, timeout, dns, connect, tls, protocol, blocked, bad_request or internal';
COMMENT ON COLUMN outbox.attempt.status_code IS 'HTTP status; NULL without an answer';
COMMENT ON COLUMN outbox.attempt.duration IS 'From the beginning to the end of the exchange';
COMMENT ON COLUMN outbox.attempt.error IS 'What went wrong; never more of the URL than scheme and host';
COMMENT ON COLUMN outbox.attempt.response IS 'The first bytes of the answer''s body (option response_kept); bytes beyond ASCII as \ooo';
COMMENT ON COLUMN outbox.attempt.replay IS 'It was made for replay(), and told the receiver so: webhook-replay: true';

-- How far each subscription is behind. The running worker knows. Without one it follows from the committed cursors; counting stops at 100,000 events, sooner when there
-- are many subscriptions.

-- Segments have no statistics, and each question here has an index for its answer: sequential scans are out of the question.
CREATE FUNCTION outbox._events_after(place pg_snapshot, next xid8, clock bigint, at_most bigint, OUT events bigint, OUT oldest_at timestamptz) LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
    -- what a snapshot does not see: transactions from its xmax on, and those that were in progress; without one: all from a clock on
    SELECT (SELECT count(*) FROM (SELECT FROM outbox.event AS e WHERE e.xid >= pg_snapshot_xmax(place) AND e.epoch = outbox.epoch() LIMIT at_most) AS x)
         + (SELECT count(*) FROM (SELECT FROM outbox.event AS e WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip(place))) AND e.epoch = outbox.epoch() LIMIT at_most) AS x)
         + CASE WHEN place IS NULL
                THEN (SELECT count(*) FROM (SELECT FROM outbox.event AS e WHERE e.id >= outbox._lowest_id(COALESCE(clock, 0)) AND e.epoch = outbox.epoch() LIMIT at_most) AS x)
                ELSE 0 END,
           -- of those, only transactions below `next` can have ids below `clock`
           outbox._event_time(LEAST(
               (SELECT e.id FROM outbox.event AS e
                 WHERE e.id >= outbox._lowest_id(COALESCE(clock, 0)) AND e.epoch = outbox.epoch() AND NOT COALESCE(pg_visible_in_snapshot(e.xid, place), false) ORDER BY e.id LIMIT 1),
               (SELECT x.id FROM (SELECT e.id FROM outbox.event AS e
                 WHERE e.xid >= pg_snapshot_xmax(place) AND e.xid < next AND e.epoch = outbox.epoch() ORDER BY e.xid, e.id LIMIT at_most) AS x ORDER BY x.id LIMIT 1),
               (SELECT x.id FROM pg_snapshot_xip(place) AS p (xid) CROSS JOIN LATERAL (SELECT e.id FROM outbox.event AS e
                 WHERE e.xid = p.xid AND e.epoch = outbox.epoch() ORDER BY e.id LIMIT 1) AS x ORDER BY x.id LIMIT 1)))
$$;
COMMENT ON FUNCTION outbox._events_after(pg_snapshot, xid8, bigint, bigint) IS 'How many events a place does not see yet (about; counting stops at at_most), and the time of the oldest';

CREATE FUNCTION outbox._lag(OUT subscription_id integer, OUT lag_events bigint, OUT oldest_at timestamptz, OUT pinned_bytes bigint)
RETURNS SETOF record LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
    WITH worker AS MATERIALIZED (SELECT w.* FROM outbox._worker() AS w),
    lane AS MATERIALIZED (SELECT r.* FROM outbox._runtime() AS r WHERE EXISTS (SELECT FROM worker AS w WHERE w.worker_pid <> 0)),
    cursor AS MATERIALIZED (SELECT c.* FROM outbox._cursors(outbox.epoch()) AS c),
    -- without a worker: what is behind each place, once per place
    tick AS MATERIALIZED (SELECT t.* FROM outbox.tick AS t
                           WHERE t.epoch = outbox.epoch() AND t.tick IN (SELECT c.tick FROM cursor AS c WHERE NOT EXISTS (SELECT FROM lane AS l WHERE l.subscription_id = c.subscription_id))),
    after_tick AS MATERIALIZED (SELECT t.tick, t."offset", x.events, x.oldest_at FROM tick AS t CROSS JOIN LATERAL outbox._events_after(t.snapshot, t.next, t.clock, 100000) AS x),
    exception AS MATERIALIZED (SELECT d.subscription_id, (min(COALESCE(d.log_id, d.event_id)::text COLLATE "C") FILTER (WHERE d.replay IS NULL))::uuid AS event_id, count(*) AS events FROM outbox.delivery AS d
                                WHERE d.status NOT IN ('dead', 'discarded') GROUP BY d.subscription_id),
    bound AS MATERIALIZED (SELECT GREATEST(LEAST(1000000 / GREATEST(count(*), 1), 100000), 100) AS at_most FROM outbox.subscription AS s),
    -- and behind each start, once per start, for those that no worker has seen yet
    beginner AS MATERIALIZED (SELECT s.id, concat_ws(' ', s.start_snapshot, s.start_next, s.start_clock, s.start_after) AS place,
                                     CASE WHEN s.start_epoch = outbox.epoch() THEN s.start_snapshot END AS start_snapshot, s.start_next,
                                     COALESCE(s.start_clock, outbox._clock_at(outbox._event_time(s.start_after))) AS start_clock
                                FROM outbox.subscription AS s JOIN cursor AS c ON c.subscription_id = s.id AND COALESCE(c.tick, 0) = 0
                               WHERE NOT EXISTS (SELECT FROM lane AS l WHERE l.subscription_id = s.id)),
    after_start AS MATERIALIZED (SELECT b.place, x.events, x.oldest_at
                                   FROM (SELECT DISTINCT ON (d.place) d.* FROM beginner AS d ORDER BY d.place) AS b
                                  CROSS JOIN LATERAL outbox._events_after(b.start_snapshot, b.start_next, b.start_clock, (SELECT n.at_most FROM bound AS n)) AS x),
    segment AS MATERIALIZED (SELECT g.* FROM outbox._segments() AS g WHERE g.last_id IS NOT NULL AND NOT g.is_current)
    SELECT s.id,
           CASE WHEN l.subscription_id IS NOT NULL
                THEN CASE WHEN l.at_head THEN 0 ELSE GREATEST((SELECT w."offset" FROM worker AS w) - l."offset", 0) END + l.exceptions
                ELSE COALESCE(stopped.events, 0) + COALESCE(x.events, 0) END,
           CASE WHEN l.subscription_id IS NOT NULL THEN l.oldest_at ELSE LEAST(stopped.oldest_at, outbox._event_time(x.event_id)) END,
           (SELECT COALESCE(sum(g.bytes), 0)::bigint FROM segment AS g
             WHERE NOT COALESCE(g.sealed AND (c.base >= g.seal_tick OR (c.tick >= g.seal_tick AND c.after >= g.last_id)), false))
      FROM outbox.subscription AS s
      JOIN cursor AS c ON c.subscription_id = s.id
      LEFT JOIN lane AS l ON l.subscription_id = s.id
      LEFT JOIN exception AS x ON x.subscription_id = s.id
      LEFT JOIN LATERAL (SELECT GREATEST(a."offset" - c."offset", 0) + a.events AS events,
                                CASE WHEN c.base = c.tick THEN a.oldest_at ELSE COALESCE(outbox._event_time(c.after), a.oldest_at) END AS oldest_at
                           FROM after_tick AS a WHERE a.tick = c.tick
                         UNION ALL
                         SELECT a.events, a.oldest_at FROM beginner AS b JOIN after_start AS a ON a.place = b.place
                          WHERE b.id = s.id) AS stopped ON l.subscription_id IS NULL
$$;
COMMENT ON FUNCTION outbox._lag() IS 'How far each subscription is behind: events not done, the time of the oldest, and the bytes of full segments that wait for it';

CREATE VIEW outbox.subscription_status AS
SELECT s.name,
       s.kind,
       pg_catalog.lower(pg_catalog.substring(s.url, '^[^:]+://[^/?]+')) AS url,
       s.tenant,
       s.labels,
       CASE WHEN s.state OPERATOR(pg_catalog.=) 'active' AND r.breaker_open_until IS NOT NULL THEN 'open' ELSE s.state END AS state,
       s.reason,
       l.lag_events,
       CASE WHEN l.oldest_at IS NULL THEN 0
            ELSE GREATEST(EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) l.oldest_at)::pg_catalog.float8, 0) END AS lag_seconds,
       COALESCE(r.in_flight, 0) AS in_flight,
       dead.dead,
       blocked.blocked_keys,
       l.pinned_bytes,
       r.breaker_open_until,
       r.next_probe_at,
       r.last_success_at,
       r.last_error_at,
       r.last_error,
       (SELECT '...' OPERATOR(pg_catalog.||) k.hint[1] FROM outbox.secret AS k
         WHERE k.subscription_id OPERATOR(pg_catalog.=) s.id AND k.kind OPERATOR(pg_catalog.=) 'signing' ORDER BY k.id USING OPERATOR(pg_catalog.>) LIMIT 1) AS secret_hint,
       (SELECT k.hint FROM outbox.secret AS k
         WHERE k.subscription_id OPERATOR(pg_catalog.=) s.id AND k.kind OPERATOR(pg_catalog.=) 'headers' ORDER BY k.id USING OPERATOR(pg_catalog.>) LIMIT 1) AS header_names
  FROM outbox.subscription AS s
  LEFT JOIN outbox._lag() AS l ON l.subscription_id OPERATOR(pg_catalog.=) s.id
  LEFT JOIN outbox._runtime() AS r ON r.subscription_id OPERATOR(pg_catalog.=) s.id
 CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS dead FROM outbox.delivery AS d
                      WHERE d.subscription_id OPERATOR(pg_catalog.=) s.id AND d.status OPERATOR(pg_catalog.=) 'dead') AS dead
 CROSS JOIN LATERAL (SELECT pg_catalog.count(DISTINCT d.key) AS blocked_keys FROM outbox.delivery AS d
                      WHERE s.ordering OPERATOR(pg_catalog.=) 'key' AND d.subscription_id OPERATOR(pg_catalog.=) s.id AND d.key IS NOT NULL
                        AND (d.status OPERATOR(pg_catalog.=) 'retrying' OR (s.on_dead OPERATOR(pg_catalog.=) 'block' AND d.status OPERATOR(pg_catalog.=) 'dead'))) AS blocked;
COMMENT ON VIEW outbox.subscription_status IS 'How every subscription is doing';
COMMENT ON COLUMN outbox.subscription_status.name IS 'The subscription';
COMMENT ON COLUMN outbox.subscription_status.kind IS 'push (has a URL) or pull (drained by SQL)';
COMMENT ON COLUMN outbox.subscription_status.url IS 'Scheme, host and port of the receiver; the rest of a webhook URL is a secret';
COMMENT ON COLUMN outbox.subscription_status.tenant IS 'Whose events it gets; NULL: everybody''s';
COMMENT ON COLUMN outbox.subscription_status.labels IS 'As given to subscribe()';
COMMENT ON COLUMN outbox.subscription_status.state IS 'active, paused (by pause() or pause_all()), disabled (see reason), or open (failing: only probes are sent)';
COMMENT ON COLUMN outbox.subscription_status.reason IS 'Why it is paused or disabled';
COMMENT ON COLUMN outbox.subscription_status.lag_events IS 'Events of the log it has not done yet, about; those that do not match it count until it has read past them';
COMMENT ON COLUMN outbox.subscription_status.lag_seconds IS 'Age of the oldest of them; 0: none';
COMMENT ON COLUMN outbox.subscription_status.in_flight IS 'Requests sent and not answered';
COMMENT ON COLUMN outbox.subscription_status.dead IS 'Dead letters';
COMMENT ON COLUMN outbox.subscription_status.blocked_keys IS 'Keys held back by an event that was not delivered';
COMMENT ON COLUMN outbox.subscription_status.pinned_bytes IS 'Full segments of the event log that cannot be emptied before it has read them';
COMMENT ON COLUMN outbox.subscription_status.breaker_open_until IS 'Until when nothing is sent: open, and at least until then; NULL: the circuit breaker is closed';
COMMENT ON COLUMN outbox.subscription_status.next_probe_at IS 'When the next probe is, or was if it is on its way';
COMMENT ON COLUMN outbox.subscription_status.last_success_at IS 'The last 2xx since the worker started';
COMMENT ON COLUMN outbox.subscription_status.last_error_at IS 'The last failure since the worker started';
COMMENT ON COLUMN outbox.subscription_status.last_error IS 'What it was';
COMMENT ON COLUMN outbox.subscription_status.secret_hint IS 'The last four characters of the current signing secret';
COMMENT ON COLUMN outbox.subscription_status.header_names IS 'Names of the static headers';

-- ===== receiving =========================================================================================================

-- The inbox: a row per message id that a consumer has accepted. Inserted by accept() alone, deleted by maintain() when it is old enough, never updated. The id comes first
-- in the key: it is different in each entry, so that comparisons end there. What expires leaves whole pages behind, which are to be used again soon, hence the early vacuum.
CREATE TABLE outbox.inbox (
    accepted_at  timestamptz NOT NULL,
    message_id   text COLLATE "C" NOT NULL,
    consumer     text COLLATE "C" NOT NULL,
    PRIMARY KEY (message_id, consumer)
) USING heap WITH (autovacuum_vacuum_scale_factor = 0.02, vacuum_truncate = off);
SELECT pg_catalog.pg_extension_config_dump('outbox.inbox', '');

COMMENT ON TABLE outbox.inbox IS 'The message ids that consumers have accepted and not yet forgotten; written by accept(), counted in inbox_status';
COMMENT ON COLUMN outbox.inbox.accepted_at IS 'When accept() was called';
COMMENT ON COLUMN outbox.inbox.message_id IS 'The message''s id, as its sender calls it';
COMMENT ON COLUMN outbox.inbox.consumer IS 'Who accepted it';

-- Consumers that want something else than the settings say. Who is not in here has the usual retention.
CREATE TABLE outbox.consumer (
    name              text COLLATE "C" PRIMARY KEY,
    retention         interval,
    sender_retry_span interval
);
SELECT pg_catalog.pg_extension_config_dump('outbox.consumer', '');

COMMENT ON TABLE outbox.consumer IS 'Consumers with a retention of their own; written by set_consumer()';
COMMENT ON COLUMN outbox.consumer.name IS 'As in accept()';
COMMENT ON COLUMN outbox.consumer.retention IS 'How long its message ids are remembered at least; NULL: outbox.inbox_retention';
COMMENT ON COLUMN outbox.consumer.sender_retry_span IS 'For how long its senders may repeat a message; NULL: not known';

-- Written by maintain() alone, so that no two callers of accept() ever meet here.
CREATE TABLE outbox.inbox_count (
    consumer     text COLLATE "C" PRIMARY KEY,
    expired      bigint NOT NULL,
    duplicates   bigint NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('outbox.inbox_count', '');

COMMENT ON TABLE outbox.inbox_count IS 'What inbox_status cannot count in the inbox itself; written by maintain()';
COMMENT ON COLUMN outbox.inbox_count.consumer IS 'Whose';
COMMENT ON COLUMN outbox.inbox_count.expired IS 'Message ids that were accepted and have been forgotten since';
COMMENT ON COLUMN outbox.inbox_count.duplicates IS 'Messages refused because they had been accepted before';

CREATE FUNCTION outbox.accept(consumer text, message_id text)
RETURNS boolean LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_accept';
COMMENT ON FUNCTION outbox.accept(text, text) IS
'Accepts a message once: true in the first transaction that commits with it, false afterwards. Call it in the transaction that does what the message asks for, and do that only if it is true.
Waits for a transaction that has just accepted the same message: if that rolls back, this one has it. False is said only when the other''s commit is on disk.
consumer: what the message is for, at most 128 bytes. message_id: as its sender calls it, such as webhook-id, at most 512 bytes. It is remembered for outbox.inbox_retention, or as set_consumer() says.
Errors: 22004, 22023 for invalid arguments; 40001 in REPEATABLE READ and SERIALIZABLE if another transaction has accepted it since this one began: retry; 25006 in read-only transactions and on standbys.';

CREATE FUNCTION outbox.accept_many(consumer text, message_ids text[])
RETURNS text[] LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_accept_many';
COMMENT ON FUNCTION outbox.accept_many(text, text[]) IS
'accept() for many messages of a consumer at once. Returns those that are new, in the order of the array; what is twice in it is new once. Takes them in an order of its own, so that two calls cannot deadlock.
Errors: as accept(); 2202E for an array of several dimensions.';

CREATE FUNCTION outbox._refusals(OUT consumer text, OUT duplicates bigint)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'outbox_refusals';
COMMENT ON FUNCTION outbox._refusals() IS 'Duplicates refused, by consumer, that maintain() has not yet written to inbox_count';

CREATE FUNCTION outbox.set_consumer(consumer text, retention interval DEFAULT NULL, sender_retry_span interval DEFAULT NULL) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF set_consumer.consumer IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'consumer must not be null', DETAIL = 'Retention is set for a consumer.', HINT = 'Give one; for all others there is outbox.inbox_retention.';
    ELSIF octet_length(set_consumer.consumer) NOT BETWEEN 1 AND 128 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'invalid consumer', DETAIL = format('It has %s bytes; from 1 to 128 are possible.', octet_length(set_consumer.consumer)),
            HINT = 'Use the name that accept() is called with.';
    ELSIF set_consumer.retention NOT BETWEEN interval '1 second' AND interval '3650 days' OR set_consumer.sender_retry_span NOT BETWEEN interval '0' AND interval '3650 days' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'invalid retention or sender_retry_span', DETAIL = 'A retention is from 1 second, a retry span from 0, to 3650 days.',
            HINT = 'Leave out what is to be as usual.';
    END IF;

    INSERT INTO outbox.consumer AS c (name, retention, sender_retry_span)
    VALUES (set_consumer.consumer, justify_hours(make_interval(secs => extract(epoch FROM set_consumer.retention)::float8)), justify_hours(make_interval(secs => extract(epoch FROM set_consumer.sender_retry_span)::float8)))
    ON CONFLICT (name) DO UPDATE SET retention = EXCLUDED.retention, sender_retry_span = EXCLUDED.sender_retry_span;
END
$$;
COMMENT ON FUNCTION outbox.set_consumer(text, interval, interval) IS
'Sets for how long the message ids of a consumer are remembered at least (retention; NULL: outbox.inbox_retention), and for how long its senders may repeat a message
(sender_retry_span; NULL: not known), by themselves or by an operator''s hand: health() warns when that is longer. Errors: 22004, 22023 for invalid arguments.';

CREATE VIEW outbox.inbox_status AS
WITH held AS (SELECT i.consumer, pg_catalog.count(*) AS held, pg_catalog.min(i.accepted_at) AS oldest_at FROM outbox.inbox AS i GROUP BY i.consumer),
     name AS (SELECT c.name FROM outbox.consumer AS c UNION SELECT n.consumer FROM outbox.inbox_count AS n UNION SELECT h.consumer FROM held AS h UNION SELECT r.consumer FROM outbox._refusals() AS r)
SELECT name.name AS consumer,
       COALESCE(h.held, 0) AS held,
       COALESCE(h.held, 0) OPERATOR(pg_catalog.+) COALESCE(n.expired, 0) AS accepted,
       COALESCE(n.duplicates, 0) OPERATOR(pg_catalog.+) COALESCE(r.duplicates, 0) AS duplicates,
       h.oldest_at,
       COALESCE(c.retention, pg_catalog.current_setting('outbox.inbox_retention')::pg_catalog.interval) AS retention,
       c.sender_retry_span
  FROM name
  LEFT JOIN held AS h ON h.consumer OPERATOR(pg_catalog.=) name.name
  LEFT JOIN outbox.inbox_count AS n ON n.consumer OPERATOR(pg_catalog.=) name.name
  LEFT JOIN outbox.consumer AS c ON c.name OPERATOR(pg_catalog.=) name.name
  LEFT JOIN outbox._refusals() AS r ON r.consumer OPERATOR(pg_catalog.=) name.name;
COMMENT ON VIEW outbox.inbox_status IS 'Consumers and what they have accepted. Counts the inbox, so it reads all of it: for people, not for every minute.';
COMMENT ON COLUMN outbox.inbox_status.consumer IS 'As in accept()';
COMMENT ON COLUMN outbox.inbox_status.held IS 'Message ids remembered';
COMMENT ON COLUMN outbox.inbox_status.accepted IS 'Messages accepted so far, also those forgotten since';
COMMENT ON COLUMN outbox.inbox_status.duplicates IS 'Messages refused because they had been accepted before; a crash loses what was counted since the last maintenance';
COMMENT ON COLUMN outbox.inbox_status.oldest_at IS 'When the oldest id that is remembered was accepted';
COMMENT ON COLUMN outbox.inbox_status.retention IS 'For how long ids are remembered at least';
COMMENT ON COLUMN outbox.inbox_status.sender_retry_span IS 'For how long its senders may repeat a message, as set_consumer() was told';

CREATE FUNCTION outbox._inbox_health(OUT subject text, OUT value numeric, OUT detail text) RETURNS SETOF record LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(c.name, ', ' ORDER BY c.name), count(*), 'consumers that forget a message before its senders stop repeating it'
      FROM outbox.consumer AS c
     WHERE c.sender_retry_span > COALESCE(c.retention, current_setting('outbox.inbox_retention', true)::interval)
$$;
COMMENT ON FUNCTION outbox._inbox_health() IS 'What health() says about consumers';

CREATE FUNCTION outbox.verify_webhook(headers jsonb, body bytea, secret text, tolerance interval DEFAULT '5 min')
RETURNS boolean LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_verify_webhook';
COMMENT ON FUNCTION outbox.verify_webhook(jsonb, bytea, text, interval) IS
'Is this request signed with the secret, and recent? Standard Webhooks 1.0.0, scheme v1: HMAC-SHA256 over webhook-id.webhook-timestamp.body; one of the signatures must be right, those of other versions are ignored.
headers: the request''s fields, an object of strings (or arrays of strings), names in any case. body: the bytes as they came. secret: base64, as a rule after whsec_. tolerance: how far webhook-timestamp
may be from now, at most 1 day. False for whatever a stranger could send, never NULL. Errors: 22004 for null arguments, 22023 for a malformed secret, headers that are no object, an invalid tolerance.';

-- ===== idempotency keys ==================================================================================================

CREATE SEQUENCE outbox.idempotency_key_token AS bigint;
COMMENT ON SEQUENCE outbox.idempotency_key_token IS 'Tokens of begin_request(): ascending, so that they can fence';
SELECT pg_catalog.pg_extension_config_dump('outbox.idempotency_key_token', '');   -- a restored copy does not give a token twice

CREATE TABLE outbox.idempotency_key (
    token         bigint      NOT NULL,
    claimed_at    timestamptz NOT NULL,
    takeover_at   timestamptz NOT NULL,
    finished_at   timestamptz,
    status        integer,
    scope         text COLLATE "C" NOT NULL,
    key           text COLLATE "C" NOT NULL,
    fingerprint   bytea       NOT NULL,
    response      jsonb,
    PRIMARY KEY (scope, key)
) USING heap WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, vacuum_truncate = off);   -- a finished row stays on its page
SELECT pg_catalog.pg_extension_config_dump('outbox.idempotency_key', '');

COMMENT ON TABLE outbox.idempotency_key IS 'Requests by the key that their client gave them: claimed by begin_request(), finished with a response by finish_request(); granted to nobody';
COMMENT ON COLUMN outbox.idempotency_key.token IS 'Of the claim, ascending: who took over has a higher one';
COMMENT ON COLUMN outbox.idempotency_key.claimed_at IS 'When it was claimed, for the last time';
COMMENT ON COLUMN outbox.idempotency_key.takeover_at IS 'Unless finished, another caller may claim it from then on';
COMMENT ON COLUMN outbox.idempotency_key.finished_at IS 'When it was finished; NULL: not yet';
COMMENT ON COLUMN outbox.idempotency_key.status IS 'HTTP status of the response';
COMMENT ON COLUMN outbox.idempotency_key.scope IS 'Whose key it is: a client known to the server, an endpoint';
COMMENT ON COLUMN outbox.idempotency_key.key IS 'The client''s name for the request';
COMMENT ON COLUMN outbox.idempotency_key.fingerprint IS 'Hash of the request: the same key with another one is another request';
COMMENT ON COLUMN outbox.idempotency_key.response IS 'Body of the response';

CREATE FUNCTION outbox._wait_durable(xid xid) RETURNS void LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_wait_durable';
COMMENT ON FUNCTION outbox._wait_durable(xid) IS 'Returns when the commit of this transaction, which has committed, is on disk';

CREATE FUNCTION outbox._commit_durably() RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_commit_durably';
COMMENT ON FUNCTION outbox._commit_durably() IS 'Makes the commit of this transaction synchronous, whatever synchronous_commit says';

CREATE FUNCTION outbox._check_request(scope text, key text) RETURNS void LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF _check_request.scope IS NULL OR _check_request.key IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'scope and key of a request must not be null', DETAIL = 'They are the name of the request.',
            HINT = 'Without a key there is no idempotency: answer 400 where one is required.';
    ELSIF char_length(_check_request.scope) NOT BETWEEN 1 AND 255 OR char_length(_check_request.key) NOT BETWEEN 1 AND 255 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'invalid scope or key of a request',
            DETAIL = format('They have %s and %s characters; from 1 to 255 are possible.', char_length(_check_request.scope), char_length(_check_request.key)),
            HINT = 'Answer 400: a key is a short random string, such as a UUID.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox._check_request(text, text) IS 'Refuses (22004, 22023) what cannot be scope and key of a request';

CREATE FUNCTION outbox.begin_request(scope text, key text, fingerprint bytea,
                                     OUT state text, OUT response jsonb, OUT status integer, OUT token bigint, OUT takeover_at timestamptz)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    lease   CONSTANT interval := current_setting('outbox.request_lease')::interval;
    by_snapshot CONSTANT boolean := current_setting('transaction_isolation') IN ('repeatable read', 'serializable');
    found_key record;
BEGIN
    PERFORM outbox._check_request(begin_request.scope, begin_request.key);
    IF begin_request.fingerprint IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'fingerprint of a request must not be null', DETAIL = 'It tells a repetition from another request with the same key.',
            HINT = 'Use sha256() of what makes up the request.';
    ELSIF octet_length(begin_request.fingerprint) NOT BETWEEN 1 AND 64 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'invalid fingerprint of a request',
            DETAIL = format('It has %s bytes; from 1 to 64 are possible.', octet_length(begin_request.fingerprint)), HINT = 'Use sha256() of what makes up the request.';
    END IF;

    LOOP
        SELECT k.*, k.xmin AS writer INTO found_key FROM outbox.idempotency_key AS k WHERE k.scope = begin_request.scope COLLATE "C" AND k.key = begin_request.key COLLATE "C";
        IF NOT FOUND THEN
            -- waits for who is inserting it; 40001 if that committed after our snapshot
            INSERT INTO outbox.idempotency_key AS k (scope, key, fingerprint, token, claimed_at, takeover_at)
            VALUES (begin_request.scope, begin_request.key, begin_request.fingerprint, nextval('outbox.idempotency_key_token'), clock_timestamp(), clock_timestamp() + lease)
            ON CONFLICT DO NOTHING RETURNING k.token, k.takeover_at INTO token, takeover_at;
            state := 'new';
            EXIT WHEN FOUND;
            CONTINUE;
        END IF;
        IF found_key.finished_at IS NOT NULL AND found_key.fingerprint = begin_request.fingerprint THEN
            -- whoever repeats the response must not be the only one to remember it
            PERFORM outbox._wait_durable(found_key.writer);
            state := 'replay';
            response := found_key.response;
            status := found_key.status;
            RETURN;
        END IF;
        IF by_snapshot THEN
            -- it may have changed since: then this raises 40001
            PERFORM FROM outbox.idempotency_key AS k WHERE k.scope = begin_request.scope COLLATE "C" AND k.key = begin_request.key COLLATE "C" FOR SHARE;
        END IF;
        IF found_key.fingerprint <> begin_request.fingerprint THEN
            state := 'mismatch';
            RETURN;
        ELSIF found_key.takeover_at > clock_timestamp() THEN
            state := 'in_progress';
            takeover_at := found_key.takeover_at;
            RETURN;
        END IF;
        -- waits for who is just finishing it, or taking it over, and then finds another token or none
        UPDATE outbox.idempotency_key AS k SET token = nextval('outbox.idempotency_key_token'), claimed_at = clock_timestamp(), takeover_at = clock_timestamp() + lease
         WHERE k.scope = begin_request.scope COLLATE "C" AND k.key = begin_request.key COLLATE "C" AND k.token = found_key.token AND k.finished_at IS NULL
        RETURNING k.token, k.takeover_at INTO token, takeover_at;
        state := 'new';
        EXIT WHEN FOUND;
    END LOOP;

    -- a claim that a crash could undo would not keep others away from what its owner does outside of the database
    PERFORM outbox._commit_durably();
END
$$;
COMMENT ON FUNCTION outbox.begin_request(text, text, bytea) IS
'Begins a request that its client may repeat, and says what it is (state). new: claimed for this caller, with a token, until takeover_at. in_progress: another caller has it; it may be taken over at takeover_at.
replay: it was finished, with this response and status, which are on disk. mismatch: the key was used for a request with another fingerprint.
Either all in one transaction: then a second caller waits for it, and replays. Or claimed in a transaction of its own (which commits synchronously), around calls to others: then the claim is a lease, of
outbox.request_lease, and after that another caller may take it over; its token is higher, and the former owner cannot finish it any more.
scope: whose key it is, at most 255 characters. key: at most 255 characters. fingerprint: a hash of the request, at most 64 bytes. Finished requests are kept for outbox.request_retention.
Errors: 22004, 22023 for invalid arguments; 40001 in REPEATABLE READ and SERIALIZABLE if the request has changed since this transaction began: retry; 25006 in read-only transactions and on standbys.
Semantics: draft-ietf-httpapi-idempotency-key-header.';

CREATE FUNCTION outbox._refuse_claim(scope text, key text, token bigint) RETURNS void LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_key outbox.idempotency_key;
BEGIN
    SELECT k.* INTO found_key FROM outbox.idempotency_key AS k WHERE k.scope = _refuse_claim.scope COLLATE "C" AND k.key = _refuse_claim.key COLLATE "C";
    IF NOT FOUND THEN
        RAISE undefined_object USING MESSAGE = 'there is no such request', DETAIL = 'It was not begun, was given up by fail_request(), or has expired.',
            HINT = 'Begin it again with outbox.begin_request().';
    ELSIF found_key.token IS DISTINCT FROM _refuse_claim.token THEN
        RAISE object_in_use USING MESSAGE = 'the request was taken over', DETAIL = format('It belongs to the caller with token %s since %s.', found_key.token, found_key.claimed_at),
            HINT = 'Roll back. Begin it again to learn its outcome, and raise outbox.request_lease if requests take longer.';
    END IF;
    RAISE object_not_in_prerequisite_state USING MESSAGE = 'the request is finished already', DETAIL = format('It was finished at %s.', found_key.finished_at),
        HINT = 'Begin it again to have its response.';
END
$$;
COMMENT ON FUNCTION outbox._refuse_claim(text, text, bigint) IS 'Says why this token does not finish this request: 42704, 55006 or 55000';

CREATE FUNCTION outbox.finish_request(scope text, key text, token bigint, response jsonb, status integer) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    size  integer := octet_length(finish_request.response::text);
    bound CONSTANT bigint := pg_size_bytes(current_setting('outbox.max_response'));
BEGIN
    PERFORM outbox._check_request(finish_request.scope, finish_request.key);
    IF size > bound THEN
        RAISE program_limit_exceeded USING MESSAGE = 'response of a request is too large', DETAIL = format('It has %s bytes, of at most %s.', size, bound),
            HINT = 'Store it elsewhere and a reference to it here, or increase outbox.max_response.';
    ELSIF finish_request.status IS NULL OR finish_request.status NOT BETWEEN 100 AND 599 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'invalid status of a request', DETAIL = 'It is the HTTP status of the response, from 100 to 599.', HINT = 'Without HTTP, use 200.';
    END IF;

    UPDATE outbox.idempotency_key AS k SET finished_at = clock_timestamp(), response = finish_request.response, status = finish_request.status
     WHERE k.scope = finish_request.scope COLLATE "C" AND k.key = finish_request.key COLLATE "C" AND k.token = finish_request.token AND k.finished_at IS NULL;
    IF NOT FOUND THEN
        PERFORM outbox._refuse_claim(finish_request.scope, finish_request.key, finish_request.token);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.finish_request(text, text, bigint, jsonb, integer) IS
'Stores the response of a request, for this transaction''s commit: from then on begin_request() replays it. Call it in the transaction of the business writes, so that both are there or neither.
token: from begin_request(). response: at most outbox.max_response; NULL for none. status: 100 to 599. Works after takeover_at too, as long as nobody has taken it over.
Errors: 55006 if it was taken over: roll back; 55000 if it is finished already; 42704 if there is no such request; 22004, 22023, 54000 for invalid arguments.';

CREATE FUNCTION outbox.fail_request(scope text, key text, token bigint) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM outbox._check_request(fail_request.scope, fail_request.key);
    DELETE FROM outbox.idempotency_key AS k
     WHERE k.scope = fail_request.scope COLLATE "C" AND k.key = fail_request.key COLLATE "C" AND k.token = fail_request.token AND k.finished_at IS NULL;
    IF NOT FOUND THEN
        PERFORM outbox._refuse_claim(fail_request.scope, fail_request.key, fail_request.token);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.fail_request(text, text, bigint) IS
'Gives a request up: nothing was done, and its key can be used again at once. For outcomes that a repetition is to get too, even errors, use finish_request(). Errors: 55006, 55000, 42704 as finish_request(); 22004, 22023.';

-- ===== health ============================================================================================================

-- How near each subscription is to giving up the oldest full segment that waits for it: the rule of src/delivery/backlog.c.
CREATE FUNCTION outbox._backlog(OUT subscription text, OUT age interval, OUT max_age interval, OUT bytes bigint, OUT max_bytes bigint, OUT share numeric)
RETURNS SETOF record LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
    WITH segment AS MATERIALIZED (
        SELECT g.*, outbox._running_since(outbox._event_time(g.last_id)) AS age,
               outbox._event_time(g.last_id) <= now() - COALESCE(current_setting('outbox.event_retention', true), '3d')::interval AS expired
          FROM outbox._segments() AS g WHERE g.last_id IS NOT NULL AND NOT g.is_current
    )
    SELECT b.*, round(GREATEST(extract(epoch FROM b.age) / NULLIF(extract(epoch FROM b.max_age), 0), b.bytes / NULLIF(b.max_bytes, 0)::numeric), 4)
      FROM (SELECT s.name, max(g.age), outbox._max_backlog_age(), COALESCE(sum(g.bytes) FILTER (WHERE g.expired), 0)::bigint,
                   pg_size_bytes(COALESCE(current_setting('outbox.max_backlog_size', true), '0'))
              FROM outbox.subscription AS s
              JOIN outbox._cursors(outbox.epoch()) AS c ON c.subscription_id = s.id
              JOIN segment AS g ON NOT COALESCE(g.sealed AND (c.base >= g.seal_tick OR (c.tick >= g.seal_tick AND c.after >= g.last_id)), false)
             GROUP BY s.name) AS b (name, age, max_age, bytes, max_bytes)
$$;
COMMENT ON FUNCTION outbox._backlog() IS
'Subscriptions that hold full segments of the log: the age of the oldest of these and the bytes of those past outbox.event_retention, with their bounds (age: NULL is none, bytes: 0), and the larger share of a bound that is used up';

CREATE FUNCTION outbox.health(thresholds jsonb DEFAULT '{}')
RETURNS TABLE (check_name text, status text, subject text, value numeric, threshold numeric, detail text, action text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
    segment_size CONSTANT bigint := pg_size_bytes(COALESCE(current_setting('outbox.segment_size', true), '1GB'));
    -- a check is a warning or critical from these values on; null: never
    usual CONSTANT jsonb := jsonb_build_object(
        'preload',              '{"warning": null, "critical": 1}'::jsonb,       -- 1: not preloaded
        'versions',             '{"warning": null, "critical": 1}'::jsonb,       -- 1: library and extension differ
        'launcher',             '{"warning": null, "critical": 1}'::jsonb,       -- 1: not running
        'worker_slots',         '{"warning": null, "critical": 1}'::jsonb,       -- 1: no worker could be started
        'armed',                '{"warning": 1,    "critical": 2}'::jsonb,       -- 1: not armed, or switched off; 2: armed, and no worker
        'tick_age',             '{"warning": 60,   "critical": 300}'::jsonb,     -- seconds
        'oldest_undelivered',   '{"warning": 300,  "critical": 3600}'::jsonb,    -- seconds
        'log_size',             jsonb_build_object('warning', 12 * segment_size, 'critical', 15 * segment_size),   -- bytes, of 16 segments
        'log_pinned',           jsonb_build_object('warning', 4 * segment_size, 'critical', 12 * segment_size),    -- bytes
        'backlog',              '{"warning": 0.5,  "critical": 1}'::jsonb,       -- share of outbox.max_backlog_age or outbox.max_backlog_size
        'gaps',                 '{"warning": 1,    "critical": null}'::jsonb,    -- gaps of a day
        'oldest_prepared_xact', '{"warning": 600,  "critical": 3600}'::jsonb,    -- seconds
        'dead_letters',         '{"warning": 1,    "critical": 1000}'::jsonb,    -- dead letters
        'breakers_open',        '{"warning": 1,    "critical": null}'::jsonb,    -- subscriptions
        'disabled',             '{"warning": 1,    "critical": null}'::jsonb,    -- subscriptions
        'maintenance_age',      '{"warning": 300,  "critical": 3600}'::jsonb,    -- seconds
        'secret_key',           '{"warning": null, "critical": 1}'::jsonb,       -- 1: the file cannot be used
        'secrets_encrypted',    '{"warning": 1,    "critical": null}'::jsonb,    -- secrets that are not, or not with the first key
        'secrets_unreadable',   '{"warning": null, "critical": 1}'::jsonb,       -- secrets
        'scheduled_overdue',    '{"warning": 1,    "critical": 1000}'::jsonb,    -- events
        'inbox_retention',      '{"warning": 1,    "critical": null}'::jsonb);   -- consumers
    given     record;
    seen      record;
    worker    record;
    version   text;
    armed     boolean;
    enabled   boolean;
    wanted    boolean;
    blind     text;
    secrets   record;
    key       text;    -- what is wrong with the keys for them; NULL: there is no file
BEGIN
    IF jsonb_typeof(health.thresholds) <> 'object' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'thresholds must be a JSON object', DETAIL = format('It is of type %s.', jsonb_typeof(health.thresholds)),
            HINT = 'Write thresholds as {"check_name": {"warning": number, "critical": number}}.';
    END IF;
    FOR given IN SELECT t.key, t.value FROM jsonb_each(COALESCE(health.thresholds, '{}')) AS t LOOP
        IF NOT usual ? given.key OR jsonb_typeof(given.value) <> 'object'
           OR EXISTS (SELECT FROM jsonb_each(given.value) AS l WHERE l.key NOT IN ('warning', 'critical') OR jsonb_typeof(l.value) NOT IN ('number', 'null')) THEN
            RAISE invalid_parameter_value USING MESSAGE = format('invalid threshold "%s"', given.key),
                DETAIL = format('The checks are %s.', (SELECT string_agg(k, ', ' ORDER BY k) FROM jsonb_object_keys(usual) AS k)),
                HINT = 'Write thresholds as {"check_name": {"warning": number, "critical": number}}.';
        END IF;
    END LOOP;

    BEGIN
        worker := outbox._worker();
        IF NOT worker.preloaded THEN
            blind := 'outbox is not in shared_preload_libraries';
        END IF;
    EXCEPTION WHEN OTHERS THEN   -- without preload no C function can be called at all
        blind := SQLERRM;
        SELECT NULL::text AS library_version, NULL::integer AS launcher_pid, NULL::integer AS worker_pid, NULL::text AS trouble, NULL::timestamptz AS started_at,
               NULL::timestamptz AS tick_at, NULL::timestamptz AS maintained_at, NULL::text AS error INTO worker;
    END;
    IF blind IS NULL THEN
        key := outbox._key_problem();
        SELECT count(*) AS stored, count(*) FILTER (WHERE t.state = 'plain') AS plain, count(*) FILTER (WHERE t.state = 'old key') AS old_key,
               count(*) FILTER (WHERE t.state = 'unreadable') AS unreadable, min(s.name) FILTER (WHERE t.state = 'unreadable') AS subscription
          INTO secrets FROM outbox._secret_states(NULL) AS t LEFT JOIN outbox.subscription AS s ON s.id = t.subscription_id;
    ELSE
        SELECT 0 AS stored, 0 AS plain, 0 AS old_key, 0 AS unreadable, NULL::text AS subscription INTO secrets;
    END IF;

    SELECT x.extversion INTO version FROM pg_extension AS x WHERE x.extname = 'outbox';
    enabled := COALESCE(current_setting('outbox.enabled', true)::boolean, true);
    armed := EXISTS (SELECT FROM pg_db_role_setting AS r JOIN pg_database AS d ON d.oid = r.setdatabase
                      WHERE d.datname = current_database() AND r.setrole = 0 AND format('outbox.armed=%s', outbox.epoch()) = ANY (r.setconfig));
    wanted := armed AND enabled;

    FOR seen IN
        WITH lag AS MATERIALIZED (SELECT s.name, s.state, l.oldest_at, l.pinned_bytes FROM outbox._lag() AS l JOIN outbox.subscription AS s ON s.id = l.subscription_id)
        SELECT m.*, t.warning, t.critical
          FROM (
            SELECT 1 AS rank, 'preload' AS check_name, NULL::text AS subject, (blind IS NOT NULL)::integer::numeric AS value, COALESCE(blind, 'outbox is preloaded') AS detail,
                   'Add outbox to shared_preload_libraries and restart the server.' AS action
            UNION ALL
            SELECT 2, 'versions', NULL, (worker.library_version IS DISTINCT FROM version)::integer,
                   format('the library is %s, the extension %s', worker.library_version, version),
                   'Run ALTER EXTENSION outbox UPDATE, or restart the server if the library on disk is newer.'
             WHERE blind IS NULL
            UNION ALL
            SELECT 3, 'launcher', NULL, (COALESCE(worker.launcher_pid, 0) = 0)::integer,
                   CASE WHEN COALESCE(worker.launcher_pid, 0) = 0 THEN 'the launcher is not running' ELSE format('the launcher is process %s', worker.launcher_pid) END,
                   'Look into the server log. The launcher needs a free background worker slot at server start.'
             WHERE blind IS NULL
            UNION ALL
            SELECT 4, 'worker_slots', NULL, (wanted AND COALESCE(worker.trouble, '') <> '')::integer,
                   CASE WHEN wanted AND COALESCE(worker.trouble, '') <> '' THEN worker.trouble ELSE 'workers can be started, or are not needed' END,
                   'Raise max_worker_processes and restart the server.'
             WHERE blind IS NULL
            UNION ALL
            SELECT 5, 'armed', current_database()::text,
                   CASE WHEN wanted THEN CASE WHEN COALESCE(worker.worker_pid, 0) = 0 THEN 2 ELSE 0 END
                        WHEN EXISTS (SELECT FROM outbox.subscription AS s) THEN 1 ELSE 0 END,
                   CASE WHEN NOT enabled THEN 'outbox.enabled is off: nothing is delivered'
                        WHEN NOT armed THEN 'this database is not armed: nothing is delivered'
                        WHEN COALESCE(worker.worker_pid, 0) = 0 THEN 'armed, and no delivery worker is running'
                        ELSE format('the delivery worker is process %s', worker.worker_pid) END,
                   CASE WHEN NOT enabled THEN 'Set outbox.enabled = on, if this server is to deliver.'
                        WHEN NOT armed THEN 'Call outbox.start(), if this database is to deliver and not a copy.'
                        ELSE 'It is restarted by itself; look into the server log if that lasts.' END
             WHERE blind IS NULL
            UNION ALL
            SELECT 6, 'tick_age', NULL, round(EXTRACT(epoch FROM clock_timestamp() - COALESCE(worker.tick_at, worker.started_at)), 1),
                   COALESCE('last error of the worker: ' || NULLIF(worker.error, ''), 'seconds since the worker last looked for events'),
                   'Look into the server log and at what the worker does in pg_stat_activity.'
             WHERE blind IS NULL AND wanted AND worker.worker_pid <> 0
            UNION ALL
            SELECT * FROM (
                SELECT 7, 'oldest_undelivered', l.name, COALESCE(GREATEST(round(EXTRACT(epoch FROM clock_timestamp() - l.oldest_at), 1), 0), 0), 'seconds since the oldest event that it has not done was recorded',
                       'Look at the subscription in outbox.subscription_status.'
                  FROM lag AS l WHERE blind IS NULL AND l.state = 'active'
                 ORDER BY 4 DESC, 3 LIMIT 1) AS slowest
            UNION ALL
            -- the condition outside: an aggregate over the function would be set up, and load the library, even where it is false
            SELECT * FROM (
                SELECT 8, 'log_size', NULL, sum(g.bytes), format('%s of 16 segments are in use', count(*) FILTER (WHERE g.last_id IS NOT NULL)),
                       'See log_pinned for who holds the log, and outbox.event_retention. With outbox.auto_maintain off, schedule outbox.maintain().'
                  FROM outbox._segments() AS g) AS log WHERE blind IS NULL
            UNION ALL
            SELECT * FROM (
                SELECT 9, 'log_pinned', l.name, l.pinned_bytes::numeric, 'bytes of full segments that wait for this subscription',
                       'Repair its receiver, or unsubscribe it.'
                  FROM lag AS l WHERE blind IS NULL
                 ORDER BY 4 DESC, 3 LIMIT 1) AS heaviest
            UNION ALL
            SELECT * FROM (
                SELECT 9, 'backlog', max(b.subscription), COALESCE(max(b.share), 0),
                       COALESCE(max(format('it holds full segments for %s of %s, %s of %s', justify_interval(date_trunc('second', b.age)), COALESCE(b.max_age::text, 'any time'), pg_size_pretty(b.bytes),
                                           CASE WHEN b.max_bytes > 0 THEN pg_size_pretty(b.max_bytes) ELSE 'any size' END)), 'nobody holds full segments of the log'),
                       'Repair its receiver, resume it, or unsubscribe it: beyond the bound its oldest events are given up.'
                  FROM (SELECT * FROM outbox._backlog() AS x ORDER BY x.share DESC NULLS LAST, x.subscription LIMIT 1) AS b) AS nearest WHERE blind IS NULL
            UNION ALL
            SELECT * FROM (
                SELECT 9, 'gaps', (SELECT string_agg(x.name, ', ' ORDER BY x.name) FROM (SELECT DISTINCT s.name FROM outbox.gap AS o JOIN outbox.subscription AS s ON s.id = o.subscription_id
                                                                                        WHERE o.at > now() - interval '1 day' ORDER BY s.name LIMIT 5) AS x),
                       count(*), 'ranges of events that were given up in the last day',
                       'See outbox.gap. What is still in the log can be sent by outbox.replay().'
                  FROM outbox.gap AS g WHERE g.at > now() - interval '1 day' AND EXISTS (SELECT FROM outbox.subscription AS s WHERE s.id = g.subscription_id)) AS gaps
            UNION ALL
            SELECT 10, 'oldest_prepared_xact', (SELECT p.gid FROM pg_prepared_xacts AS p WHERE p.database = current_database() ORDER BY p.prepared LIMIT 1),
                   (SELECT COALESCE(round(max(EXTRACT(epoch FROM clock_timestamp() - p.prepared)), 1), 0) FROM pg_prepared_xacts AS p WHERE p.database = current_database()),
                   'seconds since the oldest prepared transaction of this database was prepared; its events wait, and so does its segment',
                   'COMMIT PREPARED or ROLLBACK PREPARED.'
            UNION ALL
            SELECT 11, 'dead_letters', (SELECT s.name FROM outbox.delivery AS d JOIN outbox.subscription AS s ON s.id = d.subscription_id WHERE d.status = 'dead' ORDER BY d.ended_at DESC LIMIT 1),
                   (SELECT count(*) FROM outbox.delivery AS d WHERE d.status = 'dead'), 'events that were given up; the newest is this subscription''s',
                   'Look into outbox.dead_letter, then outbox.redrive() or outbox.discard().'
            UNION ALL
            SELECT 12, 'disabled', (SELECT string_agg(x.name, ', ' ORDER BY x.name) FROM (SELECT s.name FROM outbox.subscription AS s WHERE s.state = 'disabled' ORDER BY s.name LIMIT 5) AS x),
                   (SELECT count(*) FROM outbox.subscription AS s WHERE s.state = 'disabled'), 'disabled subscriptions; why, is in outbox.subscription_status',
                   'If the receiver is gone, set the right URL with outbox.alter_subscription(), then outbox.resume(); or outbox.unsubscribe().'
            UNION ALL
            SELECT * FROM (
                SELECT 13, 'breakers_open', string_agg(x.name, ', ' ORDER BY x.name) FILTER (WHERE x.n <= 5), count(*)::numeric,
                       COALESCE('subscriptions that get nothing but probes, for they fail: ' || (array_agg(x.last_error ORDER BY x.name))[1], 'no subscription is cut off for its failures'),
                       'Repair the receiver: the next probe that is answered closes the breaker, and so does outbox.resume(). Events wait in the log.'
                  FROM (SELECT s.name, r.last_error, row_number() OVER (ORDER BY s.name) AS n FROM outbox._runtime() AS r JOIN outbox.subscription AS s ON s.id = r.subscription_id
                         WHERE s.state = 'active' AND r.breaker_open_until IS NOT NULL) AS x) AS breakers WHERE blind IS NULL
            UNION ALL
            SELECT 14, 'maintenance_age', NULL, round(EXTRACT(epoch FROM clock_timestamp() - COALESCE(worker.maintained_at, worker.started_at, pg_postmaster_start_time())), 1),
                   'seconds since the last round of maintenance',
                   'The worker does it unless outbox.auto_maintain is off: then schedule outbox.maintain().'
             WHERE blind IS NULL AND (wanted OR EXISTS (SELECT FROM outbox.subscription AS s) OR EXISTS (SELECT FROM outbox.inbox AS i) OR EXISTS (SELECT FROM outbox.idempotency_key AS k))
            UNION ALL
            SELECT 14, 'secret_key', NULL, COALESCE(key <> '', false)::integer,
                   CASE WHEN key IS NULL THEN 'outbox.secret_key_file is not set' WHEN key = '' THEN 'the file that outbox.secret_key_file names can be used' ELSE key END,
                   'Repair the file that outbox.secret_key_file names, then reload the configuration.'
             WHERE blind IS NULL
            UNION ALL
            SELECT 15, 'secrets_encrypted', NULL, secrets.plain + secrets.old_key,
                   format('of %s secrets, %s are stored in plain text, %s under an older key', secrets.stored, secrets.plain, secrets.old_key),
                   CASE WHEN key IS NULL THEN 'Set outbox.secret_key_file, so that dumps and base backups cannot be used to sign requests.'
                        ELSE 'They are encrypted by the next rounds of maintenance.' END
             WHERE blind IS NULL
            UNION ALL
            SELECT 16, 'secrets_unreadable', secrets.subscription, secrets.unreadable, 'secrets that no key opens; subscriptions with such are disabled, and their events wait',
                   'Put the key they were encrypted with into the file that outbox.secret_key_file names, and reload. If it is lost, use outbox.rotate_secret(), and set the headers anew.'
             WHERE blind IS NULL
            UNION ALL
            SELECT 17, 'scheduled_overdue', NULL, (SELECT count(*) FROM (SELECT FROM outbox.scheduled AS s WHERE s.deliver_at < clock_timestamp() - interval '10 s' AND s.epoch = outbox.epoch() LIMIT 100000) AS x),
                   'scheduled events that were due more than 10 seconds ago and are not in the log (counting stops at 100,000)',
                   'They are moved by the delivery worker: see armed, and look into the server log.'
            UNION ALL
            SELECT 18, 'inbox_retention', i.subject, i.value, i.detail, 'Give them a longer retention with outbox.set_consumer(), or raise outbox.inbox_retention.'
              FROM outbox._inbox_health() AS i
          ) AS m
         CROSS JOIN LATERAL (SELECT (l.limits ->> 'warning')::numeric AS warning, (l.limits ->> 'critical')::numeric AS critical
                               FROM (SELECT (usual -> m.check_name) || COALESCE(health.thresholds -> m.check_name, '{}') AS limits) AS l) AS t
         ORDER BY m.rank, m.check_name
    LOOP
        check_name := seen.check_name;
        status     := CASE WHEN seen.value >= seen.critical THEN 'critical' WHEN seen.value >= seen.warning THEN 'warning' ELSE 'ok' END;
        subject    := seen.subject;
        value      := seen.value;
        threshold  := CASE WHEN status = 'critical' THEN seen.critical ELSE COALESCE(seen.warning, seen.critical) END;
        detail     := seen.detail;
        action     := CASE WHEN status <> 'ok' THEN seen.action END;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox.health(jsonb) IS
'What is well and what is not: a row per check, with status ok, warning or critical, and what to do (action).
Checks: preload, versions, launcher, worker_slots (1 is trouble); armed (1: not armed, 2: no worker); tick_age, oldest_undelivered, oldest_prepared_xact, maintenance_age (seconds);
log_size, log_pinned (bytes); backlog (share of outbox.max_backlog_age or outbox.max_backlog_size that is used up); gaps (of the last day), dead_letters, disabled, breakers_open, inbox_retention, secrets_encrypted (that are not), secrets_unreadable, scheduled_overdue (how many); secret_key (1: the file cannot be used). Without the preloaded library only preload and what the tables tell are checked.
thresholds: {"check_name": {"warning": number, "critical": number}}, from which value on; null is never; what is not given is as usual. Errors: 22023 for an invalid threshold.';

-- ===== pull =============================================================================================================

-- The worker is asked, so none of them changes a table; what they read they read without SQL, so no right to the tables is needed, nor a search_path.

CREATE FUNCTION outbox.pull(subscription text, max_events integer DEFAULT 100, lease interval DEFAULT '60 s',
    OUT event_id uuid, OUT type text, OUT key text, OUT tenant text, OUT payload jsonb, OUT body bytea, OUT content_type text, OUT headers jsonb, OUT traceparent text,
    OUT created_at timestamptz, OUT attempt integer, OUT token uuid, OUT leased_until timestamptz)
RETURNS SETOF record LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME', 'outbox_pull';
COMMENT ON FUNCTION outbox.pull(text, integer, interval) IS
'Leases events of a pull subscription that wait, oldest first, to the caller alone, until they are settled by ack() or nack(), or the lease ends. Any number of workers may pull side by side.
subscription: its name. max_events: at most so many, 1 to 1000 (100). lease: 100 ms to 12 h (60 s); extend() makes it longer. Returns no row when nothing waits, or the subscription is paused.
Only events whose commit is durable are returned. With ordering = key, events of a key come in order, and while some are leased, no other worker gets events of that key. attempt: 1 for the first
time. token: the same for all of a call. Rolling back does not end a lease. A lease that ends unsettled was a failed attempt; after max_attempts the event is a dead letter.
As with push, an event may come again: after a lease has ended, and after a crash or a restart of the delivery worker, which makes all tokens stale. accept() recognizes it.
Errors: 42704 for an unknown subscription, 55000 if it has a URL or the delivery worker is not running, 22023, 25006 in a read-only transaction.';

CREATE FUNCTION outbox.ack(subscription text, ids uuid[], token uuid) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_ack';
COMMENT ON FUNCTION outbox.ack(text, uuid[], uuid) IS
'Says that events of a lease are done; they are, if and when this transaction commits, and stay leased until it ends. ids: at most 1000; NULL: all of the lease. token: from pull(). Returns how many.
Errors: 55000 for a token that is stale (the lease ended) and for an event that is not in the lease, 55P03 for one that another transaction is settling; then none of them is done.';

CREATE FUNCTION outbox.nack(subscription text, ids uuid[], token uuid, retry_in interval DEFAULT NULL, reason text DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_nack';
COMMENT ON FUNCTION outbox.nack(text, uuid[], uuid, interval, text) IS
'Says that events of a lease failed, if and when this transaction commits: an attempt each. They come again after retry_in, 0 to 30 d, NULL: as the subscription''s retry policy says; after
max_attempts or give_up_after they are dead letters. reason: for people, up to 159 bytes are kept. ids, token, result and errors: as ack().';

CREATE FUNCTION outbox.extend(subscription text, token uuid, lease interval DEFAULT '60 s') RETURNS timestamptz
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_extend';
COMMENT ON FUNCTION outbox.extend(text, uuid, interval) IS
'Makes a lease end so long from now, 100 ms to 12 h (60 s), at once, whatever becomes of this transaction. token: from pull(). Returns until when. Errors: 55000 for a stale token.';

-- ===== rights ============================================================================================================

-- Rights are given by kind of role, to the objects a kind needs. consumer, manager and operator each include the one before; publisher stands apart.
-- Views run functions with the reader's rights, hence the private ones below: they reveal no more than the views do.

CREATE FUNCTION outbox._rights(kind text) RETURNS TABLE (privilege text, object text) LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.privilege, r.object
      FROM (VALUES
        (0, 'USAGE',       'SCHEMA outbox'),
        (0, 'EXECUTE',     'FUNCTION outbox.enqueue'),
        (0, 'EXECUTE',     'FUNCTION outbox.enqueue_raw'),
        (0, 'EXECUTE',     'FUNCTION outbox.enqueue_many'),
        (0, 'EXECUTE',     'FUNCTION outbox.cancel'),
        (0, 'EXECUTE',     'PROCEDURE outbox.wait_delivered'),
        (0, 'INSERT',      'TABLE outbox.new_event'),
        (0, 'EXECUTE',     'FUNCTION outbox._refuse_replica'),
        (0, 'EXECUTE',     'FUNCTION outbox.capture'),           -- of tables they own
        (0, 'EXECUTE',     'FUNCTION outbox.release'),
        (0, 'EXECUTE',     'FUNCTION outbox._capture'),          -- asked for when a trigger is created, not when it fires
        (0, 'EXECUTE',     'FUNCTION outbox._check_capture_source'),
        (0, 'EXECUTE',     'FUNCTION outbox._check_capture_columns'),
        (0, 'EXECUTE',     'FUNCTION outbox._check_capture_type'),
        (0, 'SELECT (id)', 'TABLE outbox.new_event'),        -- for INSERT ... RETURNING id
        (1, 'USAGE',       'SCHEMA outbox'),
        (1, 'SELECT',      'TABLE outbox.subscription_status'),
        (1, 'EXECUTE',     'FUNCTION outbox._lag'),
        (1, 'EXECUTE',     'FUNCTION outbox._runtime'),
        (1, 'SELECT',      'TABLE outbox.delivery_status'),
        (1, 'SELECT',      'TABLE outbox.dead_letter'),
        (1, 'SELECT',      'TABLE outbox.blocked_key'),
        (1, 'SELECT',      'TABLE outbox.attempt'),
        (1, 'EXECUTE',     'FUNCTION outbox._outcome_name'),
        (1, 'EXECUTE',     'FUNCTION outbox.event_status'),
        (1, 'EXECUTE',     'PROCEDURE outbox.wait_delivered'),
        (1, 'EXECUTE',     'FUNCTION outbox.pull'),
        (1, 'EXECUTE',     'FUNCTION outbox.ack'),
        (1, 'EXECUTE',     'FUNCTION outbox.nack'),
        (1, 'EXECUTE',     'FUNCTION outbox.extend'),
        (1, 'EXECUTE',     'FUNCTION outbox.accept'),
        (1, 'EXECUTE',     'FUNCTION outbox.accept_many'),
        (1, 'EXECUTE',     'FUNCTION outbox.set_consumer'),
        (1, 'EXECUTE',     'FUNCTION outbox.verify_webhook'),
        (1, 'SELECT',      'TABLE outbox.inbox_status'),
        (1, 'EXECUTE',     'FUNCTION outbox._refusals'),
        (1, 'EXECUTE',     'FUNCTION outbox.begin_request'),
        (1, 'EXECUTE',     'FUNCTION outbox.finish_request'),
        (1, 'EXECUTE',     'FUNCTION outbox.fail_request'),
        (2, 'EXECUTE',     'FUNCTION outbox.trace'),
        (2, 'EXECUTE',     'FUNCTION outbox.routes'),
        (2, 'EXECUTE',     'FUNCTION outbox.subscribe'),
        (2, 'EXECUTE',     'FUNCTION outbox.alter_subscription'),
        (2, 'EXECUTE',     'FUNCTION outbox.unsubscribe'),
        (2, 'EXECUTE',     'FUNCTION outbox.pause'),
        (2, 'EXECUTE',     'FUNCTION outbox.resume'),
        (2, 'EXECUTE',     'FUNCTION outbox.ping'),
        (2, 'EXECUTE',     'FUNCTION outbox.rotate_secret'),
        (2, 'EXECUTE',     'FUNCTION outbox.replay'),
        (2, 'EXECUTE',     'FUNCTION outbox.cancel_replay'),
        (2, 'SELECT',      'TABLE outbox.replay'),
        (3, 'EXECUTE',     'FUNCTION outbox.start'),
        (3, 'EXECUTE',     'FUNCTION outbox.stop'),
        (3, 'EXECUTE',     'FUNCTION outbox.pause_all'),
        (3, 'EXECUTE',     'FUNCTION outbox.resume_all'),
        (3, 'EXECUTE',     'FUNCTION outbox.maintain'),
        (3, 'EXECUTE',     'FUNCTION outbox.health'),
        (3, 'EXECUTE',     'FUNCTION outbox.redrive'),
        (3, 'EXECUTE',     'FUNCTION outbox.discard'),
        (3, 'EXECUTE',     'FUNCTION outbox.epoch'),
        (3, 'SELECT',      'TABLE outbox.event'),
        (3, 'SELECT',      'TABLE outbox.kept_event'),
        (3, 'SELECT',      'TABLE outbox.gap'),
        (3, 'SELECT',      'TABLE outbox.operation')
      ) AS r (level, privilege, object)
     WHERE CASE kind WHEN 'publisher' THEN r.level = 0
                     WHEN 'consumer'  THEN r.level = 1
                     WHEN 'manager'   THEN r.level BETWEEN 1 AND 2
                     WHEN 'operator'  THEN r.level BETWEEN 1 AND 3 END
$$;
COMMENT ON FUNCTION outbox._rights(text) IS 'The rights of a kind of role, as GRANT and REVOKE name them';

CREATE FUNCTION outbox._check_role(role regrole, kind text) RETURNS name LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role_name name;
BEGIN
    IF kind IS NULL OR kind NOT IN ('publisher', 'consumer', 'manager', 'operator') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('invalid kind of role: "%s"', COALESCE(kind, 'NULL')),
            DETAIL = 'The kinds are publisher, consumer, manager and operator.', HINT = 'See the comment of outbox.grant_role().';
    END IF;
    SELECT r.rolname INTO role_name FROM pg_roles AS r WHERE r.oid = role::oid;
    IF NOT FOUND THEN
        RAISE undefined_object USING MESSAGE = 'role does not exist', DETAIL = format('No role has the OID %s.', COALESCE(role::oid::text, 'NULL')), HINT = 'Create the role first.';
    END IF;
    RETURN role_name;
END
$$;
COMMENT ON FUNCTION outbox._check_role(regrole, text) IS 'The name of a role that is to get or lose rights of this kind';

CREATE FUNCTION outbox.grant_role(role regrole, kind text) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role_name name := outbox._check_role(grant_role.role, grant_role.kind);
    one       record;
BEGIN
    FOR one IN SELECT r.privilege, r.object FROM outbox._rights(grant_role.kind) AS r LOOP
        EXECUTE format('GRANT %s ON %s TO %I', one.privilege, one.object, role_name);
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox.grant_role(regrole, text) IS
'Gives a role the rights of a kind. publisher: records events, captures tables it owns, and sees nothing. consumer: pulls, accepts messages, uses idempotency keys, and reads the status views and event_status(). manager: also subscribes, on the public network.
operator: also start, stop, maintenance, health, redrive, discard, the network option private, and reads events. Only superusers may call this. Errors: 22023 for an unknown kind.';

CREATE FUNCTION outbox.revoke_role(role regrole, kind text) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role_name name := outbox._check_role(revoke_role.role, revoke_role.kind);
    kept      text;
    one       record;
BEGIN
    -- the two families share the right to use the schema: the other one is granted again. Each kind has a function that lesser kinds do not.
    SELECT m.kind INTO kept
      FROM (VALUES ('enqueue_raw', 'publisher', 1), ('start', 'operator', 2), ('subscribe', 'manager', 3), ('event_status', 'consumer', 4)) AS m (function, kind, rank)
      JOIN pg_proc AS p ON p.pronamespace = 'outbox'::regnamespace AND p.proname = m.function
     CROSS JOIN LATERAL aclexplode(p.proacl) AS a
     WHERE a.grantee = revoke_role.role::oid AND (m.kind = 'publisher') <> (revoke_role.kind = 'publisher')
     ORDER BY m.rank LIMIT 1;

    FOR one IN SELECT r.privilege, r.object FROM outbox._rights(CASE revoke_role.kind WHEN 'publisher' THEN 'publisher' ELSE 'operator' END) AS r LOOP
        EXECUTE format('REVOKE %s ON %s FROM %I', one.privilege, one.object, role_name);
    END LOOP;
    IF kept IS NOT NULL THEN
        PERFORM outbox.grant_role(revoke_role.role, kept);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.revoke_role(regrole, text) IS
'Takes the rights of a kind from a role. publisher is one thing; of consumer, manager and operator, each including the one before, none is left: to make an operator a manager, revoke and grant.
Only superusers may call this. Errors: 22023 for an unknown kind.';

-- Functions are EXECUTE for PUBLIC when they are created, and ALTER DEFAULT PRIVILEGES may have added more, for any role. From here on nobody but the owner has any right.
DO $revoke_all$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT a.grantee::pg_catalog.regrole AS role
          FROM (SELECT relacl AS acl, relowner AS owner FROM pg_catalog.pg_class WHERE relnamespace = 'outbox'::pg_catalog.regnamespace
                UNION ALL
                SELECT proacl, proowner FROM pg_catalog.pg_proc WHERE pronamespace = 'outbox'::pg_catalog.regnamespace
                UNION ALL
                SELECT nspacl, nspowner FROM pg_catalog.pg_namespace WHERE oid = 'outbox'::pg_catalog.regnamespace) AS o
         CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) AS a
         WHERE a.grantee <> 0 AND a.grantee <> o.owner
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL ROUTINES IN SCHEMA outbox FROM %s', granted.role);
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM %s', granted.role);
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA outbox FROM %s', granted.role);
        EXECUTE pg_catalog.format('REVOKE ALL ON SCHEMA outbox FROM %s', granted.role);
    END LOOP;
END
$revoke_all$;
REVOKE ALL ON ALL ROUTINES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON SCHEMA outbox FROM PUBLIC;
