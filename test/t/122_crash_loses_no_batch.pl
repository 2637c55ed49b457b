# Guarantees 2, 3, 4, 5 with batches: killed in the middle of load, while batches are being split and retried, nothing is lost, keys keep their order, and what is repeated is so with the
# same id and the same bytes.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;
my $path = '/random/3/15?batches';
my $ledger = Outbox::Ledger->new;
subscribe($node, 'batches', $receiver->url($path), types => ['load.made'], format => 'batch', batch_size => 20, retry_base => '20 ms', max_attempts => 1000, max_in_flight => 5);

sub crash
{
	my ($what, $tag, $fault) = @_;
	my $producers = start_producers($node, count => 3, transactions => 10000, keys => 20, tag => $tag);
	my $before = () = $receiver->events($path);
	wait_for(sub { $receiver->events($path) >= $before + 2500 }, "$what: load under way");
	$fault->();
	my $committed = $ledger->count;
	finish_producers($producers, $ledger);
	cmp_ok($ledger->count - $committed, '<', 3 * 9000, "$what: in the middle of the load");
	wait_for(sub { is_reachable($node) }, "$what: the server being back");
	worker_pid($node);
}

my $killed = worker_pid($node);
crash('kill -9 of the worker', 'w', sub { kill 'KILL', $killed });
crash('immediate shutdown', 'i', sub { $node->stop('immediate'); $node->start });

my $producers = start_producers($node, count => 2, transactions => 300, tag => 'z');
finish_producers($producers, $ledger);
is($ledger->settle($node)->{forgotten}, 0, 'no acknowledged commit was forgotten');
wait_for(sub { $ledger->complete($receiver, $path) }, 'everything that was committed', 240);
my $found = check_ledger($ledger, $receiver, $path, what => 'two crashes', duplicates => 20000);

my @sizes = map { scalar @{ $_->{events} } } $receiver->requests($path);
cmp_ok(scalar(grep { $_ > 1 } @sizes), '>', 100, scalar(@sizes) . ' requests, many with more than one event in it');
cmp_ok(scalar(grep { !Outbox::Receiver::was_delivered($_) } $receiver->requests($path)), '>', 10, 'many failed');
is(scalar(() = slurp_file($node->logfile) =~ /terminated by signal (?:6|11)|PANIC/g), 0, 'nobody crashed who was not shot');

done_testing;
