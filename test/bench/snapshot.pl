# A snapshot is held open while 2,000 events a second are enqueued and delivered: rate, latency and dead rows, beside the same without. And a relay, in the same plight.
# BENCH_HOLD (--hold): for how many seconds; 90.
use strict;
use warnings;

use Outbox::Bench;
use Time::HiRes qw(time sleep);

my ($rate, $hold) = (2000, seconds_of($ENV{BENCH_HOLD} || 90));
my $free = $hold < 60 ? $hold / 3 : 20;    # without a snapshot
my $relay_hold = $hold < 30 ? $hold : 30;
my $db = database('db');
my $relay_db = database('relay', unarmed => 1);
my $sink = sink(int(2 * $rate * ($hold + $free)) + 100_000);
subscribe($db, 'receiver', $sink->{url});
sql($relay_db, "CREATE TABLE typical_outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), event_type text, event_data jsonb, status text DEFAULT 'PENDING', created_at timestamptz DEFAULT clock_timestamp());
	CREATE INDEX ON typical_outbox (created_at) WHERE status = 'PENDING'");
my $payload = "('{\"seq\":' || \$1 || '," . substr($PAYLOAD, 1) . "')::jsonb";
my %sql = ($db => "SELECT outbox.enqueue('order.paid', $payload, key => \$1)", $relay_db => "INSERT INTO typical_outbox (event_type, event_data) VALUES ('order.paid', $payload)");
my $first = 0;

# Dead rows in all tables of the extension, or of the relay: counted, not estimated.
sub dead
{
	my ($database) = @_;
	my $schema = $database eq $db ? 'outbox' : 'public';
	return sql($database, "SELECT coalesce(sum((pgstattuple(c.oid)).dead_tuple_count), 0) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
		WHERE nspname = '$schema' AND relkind = 'r' AND relname !~ '^event_'")
		+ ($schema eq 'outbox' ? sql($database, q{SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^event_'}) : 0);
}

# so many seconds of load: { rate: of arrivals, p50, p99, points: [second, p99] }
sub load
{
	my ($database, $seconds, $label) = @_;
	my $made = produce($database, $rate, $seconds, $first, $sql{$database}, 4, '-c synchronous_commit=off');
	finish($made->{pid});
	$first += $made->{n};
	my $patience = time + 15;
	until (time > $patience || !grep { !$_ } $sink->{arrivals}->($made->{first}, $made->{n})) { sleep 0.3 }
	my $now = 1e6 * time;
	my @events = latencies($made, $sink);
	my $end = $events[-1]{due};
	my @latency = map { (($_->{arrived} || $now) - $_->{committed}) / 1000 } @events;
	my ($p50, $p99) = quantiles(@latency);
	my $arrived = grep { $_->{arrived} && $_->{arrived} <= $end + 100_000 } @events;
	my %second;
	push @{ $second{ int(($_->{due} - $events[0]{due}) / 1e6) } }, (($_->{arrived} || $now) - $_->{committed}) / 1000 for @events;
	my @points = map { [ $_, (quantiles(@{ $second{$_} }))[1] ] } sort { $a <=> $b } keys %second;
	say_it(sprintf '%-20s %.0f events/s arrived, p50 %.2f ms, p99 %.2f ms', $label, $arrived / $seconds, $p50, $p99);
	return { rate => $arrived / $seconds, p50 => $p50, p99 => $p99, points => \@points, n => scalar @events };
}

my %curves;
for my $database ($db, $relay_db)
{
	my $ours = $database eq $db;
	my $relay;
	unless ($ours)
	{
		eval { command('relay-there', 'node', '-e', q{require('pg'); require('undici')}); 1 } or do { say_it('without the relay: node lacks pg or undici'); last };
		$relay = background('relay', node_program('relay'), $database, $sink->{url}, $CONCURRENCY);
		sleep 1;
	}
	my $name = $ours ? '' : 'relay: ';
	load($database, seconds_of(3), "${name}warm-up");
	my $without = load($database, $ours ? $free : $free / 2, "${name}no snapshot");
	sql($database, 'VACUUM') if $ours;
	my $dead = dead($database);
	my $holder = session($database);
	query_on($holder, 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM plain');
	my $with = load($database, $ours ? $hold : $relay_hold, "${name}snapshot held");
	$dead = dead($database) - $dead;
	$holder->close;
	finish($relay, 1) if $relay;
	$curves{ $ours ? 'outbox' : 'relay' } = $with->{points};
	my $who = $ours ? 'outbox' : 'the relay';
	figure("$who at 2,000 events/s while a snapshot is held: rate", unit => 'events/s', ours => $with->{rate}, beside => $without->{rate}, against => 'without', $ours ? (goal => '>= 0.95') : ());
	figure("$who while a snapshot is held: p50", unit => 'ms', ours => $with->{p50}, beside => $without->{p50}, against => 'without', $ours ? (goal => '<= 1.05') : ());
	figure("$who while a snapshot is held: p99", unit => 'ms', ours => $with->{p99}, beside => $without->{p99}, against => 'without', $ours ? (goal => '<= 1.05') : ());
	figure("$who while a snapshot is held: dead rows per 1,000 events", ours => 1000 * $dead / $with->{n}, $ours ? (goal => '<= 1') : (),
		note => sprintf 'The snapshot was held for %d s, and for %d s beside the relay.', $hold, $relay_hold);
}
series('snapshot', 'Latency (p99 of each second) while a snapshot is held, 2,000 events a second', 'seconds', 'ms', { log => 'y' }, map { $_ => $curves{$_} } sort keys %curves);
