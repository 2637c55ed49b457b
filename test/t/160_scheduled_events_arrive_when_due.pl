# A scheduled event is delivered when it is due, not before, under the id that enqueue() returned, and enters the order of its key then.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { return $node->safe_psql('postgres', $_[0]) }
# enqueue(), due in so many seconds
sub schedule
{
	my ($seconds, $type, $payload, $key) = @_;
	return sql('SELECT outbox.enqueue(' . join(', ', literal($type), literal($payload), 'key => ' . literal($key), "deliver_at => clock_timestamp() + interval '$seconds s'") . ')');
}
sub bytes { my ($path) = @_; return join ' ', map { $_->{bytes} } $receiver->delivered($path) }
sub wait_bytes
{
	my ($path, $expected, $what) = @_;
	wait_for(sub { bytes($path) eq $expected }, $what);
	is(bytes($path), $expected, $what);
}

# Scheduled in another order than due, in one transaction and in many; the worker sleeps until the earliest it was told of, and is told of earlier ones
subscribe($node, 'due', $receiver->url('/ok?due'), types => ['due']);
my %at;
my @in = (11, 9.5, 10.5, 9, 10);    # time enough to look at them before
my @ids = map {
	my ($id, $at) = split /\|/, sql("SELECT s.id, EXTRACT(epoch FROM s.deliver_at) FROM outbox.scheduled AS s WHERE s.id = " .
		literal(schedule($_, 'due', $_)));
	$at{$id} = $at;
	$id } @in;
is(scalar keys %at, 5, 'all of them wait');
is(sql("SELECT string_agg(DISTINCT status, ',') FROM unnest('{" . join(',', @ids) . "}'::uuid[]) AS i (id) CROSS JOIN LATERAL outbox.event_status(i.id)"), 'scheduled', 'event_status says so');
wait_for(sub { $receiver->delivered('/ok?due') == 5 }, 'all that was scheduled');
my @requests = $receiver->requests('/ok?due');
is_deeply([ map { $_->{id} } @requests ], [ sort { $at{$a} <=> $at{$b} } @ids ], 'delivered in the order of deliver_at, under the ids that enqueue() returned');
is(scalar(grep { $_->{at} < $at{ $_->{id} } } @requests), 0, 'none before its time');
diag 'late by ' . join ', ', map { sprintf '%.0f ms', 1000 * ($_->{at} - $at{ $_->{id} }) } @requests;
is(scalar(grep { $_->{headers}{'ce-id'} ne $_->{id} } @requests), 0, 'webhook-id is ce-id');
my $one = $requests[0];
is(sql("SELECT abs(EXTRACT(epoch FROM outbox._event_time('$one->{id}') - '$one->{headers}{'ce-time'}'::timestamptz)) < 0.01"), 't', 'ce-time is the time of enqueue()');
wait_status($node, $_, 'due', 'delivered') for @ids;
is(sql("SELECT string_agg(what, ' ') FROM outbox.trace('$one->{id}')"), 'enqueued due matched attempt delivered', 'trace tells its life');
is(sql("SELECT outbox.cancel('$one->{id}')"), 'f', 'too late to cancel');
is(sql('SELECT count(*) FROM outbox.scheduled'), 0, 'nothing waits any more');

# Failures, dead letters and operators know it by the same id
$receiver->control(script => 'fails', then => 503);
subscribe($node, 'fails', $receiver->url('/script/fails'), types => ['fails'], max_attempts => 2);
my $fails = schedule(0.3, 'fails', 1, 'k');
wait_status($node, $fails, 'fails', 'dead');
is(sql(q{SELECT event_id || ' ' || type || ' ' || key FROM outbox.dead_letter}), "$fails fails k", 'dead_letter');
is(sql("SELECT count(*) FROM outbox.attempt WHERE event_id = '$fails'"), 2, 'attempt');
$receiver->control(script => 'fails', then => 200);
is(sql("SELECT outbox.redrive(ids => '{$fails}', types => '{fails}')"), 1, 'redrive');
wait_status($node, $fails, 'fails', 'delivered');
is(scalar(grep { $_->{id} ne $fails } $receiver->requests('/script/fails')), 0, 'all attempts under the same id');
is(scalar(keys %{ { map { $_->{sha256} => 1 } $receiver->requests('/script/fails') } }), 1, 'and with the same bytes');

# Pulled, it has that id too
sql(q{SELECT outbox.subscribe('pulls', types => '{pulls}')});
my $pulled = schedule(0.3, 'pulls', 7);
wait_status($node, $pulled, 'pulls', 'pending');
my $lease = wait_for(sub { sql(q{SELECT event_id || ' ' || payload || ' ' || token FROM outbox.pull('pulls')}) }, 'a lease');
like($lease, qr/^$pulled 7 /, 'pull');
is(sql("SELECT outbox.ack('pulls', '{$pulled}', '" . (split / /, $lease)[2] . "')"), 1, 'ack');
wait_status($node, $pulled, 'pulls', 'delivered');

# Of a key it is behind what was enqueued before it was due, also when that was read back after a restart
$receiver->control(script => 'order', then => 503);
subscribe($node, 'order', $receiver->url('/script/order'), types => ['order'], retry_base => '1 s', max_attempts => 1000);
my $scheduled = schedule(5, 'order', '"scheduled"', 'k');
my $first = enqueue($node, 'order', '"first"', key => 'k');
ok($scheduled lt $first, 'it has the lower id');
wait_for(sub { sql("SELECT count(*) FROM outbox.unscheduled WHERE id = '$scheduled'") }, 'it became due');
my $last = enqueue($node, 'order', '"last"', key => 'k');
wait_status($node, $_, 'order', 'blocked') for $scheduled, $last;
is(sql(q{SELECT head_event_id FROM outbox.blocked_key}), $first, 'blocked_key names the event that holds it back');
is(sql(q{SELECT lag_seconds < 60 FROM outbox.subscription_status WHERE name = 'order'}), 't', 'lag counts from when it was due');
$node->restart;
worker_pid($node);
$receiver->control(script => 'order', then => 200);
wait_bytes('/script/order', '"first" "scheduled" "last"', 'in the order in which they entered the log');
wait_status($node, $_, 'order', 'delivered') for $first, $scheduled, $last;

# Large payloads, which are moved as they are stored
subscribe($node, 'large', $receiver->url('/ok?large'), types => ['large']);
my $large = sql(q{SELECT outbox.enqueue('large', to_jsonb(string_agg(md5(i::text), '')), deliver_at => clock_timestamp() + interval '300 ms') FROM generate_series(1, 10000) AS i});
wait_status($node, $large, 'large', 'delivered');
is(length(($receiver->requests('/ok?large'))[0]{bytes}), 320002, 'a large payload');

# Cancelled while it becomes due, but not committed: it is not waited for, nor is anything else; rolled back, it is delivered
subscribe($node, 'cancel', $receiver->url('/ok?cancel'), types => ['cancel']);
my ($kept, $gone, $other) = map { schedule(8, 'cancel', "\"$_\"") } qw(kept gone other);
my $session = session($node);
is($session->query("BEGIN; SELECT outbox.cancel('$kept')"), 't', 'cancelled, not committed');
is(sql("SELECT outbox.cancel('$gone')"), 't', 'cancelled');
wait_bytes('/ok?cancel', '"other"', 'others are not held up');
$session->query('ROLLBACK');
wait_bytes('/ok?cancel', '"other" "kept"', 'rolled back, it is delivered');
is(sql("SELECT status FROM outbox.event_status('$gone')"), 'cancelled', 'and what was cancelled is not');

# Prepared transactions: committed after the event was due
subscribe($node, 'prepared', $receiver->url('/ok?prepared'), types => ['prepared']);
sql(q{BEGIN; SELECT outbox.enqueue('prepared', '1', deliver_at => clock_timestamp() + interval '200 ms'); PREPARE TRANSACTION 'p'});
my $marker = schedule(0.5, 'prepared', '"marker"');
wait_bytes('/ok?prepared', '"marker"', 'not before it is committed');
sql(q{COMMIT PREPARED 'p'});
wait_bytes('/ok?prepared', '"marker" 1', 'then at once');

# Nobody told of this one: found all the same
my $unheard = schedule(86400, 'due', '"unheard"');
sql("UPDATE outbox.scheduled SET deliver_at = clock_timestamp() WHERE id = '$unheard'");
wait_status($node, $unheard, 'due', 'delivered');

# One that cannot be moved (a DBA's index refuses it) stays, and holds up no other; repaired, it comes
sql(q{DO $$ BEGIN FOR i IN 0 .. 15 LOOP EXECUTE format('CREATE INDEX picky_%s ON outbox.event_%s ((1 / (CASE type WHEN ''poison'' THEN 0 ELSE 1 END)))', i, i); END LOOP; END $$});
subscribe($node, 'poison', $receiver->url('/ok?poison'), types => [ 'poison', 'cure' ]);
my ($poison, @cures) = (schedule(0.3, 'poison', 1), map { schedule($_, 'cure', 2) } 0.2, 0.3, 0.5);
wait_status($node, $_, 'poison', 'delivered') for @cures;
is(sql("SELECT status FROM outbox.event_status('$poison')"), 'scheduled', 'what cannot be moved stays, and holds up no other');
my $fine = schedule(0.2, 'cure', 3);
wait_status($node, $fine, 'poison', 'delivered');
like(slurp_file($node->logfile), qr/scheduled event $poison cannot be delivered: division by zero/, 'the server log tells');
sql(q{DO $$ BEGIN FOR i IN 0 .. 15 LOOP EXECUTE format('DROP INDEX outbox.picky_%s', i); END LOOP; END $$});
wait_status($node, $poison, 'poison', 'delivered');

# What came from another installation (as logical replication brings it) waits for start()
my $foreign = schedule(86400, 'due', '"foreign"');
sql("UPDATE outbox.scheduled SET epoch = epoch # 1, deliver_at = clock_timestamp() WHERE id = '$foreign'");
my $own = schedule(0.4, 'due', '"own"');
wait_status($node, $own, 'due', 'delivered');
is(sql("SELECT status FROM outbox.event_status('$foreign')"), 'scheduled', 'of another installation: it waits');
is(sql(q{SELECT value FROM outbox.health() WHERE check_name = 'scheduled_overdue'}), 0, 'and is not missed');
sql('SELECT outbox.start()');
wait_status($node, $foreign, 'due', 'delivered');

# Nothing moves while delivery is stopped; it does when it is started
sql('SELECT outbox.stop()');
wait_for(sub { sql('SELECT worker_pid IS NULL FROM outbox._worker()') eq 't' }, 'stopped');
my $late = schedule(0.2, 'due', '"late"');
wait_for(sub { sql("SELECT deliver_at < clock_timestamp() FROM outbox.scheduled WHERE id = '$late'") eq 't' }, 'it is overdue');
is(sql("SELECT status FROM outbox.event_status('$late')"), 'scheduled', 'without a worker it waits');
sql('SELECT outbox.start()');
wait_status($node, $late, 'due', 'delivered');

# The record of what became which is kept as long as the event is
is(sql(q{SELECT count(*) FROM outbox.unscheduled WHERE status = 'moved'}), sql('SELECT count(*) FROM outbox.event WHERE scheduled_id IS NOT NULL'), 'a record for each');
$node->append_conf('postgresql.conf', "outbox.event_retention = 0\noutbox.segment_age = 1\noutbox.maintenance_interval = 1\n");
$node->reload;
wait_for(sub { enqueue($node, 'tick', 1); sql('SELECT count(*) FROM outbox.event WHERE scheduled_id IS NOT NULL') == 0 }, 'the segments are emptied');
wait_for(sub { sql('SELECT count(*) FROM outbox.maintain()'); sql('SELECT count(*) FROM outbox.unscheduled') == 0 }, 'then the records go');

$node->stop;
done_testing();
