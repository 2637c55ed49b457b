# 2,000 events a second are enqueued and delivered, while a snapshot is held and while none is, in turn: rate and latency. Then one that is held for long, beside as long a time
# without: dead rows, and whether time makes anything slower. And a relay, in the same plight. p99 is that of a second, and of those the median: one slow flush of the disk is a p99 of its second.
# BENCH_HOLD (--hold): for how many seconds it is held for long; 20.
use strict;
use warnings;

use Outbox::Bench;
use Time::HiRes qw(time sleep);

my ($rate, $hold, $rounds, $round) = (2000, seconds_of($ENV{BENCH_HOLD} || 20), 3, seconds_of(6));
my $relay_hold = $hold < 15 ? $hold : 15;
my $db = database('db');
my $relay_db = database('relay', unarmed => 1);
my $sink = sink(int(2 * $rate * (2 * $hold + 2 * $rounds * $round)) + 100_000);
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
	my @points = p99_of_seconds(map { [ $events[$_]{due}, $latency[$_] ] } 0 .. $#events);
	say_it(sprintf '%-20s %.0f events/s arrived, p50 %.2f ms, p99 %.2f ms', $label, $arrived / $seconds, $p50, $p99);
	return { rate => $arrived / $seconds, p50 => $p50, p99 => $p99, points => \@points, n => scalar @events };
}

# Calls code while a session holds a snapshot.
sub while_held
{
	my ($database, $code) = @_;
	my $holder = session($database);
	query_on($holder, 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM plain');
	my $result = $code->();
	$holder->close;
	return $result;
}

# Held for so long: the load, and how many dead rows there are at its end, per 1,000 events.
sub long
{
	my ($database, $seconds, $label) = @_;
	sql($database, 'VACUUM') if $database eq $db;
	my $dead = dead($database);
	my $load = while_held($database, sub { my $load = load($database, $seconds, $label); $dead = dead($database) - $dead; return $load });
	return ($load, 1000 * $dead / $load->{n});
}

my %curves;
my $dead_rows = 'while a snapshot is held: dead rows per 1,000 events';
my $held_for = sprintf 'The snapshot was held for %d s, and for %d s beside the relay.', $hold, $relay_hold;
{
	load($db, seconds_of(3), 'warm-up');
	my (%without, %with);
	my $note = sub { my ($to, $load) = @_; push @{ $to->{$_} }, $load->{$_} for qw(rate p50); push @{ $to->{p99} }, map { $_->[1] } @{ $load->{points} }; return median(map { $_->[1] } @{ $load->{points} }) };
	alternate($rounds, 'no snapshot, p99' => sub { return $note->(\%without, load($db, $round, 'no snapshot')) },
		'snapshot held, p99' => sub { return while_held($db, sub { return $note->(\%with, load($db, $round, 'snapshot held')) }) });
	my $control = load($db, $hold, 'as long without');
	my ($load, $dead) = long($db, $hold, 'held for long');
	# the last third beside the first
	my $slower = sub { my @p99 = map { $_->[1] } @{ $_[0]{points} }; my $third = int(@p99 / 3) || 1; return median(@p99[ -$third .. -1 ]) / median(@p99[ 0 .. $third - 1 ]) };
	figure('outbox at 2,000 events/s while a snapshot is held: rate', unit => 'events/s', ours => $with{rate}, beside => $without{rate}, against => 'without', goal => '>= 0.95');
	figure('outbox while a snapshot is held: p50', unit => 'ms', ours => $with{p50}, beside => $without{p50}, against => 'without', goal => '<= 1.05');
	figure('outbox while a snapshot is held: p99', unit => 'ms', ours => median(@{ $with{p99} }), beside => median(@{ $without{p99} }), against => 'without', goal => '<= 1.05');
	figure('outbox, a snapshot being held for long: how many times as long p99 is in the last third of the time as in the first', ours => $slower->($load), beside => $slower->($control), against => 'as long without', goal => '<= 1.05', note => $held_for);
	figure("outbox $dead_rows", ours => $dead, goal => '<= 1', note => $held_for);
	$curves{outbox} = $load->{points};
}
if (eval { command('relay-there', 'node', '-e', q{require('pg'); require('undici')}); 1 })
{
	my $relay = background('relay', node_program('relay'), $relay_db, $sink->{url}, $CONCURRENCY);
	sleep 1;
	load($relay_db, seconds_of(3), 'relay: warm-up');
	my $without = load($relay_db, $round, 'relay: no snapshot');
	my ($load, $dead) = long($relay_db, $relay_hold, 'relay: held');
	finish($relay, 1);
	figure('the relay at 2,000 events/s while a snapshot is held: rate', unit => 'events/s', ours => $load->{rate}, beside => $without->{rate}, against => 'without');
	figure("the relay while a snapshot is held: $_", unit => 'ms', ours => $load->{$_}, beside => $without->{$_}, against => 'without') for qw(p50 p99);
	figure("the relay $dead_rows", ours => $dead, note => $held_for);
	$curves{relay} = $load->{points};
}
else { say_it('without the relay: node lacks pg or undici') }
series('snapshot', 'Latency (p99 of each second) while a snapshot is held, 2,000 events a second', 'seconds', 'ms', { log => 'y' }, map { $_ => $curves{$_} } sort keys %curves);
