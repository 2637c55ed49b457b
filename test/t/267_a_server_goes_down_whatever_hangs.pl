# Every endpoint hangs, and every name too: an immediate and a fast shutdown take no longer than usual, and when the postmaster is killed its workers go by themselves.
# The times are three times what is promised: machines are noisy.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Net;
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $net = Outbox::Net->new;
my $receiver = Outbox::Receiver->new(fsync => 0);
my $port = $receiver->port;
$net->names(map { ("silent-$_.example" => [ SILENT => 1 ]) } 1 .. 10);
my %loaded = $net->environment;
my $node;
sub loaded { my ($code) = @_; local %ENV = (%ENV, %loaded); $code->() }
loaded(sub { $node = outbox_node('main') });
my $data = $node->data_dir;
subscribe($node, 'hang', $receiver->url('/hang'), types => ['all'], timeout => '10 min', max_in_flight => 20);
subscribe($node, "silent-$_", "http://silent-$_.example:$port/", types => ['all'], timeout => '10 min', connect_timeout => '10 min') for 1 .. 10;
$node->safe_psql('postgres', q{SELECT count(outbox.enqueue('all', to_jsonb(i))) FROM generate_series(1, 20) i});

sub all_hang
{
	my ($what) = @_;
	ok(wait_for(sub { $node->safe_psql('postgres', 'SELECT in_flight FROM outbox._worker()') >= 30 }, 'requests that hang'), "$what: everything hangs");    # twenty at the endpoint, and one at least for each name
}

for my $mode (qw(fast immediate))
{
	all_hang($mode);
	$node->safe_psql('postgres', 'CHECKPOINT');    # what a shutdown has to write is not what is measured
	my $began = time;
	$node->stop($mode);
	cmp_ok(time - $began, '<', 15, "$mode shutdown: down within 5 s");
	loaded(sub { $node->start });
}

all_hang('the postmaster is killed');
my @pids = split /\n/, $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'outbox%'});
is(scalar @pids, 2, 'launcher and worker');
$node->kill9;
my $began = time;
wait_for(sub { !grep { kill 0, $_ } @pids }, 'the end of the workers');
cmp_ok(time - $began, '<', 3, 'a killed postmaster: its workers are gone within 1 s');
my $up = wait_for(sub { loaded(sub { $node->start(fail_ok => 1) }) }, 'a new postmaster');
ok($up, 'and another one can begin');
all_hang('afterwards');
$node->stop('immediate');

done_testing;
