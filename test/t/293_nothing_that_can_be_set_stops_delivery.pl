# Whatever a session's settings can be changed to, for the server, for a database or for the role that the worker runs as: launcher, lister and worker do what they always do. Every setting that a session may have is set to a
# nasty value: switches turned, numbers at their least, the last of the alternatives; and the worker's role and database are closed to everybody. Nor does it matter that a role that made subscriptions is gone.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', arm => 0, key => 1, conf => [ "outbox.segment_size = '64kB'", "outbox.maintenance_interval = '1s'", "outbox.event_retention = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $server = $node->safe_psql('postgres', 'SELECT rolname FROM pg_roles WHERE oid = 10');
$node->safe_psql('postgres', 'CREATE ROLE admin LOGIN SUPERUSER');
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql, extra_params => [ '-U', 'admin' ]) }
my %nasty = (
	search_path => 'public, pg_catalog', DateStyle => 'SQL, DMY', TimeZone => 'Asia/Kathmandu', client_encoding => 'LATIN1', default_tablespace => '', temp_tablespaces => '',
	statement_timeout => 1, lock_timeout => 1, transaction_timeout => 1, idle_in_transaction_session_timeout => 1, idle_session_timeout => 1, restrict_nonsystem_relation_kind => 'view, foreign-table', deadlock_timeout => 1,
	temp_file_limit => 0, extra_float_digits => -15, vacuum_cost_delay => 100, synchronous_commit => 'remote_apply', session_replication_role => 'replica', default_transaction_isolation => 'serializable');
my @settings = map { [ split /\t/, $_, -1 ] } split /\n/, sql(q{
SELECT concat_ws(E'\t', s.name, CASE s.vartype WHEN 'bool' THEN CASE s.setting WHEN 'on' THEN 'off' ELSE 'on' END
                                               WHEN 'enum' THEN (SELECT v FROM unnest(s.enumvals) WITH ORDINALITY AS e (v, n) WHERE v <> s.setting ORDER BY n DESC LIMIT 1)
                                               WHEN 'string' THEN '' ELSE s.min_val END, s.setting)
  FROM pg_settings AS s
 WHERE s.context IN ('user', 'superuser') AND s.name !~ '^(log_|debug_print|debug_discard|trace_|wal_debug|outbox[.]|track_|backtrace|dynamic_library|application_name|session_auth|role$|is_superuser|transaction_(iso|read|defer)|wal_consist|local_preload|session_preload|default_table_access|default_text|timezone_abb|createrole|password_enc|seed|unix|oauth|ssl|event_source)'
 ORDER BY s.name});
cmp_ok(scalar @settings, '>=', 120, scalar(@settings) . ' settings');

# The sessions of this test, and the role that they use, keep what they have
my $session = Outbox::Session->new($node->connstr('postgres') . ' user=admin');
my (@set, @refused);
for (@settings)
{
	my ($name, $value, $before) = @$_;
	$value = $nasty{$name} // $value;
	next if $value eq '' || $value eq $before;
	my $list = $name =~ /^(?:search_path|temp_tablespaces)$/;
	my @places = ('DATABASE postgres', $name eq 'transaction_timeout' ? () : 'SYSTEM');    # that one would end sessions before they know whose they are
	my $said = join '', map { $session->query($_) } "ALTER ROLE admin SET $name = " . ($list ? $before : literal($before)), map { "ALTER $_ SET $name = " . ($list ? $value : literal($value)) } @places;
	if ($said eq '') { push @set, $name }
	else { push @refused, "$name = $value: $said" }
}
is(join("\n", @refused), '', 'all of them can be set');
cmp_ok(scalar @set, '>=', 100, scalar(@set) . ' are set to something nasty, for the server and for the database');
$session->close;

# Nor may anybody log in as the role that the worker is, or into the database
$node->restart;
$session = Outbox::Session->new($node->connstr('postgres') . ' user=admin');
sub ask { my ($sql) = @_; my $said = $session->query($sql); unlike($said // 'lost', qr/ERROR|FATAL|lost/, $sql) if ($said // 'ERROR') =~ /ERROR|FATAL/; return $said }
my $renamed = 'renamed';
ask($_) for "ALTER ROLE \"$server\" RENAME TO \"$renamed\"", "ALTER ROLE $renamed NOLOGIN CONNECTION LIMIT 0", 'ALTER DATABASE postgres CONNECTION LIMIT 0', 'REVOKE ALL ON DATABASE postgres FROM PUBLIC', q{SET application_name = 'test'};
sub worker { return wait_for(sub { my $pid = ask(q{SELECT worker_pid FROM outbox._worker() WHERE turn_at IS NOT NULL}); $pid ne '' && $pid }, 'a worker') }
ask('SELECT outbox.start()');
my $worker = worker();
ok($worker, 'the lister finds the database, the launcher starts a worker');

sub push_to { my ($name, $path, $more) = @_; return ask("SELECT outbox.subscribe('$name', '" . $receiver->url($path) . "', network => 'private', retry_base => '50 ms', retry_factor => 1, retry_jitter => 0, breaker_threshold => 0, $more)") }
my $secret = push_to('plain', '/random/8/5?plain', q{types => '{order.*}', filter => '$.total > 1.5', headers => '{"X-Static": "Zoë"}'});
push_to('batch', '/ok?batch', q{types => '{order.*}', format => 'batch'});
push_to('refused', '/status/422?refused', q{types => '{bad}', fatal_statuses => '{422}'});
ask(q{SELECT outbox.subscribe('pulled', types => '{order.*}')});
ask(q{CREATE TABLE thing (id int PRIMARY KEY, at timestamptz, x float8, name text); SELECT outbox.capture('thing', '{id,at,x,name}', type => 'order.thing')});
sub status { my ($id, $name) = @_; return ask("SELECT status FROM outbox.event_status('$id') WHERE subscription = '$name'") }
sub wait_for_status { my ($id, $name, $status) = @_; return ok(wait_for(sub { status($id, $name) eq $status }, "$status"), "$name: $status") }

# Who subscribed is gone
ask(q{CREATE ROLE boss; SELECT outbox.grant_role('boss', 'operator')});
ask('SET ROLE boss');
push_to('of-boss', '/ok?boss', q{types => '{order.*}', filter => '$.total > 1.5'});
ask('RESET ROLE');
ask(q{SELECT outbox.revoke_role('boss', 'operator'); DROP ROLE boss});

sub works
{
	my ($what) = @_;
	my $id = ask(q{SELECT outbox.enqueue('order.paid', '{"total": 2.50, "what": "déjà vu €", "x": 1e-7}', key => 'k 1', headers => '{"X-Own": "ü"}')});
	my $small = ask(q{SELECT outbox.enqueue('order.small', '{"total": 1}')});
	my $bad = ask(q{SELECT outbox.enqueue('bad', '1')});
	my $soon = ask(q{SELECT outbox.enqueue('order.soon', '{"total": 3}', deliver_at => clock_timestamp() + interval '200 ms', dedup_key => 'x' || clock_timestamp())});
	ask(q{INSERT INTO thing SELECT COALESCE(max(id), 0) + 1, '2026-01-02 03:04:05.678+00', 0.1, 'é' FROM thing});
	my $thing = ask(q{SELECT id FROM outbox.event WHERE type = 'order.thing' ORDER BY id DESC LIMIT 1});
	wait_for_status($id, 'plain', 'delivered');
	wait_for_status($thing, 'batch', 'delivered');
	wait_for_status($bad, 'refused', 'dead');
	wait_for_status($soon, 'plain', 'delivered');
	wait_for_status($soon, 'of-boss', 'delivered');
	is(status($small, 'plain') || 'unmatched', 'unmatched', 'a filter is looked at');
	my ($request) = $receiver->of('/random/8/5?plain', $id);
	utf8::encode(my $expected = qq({"x": 0.0000001, "what": "d\x{e9}j\x{e0} vu \x{20ac}", "total": 2.50}));
	is($request->{bytes}, $expected, "$what: the payload is what it is");
	is($request->{headers}{'webhook-signature'}, signature_of($request, $secret), "$what: signed");
	like($request->{headers}{'ce-time'}, qr/^2\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/, "$what: the time in UTC");
	is("$request->{headers}{'x-static'} $request->{headers}{'x-own'}", "Zo\x{eb} \x{fc}", "$what: headers");
	my ($captured) = grep { $_->{id} eq $thing } $receiver->events('/ok?batch');
	ok($captured, "$what: a captured change");
	ok(wait_for(sub { ask("SELECT count(*) FROM outbox.pull('pulled') WHERE event_id = '$thing'") eq '1' }, 'pull'), "$what: pulled");
	ask(q{SELECT outbox.replay('plain', since => now() - interval '1 h', types => '{order.paid}')});
	ok(wait_for(sub { 2 <= grep { $_->{id} eq $id && Outbox::Receiver::was_delivered($_) } $receiver->requests('/random/8/5?plain') }, 'a replay'), "$what: replayed");
	my $maintained = ask('SELECT maintained_at FROM outbox._worker()');
	ok(wait_for(sub { ask("SELECT maintained_at > '$maintained' FROM outbox._worker()") eq 't' }, 'maintenance'), "$what: and maintained");
}
works('at first');

# An error costs a turn, not the worker
$worker = worker();
my $locker = Outbox::Session->new($node->connstr('postgres') . ' user=admin');
$locker->query('BEGIN; LOCK TABLE outbox.cursor, outbox.attempt_log, outbox.delivery, outbox.outage IN ACCESS EXCLUSIVE MODE');
my $id = ask(q{SELECT outbox.enqueue('order.paid', '{"total": 4}')});
ok(wait_for(sub { ask('SELECT error FROM outbox._worker()') =~ /lock timeout/ }, 'an error'), 'a table is locked for long');
$locker->query('COMMIT');
$locker->close;
wait_for_status($id, 'plain', 'delivered');
is(worker(), $worker, 'it is the same worker');

my $elsewhere = Outbox::Session->new($node->connstr('template1') . ' user=admin');
is($elsewhere->query('ALTER DATABASE postgres ALLOW_CONNECTIONS false'), '', 'a database that takes no connections');
$elsewhere->close;
$session->query("SELECT pg_terminate_backend($worker, 30000)");
isnt(worker(), $worker, 'has another worker all the same');
works('there');
$session->close;
my @wrong = grep { /ERROR|FATAL|WARNING/ && !/ test |statement|lock timeout|administrator command/ } split /\n/, slurp_file($node->logfile);
is(join("\n", grep { !/terminating connection due to/ } @wrong), '', 'nothing else went wrong');

done_testing;
