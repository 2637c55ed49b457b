# A worker that stands still (SIGSTOP, a machine that was suspended) for longer than any timeout or lease: nobody takes its place, producers do not wait, and when it goes on it repeats at most what was in flight. What a consumer
# held is given to another one, and the first one's token is worth nothing any more.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
my %path = (slow => '/slow/100?slow', hang => '/script/hang?hang', quick => '/random/4/10?quick');
my %short = (types => ['load.made'], timeout => '3 s', connect_timeout => '1 s', max_in_flight => 5, max_attempts => 1000, give_up_after => '1 d');
subscribe($node, $_, $receiver->url($path{$_}), %short) for sort keys %path;
$receiver->control(script => 'hang', answers => [], then => 'hang');
sql(q{SELECT outbox.subscribe('pulled', types => '{to.pull}')});
my $worker = worker_pid($node);
END { my $status = $?; kill 'CONT', $worker if $worker; $? = $status }

my $ledger = Outbox::Ledger->new;
my ($one, $two) = (session($node), session($node));
for my $round (1, 2)
{
	my $producers = start_producers($node, count => 2, transactions => 100_000, keys => 20, tag => "r$round-", pause => 0.1);
	my $before = () = $receiver->requests($path{slow});
	wait_for(sub { $receiver->requests($path{slow}) > $before + 5 && sql('SELECT in_flight FROM outbox._worker()') >= 5 }, 'requests in flight');
	my @held = map { enqueue($node, 'to.pull', $_, key => "k$_") } 1 .. 5;
	my @rows;
	wait_for(sub { push @rows, split /\n/, $one->query(q{SELECT event_id, token FROM outbox.pull('pulled', 10, '3 s')}); @rows == 5 }, 'a lease');
	my ($token) = $rows[-1] =~ /\|(.*)/;

	stand_still($node, $worker);
	my $count = sql('SELECT count(*) FROM outbox.event');
	my $began = sql('SELECT clock_timestamp()');
	$receiver->control(script => 'hang', answers => [], then => 200) if $round == 2;
	wait_for(sub { sql("SELECT clock_timestamp() > '$began'::timestamptz + interval '6 s'") eq 't' }, 'six seconds');
	cmp_ok(sql('SELECT count(*) FROM outbox.event'), '>', $count, "round $round: producers do not wait");
	is(sql(q{SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE backend_type = 'outbox delivery worker'}), $worker, "round $round: there is one worker, the one that stands still");
	kill 'CONT', $worker;

	my %again;
	wait_for(sub { %again = (%again, map { split /\|/ } split /\n/, $two->query(q{SELECT event_id, token FROM outbox.pull('pulled', 10, '1 min')})); keys %again == 5 }, 'another lease');
	is(join(' ', sort keys %again), join(' ', sort @held), "round $round: what was held is given to another consumer");
	like($one->query("SELECT outbox.ack('pulled', NULL, '$token')"), qr/ERROR:  55000: lease \S+ of subscription "pulled" is not held any more/, "round $round: the token of the first one is worth nothing");
	$two->query("SELECT outbox.ack('pulled', NULL, '$_')") for values %again;
	stop_producers($node);
	finish_producers($producers, $ledger);
}
$ledger->settle($node);
for my $name (sort keys %path)
{
	ok(wait_for(sub { $ledger->complete($receiver, $path{$name}) }, "everything for $name"), "$name: everything is delivered");
	check_ledger($ledger, $receiver, $path{$name}, what => $name, duplicates => 10);
}
is(worker_pid($node), $worker, 'by the same worker');
is(sql('SELECT count(*) FROM outbox.dead_letter'), '0', 'nothing was given up');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal|XX\d\d\d/, 'nobody crashed');

done_testing;
