# Guarantee 5: the events of a key are delivered in order, one at a time; a failed one holds back its key and no other.
# Alone: it measures that keys are served side by side.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);

# Load on many keys against a receiver that fails a third of all requests
my $path = '/random/7/33?load';
my $ledger = Outbox::Ledger->new;
subscribe($node, 'load', $receiver->url($path), types => ['load.made'], retry_base => '20 ms', max_attempts => 100, max_in_flight => 20);
my $producers = start_producers($node, count => 3, transactions => 700, keys => 8);
finish_producers($producers, $ledger);
is($ledger->count, 3 * 630, 'the producers committed what they should');
wait_for(sub { $ledger->complete($receiver, $path) }, 'all of the load', 180);
check_ledger($ledger, $receiver, $path);
cmp_ok(scalar $receiver->requests($path), '>', 1.2 * $ledger->count, 'and many requests were failed');
cmp_ok(scalar(grep { defined $_->{overlap} } $receiver->requests($path)), '==', 0, 'never two requests in flight for one key');

# A key that fails holds back itself and no other
$receiver->control(script => 'keys', keys => { bad => 503 }, then => 200);
subscribe($node, 'keys', $receiver->url('/script/keys'), types => ['keys'], max_attempts => 1000);
my @bad = map { enqueue($node, 'keys', "$_", key => 'bad') } 1 .. 5;
my @good = map { enqueue($node, 'keys', "$_", key => "good" . $_ % 3) } 1 .. 30;
my @none = map { enqueue($node, 'keys', "$_") } 1 .. 5;
wait_status($node, $_, 'keys', 'delivered') for @good, @none;
my %sent_bad = map { $_->{id} => 1 } grep { $_->{key} eq 'bad' } $receiver->requests('/script/keys');
is_deeply([ sort keys %sent_bad ], [ $bad[0] ], 'of the key that fails only the first event was tried');
wait_for(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM outbox.blocked_key WHERE subscription = 'keys' AND key = 'bad'}) eq '1' }, 'blocked_key');
is($node->safe_psql('postgres', q{SELECT head_event_id FROM outbox.blocked_key WHERE subscription = 'keys' AND key = 'bad'}), $bad[0], 'blocked_key names the event that holds the others back');
wait_status($node, $bad[0], 'keys', 'retrying');
$receiver->control(script => 'keys', then => 200);
wait_status($node, $_, 'keys', 'delivered') for @bad;
is(join(' ', map { $_->{bytes} } grep { $_->{key} eq 'bad' && $_->{status} == 200 } $receiver->requests('/script/keys')), '1 2 3 4 5', 'repaired, they come in order');
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.blocked_key}), '0', 'and no key is blocked');

# A dead letter lets its key go on (on_dead = skip, the default)
$receiver->control(script => 'skip', answers => [ 500, 500 ], then => 200);
subscribe($node, 'skip', $receiver->url('/script/skip'), types => ['skip'], max_attempts => 2);
my @skip = map { enqueue($node, 'skip', "$_", key => 'k') } 1 .. 3;
wait_status($node, $skip[0], 'skip', 'dead');
wait_status($node, $_, 'skip', 'delivered') for @skip[ 1, 2 ];
is(join(' ', map { $_->{bytes} } $receiver->requests('/script/skip')), '1 1 2 3', 'after a dead letter its key goes on');

# Keys wait for their own requests only: while no answer comes, all keys at a time
subscribe($node, 'slow', $receiver->url('/hang?slow'), types => ['slow'], timeout => '10 min');
$node->safe_psql('postgres', q{SELECT outbox.enqueue('slow', to_jsonb(i), key => 'k' || i % 5) FROM generate_series(1, 10) i});
ok(wait_for(sub { $receiver->requests('/hang?slow') == 5 }, 'five keys'), 'slow answers: five keys side by side');
wait_for(sub { $receiver->control(release => JSON::PP::true()); $receiver->delivered('/hang?slow') == 10 }, 'ten slow answers');
my @slow = $receiver->requests('/hang?slow');
is(scalar(grep { defined $_->{overlap} } @slow), 0, 'and one at a time for each key');

# Without ordering, keys do not matter
$receiver->control(script => 'free', answers => [503], then => 200);
subscribe($node, 'free', $receiver->url('/script/free'), types => ['free'], ordering => 'none', retry_base => '5 s');
my @free = map { enqueue($node, 'free', "$_", key => 'k') } 1 .. 3;
wait_status($node, $_, 'free', 'delivered') for @free;
is((map { $_->{bytes} } $receiver->delivered('/script/free'))[-1], '1', 'ordering = none: the failed event is overtaken');

# Late commits under one key: the row lock that the producers hold decides, not the ids
$node->safe_psql('postgres', q{CREATE TABLE account (id int PRIMARY KEY, n int); INSERT INTO account VALUES (1, 0)});
subscribe($node, 'held', $receiver->url('/ok?held'), types => ['held']);
my ($one, $two) = (session($node), session($node));
$one->query(q{BEGIN; UPDATE account SET n = n + 1 WHERE id = 1});
$two->query(q{BEGIN});
$two->send(q{UPDATE account SET n = n + 1 WHERE id = 1; SELECT outbox.enqueue('held', '2', key => 'a1'); COMMIT});
wait_for(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'}) eq '1' }, 'the second producer waiting for the row');
$one->query(q{SELECT outbox.enqueue('held', '1', key => 'a1'); COMMIT});
$two->receive;
wait_for(sub { $receiver->delivered('/ok?held') == 2 }, 'both');
is(join(' ', map { $_->{bytes} } $receiver->requests('/ok?held')), '1 2', 'producers that hold the row are delivered in the order in which they held it');

# A key with more events waiting than max_blocked: the cursor waits, no row per event
$receiver->control(script => 'hot', keys => { hot => 503 }, then => 200);
subscribe($node, 'hot', $receiver->url('/script/hot'), types => ['hot'], max_blocked => 20, retry_base => '200 ms', max_attempts => 1000);
my @hot = split /\n/, $node->safe_psql('postgres', q{SELECT outbox.enqueue('hot', to_jsonb(i), key => CASE WHEN i % 50 = 0 THEN 'cold' ELSE 'hot' END) FROM generate_series(1, 1000) i});
wait_status($node, $hot[0], 'hot', 'retrying');
wait_for(sub { $receiver->requests('/script/hot') >= 5 }, 'some attempts of the hot key');
cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'hot'}), '<=', 20, 'a hot key writes no more than max_blocked rows');
$receiver->control(script => 'hot', then => 200);
wait_status($node, $hot[-1], 'hot', 'delivered');
wait_for(sub { $receiver->delivered('/script/hot') >= 1000 }, 'all of the hot key', 120);
is(join(' ', map { $_->{bytes} } grep { $_->{key} eq 'hot' && $_->{status} == 200 } $receiver->requests('/script/hot')), join(' ', grep { $_ % 50 } 1 .. 1000), 'and all of it arrives in order');

done_testing;
