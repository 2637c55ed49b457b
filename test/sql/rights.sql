-- Rights: nothing to PUBLIC; what each kind of role may and may not.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
\pset format unaligned
\pset tuples_only on

CREATE FUNCTION public.refusal(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text; message text;
BEGIN
    EXECUTE command;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
    RETURN concat_ws(' | ', state, message);
END
$$;

\echo -- PUBLIC has nothing
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE');
SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'v') AND has_any_column_privilege('public', c.oid, 'SELECT, INSERT, UPDATE');
SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'outbox'::regnamespace AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege('public', c.oid, 'SELECT, USAGE, UPDATE') END;
SELECT has_schema_privilege('public', 'outbox', 'USAGE'), has_schema_privilege('public', 'outbox', 'CREATE');

\echo -- every function of the owner has its search path; nothing is overloaded; everything is described
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace AND p.prosecdef AND NOT COALESCE(p.proconfig @> '{"search_path=pg_catalog, pg_temp"}', false);
SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace GROUP BY p.proname HAVING count(*) > 1;
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'v') AND obj_description(c.oid, 'pg_class') IS NULL;
SELECT c.oid::regclass, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND a.attislocal AND col_description(c.oid, a.attnum) IS NULL;

SELECT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
 WHERE d.deptype = 'e' AND x.extname = 'outbox' AND obj_description(d.objid, d.classid::regclass::name) IS NULL
   AND NOT EXISTS (SELECT FROM pg_depend i WHERE i.classid = d.classid AND i.objid = d.objid AND i.deptype = 'i');   -- that of an identity column

\echo -- the worker hears of changes that are made in a session with session_replication_role = replica, too
SELECT count(*) FROM pg_trigger WHERE tgname = 'changed' AND tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'outbox'::regnamespace) AND tgenabled = 'A';

\echo -- every table that holds data is dumped, and every identity with it; a fresh installation has no row in them
SELECT c.oid::regclass FROM pg_class c, pg_extension x
 WHERE x.extname = 'outbox' AND c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'S') AND c.oid <> ALL (x.extconfig)
 ORDER BY c.relname;

CREATE ROLE regress_outbox_publisher;
CREATE ROLE regress_outbox_consumer;
CREATE ROLE regress_outbox_manager;
CREATE ROLE regress_outbox_operator;
CREATE ROLE regress_outbox_nobody;
GRANT EXECUTE ON FUNCTION public.refusal(text) TO PUBLIC;
SELECT outbox.grant_role('regress_outbox_publisher', 'publisher'), outbox.grant_role('regress_outbox_consumer', 'consumer'),
       outbox.grant_role('regress_outbox_manager', 'manager'), outbox.grant_role('regress_outbox_operator', 'operator');

\echo -- who may what
\pset format aligned
\pset tuples_only off
SELECT p.proname AS function,
       has_function_privilege('regress_outbox_publisher', p.oid, 'EXECUTE') AS publisher, has_function_privilege('regress_outbox_consumer', p.oid, 'EXECUTE') AS consumer,
       has_function_privilege('regress_outbox_manager', p.oid, 'EXECUTE') AS manager, has_function_privilege('regress_outbox_operator', p.oid, 'EXECUTE') AS operator
  FROM pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace AND p.proacl::text LIKE '%regress_outbox%' ORDER BY p.proname COLLATE "C";
SELECT c.relname AS relation, p.privilege,
       has_any_column_privilege('regress_outbox_publisher', c.oid, p.privilege) AS publisher, has_any_column_privilege('regress_outbox_consumer', c.oid, p.privilege) AS consumer,
       has_any_column_privilege('regress_outbox_manager', c.oid, p.privilege) AS manager, has_any_column_privilege('regress_outbox_operator', c.oid, p.privilege) AS operator
  FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p (privilege)
 WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'v')
   AND EXISTS (SELECT FROM pg_roles r WHERE r.rolname LIKE 'regress\_outbox\_%' AND has_any_column_privilege(r.oid, c.oid, p.privilege))
 ORDER BY c.relname COLLATE "C", p.privilege;
\pset format unaligned
\pset tuples_only on

\echo -- a publisher records events, and sees nothing
SET ROLE regress_outbox_publisher;
SELECT outbox.enqueue('order.paid', '{"n": 1}') IS NOT NULL;
INSERT INTO outbox.new_event (type, payload) VALUES ('order.paid', '{"n": 2}') RETURNING id IS NOT NULL;
SELECT command, refusal(command) FROM unnest(ARRAY[
    'SELECT FROM outbox.event', 'SELECT FROM outbox.event_0', 'INSERT INTO outbox.event (type) VALUES (''x'')', 'DELETE FROM outbox.event', 'SELECT payload FROM outbox.new_event',
    'SELECT FROM outbox.subscription', 'SELECT FROM outbox.secret', 'SELECT FROM outbox.subscription_status', 'SELECT FROM outbox.event_status(NULL)',
    'SELECT outbox.subscribe(''x'', ''https://example.com/'')', 'SELECT outbox.start()', 'SELECT outbox.grant_role(''regress_outbox_publisher'', ''operator'')',
    'CREATE TABLE outbox.t ()']) AS command;
RESET ROLE;

\echo -- a consumer accepts messages and uses idempotency keys, and sees neither
SET ROLE regress_outbox_consumer;
SELECT outbox.accept('c', 'm'), outbox.accept('c', 'm'), outbox.accept_many('c', '{m,n}'), outbox.set_consumer('c', '1 day');
SELECT consumer, held, accepted, duplicates >= 2 FROM outbox.inbox_status WHERE consumer = 'c';
SELECT outbox.verify_webhook('{}', 'x', 'whsec_AAAA');
SELECT token AS token FROM outbox.begin_request('s', 'k', 'f') \gset
SELECT outbox.fail_request('s', 'k', :token);
SELECT token AS token FROM outbox.begin_request('s', 'k', 'f') \gset
SELECT outbox.finish_request('s', 'k', :token, '1', 200);
SELECT state, response FROM outbox.begin_request('s', 'k', 'f');
SELECT command, refusal(command) FROM unnest(ARRAY[
    'SELECT FROM outbox.inbox', 'INSERT INTO outbox.inbox VALUES (now(), ''x'', ''c'')', 'DELETE FROM outbox.inbox', 'SELECT FROM outbox.consumer', 'SELECT FROM outbox.inbox_count',
    'SELECT FROM outbox.idempotency_key', 'SELECT nextval(''outbox.idempotency_key_token'')', 'SELECT outbox._wait_durable(''3'')', 'SELECT outbox._commit_durably()', 'SELECT outbox.maintain()']) AS command;
RESET ROLE;
DELETE FROM outbox.inbox;
DELETE FROM outbox.consumer;
DELETE FROM outbox.idempotency_key;

\echo -- a manager manages public subscriptions
SET ROLE regress_outbox_manager;
SELECT outbox.subscribe('public', 'https://example.com/secret-path') IS NOT NULL;
SELECT command, refusal(command) FROM unnest(ARRAY[
    'SELECT outbox.subscribe(''private'', ''http://localhost/'', network => ''private'')', 'SELECT outbox.alter_subscription(''public'', network => ''private'')',
    'SELECT outbox.alter_subscription(''public'', timeout => ''1 min'')', 'SELECT outbox.pause(''public'')', 'SELECT outbox.resume(''public'')', 'SELECT outbox.ping(''public'')',
    'SELECT outbox.rotate_secret(''public'')', 'SELECT outbox._rotate_secret(''public'', ''0'', NULL, true)', 'SELECT outbox._secret_states(NULL)', 'SELECT outbox._encrypt(''signing'', 1, ''x'')',
    'SELECT FROM outbox.secret', 'SELECT FROM outbox.subscription', 'SELECT FROM outbox.event', 'SELECT outbox.redrive(''public'')', 'SELECT outbox.start()', 'SELECT outbox.enqueue(''a'', ''{}'')',
    'SELECT outbox._secret_text(''x'')', 'SELECT outbox.grant_role(''regress_outbox_manager'', ''operator'')']) AS command;
SELECT name, url FROM outbox.subscription_status;
RESET ROLE;

\echo -- only operators touch those on the private network
SET ROLE regress_outbox_operator;
SELECT outbox.subscribe('private', 'http://localhost/', network => 'private') IS NOT NULL;
SELECT command, refusal(command) FROM unnest(ARRAY['SELECT FROM outbox.secret', 'SELECT FROM outbox.subscription', 'SELECT FROM outbox.event', 'SELECT FROM outbox.operation',
    'SELECT outbox.redrive(''private'')', 'SELECT FROM outbox.health()', 'SELECT outbox.grant_role(''regress_outbox_nobody'', ''manager'')', 'UPDATE outbox.operation SET count = 0']) AS command;
SET ROLE regress_outbox_manager;
SELECT command, refusal(command) FROM unnest(ARRAY['SELECT outbox.alter_subscription(''private'', url => ''http://10.0.0.1/'')', 'SELECT outbox.alter_subscription(''private'', reset => ''{network}'')',
    'SELECT outbox.pause(''private'')', 'SELECT outbox.resume(''private'')', 'SELECT outbox.ping(''private'')', 'SELECT outbox.replay(''private'', ''-infinity'')', 'SELECT outbox.cancel_replay(''private'')', 'SELECT outbox.rotate_secret(''private'')', 'SELECT outbox.unsubscribe(''private'')']) AS command;
RESET ROLE;

\echo -- a function that belongs to a manager has the rights of a manager, whoever calls it; one that belongs to an operator, those of an operator
CREATE SCHEMA regress_outbox AUTHORIZATION regress_outbox_manager;
SET ROLE regress_outbox_manager;
CREATE FUNCTION regress_outbox.deputy(command text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN EXECUTE command; RETURN 'done'; END $$;
RESET ROLE;
SELECT command, refusal(format('SELECT regress_outbox.deputy(%L)', command)) FROM unnest(ARRAY[
    'SELECT outbox.subscribe(''trojan'', ''http://127.0.0.1/'', network => ''private'')', 'SELECT outbox.alter_subscription(''public'', network => ''private'')',
    'SELECT outbox.alter_subscription(''private'', url => ''http://127.0.0.1/'')', 'SELECT outbox.pause(''private'')', 'SELECT outbox.resume(''private'')', 'SELECT outbox.ping(''private'')',
    'SELECT outbox.rotate_secret(''private'')', 'SELECT outbox.unsubscribe(''private'')', 'SELECT outbox._pause(''private'', NULL, true)', 'SELECT outbox.pause(''public'')', 'SELECT outbox.resume(''public'')']) AS command;
ALTER FUNCTION regress_outbox.deputy(text) OWNER TO regress_outbox_operator;
SET ROLE regress_outbox_manager;
GRANT USAGE ON SCHEMA regress_outbox TO regress_outbox_operator;
SELECT refusal('SELECT regress_outbox.deputy(''SELECT outbox.pause(''''private'''')'')'), refusal('SELECT regress_outbox.deputy(''SELECT outbox.resume(''''private'''')'')');
RESET ROLE;
DROP SCHEMA regress_outbox CASCADE;

\echo -- a consumer reads the status views
SET ROLE regress_outbox_consumer;
SELECT command, refusal(command) FROM unnest(ARRAY['SELECT FROM outbox.subscription_status', 'SELECT FROM outbox.delivery_status', 'SELECT FROM outbox.dead_letter', 'SELECT FROM outbox.blocked_key',
    'SELECT FROM outbox.attempt', 'SELECT FROM outbox.event_status(''00000000-0000-7000-8000-000000000000'')', 'SELECT FROM outbox.event', 'SELECT outbox.pause(''public'')', 'SELECT outbox.rotate_secret(''public'')', 'SELECT FROM outbox.secret']) AS command;
RESET ROLE;

\echo -- recorded under the role that acts
SET ROLE regress_outbox_operator;
SELECT outbox.redrive('private');
SELECT role, action, subscription FROM outbox.operation ORDER BY id DESC LIMIT 1;
RESET ROLE;

\echo -- revoking
SELECT refusal($$SELECT outbox.grant_role('regress_outbox_nobody', 'admin')$$), refusal($$SELECT outbox.revoke_role('regress_outbox_nobody', NULL)$$), refusal($$SELECT outbox.grant_role(1::regrole, 'manager')$$);
SELECT outbox.grant_role('regress_outbox_publisher', 'manager'), outbox.revoke_role('regress_outbox_publisher', 'publisher');
SELECT has_schema_privilege('regress_outbox_publisher', 'outbox', 'USAGE'), has_function_privilege('regress_outbox_publisher', 'outbox.enqueue_many(jsonb)', 'EXECUTE'),
       has_function_privilege('regress_outbox_publisher', 'outbox.ping(text)', 'EXECUTE');
SELECT outbox.grant_role('regress_outbox_publisher', 'publisher'), outbox.revoke_role('regress_outbox_publisher', 'consumer');
SELECT has_schema_privilege('regress_outbox_publisher', 'outbox', 'USAGE'), has_function_privilege('regress_outbox_publisher', 'outbox.enqueue_many(jsonb)', 'EXECUTE'),
       has_function_privilege('regress_outbox_publisher', 'outbox.ping(text)', 'EXECUTE');
SELECT outbox.revoke_role('regress_outbox_publisher', 'publisher'), outbox.revoke_role('regress_outbox_consumer', 'consumer'),
       outbox.revoke_role('regress_outbox_manager', 'manager'), outbox.revoke_role('regress_outbox_operator', 'operator');
SELECT outbox.unsubscribe('public'), outbox.unsubscribe('private');

\echo -- nothing for whom ALTER DEFAULT PRIVILEGES gives everything, either: in a database of its own
SELECT current_database() AS home \gset
CREATE DATABASE outbox_rights TEMPLATE template0;
\c outbox_rights
SET client_min_messages = warning;
\echo -- and nothing in a schema that others may create in, or that is not empty
CREATE FUNCTION public.refusal(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text; message text; detail text; hint text;
BEGIN
    EXECUTE command;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(' | ', state, message, detail, hint);
END
$$;
CREATE SCHEMA outbox AUTHORIZATION regress_outbox_nobody;
SELECT public.refusal('CREATE EXTENSION outbox');
ALTER SCHEMA outbox OWNER TO CURRENT_USER;
GRANT CREATE ON SCHEMA outbox TO regress_outbox_nobody;
SELECT public.refusal('CREATE EXTENSION outbox');
REVOKE ALL ON SCHEMA outbox FROM regress_outbox_nobody;
CREATE FUNCTION outbox.epoch(int) RETURNS int LANGUAGE sql RETURN $1;
SELECT public.refusal('CREATE EXTENSION outbox');
DROP FUNCTION outbox.epoch(int);
GRANT USAGE ON SCHEMA outbox TO regress_outbox_nobody;
SELECT public.refusal('CREATE EXTENSION outbox');
DROP EXTENSION outbox;
DROP SCHEMA outbox;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_outbox_nobody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON ROUTINES TO regress_outbox_nobody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO regress_outbox_nobody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO regress_outbox_nobody;
CREATE EXTENSION outbox;
SELECT has_table_privilege('regress_outbox_nobody', 'outbox.secret', 'SELECT'), has_function_privilege('regress_outbox_nobody', 'outbox.start(boolean)', 'EXECUTE'),
       has_sequence_privilege('regress_outbox_nobody', 'outbox.secret_id_seq', 'USAGE'), has_schema_privilege('regress_outbox_nobody', 'outbox', 'USAGE');
\echo -- a manager whose code a superuser runs unawares (ANALYZE of an expression index) has no more rights for that
SELECT outbox.grant_role('regress_outbox_manager', 'manager');
GRANT ALL ON SCHEMA public TO regress_outbox_manager;
SET ROLE regress_outbox_manager;
CREATE TABLE public.trap (a int);
INSERT INTO public.trap VALUES (1);
CREATE FUNCTION public.spring(a int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM outbox.subscribe('trap', 'http://127.0.0.1:1/', network => 'private');
    RETURN a;
EXCEPTION WHEN insufficient_privilege THEN
    RETURN a;
END
$$;
CREATE INDEX ON public.trap (public.spring(a));
RESET ROLE;
ANALYZE public.trap;
SELECT name FROM outbox.subscription_status;
\c :home
DROP DATABASE outbox_rights;
SET client_min_messages = warning;

\echo -- nothing is left: the roles can be dropped
REVOKE EXECUTE ON FUNCTION public.refusal(text) FROM PUBLIC;
DROP ROLE regress_outbox_publisher, regress_outbox_consumer, regress_outbox_manager, regress_outbox_operator, regress_outbox_nobody;
DROP FUNCTION public.refusal(text);
