# A subscription that cannot or may not be served holds the log for a bounded time and a bounded size. What it gives up beyond is recorded in a gap, no more than that is given up, and
# whoever keeps up loses nothing. Time in which nobody delivered does not count. Neither a crash nor a failed checkpoint gives up anything unrecorded.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [
	"outbox.event_retention = '1s'", "outbox.segment_size = '128kB'", "outbox.segment_age = '1h'", "outbox.maintenance_interval = '1s'",
	"outbox.max_backlog_age = '1h'", "log_min_messages = 'log'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);

sub sql { my ($sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }
sub set { my (%settings) = @_; sql("ALTER SYSTEM SET $_ = '$settings{$_}'") for keys %settings; $node->reload }
sub health { my ($column, $check, $thresholds, $database) = @_; return sql("SELECT $column FROM outbox.health(" . literal(JSON::PP::encode_json($thresholds // {})) . ") WHERE check_name = '$check'", $database) }
sub there { my ($id) = @_; return sql("SELECT count(*) FROM outbox.event WHERE id = '$id'") eq '1' }
sub gaps { my ($name) = @_; return sql("SELECT count(*) FROM outbox.gap WHERE subscription = '$name'") }
sub status { my ($id, $name) = @_; return sql("SELECT status FROM outbox.event_status('$id') WHERE subscription = '$name'") }

# Events of 8 kB that do not compress, so that a few fill a segment; their ids, in order
sub fill
{
	my ($n, $type, $database) = @_;
	return split /\n/, sql("SELECT outbox.enqueue('" . ($type // 'filled') . "', to_jsonb(x.text), key => 'k' || x.i) FROM (SELECT i, string_agg(md5(random()::text || i || j), '') AS text FROM generate_series(1, $n) AS i, generate_series(1, 250) AS j GROUP BY i ORDER BY i) AS x", $database);
}
sub rounds { return sql('SELECT extract(epoch FROM maintained_at) FROM outbox._worker()') }
sub another_round { my $before = rounds(); return wait_for(sub { rounds() > $before }, 'a round of maintenance') }

# What the subscription did not get is exactly what its gaps cover.
sub check_partition
{
	my ($name, $path, @ids) = @_;
	my ($before, $after, $covered) = (0, 0, 0);
	my @gaps = map { [ split /\|/ ] } split /\n/, sql("SELECT COALESCE(from_id::text, ''), to_id, events FROM outbox.gap WHERE subscription = '$name' ORDER BY id");
	wait_for(sub { !grep { my $id = $_; !$receiver->of($path, $id) && !grep { $id ge $_->[0] && $id le $_->[1] } @gaps } @ids }, "what $name has not given up");
	for my $id (@ids)
	{
		my $given_up = grep { $id ge $_->[0] && $id le $_->[1] } @gaps;
		my $got = $receiver->of($path, $id);
		$covered++ if $given_up;
		$before++ if $given_up && $got;
		$after++ if !$given_up && $got != 1;
	}
	is($before, 0, "$name: nothing that lies in a gap was delivered");
	is($after, 0, "$name: all else was delivered, once");
	is(sql("SELECT COALESCE(sum(events), 0) FROM outbox.gap WHERE subscription = '$name'"), $covered, "$name: its gaps say how many of its events they cover ($covered of " . @ids . ')');
}

# ---- a database that nobody delivers in yet; see the end ---------------------------------------------------------------------------------

sql('CREATE DATABASE dormant');
install($node, 'dormant', arm => 0);
subscribe($node, 'dormant', $receiver->url('/ok?dormant'), database => 'dormant');
sql(q{SELECT outbox.pause('dormant')}, 'dormant');
my @dormant = fill(30, undef, 'dormant');

# ---- by age: one that is paused, one that fails, one that hangs, one that is fine -----------------------------------------------------------------------

subscribe($node, 'fine', $receiver->url('/ok?fine'));
subscribe($node, 'paused', $receiver->url('/ok?paused'));
subscribe($node, 'other', $receiver->url('/ok?other'), types => ['never']);
subscribe($node, 'failing', $receiver->url('/status/500?failing'), max_blocked => 3, give_up_after => '0', max_attempts => 1000, max_in_flight => 1, breaker_threshold => 0);
subscribe($node, 'hanging', $receiver->url('/hang?hanging'), max_in_flight => 1, timeout => '10 min', give_up_after => '0');
sql(q{SELECT outbox.pause('paused'); SELECT outbox.pause('other')});
is(health("value || ' ' || status || ' ' || (subject IS NULL)", 'backlog'), '0 ok true', 'nobody holds a full segment of an empty log');
my @ids = fill(40);
wait_status($node, $ids[-1], 'fine', 'delivered');
ok(wait_for(sub { health('value', 'backlog') >= 0.0001 }, 'full segments being held'), 'those who cannot be served hold full segments');
push @ids, fill(3);    # too little to fill the current segment
wait_status($node, $ids[-1], 'fine', 'delivered');
like(health('subject', 'backlog'), qr/^(failing|hanging|other|paused)$/, 'health() names one of them');
is(health('status', 'backlog'), 'ok', 'far from the bound that is well');
is(health('status', 'backlog', { backlog => { warning => 0.0001 } }), 'warning', 'near it that is a warning');
wait_for(sub { health('value', 'backlog') >= 0.0002 }, 'a second');
is(health('status', 'backlog', { backlog => { warning => 0.0001, critical => 0.0002 } }), 'critical', 'beyond it is critical');
is(sql('SELECT count(*) FROM outbox.gap'), '0', 'nothing is given up within the bound');
is(health('status', 'gaps'), 'ok', 'gaps: ok');

my $reader = session($node);
$reader->query('BEGIN');
$reader->query("SELECT count(*) FROM outbox.event WHERE id = '$ids[0]'");    # nothing can be emptied while it is open
set('outbox.max_backlog_age' => '2s');
ok(wait_for(sub { gaps('paused') > 0 && gaps('hanging') > 0 }, 'the gaps'), 'beyond the bound they give up what is too old');
ok(wait_for(sub { sql(q{SELECT count(*) FROM outbox._backlog() WHERE subscription = 'failing'}) eq '0' }, 'the failing one'), 'one that has tried them all keeps them apart, and holds no full segment either');
my ($last) = sql(q{SELECT max(to_id::text) FROM outbox.gap WHERE subscription = 'paused'});
is(sql(q{SELECT reason, from_id, from_time = outbox._event_time(from_id), to_time = outbox._event_time(to_id), events > 0 FROM outbox.gap WHERE subscription = 'paused' ORDER BY id LIMIT 1}), "max_backlog_age|$ids[0]|t|t|t", 'a gap says why, from where to where, and how much');
is(sql(q{SELECT count(*) FROM outbox.gap WHERE subscription IN ('fine', 'other')}), '0', 'who keeps up, or has nothing in it, has none');
my ($first_kept) = grep { $_ gt $last } @ids;
ok(defined $first_kept, 'what is in the current segment is not given up');
is(status($ids[0], 'paused'), 'expired', 'event_status() says that an event in the gap has expired');
is(status($first_kept, 'paused'), 'pending', 'and that a later one has not');
is(status($ids[0], 'fine'), 'delivered', 'for who keeps up it is delivered');
is(status($ids[0], 'other'), 'unmatched', 'for whom it was not it is unmatched');
like(sql("SELECT detail FROM outbox.trace('$ids[0]') WHERE subscription = 'paused' AND what = 'expired'"), qr/outbox\.max_backlog_age \(gap \d+\)/, 'trace() tells why');
is(sql("SELECT count(*) FROM outbox.trace('$ids[0]') WHERE subscription = 'paused' AND what IN ('pending', 'delivered')"), '0', 'and nothing else');
is(sql(q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'failing' AND status IN ('retrying', 'pending')}) > 0, 1, 'what was tried before the gap goes on being tried');
my $tried = sql(q{SELECT event_id FROM outbox.delivery_status WHERE subscription = 'failing' ORDER BY event_id LIMIT 1});
is($tried, $ids[0], 'the first of them too');
is(status($ids[0], 'hanging') . ' ' . status($ids[1], 'hanging'), 'pending expired', 'what is in flight stays in flight, and what waits for it has expired');
like(health("status || ' ' || subject", 'gaps'), qr/^warning (failing, )?hanging, paused$/, 'health() tells of gaps, and whose they are');
like(health('action', 'gaps'), qr/outbox\.gap/, 'and where to look');
$reader->query('COMMIT');
ok(wait_for(sub { !there($ids[0]) }, 'the log being emptied'), 'the log is emptied');
is(sql("SELECT count(*) FROM outbox.kept_event WHERE id = '$tried'"), '1', 'an event that is being tried is kept');
is(status($tried, 'failing'), 'retrying', 'and known');

# Repaired: they go on behind the gap
my %row = map { $_ => 1 } split /\n/, sql(q{SELECT event_id FROM outbox.delivery_status WHERE subscription = 'failing'});
set('outbox.max_backlog_age' => '1h');
push @ids, fill(10);
sql(q{SELECT outbox.resume('paused')});
sql('SELECT outbox.alter_subscription(\'hanging\', url => ' . literal($receiver->url('/ok?hanging')) . ')');
$receiver->control(release => JSON::PP::true);
sql('SELECT outbox.alter_subscription(\'failing\', url => ' . literal($receiver->url('/ok?failing')) . ')');
check_partition('paused', '/ok?paused', @ids);
check_partition('hanging', '/ok?hanging', @ids[ 1 .. $#ids ]);
ok(wait_for(sub { sql(q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'hanging'}) eq '0' }, 'its end'), 'hanging: what was in flight is delivered');
is(join(' ', map { $_->{id} } $receiver->requests('/hang?hanging')), $ids[0], 'hanging: what was in flight came once');
wait_for(sub { !grep { !$receiver->of('/ok?failing', $_) } keys %row }, 'what was being tried');
is(scalar(grep { $receiver->of('/ok?failing', $_) == 1 } keys %row), scalar keys %row, 'failing: what was being tried is delivered, though it lies before the end of the gap');
check_partition('failing', '/ok?failing', grep { !$row{$_} } @ids);
is(scalar(grep { $receiver->of('/ok?fine', $_) == 1 } @ids), scalar @ids, 'who keeps up got everything, once');
sql(q{SELECT outbox.unsubscribe('failing'); SELECT outbox.unsubscribe('hanging'); SELECT outbox.unsubscribe('paused')});
is(health('status', 'gaps'), 'ok', 'health() minds gaps of subscriptions that there are');
cmp_ok(gaps('paused'), '>', 0, 'the record stays');
ok(wait_for(sub { health('value', 'backlog') == 0 || health('subject', 'backlog') eq 'other' }, 'backlog: ok'), 'nobody else is near the bound');

# ---- the gap and the moved cursor are one ------------------------------------------------------------------------------------------------

subscribe($node, 'atomic', $receiver->url('/ok?atomic'));
sql(q{SELECT outbox.pause('atomic')});
my @atomic = fill(30);
sql(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no gap can be written'; END $$});
sql(q{CREATE TRIGGER refuse BEFORE INSERT ON outbox.gap FOR EACH ROW EXECUTE FUNCTION refuse()});
set('outbox.max_backlog_age' => '2s');
ok(wait_for(sub { slurp_file($node->logfile) =~ /subscription "atomic" is too far behind/ }, 'giving up'), 'the gap is due');
ok(wait_for(sub { sql('SELECT error FROM outbox._worker()') =~ /no gap can be written/ }, 'the checkpoint failing'), 'and cannot be written');
another_round();
ok(there($atomic[0]), 'nothing is emptied for a gap that is not recorded');
$node->stop('immediate');
$node->append_conf('postgresql.auto.conf', "outbox.max_backlog_age = '1h'");
$node->start;
sql('DROP TRIGGER refuse ON outbox.gap');
worker_pid($node);
is(gaps('atomic'), '0', 'after a crash there is no gap');
ok(there($atomic[0]), 'and nothing is lost');
sql(q{SELECT outbox.resume('atomic')});
wait_for(sub { !grep { !$receiver->of('/ok?atomic', $_) } @atomic }, 'all of it');
is(scalar(grep { $receiver->of('/ok?atomic', $_) == 1 } @atomic), scalar @atomic, 'everything is delivered, once');
set('outbox.max_backlog_age' => '2s');
sql(q{SELECT outbox.pause('atomic')});
@atomic = fill(30);
ok(wait_for(sub { gaps('atomic') > 0 }, 'the gap'), 'a gap that can be written is');
set('outbox.max_backlog_age' => '1h');
$node->stop('immediate');
$node->start;
worker_pid($node);
sql(q{SELECT outbox.resume('atomic')});
check_partition('atomic', '/ok?atomic', @atomic);
sql(q{SELECT outbox.unsubscribe('atomic'); SELECT outbox.unsubscribe('other')});

# ---- by size ----------------------------------------------------------------------------------------------------------------------------

subscribe($node, 'large', $receiver->url('/ok?large'));
sql(q{SELECT outbox.pause('large')});
set('outbox.max_backlog_age' => '0', 'outbox.max_backlog_size' => '400kB');
my @large;
for (1 .. 8)
{
	push @large, fill(10);
	another_round();    # a segment each
}
ok(wait_for(sub { gaps('large') > 0 }, 'the gap'), 'a backlog that is too large is given up from its old end');
is(sql(q{SELECT string_agg(DISTINCT reason, ' ') FROM outbox.gap WHERE subscription = 'large'}), 'max_backlog_size', 'the gap says why');
my $size = "SELECT bytes FROM outbox._backlog() WHERE subscription = 'large'";
ok(wait_for(sub { sql($size) <= 400 * 1024 && sql('SELECT min(id::text) > (SELECT max(to_id::text) FROM outbox.gap) FROM outbox.event') eq 't' }, 'the rest being small enough'), 'what it goes on holding is smaller than the bound');
cmp_ok(sql($size), '>', 0, 'and not nothing: it is moved no further than need be');
sql(q{SELECT outbox.resume('large')});
check_partition('large', '/ok?large', @large);
is(scalar(grep { $receiver->of('/ok?fine', $_) == 1 } @large), scalar @large, 'who keeps up got everything');
sql(q{SELECT outbox.unsubscribe('large')});
set('outbox.max_backlog_size' => '0');

# ---- time in which nobody delivers does not count ---------------------------------------------------------------------------------------

set('outbox.max_backlog_age' => '20s');
ok(wait_for(sub { sql("SELECT clock_timestamp() - outbox._event_time('$dormant[-1]') > interval '20 s'", 'dormant') eq 't' }, 'old events'), 'events are older than the bound before anybody delivers');
sql('SELECT outbox.start()', 'dormant');
ok(wait_for(sub { health("COALESCE(subject, '')", 'backlog', {}, 'dormant') eq 'dormant' && health('value', 'backlog', {}, 'dormant') > 0 }, 'full segments'), 'they hold full segments');
cmp_ok(health('value', 'backlog', {}, 'dormant'), '<', 1, 'but as if they were young');
is(sql('SELECT count(*) FROM outbox.gap', 'dormant'), '0', 'nothing is given up');
is(sql('SELECT count(*) FROM outbox.outage', 'dormant'), '1', 'for that time was an outage');
sql('SELECT outbox.stop()', 'dormant');
wait_for(sub { sql('SELECT worker_pid IS NULL FROM outbox._worker()', 'dormant') eq 't' }, 'the worker being gone');
wait_for(sub { sql('SELECT max(at) < clock_timestamp() - interval \'2 s\' FROM outbox.cursor', 'dormant') eq 't' }, 'two seconds without a worker');
my $age = "SELECT outbox._running_since(outbox._event_time('$dormant[0]'))";
my $before = sql($age, 'dormant');
sql('SELECT outbox.start()', 'dormant');
worker_pid($node, 'dormant');
ok(wait_for(sub { sql("SELECT ($age) < '$before'::interval", 'dormant') eq 't' }, 'the second outage'), 'so was the time of a stop');
sql(q{SELECT outbox.resume('dormant')}, 'dormant');
wait_for(sub { !grep { !$receiver->of('/ok?dormant', $_) } @dormant }, 'all of them');
is(scalar(grep { $receiver->of('/ok?dormant', $_) == 1 } @dormant), scalar @dormant, 'all is delivered that would have been given up');

# ---- a give_up_after that the bound would cut short -------------------------------------------------------------------------------------

my (undef, undef, $error) = $node->psql('postgres', q{SELECT outbox.subscribe('patient', 'https://example.com/', give_up_after => '1 h')});
like($error, qr/invalid value for subscription option "give_up_after".*outbox\.max_backlog_age.*HINT:  Choose a shorter time/s, 'give_up_after above the bound is refused, with a hint');
is(scalar(() = slurp_file($node->logfile) =~ / PANIC: /g), 0, 'nobody crashed');
done_testing;
