# Pull: an acknowledgement that has committed counts, whatever its session does before the worker looks; and calls that wait can be given up at any moment, however many they are.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $worker = worker_pid($node);
my ($one, $two) = map { session($node) } 1 .. 2;
$node->safe_psql('postgres', "SELECT outbox.subscribe('slow', types => '{slow}')");
END { kill 'CONT', $worker if $worker }

sub pull { my ($session) = @_; return map { [ split /\|/ ] } split /\n/, $session->query(q{SELECT event_id, token, attempt FROM outbox.pull('slow', 100, '60 s')}) }
sub pull_one { my ($session) = @_; my @rows; wait_for(sub { @rows = pull($session) }, 'an event to pull'); return @rows }
sub no_timeout { my ($session) = @_; return wait_for(sub { ($session->query('RESET statement_timeout') // 'lost') eq '' }, 'the end of the timeout, which may strike this, too') }

# ---- the session has gone on when the worker looks: more transactions have ended at its seat, one way or the other
for my $turns (1, 40)
{
	my $acked = enqueue($node, 'slow', 1);
	my ($row) = pull_one($one);
	$one->query("BEGIN; SELECT outbox.ack('slow', NULL, '$row->[1]')");
	stand_still($node, $worker);
	$one->query('COMMIT');
	$one->query(q{SET statement_timeout = '20 ms'});
	for my $n (1 .. $turns) { like($one->query("SELECT outbox.ack('slow', NULL, '$row->[1]')"), qr/57014/, "cancelled while it waits, $n of $turns") }
	no_timeout($one);
	kill 'CONT', $worker;
	ok(wait_status($node, $acked, 'slow', 'delivered'), "what was acknowledged before is delivered, after $turns more transactions");
}
my $kept = enqueue($node, 'slow', 2);
my ($row) = pull_one($one);
$one->query("BEGIN; SELECT outbox.ack('slow', NULL, '$row->[1]')");
stand_still($node, $worker);
$one->query('ROLLBACK');
$one->query(q{SET statement_timeout = '20 ms'});
$one->query("SELECT outbox.ack('slow', NULL, '$row->[1]')") for 1 .. 2;
no_timeout($one);
kill 'CONT', $worker;
is($one->query("SELECT outbox.ack('slow', NULL, '$row->[1]')"), 1, 'and what was rolled back before is still in its lease');
wait_status($node, $kept, 'slow', 'delivered');

# ---- a segment is retired just when an event in it is pulled: it is somewhere, always
my $moved = enqueue($node, 'slow', 3);
($row) = pull_one($one);    # so the worker has read it, and only the puller will want to
$one->query("SELECT outbox.nack('slow', NULL, '$row->[1]', '0')");
my $segment = $node->safe_psql('postgres', "SELECT tableoid::regclass FROM outbox.event WHERE id = '$moved'");
$two->query("BEGIN; LOCK TABLE $segment IN ACCESS EXCLUSIVE MODE; ALTER TABLE $segment DISABLE TRIGGER USER; INSERT INTO outbox.kept_event SELECT * FROM ONLY $segment WHERE id = '$moved'; TRUNCATE ONLY $segment");
$one->send(q{SELECT event_id FROM outbox.pull('slow')});
wait_for(sub { $node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '$segment'::regclass") ne '0' }, 'the puller to wait for the retirement');
$two->query('COMMIT');
is($one->receive, $moved, 'what is retired while it is pulled is found');

# ---- more callers than there are booths
my @callers = map { session($node) } 1 .. 40;
my @backends = map { $_->backend } @callers;
sub waiting { return $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ('} . '{' . join(',', @backends) . '}' . q{') AND wait_event_type = 'Extension'}) }
stand_still($node, $worker);
$_->send(q{SELECT count(*) FROM outbox.pull('slow')}) for @callers;
wait_for(sub { waiting() == 40 }, 'all of them to wait');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") for @backends[ 0 .. 9 ];
like($callers[$_]->receive, qr/57014/, "cancelled: $_") for 0 .. 9;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($_)") for @backends[ 10 .. 19 ];
$callers[$_]->receive for 10 .. 19;
wait_for(sub { waiting() == 20 }, 'those to be gone');
kill 'CONT', $worker;
is($callers[$_]->receive, '0', "answered: $_") for 20 .. 39;
is($callers[$_]->query(q{SELECT count(*) FROM outbox.pull('slow')}), '0', "answered after a cancellation: $_") for 0 .. 9;

# ---- and no worker at all: all of them hear it
my $regretted = enqueue($node, 'slow', 4);
($row) = pull_one($one);
$node->safe_psql('postgres', 'CREATE TABLE business (n int)');
$one->query("BEGIN; INSERT INTO business VALUES (1); SAVEPOINT s; SELECT outbox.ack('slow', NULL, '$row->[1]'); ROLLBACK TO s");
$node->safe_psql('postgres', 'SELECT outbox.stop()');
wait_for(sub { !kill 0, $worker }, 'the worker to end');
undef $worker;
is($one->query('COMMIT; SELECT count(*) FROM business'), '1', 'what was rolled back to a savepoint needs no worker to be forgotten');
$_->send(q{SELECT count(*) FROM outbox.pull('slow')}) for @callers[ 20 .. 39 ];
like($callers[$_]->receive, qr/55000/, "there is no worker: $_") for 20 .. 39;

done_testing();
