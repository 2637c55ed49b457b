# An event that makes the worker fail or crash, again and again, becomes a dead letter (internal); all others are delivered.
# Needs: FAULTS=1
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ 'fsync = off', "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $data = $node->data_dir;
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub crashes { return scalar(() = slurp_file($node->logfile) =~ /was terminated by signal 11/g) }
mkdir "$data/outbox.fault";

sub fault
{
	my ($name, $action) = @_;
	unlink "$data/outbox.fault/$name" unless defined $action;
	append_to_file("$data/outbox.fault/$name", "$action\n") if defined $action;
}

# Events of a type that is poisonous at this point, between harmless ones, of the same key too.
my $poisons = 0;

sub poison
{
	my ($what, $point, $action, %options) = @_;
	my $n = ++$poisons;
	my $path = "/ok?$n";
	my $before = crashes();
	subscribe($node, "s$n", $receiver->url($path), types => [ "good$n", "bad$n" ], %{ $options{subscribe} // {} });
	wait_for(sub { sql("SELECT count(*) FROM outbox.subscription_status WHERE name = 's$n'") eq '1' }, 'the subscription');
	fault("$point\@bad$n", $action);
	# its session may not live to see the end
	eval { $node->psql('postgres', 'SELECT outbox.enqueue_many(jsonb_build_array('
			. join(', ', map { my $type = $_ == 3 ? 'bad' : 'good'; "jsonb_build_object('type', '$type$n', 'payload', $_, 'key', 'k" . $_ % 2 . "')" } 1 .. 8) . '))') };
	my @ids = wait_for(sub { my @found = split /\n/, eval { sql("SELECT id FROM outbox.event WHERE type IN ('good$n', 'bad$n') ORDER BY id") } // ''; @found == 8 ? \@found : undef }, "$what: the events")->@*;
	my $bad = $ids[2];
	ok(wait_for(sub { (eval { sql("SELECT string_agg(event_id || ' ' || reason, ',') FROM outbox.dead_letter WHERE subscription = 's$n'") } // '') eq "$bad internal" }, "$what: a dead letter"), "$what: it becomes a dead letter");
	is(sql("SELECT string_agg(event_id || ' ' || reason, ',') FROM outbox.dead_letter WHERE subscription = 's$n'"), "$bad internal", "$what: it alone");
	my %delivered;
	wait_for(sub { %delivered = map { $_->{id} => 1 } $receiver->delivered_events($path); keys %delivered >= ($options{arrives} ? 8 : 7) }, "$what: the others");
	is_deeply([ grep { !$delivered{$_} } @ids ], $options{arrives} ? [] : [$bad], "$what: the others are delivered");
	is(crashes() - $before, $options{crashes} // 0, "$what: " . ($options{crashes} // 0) . ' crashes');
	fault("$point\@bad$n");
	my $later = enqueue($node, "good$n", 9, key => 'k1');
	ok(wait_for(sub { scalar $receiver->of($path, $later) || grep { $_->{id} eq $later } $receiver->delivered_events($path) }, "$what: a later event"), "$what: and so are later ones of its key");
}

my @batch = (subscribe => { format => 'batch', batch_size => 10, batch_linger => '20 ms' });
my $worker = worker_pid($node);
poison('an error on the way to the network', 'send-event', 'error');
poison('in a batch', 'send-event', 'error', @batch);
poison('an error while reading it', 'read-event', 'error');
is(worker_pid($node), $worker, 'all this was one worker');
poison('an error while judging the answer', 'judge-before', 'error', arrives => 1);
poison('a crash on the way to the network', 'send-event', 'crash', crashes => 2);
poison('a crash in a batch', 'send-event', 'crash', crashes => 2, @batch);
poison('a crash while reading it', 'read-event', 'crash', crashes => 2);

# Crashes nobody can be blamed for: then there is one request at a time, for a while
subscribe($node, 'slow', $receiver->url('/slow/50?slow'), types => ['slow']);
for my $time (1, 2)
{
	my $before = crashes();
	fault('http-answer', 'crash');
	eval { $node->psql('postgres', q{SELECT count(outbox.enqueue('slow', to_jsonb(i))) FROM generate_series(1, 5) AS i}) };    # which may not live to see the end
	wait_for(sub { crashes() > $before && is_reachable($node) && eval { worker_pid($node) } }, "crash $time in libcurl");
}
ok(wait_for(sub { slurp_file($node->logfile) =~ /for a while there will be one request at a time/ }, 'the log'), 'after two crashes without a name the worker is careful');
sql(q{SELECT count(outbox.enqueue('slow', to_jsonb(i))) FROM generate_series(1, 10) AS i});
my $most = 0;
wait_for(sub {
		my $now = sql(q{SELECT in_flight FROM outbox._worker()});
		$most = $now if $now > $most;
		my %seen = map { $_->{id} => 1 } $receiver->delivered('/slow/50?slow');
		keys %seen == sql(q{SELECT count(*) FROM outbox.event WHERE type = 'slow'}) }, 'all of them');
cmp_ok($most, '<=', 1, 'one request at a time');
is(sql(q{SELECT count(*) FROM outbox.dead_letter WHERE subscription = 'slow'}), '0', 'nothing is given up for that');

done_testing;
