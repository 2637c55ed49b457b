-- Capture: what changes of a table become, what follows when the table is altered, and what is refused.  Nothing is delivered here.
\set ON_ERROR_STOP off
\set VERBOSITY default
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS outbox CASCADE;
CREATE EXTENSION outbox;
\pset format unaligned
\pset tuples_only on
\pset null -
SET TimeZone = 'America/New_York';
CREATE SCHEMA regress_capture;
SET search_path = regress_capture, public;

-- a refusal in one line: SQLSTATE, message, detail, hint
CREATE FUNCTION refusal(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text; message text; detail text; hint text; context text;
BEGIN
    EXECUTE command;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
    RETURN concat_ws(' | ', state, message, NULLIF(detail, ''), NULLIF(hint, ''), substring(context FROM '^capture of table [^\n]*'));
END
$$;

-- what has been recorded since the last call
CREATE TABLE mark AS SELECT '00000000-0000-0000-0000-000000000000'::uuid AS id;
CREATE FUNCTION recorded() RETURNS TABLE (type text, key text, payload jsonb) LANGUAGE plpgsql AS $$
DECLARE
    event outbox.event;
BEGIN
    FOR event IN SELECT e.* FROM outbox.event AS e WHERE e.id > (SELECT m.id FROM mark AS m) ORDER BY e.id LOOP
        type := event.type; key := event.key; payload := event.payload;
        RETURN NEXT;
        UPDATE mark SET id = event.id;
    END LOOP;
END
$$;

\echo -- insert, update, delete, truncate; an update of nothing that is captured is none, and what is not named is in no event
CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric, secret text);
SELECT outbox.capture('orders', '{status,total}');
INSERT INTO orders VALUES (1, 'new', 19.90, 'x'), (2, NULL, NULL, 'y');
UPDATE orders SET status = 'paid' WHERE id = 1;
UPDATE orders SET secret = 'z', status = status, total = 19.90 WHERE id = 1;
UPDATE orders SET total = 19.9 WHERE id = 1;
UPDATE orders SET total = 1, status = 'x' WHERE id = 2;
DELETE FROM orders WHERE id = 1;
TRUNCATE orders;
SELECT * FROM recorded();

\echo -- all of it is as atomic as the change, also in a savepoint
BEGIN;
INSERT INTO orders (id) VALUES (3);
SAVEPOINT s;
INSERT INTO orders (id) VALUES (4);
ROLLBACK TO s;
COMMIT;
BEGIN;
DELETE FROM orders;
ROLLBACK;
SELECT * FROM recorded();

\echo -- an update of the key goes under the new one and names the old one, whatever else has changed
UPDATE orders SET id = 30 WHERE id = 3;
UPDATE orders SET id = 31, status = 'moved' WHERE id = 30;
SELECT * FROM recorded();

\echo -- one capture for each table; what it captures can be seen; release ends it
SELECT refusal('SELECT outbox.capture(''orders'', ''{*}'')');
SELECT pg_get_triggerdef(oid), obj_description(oid) FROM pg_trigger WHERE tgrelid = 'orders'::regclass ORDER BY tgname;
SELECT outbox.release('orders');
UPDATE orders SET status = 'unseen';
TRUNCATE orders;
SELECT * FROM recorded();
SELECT refusal('SELECT outbox.release(''orders'')');

\echo -- every column, also those added later; the type given; a key of several columns; none
SELECT outbox.capture('orders', '{*}', type => 'order.changed', key_columns => '{status,id}');
INSERT INTO orders VALUES (1, 'a "b"', 1.50, NULL);
ALTER TABLE orders ADD COLUMN added int DEFAULT 7;
UPDATE orders SET added = 8;
UPDATE orders SET status = NULL;
TRUNCATE orders;
SELECT * FROM recorded();
SELECT outbox.release('orders'), outbox.capture('orders', '{id}', type => 'order.row.*', key_columns => '{}');
INSERT INTO orders (id) VALUES (2);
DELETE FROM orders;
SELECT * FROM recorded();
DROP TABLE orders;

\echo -- keys: NULL is none, an empty text is two quotation marks, a composite primary key is in its own order
CREATE TABLE keyed (b text, a int, v int, PRIMARY KEY (a, b) INCLUDE (v));
SELECT outbox.capture('keyed', '{v}');
INSERT INTO keyed VALUES ('x', 1, 0), ('', 2, 0);
SELECT outbox.release('keyed'), outbox.capture('keyed', '{v}', key_columns => '{b}');
UPDATE keyed SET v = 1;
SELECT * FROM recorded();
CREATE TABLE unkeyed (a text, b int);
SELECT refusal('SELECT outbox.capture(''unkeyed'', ''{b}'')');
SELECT outbox.capture('unkeyed', '{b}', key_columns => '{a}');
INSERT INTO unkeyed VALUES (NULL, 1), ('', 2), (repeat('k', 1024), 3);
UPDATE unkeyed SET a = 'now' WHERE a IS NULL;
UPDATE unkeyed SET a = NULL WHERE a = 'now';
SELECT type, left(key, 20), length(key), payload FROM recorded();
SELECT refusal('INSERT INTO unkeyed VALUES (repeat(''k'', 1025), 4)');
SELECT count(*) FROM unkeyed WHERE b = 4;
DROP TABLE keyed, unkeyed;

\echo -- values are as to_jsonb() has them; the same row makes the same event whatever the session is set to, and the settings of the session stay
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a int, b timestamptz);
CREATE DOMAIN instant AS timestamptz;
CREATE TABLE kinds (at timestamptz, n numeric, f float8, d date, t timestamp, b bytea, i interval, j json, jb jsonb, e mood, p pair, a text[], x int4range, z instant, s tstzrange, u uuid,
                    PRIMARY KEY (at));
SELECT outbox.capture('kinds', '{*}');
INSERT INTO kinds VALUES ('2026-01-02 03:04:05.678+09', 'NaN', '-Infinity', 'infinity', '-infinity', '\x00ff', '1 day 02:03', '{"b":1, "a":  [null]}', '{"k": 1.50}', 'happy', (1, '2026-07-01 00:00+00'),
                          '{a,NULL,"c d"}', '[1,5)', '2026-07-01 00:00+00', '[2026-07-01 00:00+00,)', '00000000-0000-0000-0000-000000000001');
SELECT * FROM recorded();
SET DateStyle = 'German';
SET IntervalStyle = 'iso_8601';
SET bytea_output = 'escape';
SET extra_float_digits = -15;
SET TimeZone = 'Asia/Tokyo';
BEGIN;
UPDATE kinds SET f = 0.1::float8 + 0.2::float8;
SHOW TimeZone;
SHOW DateStyle;
SHOW bytea_output;
COMMIT;
RESET DateStyle;
RESET IntervalStyle;
RESET bytea_output;
RESET extra_float_digits;
SELECT key, payload -> 'old' = jsonb_set(payload -> 'new', '{f}', '"-Infinity"') AS same_but_f, payload -> 'new' -> 'f' AS f, payload -> 'changed' AS changed FROM recorded();
SET TimeZone = 'America/New_York';
DROP TABLE kinds;

\echo -- what BEFORE triggers and generated columns make of a row, is what is recorded
CREATE TABLE made (id int PRIMARY KEY, price int, twice int GENERATED ALWAYS AS (price * 2) STORED, touched int DEFAULT 0);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.touched := OLD.touched + 1; RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON made FOR EACH ROW EXECUTE FUNCTION touch();
SELECT outbox.capture('made', '{twice,touched}');
INSERT INTO made VALUES (1, 10);
UPDATE made SET price = 11;
UPDATE made SET price = 11;
SELECT * FROM recorded();
DROP TABLE made;

\echo -- ON CONFLICT, MERGE, COPY, and what foreign keys do
CREATE TABLE parent (id int PRIMARY KEY, v int);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON UPDATE CASCADE ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED);
SELECT outbox.capture('parent', '{v}', type => 'parent.*'), outbox.capture('child', '{parent}', type => 'child.*');
BEGIN;
INSERT INTO child VALUES (1, 1);
INSERT INTO parent VALUES (1, 0);
COMMIT;
INSERT INTO parent VALUES (1, 5), (2, 6) ON CONFLICT (id) DO UPDATE SET v = excluded.v;
INSERT INTO parent VALUES (1, 9) ON CONFLICT DO NOTHING;
MERGE INTO parent AS t USING (VALUES (1, 7), (3, 8)) AS s (id, v) ON t.id = s.id WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v);
COPY parent FROM stdin;
4	40
5	50
\.
UPDATE parent SET id = 10 WHERE id = 1;
DELETE FROM parent WHERE id = 10;
TRUNCATE parent CASCADE;
BEGIN;
INSERT INTO child VALUES (2, 99);
COMMIT;
SELECT * FROM recorded();
DROP TABLE parent, child;

\echo -- a session with session_replication_role = replica, as that of an apply worker, records nothing
CREATE TABLE applied (id int PRIMARY KEY);
SELECT outbox.capture('applied', '{*}');
SET session_replication_role = replica;
INSERT INTO applied VALUES (1);
RESET session_replication_role;
SELECT count(*) FROM recorded();
DROP TABLE applied;

\echo -- renamed columns and tables are followed, the type stays; dropped columns are left out; types may be altered
CREATE TABLE altered (id int PRIMARY KEY, gone int, a text, b int, c varchar(10), d int);
ALTER TABLE altered DROP COLUMN gone;
SELECT outbox.capture('altered', '{a,b,c,d}');
ALTER TABLE altered RENAME COLUMN id TO number;
BEGIN;
ALTER TABLE altered RENAME COLUMN a TO spare;
ALTER TABLE altered RENAME COLUMN b TO a;
ALTER TABLE altered RENAME COLUMN spare TO "B; 'x' \ y";
COMMIT;
BEGIN;
ALTER TABLE altered RENAME COLUMN c TO never;
ROLLBACK;
ALTER TABLE altered RENAME TO renamed;
ALTER TABLE renamed ALTER COLUMN c TYPE text, ALTER COLUMN number TYPE bigint;
INSERT INTO renamed VALUES (1, 'was a', 2, 'c', 4);
ALTER TABLE renamed DROP COLUMN d, DROP COLUMN a;
ALTER TABLE renamed ADD COLUMN a text;
INSERT INTO renamed (number, a) VALUES (2, 'not captured');
SELECT * FROM recorded();
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'renamed'::regclass ORDER BY tgname;
ALTER TABLE renamed DROP COLUMN c, DROP COLUMN "B; 'x' \ y";
INSERT INTO renamed VALUES (3);
UPDATE renamed SET a = 'x';
DELETE FROM renamed;
SELECT * FROM recorded();
\echo -- a column of the key that is dropped: a warning, and changes are refused until the table is captured anew
ALTER TABLE renamed DROP COLUMN number;
ALTER TABLE renamed RENAME COLUMN a TO z;
SELECT refusal('INSERT INTO renamed VALUES (''x'')');
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'renamed'::regclass ORDER BY tgname;
SELECT outbox.release('renamed'), outbox.capture('renamed', '{z}', key_columns => '{z}');
INSERT INTO renamed VALUES ('x');
SELECT * FROM recorded();
\echo -- every column is not a column named *
SELECT outbox.release('renamed'), outbox.capture('renamed', '{z}', key_columns => '{}');
ALTER TABLE renamed RENAME COLUMN z TO "*";
ALTER TABLE renamed ADD COLUMN hidden text DEFAULT 'hidden';
INSERT INTO renamed VALUES ('star');
SELECT * FROM recorded();
DROP TABLE renamed;

\echo -- partitions: those there are, those made later, attached with other column numbers; a moved row is a delete and an insert; the table is the one that was captured
CREATE TABLE measure (id int, region text, v int, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE measure_a PARTITION OF measure FOR VALUES IN ('a');
SELECT outbox.capture('measure', '{v}');
CREATE TABLE measure_b PARTITION OF measure FOR VALUES IN ('b') PARTITION BY RANGE (id);
CREATE TABLE measure_b1 PARTITION OF measure_b FOR VALUES FROM (0) TO (100);
CREATE TABLE measure_c (junk int, v int, junk2 int, region text NOT NULL, id int NOT NULL);
ALTER TABLE measure_c DROP COLUMN junk, DROP COLUMN junk2;
ALTER TABLE measure ATTACH PARTITION measure_c FOR VALUES IN ('c');
INSERT INTO measure VALUES (1, 'a', 10), (2, 'b', 20), (3, 'c', 30);
INSERT INTO measure_b1 VALUES (4, 'b', 40);
UPDATE measure SET region = 'c' WHERE id = 1;
ALTER TABLE measure RENAME COLUMN v TO value;
UPDATE measure SET value = value + 1 WHERE id IN (1, 2);
ALTER TABLE measure RENAME TO measures;
TRUNCATE measures;
SELECT * FROM recorded();
SELECT refusal('SELECT outbox.capture(''measure_b1'', ''{*}'')');
SELECT refusal('SELECT outbox.release(''measure_b1'')');
ALTER TABLE measures DETACH PARTITION measure_c;
INSERT INTO measure_c (id, region, value) VALUES (5, 'c', 50);
SELECT count(*) FROM recorded();
SELECT outbox.capture('measure_c', '{*}', key_columns => '{id}');
SELECT refusal('ALTER TABLE measures ATTACH PARTITION measure_c FOR VALUES IN (''c'')');
SELECT outbox.release('measures');
ALTER TABLE measures ATTACH PARTITION measure_c FOR VALUES IN ('c');
INSERT INTO measures VALUES (6, 'c', 60), (7, 'a', 70);
SELECT * FROM recorded();
SELECT refusal('SELECT outbox.capture(''measures'', ''{value}'')');
DROP TABLE measures;

\echo -- a column of the key of a partitioned table is dropped: one warning, refused in every partition
CREATE TABLE split (id int, v int, region text) PARTITION BY LIST (region);
CREATE TABLE split_a PARTITION OF split FOR VALUES IN ('a');
CREATE TABLE split_b PARTITION OF split FOR VALUES IN ('b');
SELECT outbox.capture('split', '{v}', key_columns => '{region,id}');
ALTER TABLE split DROP COLUMN id;
SELECT refusal('INSERT INTO split VALUES (1, ''a'')'), refusal('INSERT INTO split_b VALUES (1, ''b'')');
DROP TABLE split;

\echo -- inheritance: a warning, for children are tables of their own
CREATE TABLE city (id int PRIMARY KEY);
CREATE TABLE capital () INHERITS (city);
SELECT outbox.capture('city', '{*}');
INSERT INTO capital VALUES (1);
INSERT INTO city VALUES (2);
SELECT * FROM recorded();
SELECT outbox.capture('capital', '{*}', key_columns => '{id}');
ALTER TABLE city RENAME COLUMN id TO number;
INSERT INTO capital VALUES (3);
SELECT * FROM recorded();
DROP TABLE city, capital;

\echo -- what is out of line is in the event whole, and too large is refused, change and all
CREATE TABLE large (id int PRIMARY KEY, v text, n int);
ALTER TABLE large ALTER COLUMN v SET STORAGE EXTERNAL;
SELECT outbox.capture('large', '{v}');
INSERT INTO large VALUES (1, repeat('x', 100000));
UPDATE large SET n = 1;
UPDATE large SET v = v || '';
UPDATE large SET id = 2;
SELECT type, key, length(payload -> 'old' ->> 'v'), length(payload -> 'new' ->> 'v'), payload -> 'changed', payload -> 'old_key' FROM recorded();
SELECT refusal('UPDATE large SET v = repeat(''x'', 1000000)');
SELECT refusal('UPDATE large SET v = repeat(''x'', 2000000)');
SELECT length(v) FROM large;
SELECT count(*) FROM recorded();
DROP TABLE large;

\echo -- the type, if it is not given, needs names that can be one; it is fixed then
CREATE TABLE "My table" (id int PRIMARY KEY);
SELECT refusal('SELECT outbox.capture(''"My table"'', ''{*}'')');
SELECT refusal('SELECT outbox.capture(''"My table"'', ''{*}'', type => ''a.*.b'')');
SELECT refusal('SELECT outbox.capture(''"My table"'', ''{*}'', type => ''outbox.mine'')');
SELECT refusal('SELECT outbox.capture(''"My table"'', ''{*}'', type => '''')');
SELECT outbox.capture('"My table"', '{*}', type => 'it''s\mine.*');
INSERT INTO "My table" VALUES (1);
SELECT * FROM recorded();
DROP TABLE "My table";

\echo -- refusals
CREATE TABLE plain (id int PRIMARY KEY, v int);
CREATE VIEW seen AS SELECT * FROM plain;
CREATE MATERIALIZED VIEW kept AS SELECT * FROM plain;
CREATE TEMP TABLE passing (id int PRIMARY KEY);
CREATE FOREIGN DATA WRAPPER regress_outbox_wrapper;
CREATE SERVER regress_outbox_server FOREIGN DATA WRAPPER regress_outbox_wrapper;
CREATE FOREIGN TABLE far (id int) SERVER regress_outbox_server;
CREATE SEQUENCE numbers;
SELECT command, refusal(command) FROM unnest(ARRAY[
    'SELECT outbox.capture(NULL, ''{*}'')', 'SELECT outbox.release(NULL)', 'SELECT outbox.capture(1::oid, ''{*}'')', 'SELECT outbox.capture(''seen'', ''{*}'')', 'SELECT outbox.capture(''kept'', ''{*}'')',
    'SELECT outbox.capture(''passing'', ''{*}'')', 'SELECT outbox.capture(''far'', ''{*}'')', 'SELECT outbox.capture(''numbers'', ''{*}'')', 'SELECT outbox.capture(''plain_pkey'', ''{*}'')',
    'SELECT outbox.capture(''pg_class'', ''{*}'')', 'SELECT outbox.capture(''information_schema.sql_features'', ''{*}'')', 'SELECT outbox.capture(''outbox.subscription'', ''{*}'')',
    'SELECT outbox.capture(''outbox.event'', ''{*}'')', 'SELECT outbox.capture(''outbox.new_event'', ''{*}'')',
    'SELECT outbox.capture(''plain'', NULL)', 'SELECT outbox.capture(''plain'', ''{}'')', 'SELECT outbox.capture(''plain'', ''{nothing}'')', 'SELECT outbox.capture(''plain'', ''{V}'')',
    'SELECT outbox.capture(''plain'', ''{v,*}'')', 'SELECT outbox.capture(''plain'', ''{ctid}'')', 'SELECT outbox.capture(''plain'', ''{v,NULL}'')', 'SELECT outbox.capture(''plain'', ''{v,v}'')',
    'SELECT outbox.capture(''plain'', ''{v}'', key_columns => ''{nothing}'')', 'SELECT outbox.capture(''plain'', ''{v}'', key_columns => ''{id,id}'')',
    'SELECT outbox.capture(''plain'', ''{v}'', key_columns => ''{*}'')']) AS command;
SELECT refusal(format('SELECT outbox.capture(''plain'', ''{v}'', key_columns => array_fill(''v''::name, ARRAY[33]))'));
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'plain'::regclass;

\echo -- a trigger made by hand, in another way, says so
CREATE TRIGGER wrong BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION outbox._capture('a');
SELECT refusal('INSERT INTO plain VALUES (1)');
DROP TRIGGER wrong ON plain;
CREATE TRIGGER wrong AFTER INSERT ON plain FOR EACH STATEMENT EXECUTE FUNCTION outbox._capture('a');
SELECT refusal('INSERT INTO plain VALUES (1)');
DROP TRIGGER wrong ON plain;
CREATE FUNCTION attempt(arguments text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE format('CREATE TRIGGER wrong AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION outbox._capture(%s)', arguments);
    result := refusal('INSERT INTO plain VALUES (1)');
    DROP TRIGGER wrong ON plain;
    RETURN result;
END
$$;
SELECT arguments, attempt(arguments) FROM unnest(ARRAY['', '''a''', '''a'', ''1''', '''a'', ''0''', '''a'', ''1'', ''id'', ''2'', ''v''', '''a'', ''0'', ''1'', ''v'', ''more''', '''a'', ''x'', ''*''', '''a'', ''-1'', ''*''',
    '''a'', ''0'', ''99999999999999999999''', '''a'', ''0'', ''1'', ''nothing''', '''outbox.a'', ''0'', ''*''', '''a'', ''0'', ''*''']) AS arguments;
SELECT * FROM recorded();

\echo -- the owner captures, with the right to enqueue; whoever writes needs neither; whoever may only put triggers on it may not
CREATE ROLE regress_outbox_owner;
CREATE ROLE regress_outbox_writer;
CREATE ROLE regress_outbox_stranger;
SELECT outbox.grant_role('regress_outbox_owner', 'publisher'), outbox.grant_role('regress_outbox_stranger', 'publisher');
GRANT USAGE ON SCHEMA regress_capture TO regress_outbox_owner, regress_outbox_writer, regress_outbox_stranger;
CREATE TABLE owned (id int PRIMARY KEY, v text);
ALTER TABLE owned OWNER TO regress_outbox_owner;
GRANT TRIGGER ON owned TO regress_outbox_stranger;
GRANT INSERT, TRUNCATE ON owned TO regress_outbox_writer;
SET ROLE regress_outbox_stranger;
SELECT refusal('SELECT outbox.capture(''owned'', ''{v}'')');
SET ROLE regress_outbox_writer;
SELECT refusal('SELECT outbox.capture(''owned'', ''{v}'')');
\echo -- nor may an owner capture what he must not read
RESET ROLE;
REVOKE SELECT ON owned FROM regress_outbox_owner;
GRANT SELECT (id) ON owned TO regress_outbox_owner;
SET ROLE regress_outbox_owner;
SELECT refusal('SELECT outbox.capture(''owned'', ''{v}'')');
SELECT refusal('SELECT outbox.capture(''owned'', ''{id}'', key_columns => ''{v}'')');
SELECT refusal('SELECT outbox.capture(''owned'', ''{*}'')');
SELECT outbox.capture('owned', '{id}'), outbox.release('owned');
RESET ROLE;
REVOKE SELECT (id) ON owned FROM regress_outbox_owner;
GRANT SELECT (v) ON owned TO regress_outbox_owner;
SET ROLE regress_outbox_owner;
SELECT refusal('SELECT outbox.capture(''owned'', ''{v}'')');
RESET ROLE;
GRANT SELECT ON owned TO regress_outbox_owner;
SET ROLE regress_outbox_owner;
SELECT outbox.capture('owned', '{v}');
SET ROLE regress_outbox_stranger;
SELECT refusal('SELECT outbox.release(''owned'')');
SET ROLE regress_outbox_writer;
INSERT INTO owned VALUES (1, 'written');
TRUNCATE owned;
SELECT refusal('SELECT outbox.enqueue(''a'', ''1'')');
RESET ROLE;
SELECT * FROM recorded();
\echo -- also after the owner has lost that right
SELECT outbox.revoke_role('regress_outbox_owner', 'publisher');
SET ROLE regress_outbox_owner;
INSERT INTO owned VALUES (2, 'still');
ALTER TABLE owned RENAME COLUMN v TO w;
SELECT refusal('SELECT outbox.release(''owned'')');
RESET ROLE;
INSERT INTO owned VALUES (3, 'renamed');
SELECT * FROM recorded();

DROP TABLE owned;

\echo -- the extension goes with CASCADE only, and the triggers with it
SELECT outbox.capture('plain', '{*}');
SELECT refusal('DROP EXTENSION outbox');
\echo -- dropping what it is about, in whatever order, is not in the way
CREATE TYPE colour AS ENUM ('red');
CREATE TABLE painted (c colour PRIMARY KEY);
SELECT outbox.capture('painted', '{*}');
SET client_min_messages = error;   -- the key of painted goes first
DROP SCHEMA regress_capture CASCADE;
SELECT outbox.revoke_role('regress_outbox_stranger', 'publisher');
DROP ROLE regress_outbox_owner, regress_outbox_writer, regress_outbox_stranger;
DROP FOREIGN DATA WRAPPER regress_outbox_wrapper CASCADE;
RESET search_path;
CREATE TABLE public.regress_left (id int PRIMARY KEY);
SELECT outbox.capture('public.regress_left', '{*}');
DROP EXTENSION outbox CASCADE;
INSERT INTO public.regress_left VALUES (1);
SELECT tgname FROM pg_trigger WHERE tgrelid = 'public.regress_left'::regclass;
ALTER TABLE public.regress_left RENAME COLUMN id TO number;
DROP TABLE public.regress_left;
