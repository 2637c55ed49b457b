# A worker that is killed soon after each start still gets on: it does not begin at the same place every time.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use Test::More;

my $lives = 10;
my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
my $path = '/slow/20?killed';
subscribe($node, 'killed', $receiver->url($path), types => ['load'], max_in_flight => 5, retry_base => '20 ms');
is($node->safe_psql('postgres', q{SELECT count(outbox.enqueue('load', to_jsonb(i))) FROM generate_series(1, 2000) i}), '2000', 'there is something to do');

my ($worker, $seen) = (worker_pid($node), 0);
for my $life (1 .. $lives)
{
	wait_for(sub { $receiver->delivered($path) >= $seen + 50 }, "life $life: deliveries");
	kill_process($node, $worker);
	wait_for(sub { is_reachable($node) && (worker_pid($node) // $worker) != $worker }, "life $life: another one");
	$worker = worker_pid($node);
	$seen = $receiver->delivered($path);
}
my %times;
$times{ $_->{id} }++ for $receiver->delivered($path);
my @often = grep { $times{$_} >= $lives } keys %times;
is(scalar @often, 0, "$lives lives of 50 deliveries or a few more: " . keys(%times) . ' events were delivered, and none in every life');

done_testing;
