# Every armed database has one delivery worker, and never two: after start() and stop(), commands on databases and extensions, errors, crashes, restarts.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = outbox_node('main', arm => 0, conf => ['log_min_messages = debug1']);

# The databases that have a worker, one mention for each worker
sub workers
{
	return $node->safe_psql('postgres',
		q{SELECT COALESCE(string_agg(datname, ' ' ORDER BY datname), '') FROM pg_stat_activity WHERE backend_type = 'outbox delivery worker'});
}

sub workers_become
{
	my ($expected, $what) = @_;
	my $seen = '';
	wait_for(sub { ($seen = workers()) eq $expected }, "workers: $expected") or diag "there are: $seen";
	is($seen, $expected, $what);
}

sub status { my ($database, $column) = @_; return $node->safe_psql($database, qq{SELECT "$column" FROM outbox._worker()}) }

# Nothing is there to be waited for when nothing shall happen: so ask the launcher to look, and wait until its lister is done.
sub launcher_has_looked
{
	my $from = -s $node->logfile;
	$node->reload;
	$node->wait_for_log(qr/unregistering background worker "outbox lister"/, $from);
}

sub pid_of { my ($type) = @_; return $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = '$type'") }

# start and stop
launcher_has_looked();
is(workers(), '', 'installed, but not armed: no worker');
$node->safe_psql('postgres', 'SELECT outbox.start()');
workers_become('postgres', 'start() brings a worker');
$node->safe_psql('postgres', 'BEGIN; SELECT outbox.stop(); ROLLBACK');
launcher_has_looked();
is(workers(), 'postgres', 'stop() rolled back changes nothing');
$node->safe_psql('postgres', 'SELECT outbox.stop()');
workers_become('', 'stop() ends it');
$node->safe_psql('postgres', 'BEGIN; SELECT outbox.start(); ROLLBACK');
launcher_has_looked();
is(workers(), '', 'start() rolled back changes nothing');
for (1 .. 10)
{
	$node->safe_psql('postgres', $_) for 'SELECT outbox.start()', 'SELECT outbox.stop()', 'SELECT outbox.start()';
}
workers_become('postgres', 'the last word counts');
my ($code, $out, $error) = $node->psql('postgres', q{BEGIN; SELECT outbox.stop(); PREPARE TRANSACTION 'stop'});
like($error, qr/cannot PREPARE a transaction that has executed outbox\.start\(\) or outbox\.stop\(\)/, 'stop() cannot be prepared');

# several databases, and commands on them
for my $database (qw(one two))
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	install($node, $database);
}
workers_become('one postgres two', 'one worker for each armed database');
$node->safe_psql('postgres', 'ALTER DATABASE two RENAME TO three');
workers_become('one postgres three', 'ALTER DATABASE RENAME succeeds, and the worker comes back');
$node->safe_psql('postgres', 'BEGIN; ALTER DATABASE three RENAME TO four; ROLLBACK');
workers_become('one postgres three', 'so it does when that is rolled back');
$node->safe_psql('postgres', 'CREATE DATABASE clone TEMPLATE three');
launcher_has_looked();
workers_become('one postgres three', 'CREATE DATABASE TEMPLATE succeeds, and the clone is not armed');
$node->safe_psql('postgres', 'CREATE DATABASE clone_by_copy TEMPLATE three STRATEGY file_copy');
workers_become('one postgres three', 'also with STRATEGY file_copy');
mkdir $node->basedir . '/elsewhere' or die;
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '" . $node->basedir . "/elsewhere'");
$node->safe_psql('postgres', 'ALTER DATABASE three SET TABLESPACE elsewhere');
workers_become('one postgres three', 'ALTER DATABASE SET TABLESPACE succeeds, and the worker comes back');
for (1 .. 20)
{
	$node->safe_psql('one', 'SELECT outbox.start()');
	($code, $out, $error) = $node->psql('postgres', 'CREATE DATABASE quick');
	last if $code != 0;
	$node->safe_psql('postgres', 'DROP DATABASE quick');
}
is($code, 0, 'listing armed databases never fails a CREATE DATABASE') or diag $error;

$node->safe_psql('postgres', 'CREATE ROLE stranger LOGIN CREATEDB');
my $pid = worker_pid($node, 'three');
for my $command ('DROP DATABASE three', 'ALTER DATABASE three RENAME TO mine', 'CREATE DATABASE mine TEMPLATE three')
{
	($code) = $node->psql('postgres', $command, extra_params => [ '-U', 'stranger' ]);
	isnt($code, 0, "$command: not by a stranger");
}
is(worker_pid($node, 'three'), $pid, 'who may not do it does not even disturb the worker');
$node->safe_psql('postgres', 'CREATE DATABASE forced TEMPLATE three');
$node->safe_psql('forced', 'SELECT outbox.start()');
workers_become('forced one postgres three', 'a clone can be started');
my $connected = session($node, 'forced');
$connected->query('SELECT 1');
$node->safe_psql('postgres', 'DROP DATABASE forced WITH (FORCE)');
is($connected->query('SELECT 1'), undef, 'DROP DATABASE WITH (FORCE) ends sessions');
$node->safe_psql('postgres', 'DROP DATABASE three');
launcher_has_looked();
is(workers(), 'one postgres', 'DROP DATABASE succeeds, and the worker stays away');

# the extension
$node->safe_psql('one', 'BEGIN; DROP EXTENSION outbox CASCADE; ROLLBACK');
launcher_has_looked();
workers_become('one postgres', 'DROP EXTENSION rolled back changes nothing');
$node->safe_psql('one', 'DROP EXTENSION outbox CASCADE');
workers_become('postgres', 'DROP EXTENSION ends the worker');
launcher_has_looked();
workers_become('postgres', 'and it stays away, though the setting is still there');
install($node, 'one');
workers_become('one postgres', 'until it is installed and started again');

# the switch
$node->append_conf('postgresql.conf', 'outbox.enabled = off');
$node->reload;
workers_become('', 'outbox.enabled = off ends all workers');
$node->safe_psql('one', 'SELECT outbox.start()');
is(workers(), '', 'and wins over start()');
$node->append_conf('postgresql.conf', 'outbox.enabled = on');
$node->reload;
workers_become('one postgres', 'outbox.enabled = on brings them back');

# ends of processes
$pid = worker_pid($node, 'one');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
isnt(worker_pid($node, 'one'), $pid, 'a terminated worker comes back');
my $launcher = pid_of('outbox launcher');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher, 60000)");
wait_for(sub { pid_of('outbox launcher') ne '' }, 'a new launcher');
launcher_has_looked();
is(workers(), 'one postgres', 'a new launcher starts no second worker');
$pid = worker_pid($node, 'one');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
isnt(worker_pid($node, 'one'), $pid, 'and restarts those that the old one started');
workers_become('one postgres', 'one for each database');

my $victim = session($node);
my $victim_pid = $victim->query('SELECT pg_backend_pid()');
kill 'KILL', $victim_pid;
wait_for(sub { !kill 0, $victim_pid }, 'the end of a backend');
wait_for(sub { is_reachable($node) && pid_of('outbox launcher') ne '' && pid_of('outbox launcher') ne $launcher }, 'the server after a crash');
workers_become('one postgres', 'after a crash restart: one worker for each database');
launcher_has_looked();
is(workers(), 'one postgres', 'and no second one later');
$node->stop('fast');
$node->start;
workers_become('one postgres', 'after a fast shutdown and a start too');

# nobody subscribes: then producers do not wake it at each commit
my $ticks = sub { return $node->safe_psql('one', 'SELECT tick FROM outbox._worker()') };
my $producer = session($node, 'one');
wait_for(sub { $ticks->() > 0 }, 'the first tick');
my ($before, $began) = ($ticks->(), time);
for (1 .. 1000) { $producer->query(q{SELECT outbox.enqueue('unwanted.made', '1')}) }
my ($taken, $seconds) = ($ticks->() - $before, time - $began);
cmp_ok($taken, '<=', 10 + 20 * $seconds, 'a worker whom nobody waits for looks twenty times a second at most');
$producer->query(q{SELECT outbox.subscribe('late', types => '{unwanted.made}', starting => 'earliest')});
my $got = 0;
wait_for(sub { ($got += $producer->query(q{SELECT count(*) FROM outbox.pull('late', 1000)})) >= 1000 }, 'all events being there');
is($got, 1000, 'and who subscribes then gets them all');
$producer->query(q{SELECT outbox.unsubscribe('late')});

# no place for a worker: said in the log once, and in the status until there is
$node->append_conf('postgresql.conf', 'max_worker_processes = 3');    # PostgreSQL's logical replication launcher, ours, and one more
$node->stop('fast');
my $from = -s $node->logfile;
$node->start;
$node->wait_for_log(qr/WARNING: .*outbox cannot deliver from database "(one|postgres)": no free background worker slot\n.*HINT: .*max_worker_processes/, $from);
my ($waiting) = grep { status($_, 'trouble') ne '' } qw(one postgres);
is(status($waiting, 'trouble'), 'no free background worker slot', 'trouble is shown');
is(status($waiting, 'wanted'), 't', 'and that a worker is wanted');
$node->safe_psql($waiting eq 'one' ? 'postgres' : 'one', 'SELECT outbox.stop()');
workers_become($waiting, 'a place that becomes free is taken');
wait_for(sub { status($waiting, 'trouble') eq '' }, 'trouble being over');
is(status($waiting, 'trouble'), '', 'and trouble is over');

$node->stop('fast');
done_testing();
