# A key that was held back until its events were exceptions goes on in batches, in order, also after a restart of the worker, which has none of them in memory.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
my $path = '/script/held';
sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

$receiver->control(script => 'held', keys => { held => 503 }, then => 200);
subscribe($node, 'held', $receiver->url($path), types => ['load'], format => 'batch', batch_size => 100, batch_linger => '10 ms', retry_base => '100 ms', max_attempts => 1000, give_up_after => '0');
my $first = enqueue($node, 'load', '0', key => 'held');
wait_status($node, $first, 'held', 'retrying');
my @ids = split /\n/, value(q{SELECT outbox.enqueue('load', to_jsonb(i), key => 'held') FROM generate_series(1, 400) i});

# Others go on, so the cursor passes those that wait, and each of them has a row
wait_for(sub { enqueue($node, 'load', '0', key => 'other'); value(q{SELECT count(*) FROM outbox.delivery}) == 401 }, 'all that wait being exceptions', 60);
my $worker = worker_pid($node);
value("SELECT pg_terminate_backend($worker)");
wait_for(sub { (worker_pid($node) // $worker) != $worker }, 'another worker');
my $before = $receiver->requests($path);
$receiver->control(script => 'held', keys => {}, then => 200);
wait_status($node, $ids[-1], 'held', 'delivered', 60);

my @requests = grep { grep { $_->{key} eq 'held' } @{ $_->{events} } } $receiver->delivered($path);
is(join(' ', map { $_->{id} } grep { $_->{key} eq 'held' } map { @{ $_->{events} } } @requests), join(' ', $first, @ids), 'everything once, in order');
cmp_ok(scalar @requests, '<=', 20, 'in ' . @requests . ' requests');

done_testing;
