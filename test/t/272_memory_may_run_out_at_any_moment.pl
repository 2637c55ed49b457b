# One allocation of the delivery worker fails, the next one, the one after that, and so on: nothing is lost or given up, nothing is changed or out of order, and nobody crashes.
#
# OUTBOX_MALLOC_STEPS: how many allocations are tried (60).
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $directory = PostgreSQL::Test::Utils::tempdir();
my $compiler = $ENV{CC} // 'cc';
is(system("$compiler -shared -fPIC -O1 -Wall -Wextra -Werror -o '$directory/malloc.so' '$FindBin::RealBin/../lib/malloc.c' -ldl 2>&1"), 0, 'the library is compiled');

# The process whose allocations are counted, and how many from now on until one fails
sub arm
{
	my ($pid, $n) = @_;
	my $file;
	open $file, "+<:raw", "$directory/malloc" or open $file, "+>:raw", "$directory/malloc" or die;
	print $file pack 'qq', $pid, $n;
	close $file;
}

sub left
{
	open my $file, '<:raw', "$directory/malloc" or die;
	read $file, my $bytes, 16;
	return (unpack 'qq', $bytes)[1];
}

arm(0, 0);
my %loaded = (LD_PRELOAD => "$directory/malloc.so", OUTBOX_MALLOC => "$directory/malloc");
my $node;
{
	local %ENV = (%ENV, %loaded);
	$node = outbox_node('main', conf => [ 'fsync = off', "outbox.maintenance_interval = '1s'" ]);
}
my $receiver = Outbox::Receiver->new(fsync => 0);
my $ledger = Outbox::Ledger->new;
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
my @patient = (retry_base => '20 ms', retry_max => '200 ms', max_attempts => 1000);
subscribe($node, 'push', $receiver->url('/random/3/5?push'), types => ['load'], @patient);
subscribe($node, 'batch', $receiver->url('/random/4/5?batch'), types => ['load'], format => 'batch', batch_linger => '10 ms', @patient);

my $steps = $ENV{OUTBOX_MALLOC_STEPS} // 60;
my $hit = 0;
my $session = session($node);
my $n = 0;
for my $step (1 .. $steps)
{
	# few at first, then further apart: a worker in full swing allocates little
	$n += 1 + int($step / 4);
	my $pid = worker_pid($node);
	arm($pid, $n);
	my $end = time + 5;
	do
	{
		my @ids = split /\n/, $session->query(q{SELECT outbox.enqueue('load', to_jsonb(repeat('x', 3000)), key => 'k' || i % 3) FROM generate_series(1, 12) AS i});
		my $i = 0;
		$ledger->committed($_, 'k' . ++$i % 3) for @ids;
		$session->query(q{SELECT outbox.alter_subscription('push', description => clock_timestamp()::text)}) if $step % 5 == 0;
		sleep 0.05;
	} while (left() > 0 && time < $end);
	$hit += left() <= 0;
	last unless is_reachable($node);
}
arm(0, 0);
cmp_ok($hit, '>', $steps / 2, "memory ran out $hit times");
for my $path ('/random/3/5?push', '/random/4/5?batch')
{
	# there are three keys, so on a busy machine this takes its time: only when nothing more arrives it is in vain
	wait_arriving(sub { $ledger->complete($receiver, $path) }, sub { scalar(() = $receiver->delivered($path)) });
	my $found = check_ledger($ledger, $receiver, $path, what => $path, duplicates => 1e6);
	diag sql("SELECT id, key, s::text FROM outbox.event, outbox.event_status(id) AS s WHERE id = ANY ('{" . join(',', @{ $found->{lost} }) . "}')"),
		"\nthe last one: ", sql('SELECT max(id::text) FROM outbox.event'), "\n", sql('SELECT l::text FROM outbox.subscription_status AS l') if @{ $found->{lost} };
}
is(sql('SELECT count(*) FROM outbox.dead_letter'), '0', 'nothing was given up')
	or diag sql('SELECT subscription, reason, attempts, last_status_code, last_error, count(*) FROM outbox.dead_letter GROUP BY 1, 2, 3, 4, 5');
my $log = slurp_file($node->logfile);
is(scalar(() = $log =~ /terminated by signal|PANIC/g), 0, 'nobody crashed') or diag grep { /signal|PANIC/ } split /^/, $log;
cmp_ok(scalar(() = $log =~ /out of memory/g), '>', 0, 'and it is said');

done_testing;
