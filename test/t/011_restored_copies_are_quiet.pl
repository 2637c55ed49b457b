# A base backup or point-in-time copy sends nothing until start(); a promoted standby and a crashed server go on by themselves.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $origin = PostgreSQL::Test::Cluster->new('origin');
$origin->init(allows_streaming => 1, has_archiving => 1);
$origin->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'");
$origin->start;
install($origin, 'postgres');
$origin->safe_psql('postgres', 'CREATE DATABASE other');
install($origin, 'other');
$origin->safe_psql('postgres', 'CREATE ROLE hardly; ALTER DATABASE template1 SET role = hardly');    # who may not disarm anything
worker_pid($origin, $_) for qw(postgres other);
$origin->backup('base');
$origin->safe_psql('postgres', 'SELECT pg_switch_wal()');

sub armed { my ($node) = @_; return $node->safe_psql('postgres', q{SELECT count(*) FROM pg_db_role_setting WHERE array_to_string(setconfig, ' ') LIKE '%outbox.armed=%'}) }

sub is_quiet
{
	my ($node, $what) = @_;
	$node->wait_for_log(qr/this server was restored from a copy; delivery is stopped in 2 databases/);
	is(armed($node), 0, "$what: no database is armed any more");
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox delivery worker'}), 0, "$what: no worker");
	unlike(slurp_file($node->logfile), qr/starting background worker process "outbox delivery worker/, "$what: nor was there ever one");
	ok(!-e $node->data_dir . '/outbox.quiet', "$what: and no more than that is to be done");
	$node->safe_psql('other', 'SELECT outbox.start()');
	ok(worker_pid($node, 'other'), "$what: start() starts");
}

# The log shows every start of a worker.
sub copy_of
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init_from_backup($origin, 'base', %options);
	$node->append_conf('postgresql.conf', 'log_min_messages = debug1');
	return $node;
}

my $copy = copy_of('copy');
$copy->start;
is_quiet($copy, 'base backup');

my $past = copy_of('past', has_restoring => 1, standby => 0);
$past->start;
wait_for(sub { $past->safe_psql('postgres', 'SELECT pg_is_in_recovery()') eq 'f' }, 'the end of recovery');
is_quiet($past, 'point-in-time copy');

# A crash before all is done does not make it forget.
my $crashed = copy_of('crashed');
$crashed->append_conf('postgresql.conf', 'outbox.enabled = off');
$crashed->start;
ok(-e $crashed->data_dir . '/outbox.quiet', 'a copy with outbox.enabled = off is noted');
my ($status, $out, $err) = $crashed->psql('other', '\\set VERBOSITY verbose
SELECT outbox.start()');
like($err, qr/ERROR:  55000: delivery cannot be started yet\nDETAIL: .*\nHINT: /, 'start() is refused while that would be undone');
$crashed->stop('immediate');
$crashed->append_conf('postgresql.conf', 'outbox.enabled = on');
$crashed->start;
is_quiet($crashed, 'copy that crashed');
$crashed->stop('immediate');
$crashed->start;
ok(worker_pid($crashed, 'other'), 'once it is started, a crash does not stop it');

my $standby = copy_of('standby', has_streaming => 1);
$standby->start;
$origin->wait_for_catchup($standby);
is($standby->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox%'}), 0, 'a standby has neither launcher nor worker');
$origin->stop('immediate');
$standby->promote;
ok(worker_pid($standby, $_), "promoted, it goes on in $_") for qw(postgres other);

$origin->start;
ok(worker_pid($origin, $_), "a server that crashed goes on in $_") for qw(postgres other);

done_testing();
