# The documented line works from node-postgres and psycopg, prepared or not, and through PgBouncer in transaction mode.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;
subscribe($node, 'all', $receiver->url('/ok'));
$node->safe_psql('postgres', 'CREATE TABLE orders (note text)');

my @node = ('node', "$FindBin::RealBin/../drivers/node-postgres.js");
my @psycopg = ('/usr/bin/python3', "$FindBin::RealBin/../drivers/psycopg-3.py");

sub run_driver
{
	my ($what, $key, $host, $port, @command) = @_;
	local @ENV{qw(PGHOST PGPORT PGUSER PGDATABASE)} = ($host, $port, scalar getpwuid($>), 'postgres');
	my ($out, $err);
	my $ok = IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err);
	ok($ok, "$what: runs") or diag $err;
	my @committed = $out =~ /^committed (\S+)$/mg;
	my @rolled_back = $out =~ /^rolled back (\S+)$/mg;
	is(scalar @rolled_back, 11, "$what: rolled back eleven");
	cmp_ok(scalar @committed, '>=', 33, "$what: committed " . @committed);
	wait_status($node, $_, 'all', 'delivered') for @committed;
	my %sent = map { $_->{id} => $_ } $receiver->requests('/ok');
	is(scalar(grep { !$sent{$_} } @committed), 0, "$what: what it committed is delivered");
	is(scalar(grep { $sent{$_} } @rolled_back), 0, "$what: what it rolled back is not");
	is($sent{ $committed[0] }{bytes}, '{"how": "plain"}', "$what: with its payload");
	is($sent{ $committed[0] }{key}, $key, "$what: and its key");
}

run_driver('node-postgres', 'node-1', $node->host, $node->port, @node, 'prepared');
run_driver('psycopg', 'psycopg-1', $node->host, $node->port, @psycopg, 'prepared');

# PgBouncer with a single server connection, so that transactions of different clients alternate in one backend
my $directory = PostgreSQL::Test::Utils::tempdir_short();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $user = getpwuid($>);
open my $ini, '>', "$directory/pgbouncer.ini" or die;
print $ini <<INI;
[databases]
postgres = host=${\ $node->host} port=${\ $node->port} dbname=postgres user=$user
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 1
ignore_startup_parameters = extra_float_digits
logfile = $directory/pgbouncer.log
pidfile = $directory/pgbouncer.pid
INI
close $ini;
my $bouncer = fork // die;
if ($bouncer == 0)
{
	open STDIN, '<', '/dev/null';
	open STDOUT, '>', "$directory/output";
	open STDERR, '>&', \*STDOUT;
	exec 'pgbouncer', "$directory/pgbouncer.ini" or POSIX::_exit(127);
}
END { if ($bouncer) { my $status = $?; kill 'TERM', $bouncer; waitpid $bouncer, 0; $? = $status } }
wait_for(sub { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) }, 'PgBouncer listening') or diag slurp_file("$directory/output");

run_driver('node-postgres through PgBouncer in transaction mode', 'node-1', '127.0.0.1', $port, @node);
run_driver('psycopg through PgBouncer', 'psycopg-1', '127.0.0.1', $port, @psycopg);
my $backends = q{SELECT count(DISTINCT pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()};
wait_for(sub { $node->safe_psql('postgres', $backends) eq '1' }, 'the backends of this test being gone');
is($node->safe_psql('postgres', $backends), '1', 'all of it in one backend');

done_testing;
