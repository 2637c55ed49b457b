# Guarantees 2, 3, 4: whatever is killed in the middle of load, nothing is lost, nothing is sent that was not committed, and what is repeated has the same id
# and the same bytes.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = outbox_node('main', conf => ['wal_writer_delay = 10s']);
my $receiver = Outbox::Receiver->new;
my $path = '/random/11/10?crash';
my $ledger = Outbox::Ledger->new;
subscribe($node, 'crash', $receiver->url($path), types => ['load.made'], retry_base => '20 ms', max_attempts => 1000, max_in_flight => 20);

my @crashes;
my $after = 0;

sub crash
{
	my ($what, $tag, $fault, %options) = @_;
	my $producers = start_producers($node, count => 3, transactions => 10000, tag => $tag, %options);
	my $before = () = $receiver->requests($path);
	wait_for(sub { $receiver->requests($path) >= $before + 2500 }, "$what: load under way");
	# the last cursors but one: what was delivered until they were written is covered by the last ones, however long a checkpoint takes on a busy machine
	my $checkpoint = wait_for(sub { $node->safe_psql('postgres', 'SELECT extract(epoch FROM at) FROM outbox.cursor WHERE subscription_id = 0 ORDER BY seq DESC OFFSET 1 LIMIT 1') }, "$what: two checkpoints");
	$fault->();
	push @crashes, { at => time, checkpoint => $checkpoint };
	my $crash = $crashes[-1];
	note sprintf '%s: %.1f s after the last checkpoint but one', $what, $crashes[-1]{at} - $checkpoint;
	my $committed = $ledger->count;
	finish_producers($producers, $ledger);
	cmp_ok($ledger->count - $committed, '<', 3 * 9000, "$what: in the middle of the load");
	wait_for(sub { is_reachable($node) }, "$what: the server being back");
	worker_pid($node);
	$crash->{back} = time;   # a busy receiver may get to what was sent before the crash as late as this
}

my $killed = worker_pid($node);
crash('kill -9 of the worker', 'w', sub { kill 'KILL', $killed });
isnt(worker_pid($node), $killed, 'kill -9 of the worker: there is another one');

crash('kill -9 of a backend', 'b', sub {
	kill 'KILL', $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = 'producer' LIMIT 1}) });
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}), '1', 'kill -9 of a backend: one worker, not two')
	if worker_pid($node);

crash('immediate shutdown', 'i', sub { $node->stop('immediate'); $node->start });

# In-flight and retrying at the time of the crash are part of it; so is what is committed right after
my $producers = start_producers($node, count => 2, transactions => 300, tag => 'z');
finish_producers($producers, $ledger);
my $settled = $ledger->settle($node);
is($settled->{forgotten}, 0, 'no acknowledged commit was forgotten');
wait_for(sub { $ledger->complete($receiver, $path) }, 'everything that was committed', 240);
my $found = check_ledger($ledger, $receiver, $path, what => 'three crashes', duplicates => 30000);
note scalar(@{ $found->{duplicates} }), ' of ', $ledger->count, ' events were repeated';

# Repeated is only what was delivered after the last cursors but one, or was in flight then
my (%first, @old);
for my $request ($receiver->delivered($path))
{
	my $was = $first{ $request->{id} } //= $request->{at};
	next unless $request->{at} > $was && !grep { $was <= $_->{back} && $was > $_->{checkpoint} - 1.1 } @crashes;
	push @old, $request->{id};
	note sprintf '%s: delivered at %.2f, again at %.2f', $request->{id}, $was, $request->{at};
}
note sprintf 'crash at %.2f, back at %.2f, the last checkpoint but one at %.2f', @{$_}{qw(at back checkpoint)} for @crashes;
is_deeply([ @old[ 0 .. ($#old < 5 ? $#old : 5) ] ], [], 'and none of them had been delivered long before a crash');

# synchronous_commit = off: commits that the clients saw may be forgotten, but then they were not sent
my $forgotten = 0;
my $phantom_ledger = Outbox::Ledger->new;
my $phantom_path = '/ok?phantom';
$node->safe_psql('postgres', q{SELECT outbox.unsubscribe('crash')});
subscribe($node, 'phantom', $receiver->url($phantom_path), types => ['load.made'], max_in_flight => 50);
for my $round (1 .. 10)
{
	$producers = start_producers($node, count => 4, transactions => 20000, tag => "a$round-", keys => 50, settings => 'SET synchronous_commit = off');
	my $before = () = $receiver->requests($phantom_path);
	wait_for(sub { $receiver->requests($phantom_path) >= $before + 300 }, 'load of synchronous_commit = off');
	if ($round > 3)    # the worker's ticks, which flush, have left nothing to be forgotten, three times
	{
		stand_still($node, worker_pid($node));
		my $count = $node->safe_psql('postgres', 'SELECT count(*) FROM outbox.event');
		wait_for(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM outbox.event') > $count }, 'commits while the worker stands still');
	}
	$node->stop('immediate');
	finish_producers($producers, $phantom_ledger);
	$node->start;
	$forgotten += $phantom_ledger->settle($node)->{forgotten};
	last if $forgotten && $round >= 3;
}
cmp_ok($forgotten, '>', 0, "synchronous_commit = off: the crashes made the server forget $forgotten acknowledged commits");
wait_for(sub { $phantom_ledger->complete($receiver, $phantom_path) }, 'what was not forgotten', 240);
check_ledger($phantom_ledger, $receiver, $phantom_path, what => 'synchronous_commit = off', duplicates => 30000);

# No assertion failed, nobody crashed who was not shot
my $log = slurp_file($node->logfile);
is(scalar(() = $log =~ /terminated by signal (?:6|11)|PANIC/g), 0, 'nobody crashed who was not shot');

done_testing;
