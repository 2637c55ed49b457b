# What sick receivers cost the healthy: 1,000 subscriptions, of which none, one, or a hundred are dead; 500 events a second, one subscription each.
# Of the dead, a third each refuses connections, never answers, or answers 500. p99 is that of a second, and of those the median: one slow flush of the disk is a p99 of its second.
use strict;
use warnings;

use Outbox::Bench;

use Time::HiRes qw(sleep);

my ($subscriptions, $rate, $seconds) = (1000, 500, seconds_of(6));
my $db = database('db');
my $sink = sink(200_000);
my $well = sub { my ($n) = @_; return "$sink->{url}ok?$n" };
my $dead = sub { my ($n) = @_; return ('http://127.0.0.1:1/', "$sink->{url}hang?$n", "$sink->{url}500?$n")[ $n % 3 ] };
my $set = sub {
	my ($code, $sick) = @_;
	sql($db, 'SELECT ' . join ', ', map { "outbox.alter_subscription('s$_', url => " . literal($code->($_)) . ')' } 1 .. $sick);
	sql($db, "SELECT outbox.resume('s' || i) FROM generate_series(1, $sick) AS i");
};

sql($db, join ';', map { "SELECT outbox.subscribe('s$_', " . literal($well->($_)) . ", types => '{t$_}', network => 'private', timeout => '5 s', retry_base => '1 s', retry_factor => 1, breaker_probe => '1 s', breaker_max => '5 s', tenant => 'tenant$_')" } 1 .. $subscriptions);
my $first = 0;
my %p99;    # of each second, by how many were dead
my $load = sub {
	my ($sick) = @_;
	$set->($sick ? $dead : $well, $sick || 1);      # in each round: what a change costs is not what is measured
	sleep 0.5;                                      # the worker has read that
	my $made = produce($db, $rate, $seconds, $first, "WITH place AS (SELECT 1 + \$1::bigint * 7919 % $subscriptions AS n) SELECT outbox.enqueue('t' || n, jsonb_build_object('seq', \$1::bigint), tenant => 'tenant' || n) FROM place", 4, '-c synchronous_commit=off');
	finish($made->{pid});
	$first += $made->{n};
	my $healthy = sub { my ($seq) = @_; return 1 + $seq * 7919 % $subscriptions > 100 };    # the same events in each round
	wait_for(sub { !grep { !$_->{arrived} } latencies($made, $sink, $healthy) }, 'all events of the healthy', 30, 0.2);
	my @latencies = map { [ $_->{due}, ($_->{arrived} - $_->{committed}) / 1000 ] } latencies($made, $sink, $healthy);
	my ($p50, $p99) = quantiles(map { $_->[1] } @latencies);
	say_it(sprintf '%3d dead: p50 %.2f ms, p99 %.2f ms', $sick, $p50, $p99);
	my @of_seconds = map { $_->[1] } p99_of_seconds(@latencies);
	push @{ $p99{$sick} }, @of_seconds;
	if ($sick)
	{
		$set->($well, $sick);
		wait_for(sub { sql($db, q{SELECT NOT EXISTS (SELECT FROM outbox._runtime() WHERE in_flight > 0 OR exceptions > 0 OR breaker_open_until > now())}) eq 't' }, 'the dead being well again', 60, 0.2);
	}
	return median(@of_seconds);
};
$load->($_) for 0, 100;
%p99 = ();
alternate(3, well => sub { $load->(0) }, one => sub { $load->(1) }, hundred => sub { $load->(100) });
figure("the healthy ones' p99 beside one dead subscription of 1,000", unit => 'ms', ours => median(@{ $p99{1} }), beside => median(@{ $p99{0} }), against => 'all healthy', goal => '<= 1.2');
figure("the healthy ones' p99 beside 100 dead of 1,000", unit => 'ms', ours => median(@{ $p99{100} }), beside => median(@{ $p99{0} }), against => 'all healthy', goal => '<= 1.2');
