# What an operator does while events are in flight, or holds locked in an open transaction, is respected at once and stops nobody else.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;

sub requests { my ($path) = @_; return scalar(my @list = $receiver->requests($path)) }
sub sql { return $node->safe_psql('postgres', $_[0]) }

# A pause while requests hang, with an event of the same key waiting: each event once
subscribe($node, 'paused', $receiver->url('/hang?paused'), types => ['pause.*'], max_in_flight => 3, timeout => '10 min');
my @ids = split /\n/, sql(join ' ', 'BEGIN;', (map { "SELECT outbox.enqueue('pause.made', '$_->[0]', key => '$_->[1]');" } [ 1, 'a' ], [ 2, 'a' ], [ 3, 'b' ], [ 4, 'c' ], [ 5, 'a' ], [ 6, 'd' ]), 'COMMIT');
wait_for(sub { requests('/hang?paused') == 3 }, 'three in flight');
sql(q{SELECT outbox.pause('paused')});
$receiver->control(release => JSON::PP::true());
wait_for(sub { sql(q{SELECT in_flight FROM outbox._worker()}) == 0 }, 'all answered');
is(requests('/hang?paused'), 3, 'paused: nothing more is sent');
sql(q{SELECT outbox.resume('paused')});
wait_for(sub { $receiver->control(release => JSON::PP::true()); $receiver->delivered('/hang?paused') == 6 }, 'the rest');
wait_status($node, $_, 'paused', 'delivered') for @ids;
is(requests('/hang?paused'), 6, 'resumed: every event once');
is(join(' ', map { $_->{bytes} } grep { $_->{key} eq 'a' } $receiver->requests('/hang?paused')), '1 2 5', 'in order');

# Discarded while its retry is in flight: that was the last
subscribe($node, 'discarded', $receiver->url('/script/discard'), types => ['discard.*'], retry_base => '50 ms');
$receiver->control(script => 'discard', answers => [500], then => 'hang', per => 'path');
my $id = enqueue($node, 'discard.made', 1, key => 'a');
wait_for(sub { requests('/script/discard') == 2 }, 'the retry is in flight');
is(sql("SELECT outbox.discard(ids => ARRAY['$id']::uuid[])"), 1, 'discarded in flight');
$receiver->control(script => 'discard', answers => [], then => 200, per => 'path');
$receiver->control(release => JSON::PP::true());
my $next = enqueue($node, 'discard.made', 2, key => 'a');
wait_status($node, $next, 'discarded', 'delivered');
is(scalar(grep { $_->{id} eq $id } $receiver->requests('/script/discard')), 2, 'it is not sent again, and its key goes on');

# A row locked in an open transaction holds up nobody, and is dealt with when it is free
subscribe($node, 'locked', $receiver->url('/script/locked'), types => ['lock.*'], retry_base => '50 ms');
$receiver->control(script => 'locked', answers => [500], then => 200, per => 'path');
$id = enqueue($node, 'lock.made', 1);
my $session = session($node);
wait_for(sub { sql("SELECT count(*) FROM outbox.delivery WHERE event_id = '$id'") == 1 || requests('/script/locked') > 1 }, 'it failed once');
$session->query("BEGIN; SELECT 1 FROM outbox.delivery FOR UPDATE");
subscribe($node, 'newcomer', $receiver->url('/ok?newcomer'), types => ['lock.*'], starting => 'earliest');
$next = enqueue($node, 'lock.made', 2);
wait_status($node, $next, 'locked', 'delivered');
wait_status($node, $_, 'newcomer', 'delivered') for $id, $next;
my $before = requests('/script/locked');
sql(q{SELECT outbox.redrive(reason => 'max_attempts')});	# makes the worker look at all rows
$session->query('COMMIT');
wait_for(sub { sql("SELECT count(*) FROM outbox.delivery WHERE event_id = '$id'") == 0 }, 'the row goes when it is free');
is(scalar(grep { $_->{id} eq $id && $_->{status} == 200 } $receiver->requests('/script/locked')), 1, 'and its event was delivered once');

# Of two dead letters of a key that is held, redriving one does not send the other
subscribe($node, 'held', $receiver->url('/script/held'), types => ['held.*'], max_attempts => 1, on_dead => 'skip');
$receiver->control(script => 'held', answers => [], then => 500, per => 'path');
@ids = map { enqueue($node, 'held.made', $_, key => 'a') } 1, 2;
wait_for(sub { sql(q{SELECT count(*) FROM outbox.dead_letter WHERE subscription = 'held'}) == 2 }, 'two dead letters');
sql(q{SELECT outbox.alter_subscription('held', on_dead => 'block')});
sql(q{SELECT pg_terminate_backend(worker_pid) FROM outbox._worker()});
$receiver->control(script => 'held', answers => [], then => 200, per => 'path');
sql("SELECT outbox.redrive(ids => ARRAY['$ids[0]']::uuid[])");
wait_status($node, $ids[0], 'held', 'delivered');
my $third = enqueue($node, 'held.made', 3, key => 'a');
wait_status($node, enqueue($node, 'held.made', 4, key => 'b'), 'held', 'delivered');
is(sql(qq{SELECT status FROM outbox.event_status('$ids[1]') WHERE subscription = 'held'}), 'dead', 'the other one stays dead');
is(scalar(grep { $_->{id} eq $third } $receiver->requests('/script/held')), 0, 'and holds its key');
sql("SELECT outbox.discard(ids => ARRAY['$ids[1]']::uuid[])");
wait_status($node, $third, 'held', 'delivered');

# A segment locked for long stops reading, not recording; and the worker does not spin
$session->query('BEGIN; LOCK TABLE ONLY outbox.event_0 IN ACCESS EXCLUSIVE MODE');
my $turns = sql('SELECT turn_at FROM outbox._worker()');
wait_for(sub { sql("SELECT turn_at > '$turns' FROM outbox._worker()") eq 't' }, 'the worker goes on while a segment is locked');
$session->query('ROLLBACK');
wait_status($node, enqueue($node, 'lock.made', 3), 'newcomer', 'delivered');

# What went back to the log while nothing may be sent is still ahead of the subscription, however often that happens
subscribe($node, 'behind', $receiver->url('/hang?behind'), types => ['behind.*'], max_in_flight => 1, timeout => '10 min');
$session->query(q{SELECT count(outbox.enqueue('behind.made', to_jsonb(i))) FROM generate_series(1, 300) AS i});
wait_for(sub { requests('/hang?behind') == 1 }, 'the first in flight');
for (1 .. 3)
{
	sql(q{SELECT outbox.pause('behind')});
	ok(wait_for(sub { sql(q{SELECT lag_events BETWEEN 299 AND 300 FROM outbox.subscription_status WHERE name = 'behind'}) eq 't' }, 'its lag'), 'paused: all that waits is its lag')
		or diag 'it is: ' . sql(q{SELECT lag_events FROM outbox.subscription_status WHERE name = 'behind'});
	sql(q{SELECT outbox.resume('behind')});
	wait_for(sub { sql(q{SELECT lag_events BETWEEN 299 AND 300 FROM outbox.subscription_status WHERE name = 'behind'}) eq 't' }, 'its lag') or diag 'it is: ' . sql(q{SELECT lag_events FROM outbox.subscription_status WHERE name = 'behind'});
}
sql(q{SELECT outbox.unsubscribe('behind')});

# A delivery whose event is gone for good is a dead letter, and written down though nothing else happens
subscribe($node, 'bereft', $receiver->url('/ok?bereft'), types => ['bereft.*']);
wait_status($node, enqueue($node, 'bereft.made', 1), 'bereft', 'delivered');
sql(q{INSERT INTO outbox.delivery (subscription_id, event_id, status, attempts, next_attempt_at) SELECT id, '01900000-0000-7000-8000-000000000000', 'retrying', 1, clock_timestamp() + interval '3 s' FROM outbox.subscription WHERE name = 'bereft'});
sql(q{SELECT outbox.redrive(reason => 'max_attempts')});	# makes the worker look at all rows
ok(wait_for(sub { sql(q{SELECT status || ' ' || reason FROM outbox.delivery WHERE event_id = '01900000-0000-7000-8000-000000000000'}) eq 'dead internal' }, 'a dead letter'), 'an event that no longer exists is a dead letter');

# ALTER DATABASE … SET role does not concern the worker
sql('CREATE ROLE somebody');
sql('ALTER DATABASE postgres SET role = somebody');
$node->restart;
$node->safe_psql('postgres', 'RESET role; SET role = none; ALTER DATABASE postgres RESET role');
wait_status($node, enqueue($node, 'lock.made', 4), 'newcomer', 'delivered');

done_testing();
