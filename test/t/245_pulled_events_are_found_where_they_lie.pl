# pull() finds its events wherever in the log they lie: far apart, in several segments, moved into it, kept after their segment was emptied; in the order of the lease. And replays.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => ["outbox.segment_size = '8kB'"]);
my $session = session($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub current { return sql('SELECT segment FROM outbox._segments() WHERE is_current') }
sub segments_of { return sql("SELECT count(DISTINCT tableoid) FROM outbox.event WHERE id = ANY ('{" . join(',', @_) . "}')") }

# The current segment is full, and another one follows it.
sub turn_over
{
	my $segment = current();
	sql(q{SELECT outbox.enqueue('filler', jsonb_build_object('x', repeat('x', 1000))) FROM generate_series(1, 20)});
	wait_for(sub { sql('SELECT count(*) FROM outbox.maintain()'); current() ne $segment }, 'another segment');
}

# pull(name): the rows of one lease, as [ id, payload, token, key ], once there are so many
sub pull
{
	my ($name, $n) = @_;
	my @rows;
	wait_for(sub { sql("SELECT lag_events FROM outbox.subscription_status WHERE name = '$name'") >= $n }, "$n events for $name");
	wait_for(sub {
			@rows = map { [ split /\|/ ] } split /\n/, $session->query("SELECT event_id, payload, token, key FROM outbox.pull('$name', 1000)");
			return 1 if @rows >= $n;
			$session->query("SELECT outbox.nack('$name', NULL, '$rows[0][2]', '0')") if @rows;
			0 }, "$n events of $name in one lease");
	return @rows;
}
sub give_back { my ($name, $rows) = @_; return $session->query("SELECT outbox.nack('$name', NULL, '$rows->[0][2]', '0')") }

# ---- far apart, and in three segments
sql(q{SELECT outbox.subscribe('far', types => '{far}')});
my @ids;
for my $part (1 .. 3)
{
	push @ids, split /\n/, sql(q{SELECT outbox.enqueue('far', to_jsonb(i)) FROM generate_series(1, 3) AS i});
	sql(q{SELECT outbox.enqueue('between', '0') FROM generate_series(1, 100)});
	push @ids, enqueue($node, 'far', '4');
	turn_over();
}
is(segments_of(@ids), '3', 'the events lie in three segments');
my @all = map { "$ids[$_]:" . ($_ % 4 + 1) } 0 .. $#ids;
for my $time (1 .. 3)
{
	my @rows = map { "$_->[0]:$_->[1]" } (my @pulled = pull('far', 12));
	is("@rows", "@all", 'all of them, with their payloads, in their order') if $time == 1;
	is(join(' ', sort @rows), "@all", "each with its payload, time $time");	# what was given back comes in any order
	give_back('far', \@pulled);
}

# ---- in the order of the lease, which is not that of the log
sql(q{SELECT outbox.subscribe('keys', types => '{keys}')});
my @of = map { enqueue($node, 'keys', qq("$_"), key => substr $_, 0, 1) } qw(a1 b1 a2 b2 a3);
my @rows = pull('keys', 5);
is(join(' ', map { $_->[1] } @rows), '"a1" "a2" "a3" "b1" "b2"', 'a key is leased together');
is(join(' ', map { $_->[0] } @rows), join(' ', @of[ 0, 2, 4, 1, 3 ]), 'and its events are told in that order');
give_back('keys', \@rows);

# ---- what was scheduled has two ids: its place in the log is not the one that enqueue() returned
sql(q{SELECT outbox.subscribe('later', types => '{later}')});
my $later = enqueue($node, 'later', '"later"', deliver_at => sql(q{SELECT clock_timestamp() + interval '300 ms'}));
@rows = pull('later', 1);
is("$rows[0][0] $rows[0][1]", "$later \"later\"", 'what was scheduled has the id that enqueue() returned');
isnt(sql("SELECT log_id FROM outbox.unscheduled WHERE id = '$later'"), $later, 'and another place in the log');
is($session->query("SELECT outbox.ack('later', ARRAY['$later']::uuid[], '$rows[0][2]')"), '1', 'and is acknowledged by it');

# ---- kept after its segment was emptied, one of several
@rows = pull('far', 12);
my $segment = sql("SELECT tableoid::regclass FROM outbox.event WHERE id = '$ids[0]'");
$session->query("SELECT outbox.nack('far', NULL, '$rows[0][2]', '1 s')");
sql(qq{BEGIN; LOCK TABLE $segment; ALTER TABLE $segment DISABLE TRIGGER USER; INSERT INTO outbox.kept_event SELECT * FROM ONLY $segment WHERE type = 'far'; TRUNCATE ONLY $segment; COMMIT});
@rows = pull('far', 12);
is(join(' ', sort map { $_->[0] } @rows), join(' ', sort @ids), 'what is kept is found beside what is in the log');
is($session->query("SELECT outbox.ack('far', NULL, '$rows[0][2]')"), '12', 'and all of the lease is acknowledged');
wait_status($node, $_, 'far', 'delivered') for @ids[ 4 .. 11 ];

# ---- a replay: once more, the same events, in order per key
my $leased = join ' ', map { $_->[0] } (@rows = pull('keys', 5));
is($session->query("SELECT outbox.ack('keys', NULL, '$rows[0][2]')"), '5', 'acknowledged');
wait_status($node, $_, 'keys', 'delivered') for @of;
is($session->query(q{SELECT outbox.replay('keys', '-infinity')}), '5', 'a replay on a pull subscription');
my @again;
wait_for(sub {
		my @more = map { [ split /\|/ ] } split /\n/, $session->query(q{SELECT event_id, payload, token, key FROM outbox.pull('keys', 1000)});
		$session->query("SELECT outbox.ack('keys', NULL, '$more[0][2]')") if @more;
		push @again, @more;
		@again >= 5 }, 'the events once more');
is(join(' ', sort map { $_->[0] } @again), join(' ', sort @of), 'brings each event once more');
for my $key ([ 'a', '"a1" "a2" "a3"' ], [ 'b', '"b1" "b2"' ])
{
	is(join(' ', map { $_->[1] } grep { $_->[3] eq $key->[0] } @again), $key->[1], "those of key $key->[0] in order");
}
wait_for(sub { sql(q{SELECT count(*) FROM outbox.delivery d JOIN outbox.subscription s ON s.id = d.subscription_id WHERE s.name = 'keys'}) eq '0' }, 'nothing of it left');
is($session->query(q{SELECT count(*) FROM outbox.pull('keys', 1000)}), '0', 'and only once');

$session->close;
$node->stop;
done_testing();
