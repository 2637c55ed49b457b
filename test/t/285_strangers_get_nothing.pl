# Who has been given nothing gets nothing: every function, table, view and sequence of the extension, whichever they are, refuses a stranger (42501), even one who may use the schema. And what a
# stranger puts in the way (functions and operators of the same names in a schema that comes first, tables and types in pg_temp) is not run by CREATE EXTENSION, by ALTER EXTENSION UPDATE with a worker at work, nor by
# anything they make.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
sub sql { my ($sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }

# ---- strangers ------------------------------------------------------------------------------------------------------------------------------

sql(q{CREATE ROLE nobody; CREATE ROLE somebody; GRANT USAGE ON SCHEMA outbox TO somebody});
my @calls = split /\n/, sql(q{
SELECT CASE p.prokind WHEN 'p' THEN format('CALL outbox.%I(%s)', p.proname, a.nulls)
                      ELSE format('SELECT outbox.%I(%s) FROM (SELECT %s OFFSET 0) AS v', p.proname, a.names, a.columns) END    -- not as constants: a strict function of NULL is not even called
  FROM pg_proc p
 CROSS JOIN LATERAL (SELECT string_agg('NULL::' || t.name, ', ' ORDER BY t.n) AS nulls, string_agg('v.a' || t.n, ', ' ORDER BY t.n) AS names, string_agg(format('NULL::%s AS a%s', t.name, t.n), ', ' ORDER BY t.n) AS columns
                       FROM (SELECT a.n, CASE WHEN a.type = 'record'::regtype THEN 'outbox.subscription' ELSE format_type(a.type, NULL) END AS name FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n)) AS t) AS a
 WHERE p.pronamespace = 'outbox'::regnamespace AND p.prorettype <> 'trigger'::regtype ORDER BY p.proname});
my @uses = split /\n/, sql(q{
SELECT format(u.command, c.oid::regclass, (SELECT quote_ident(a.attname) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attidentity = '' ORDER BY a.attnum LIMIT 1))
  FROM pg_class c JOIN (VALUES ('rv', 'SELECT * FROM %s'), ('rv', 'SELECT count(*) FROM %s'), ('rv', 'INSERT INTO %s DEFAULT VALUES'), ('rv', 'UPDATE %s SET %s = NULL'), ('rv', 'DELETE FROM %s'), ('r', 'TRUNCATE %s'),
                               ('rv', 'COPY (SELECT * FROM %s) TO STDOUT'), ('S', 'SELECT nextval(''%s'')'), ('S', 'SELECT last_value FROM %s')) AS u (kinds, command) ON strpos(u.kinds, c.relkind::text) > 0
 WHERE c.relnamespace = 'outbox'::regnamespace ORDER BY c.relname});
cmp_ok(scalar @calls, '>=', 80, scalar(@calls) . ' functions');
cmp_ok(scalar @uses, '>=', 200, scalar(@uses) . ' ways to use what there is');
for my $role (qw(nobody somebody))
{
	my $session = session($node);
	$session->query("SET ROLE $role");
	my @allowed;
	for my $command (@calls, @uses)
	{
		my $said = $session->query($command);
		push @allowed, "$command: $said" unless $said =~ /ERROR:  (?:42501: permission denied|55000: cannot \w+ (?:into |from )?view)/;    # the latter: nobody can
	}
	is(scalar @allowed, 0, "$role: everything is refused with 42501") or diag join "\n", @allowed;
}

# ---- what is put in the way ---------------------------------------------------------------------------------------------------------------------

# In front of every function and operator of the server whose types can be written down stands one that writes down by whom it is run
sql(q{CREATE ROLE trojan LOGIN});
sql(q{CREATE DATABASE trap});
sql(<<'SQL', 'trap');
CREATE TABLE public.trapped (who name, what text);
GRANT INSERT ON public.trapped TO PUBLIC;
GRANT CREATE, USAGE ON SCHEMA public TO trojan;
SET ROLE trojan;
DO $$
DECLARE
    one   record;
    made  int := 0;
BEGIN
    FOR one IN
        SELECT p.oid, p.proname, p.proretset, format_type(p.prorettype, NULL) AS result,
               (SELECT string_agg(format_type(a.type, NULL), ', ' ORDER BY a.n) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n)) AS types,
               (SELECT string_agg('$' || a.n, ', ' ORDER BY a.n) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n)) AS arguments
          FROM pg_proc p
         WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset AND p.provariadic = 0 AND p.pronargs BETWEEN 0 AND 5 AND p.proargmodes IS NULL
           AND p.prolang IN (SELECT oid FROM pg_language WHERE lanname IN ('internal', 'sql'))
           AND NOT EXISTS (SELECT FROM unnest(p.proargtypes || p.prorettype) AS a (type) JOIN pg_type t ON t.oid = a.type WHERE t.typtype = 'p')
           AND p.proname !~ '^(RI_|pg_stat|pg_start|pg_stop|pg_backup|pg_promote|pg_terminate|pg_rotate|pg_reload|binary_upgrade|circle|box|path|point|poly|line|lseg|dist|gtsvector|gin|gist|brin|bt|spg|hash|int[248]_?avg)'
    LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', one.proname, one.types, one.result,
                           format('BEGIN INSERT INTO public.trapped VALUES (current_user, %L); RETURN pg_catalog.%I(%s); END', one.oid::regprocedure::text, one.proname, one.arguments));
            made := made + 1;
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
    END LOOP;
    FOR one IN
        SELECT o.oprname, format_type(o.oprleft, NULL) AS l, format_type(o.oprright, NULL) AS r, format_type(o.oprresult, NULL) AS result, o.oid
          FROM pg_operator o
         WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprkind = 'b'
           AND NOT EXISTS (SELECT FROM unnest(ARRAY[o.oprleft, o.oprright, o.oprresult]) AS a (type) JOIN pg_type t ON t.oid = a.type WHERE t.typtype = 'p' OR t.typcategory = 'G')
    LOOP
        EXECUTE format('CREATE FUNCTION public.operator_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', one.oid, one.l, one.r, one.result,
                       format('BEGIN INSERT INTO public.trapped VALUES (current_user, %L); RETURN $1 OPERATOR(pg_catalog.%s) $2; END', one.oid::regoperator::text, one.oprname));
        EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.operator_%s)', one.oprname, one.l, one.r, one.oid);
        made := made + 1;
    END LOOP;
    IF made < 1500 THEN
        RAISE EXCEPTION 'only % traps', made;
    END IF;
END $$;
SQL
is(sql(q{SET search_path = public, pg_catalog; SELECT 1 + 1; SELECT count(*) FROM trapped}, 'trap'), "2\n1", 'the traps work');
sql(q{TRUNCATE public.trapped; ALTER DATABASE trap SET search_path = public, pg_catalog}, 'trap');
my $receiver = Outbox::Receiver->new(fsync => 0);
my $session = session($node, 'trap');
my $n = 0;
sub quietly
{
	my ($sql, $what) = @_;
	my $said = $session->query($sql);
	unlike($said // 'lost', qr/ERROR|lost/, $what // $sql);
	return $said;
}
$session->query(join ';', map { "CREATE TEMP TABLE $_ (id int, name text)" } qw(event subscription secret delivery pg_class pg_proc pg_roles operation cursor uuid jsonb text timestamptz bytea xid8 name int4 int8));
quietly('CREATE EXTENSION outbox', 'CREATE EXTENSION, with traps in the way');
quietly('SELECT outbox.start()');
quietly("SELECT outbox.subscribe('main', '" . $receiver->url('/ok?main') . q{', network => 'private', types => '{a.**}', filter => '$.n > 0', headers => '{"X-A": "b"}')});
quietly(q{SELECT outbox.subscribe('pulled')});
my $id = quietly(q{SELECT outbox.enqueue('a.b', '{"n": 1}', key => 'k', dedup_key => 'd', headers => '{"X-B": "c"}')});
ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->delivered('/ok?main') }, 'the event'), 'an event is delivered');
quietly($_) for q{SELECT outbox.enqueue_many('[{"type": "a.c", "payload": {"n": 2}}]')}, q{INSERT INTO outbox.new_event (type, payload) VALUES ('a.b', '{"n": 3}')}, q{SELECT outbox.enqueue('a.b', '{"n": 4}', deliver_at => '2030-01-01') IS NULL},
	"SELECT * FROM outbox.event_status('$id')", "SELECT * FROM outbox.trace('$id')", q{SELECT * FROM outbox.subscription_status}, q{SELECT * FROM outbox.delivery_status}, q{SELECT * FROM outbox.dead_letter}, q{SELECT * FROM outbox.blocked_key},
	q{SELECT * FROM outbox.attempt}, q{SELECT * FROM outbox.inbox_status}, q{SELECT * FROM outbox.health()}, q{SELECT outbox.maintain()}, q{SELECT * FROM outbox.routes('a.b', '{"n": 1}')}, q{SELECT outbox.alter_subscription('main', timeout => '6 s', types => '{a.*}')},
	q{SELECT outbox.pause('main')}, q{SELECT outbox.resume('main')}, q{SELECT outbox.pause_all()}, q{SELECT outbox.resume_all()}, q{SELECT outbox.rotate_secret('main')}, q{SELECT outbox.ping('main')}, q{SELECT outbox.replay('main', '2000-01-01')}, q{SELECT outbox.cancel_replay('main')},
	q{SELECT outbox.redrive('main')}, q{SELECT outbox.discard('main')}, q{SELECT * FROM outbox.pull('pulled')}, q{SELECT outbox.accept('c', 'm')}, q{SELECT outbox.set_consumer('c', '1 day')}, q{SELECT * FROM outbox.begin_request('s', 'k', 'f')},
	q{SELECT outbox.verify_webhook('{}', 'x', 'whsec_MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3A=')}, q{CREATE TABLE public.thing (id int PRIMARY KEY, name text)}, q{SELECT outbox.capture('public.thing', '{name}')}, q{SELECT outbox.release('public.thing')}, "CALL outbox.wait_delivered('$id', '1 s', NULL)",
	q{SELECT outbox.grant_role('trojan', 'operator')}, q{SELECT outbox.revoke_role('trojan', 'operator')}, q{SELECT outbox.stop()}, q{SELECT outbox.unsubscribe('main')};
is(sql(q{SELECT string_agg(DISTINCT what, ', ') FROM public.trapped}, 'trap'), '', 'nobody stepped into a trap');

# An update, to a version that was never released and back: its script makes everything anew that can be, and changes a table, while a worker is at work
my $scripts = `pg_config --sharedir` =~ s/\n//r . '/extension';
SKIP:
{
	skip "cannot write to $scripts", 1 unless -w $scripts;
	my @made = map { "$scripts/outbox--$_.sql" } '0.1.0--trap', 'trap--0.1.0';
	my $replaced = '';
	for (slurp_file("$scripts/outbox--0.1.0.sql") =~ /\G\s*+(?:(?:--|\\)[^\n]*+\n\s*+)*+((?:'(?:[^']|'')*+'|\$\w*\$(?:(?!\$\w*\$).)*+\$\w*\$|\bBEGIN ATOMIC\n.*?\nEND\b|--[^\n]*+\n|[^;'])++;)/gs)
	{
		$replaced .= "$_\n" if /^COMMENT/ || s/^CREATE (?=FUNCTION|PROCEDURE|VIEW|TRIGGER)/CREATE OR REPLACE /;
	}
	my $count = () = $replaced =~ /^CREATE OR REPLACE/mg;
	cmp_ok($count, '>=', 120, "an update script that makes $count things anew");
	my @changes = ("ALTER TABLE outbox.subscription ADD COLUMN later text DEFAULT pg_catalog.upper('x');\nUPDATE outbox.subscription SET later = lower(name || later), labels = labels || '{}' WHERE id > 0;\nCREATE INDEX later ON outbox.subscription (lower(later));\n",
		"ALTER TABLE outbox.subscription DROP COLUMN later;\n");
	for my $script (@made)
	{
		open my $file, '>', $script or die "$script: $!";
		print $file $replaced, shift @changes;
		close $file or die;
	}
	my $bodies = q{SET search_path = pg_catalog; SELECT md5(string_agg(oid::text || prosrc || COALESCE(array_to_string(proconfig, ','), ''), '' ORDER BY oid)) FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace};
	worker_gone($node, 'trap');
	quietly('SELECT outbox.start()');
	my ($before, $worker) = (sql($bodies, 'trap'), worker_pid($node, 'trap'));
	quietly(q{SELECT outbox.subscribe('after', '} . $receiver->url('/ok?after') . q{', network => 'private', types => '{a.**}')});
	for my $version ('trap', '0.1.0')
	{
		quietly("ALTER EXTENSION outbox UPDATE TO '$version'", "ALTER EXTENSION UPDATE to $version, with traps in the way");
		$id = quietly(q{SELECT outbox.enqueue('a.b', '{"n": 5}')});
		ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->delivered('/ok?after') }, 'the event'), 'an event is delivered');
	}
	unlink @made;
	is(worker_pid($node, 'trap'), $worker, 'by the same worker');
	is(sql($bodies, 'trap'), $before, 'the functions are what they were');
	is(sql(q{SELECT string_agg(DISTINCT what, ', ') FROM public.trapped}, 'trap'), '', 'nobody stepped into a trap');
}
$session->close;
sql('DROP EXTENSION outbox', 'trap');
is(sql(q{SELECT string_agg(DISTINCT what, ', ') FROM public.trapped}, 'trap'), '', 'nor when it was dropped');

done_testing;
