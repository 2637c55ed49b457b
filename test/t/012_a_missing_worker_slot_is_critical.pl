# Without a free background worker slot nothing is delivered: health() says so, also after a restart, and no longer when nothing is to be delivered.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# one slot for the launcher, and none besides
my $node = outbox_node('full', arm => 0, conf => [ 'max_worker_processes = 1', 'max_logical_replication_workers = 0' ]);
sub slots { return $node->safe_psql('postgres', q{SELECT status, detail FROM outbox.health() WHERE check_name = 'worker_slots'}) }
sub become { my ($status, $what) = @_; return ok(wait_for(sub { slots() =~ /^$status\|/ }, $what), $what) }

is(slots(), 'ok|workers can be started, or are not needed', 'nothing is wanted');
$node->safe_psql('postgres', 'SELECT outbox.start()');
become('critical', 'armed: critical');
is(slots(), 'critical|no free background worker slot', 'and why');
$node->safe_psql('postgres', 'SELECT outbox.stop()');
become('ok', 'disarmed: ok again');
$node->safe_psql('postgres', 'SELECT outbox.start()');
become('critical', 'armed again: critical');

$node->restart;
become('critical', 'after a restart, when not even the list of databases can be read: critical');
is(slots(), 'critical|no free background worker slot', 'and why');
$node->safe_psql('postgres', 'SELECT outbox.stop()');
become('ok', 'disarmed: ok again');
$node->safe_psql('postgres', 'SELECT outbox.start()');
become('critical', 'armed again: critical');

$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
ok(worker_pid($node), 'with a slot there is a worker');
become('ok', 'and all is well');

done_testing();
