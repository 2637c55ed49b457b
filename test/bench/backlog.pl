# A million events that wait, recorded in transactions of a thousand while the subscription was paused; and one transaction of a million.
# The rate at which they leave, beside live; when the first one leaves; the worker's own memory. Called as transaction.pl it is the second.
use strict;
use warnings;

use Outbox::Bench;
use Time::HiRes qw(time sleep);

my $name = $0 =~ /transaction/ ? 'one transaction of 1,000,000 events' : 'a backlog of 1,000,000 events';
my $n = 1000 * int(size(1_000_000) / 1000 || 1);
my $db = database('db');
my $nginx = nginx();
subscribe($db, 'receiver', $nginx->{url}, ordering => 'none');
my $payload = literal($PAYLOAD) . '::jsonb';
push_live($db, 'warm', size(20_000), $nginx->{count});
my @live = map { scalar push_live($db, 'live', size(60_000), $nginx->{count}) } 1, 2;

my $worker = sql($db, 'SELECT worker_pid FROM outbox._worker()');
my $before = $nginx->{count}->();
my $session = session($db);
my $began;
if ($0 =~ /transaction/)
{
	query_on($session, "BEGIN; SELECT count(outbox.enqueue('large', $payload)) FROM generate_series(1, $n)");
	$began = time;
	query_on($session, 'COMMIT');
}
else
{
	query_on($session, "SELECT outbox.pause('receiver')");
	query_on($session, "DO \$\$ BEGIN FOR i IN 1 .. $n / 1000 LOOP PERFORM outbox.enqueue('large', $payload) FROM generate_series(1, 1000); COMMIT; END LOOP; END \$\$");
	$began = time;
	query_on($session, "SELECT outbox.resume('receiver')");
}
say_it(sprintf 'live: %.0f and %.0f events/s', @live);
my ($done, $last, $seen, $memory, $first, @points) = (0, 0, 0, 0);
while (($done = $nginx->{count}->() - $before) < $n)
{
	my $at = time - $began;
	die sprintf("only %d of %d after %d s\n", $done, $n, $at) if $at > 200;
	$first //= $at if $done;
	my $now = worker_memory($worker);
	$memory = $now if $now > $memory;
	if ($at - $seen >= 1) { push @points, [ sprintf('%.1f', $at), ($done - $last) / ($at - $seen) ]; ($seen, $last) = ($at, $done) }
	sleep($first ? 0.05 : 0.002);
}
my $seconds = time - $began;
push @live, scalar push_live($db, 'live', size(60_000), $nginx->{count});
figure("$name: the rate at which it leaves", unit => 'events/s', ours => $n / $seconds, beside => median(@live), against => 'live', goal => '>= 0.9');
figure("$name: the first delivery after", unit => 's', ours => $first // $seconds, goal => '<= 1 s');
figure("$name: the worker's own memory", unit => 'MB', ours => $memory / 1e6, goal => '<= 100 MB');
series($0 =~ /transaction/ ? 'transaction' : 'backlog', ucfirst "$name: throughput", 'seconds', 'events per second', {}, 'events per second' => \@points, live => [ [ 0, median(@live) ], [ $seconds, median(@live) ] ]) if @points;
