# From COMMIT to the receiver: at 1,000 events a second, and of the first event after a pause. Commits are durable (synchronous_commit = on).
use strict;
use warnings;

use Outbox::Bench;

my ($rate, $seconds) = (1000, seconds_of(20));
my $db = database('db');
my $sink = sink(200_000);
subscribe($db, 'receiver', $sink->{url});
my $sql = "SELECT outbox.enqueue('order.paid', ('{\"seq\":' || \$1 || '," . substr($PAYLOAD, 1) . "')::jsonb, key => \$1)";
my $first = 0;
my ($all, @p50, @p99, @whole50, @whole99);
for my $round (0 .. 3)
{
	my $made = produce($db, $rate, $round ? $seconds : seconds_of(5), $first, $sql, 4);
	finish($made->{pid});
	$first += $made->{n};
	wait_for(sub { !grep { !$_->{arrived} } latencies($made, $sink) }, 'all events', 30, 0.2);
	next unless $round;    # the first one warms up
	my @events = latencies($made, $sink);
	my ($p50, $p99) = quantiles(map { ($_->{arrived} - $_->{committed}) / 1000 } @events);
	my ($w50, $w99) = quantiles(map { ($_->{arrived} - $_->{due}) / 1000 } @events);
	say_it(sprintf 'p50 %.2f ms, p99 %.2f ms after COMMIT; p50 %.2f ms, p99 %.2f ms after the event was due', $p50, $p99, $w50, $w99);
	push @p50, $p50;
	push @p99, $p99;
	push @whole50, $w50;
	push @whole99, $w99;
	$all = \@events;
}
my (%second, @over50, @over99);
push @{ $second{ int(($_->{due} - $all->[0]{due}) / 1e6) } }, ($_->{arrived} - $_->{committed}) / 1000 for @$all;
for (sort { $a <=> $b } keys %second) { my ($p50, $p99) = quantiles(@{ $second{$_} }); push @over50, [ $_, $p50 ]; push @over99, [ $_, $p99 ] }
series('latency', 'From COMMIT to the receiver, 1,000 events a second', 'seconds', 'ms', {}, p50 => \@over50, p99 => \@over99);
my $note = 'From when COMMIT had returned to the producer until the receiver had the whole request. The worker may be faster than the producer hears of its own commit: then it is less than 0.';
figure('latency, COMMIT to receiver, 1,000 events/s: p50', unit => 'ms', ours => \@p50, goal => '<= 1 ms', note => $note);
figure('latency, COMMIT to receiver, 1,000 events/s: p99', unit => 'ms', ours => \@p99, goal => '<= 5 ms', note => $note);
figure('the same from when the event was due, its own commit included: p50', unit => 'ms', ours => \@whole50);
figure('the same from when the event was due, its own commit included: p99', unit => 'ms', ours => \@whole99);

# After a pause, in which everything that can sleep sleeps. Its producer stays connected: one that leaves at once has its backend's end compete with the delivery for the core.
my $made = produce($db, 0.8, seconds_of(20) + 2.5, $first, $sql, 1);
finish($made->{pid});
wait_for(sub { !grep { !$_->{arrived} } latencies($made, $sink) }, 'events after a pause', 10, 0.05);
my (undef, @idle) = map { ($_->{arrived} - $_->{committed}) / 1000 } latencies($made, $sink);    # the first one makes the connection
say_it('after a pause: ' . join ' ', map { sprintf '%.2f', $_ } @idle);
figure('latency of the first event after a pause of 1.25 s, median', unit => 'ms', ours => \@idle, goal => '<= 2 ms');
