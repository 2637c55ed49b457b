# Batches: how they are formed, that a key's events keep their order in them, and that an event its receiver cannot digest costs its neighbours nothing.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);

sub enqueue_many { my ($type, $n, $key) = @_; return split /\n/, $node->safe_psql('postgres', "SELECT outbox.enqueue('$type', to_jsonb(i), key => $key) FROM generate_series(1, $n) i") }

sub wait_delivered
{
	my ($subscription, @events) = @_;
	my $list = join ',', @events;
	wait_for(sub { value("SELECT bool_and(s.status = 'delivered') FROM unnest('{$list}'::uuid[]) AS i, outbox.event_status(i) AS s WHERE s.subscription = '$subscription'") eq 't' },
		"all being delivered to $subscription");
}
sub sizes { my ($path) = @_; return map { scalar @{ $_->{events} } } $receiver->requests($path) }
sub ids { return join ' ', map { $_->{id} } @_ }
sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub attempts { my ($where) = @_; return value("SELECT string_agg(attempt || ' ' || COALESCE(status_code::text, outcome), ', ' ORDER BY at) FROM outbox.attempt WHERE $where") }

# ---- how a batch is formed ----

subscribe($node, 'plain', $receiver->url('/ok?plain'), types => ['plain'], format => 'batch', batch_size => 100, batch_linger => '10 s', max_in_flight => 1);
my @ids = enqueue_many('plain', 250, 'NULL');
wait_for(sub { sizes('/ok?plain') >= 2 }, 'two full batches');
is(join(' ', sizes('/ok?plain')), '100 100', 'full batches go at once, what does not fill one waits');
my ($waiting) = $ids[200];
is(value("SELECT status FROM outbox.event_status('$waiting') WHERE subscription = 'plain'"), 'pending', 'and is pending');
push @ids, enqueue_many('plain', 50, 'NULL');
wait_status($node, $ids[-1], 'plain', 'delivered', 8);
is(join(' ', sizes('/ok?plain')), '100 100 100', 'until there are enough');
is(ids($receiver->delivered_events('/ok?plain')), join(' ', @ids), 'everything once, in order');
is(value(q{SELECT count(*), count(DISTINCT event_id), min(attempt), max(attempt) FROM outbox.attempt WHERE subscription = 'plain' AND outcome = 'delivered' AND status_code = 200}), '300|300|1|1',
	'each event has its attempt');
is(value(q{SELECT string_agg(DISTINCT response, ',') FROM outbox.attempt WHERE subscription = 'plain'}), "ok\n", 'with the answer');

$node->safe_psql('postgres', q{SELECT outbox.alter_subscription('plain', batch_linger => '0')});
my $alone = enqueue($node, 'plain', '1');
wait_status($node, $alone, 'plain', 'delivered', 8);
is((sizes('/ok?plain'))[-1], 1, 'without linger nothing waits');
$node->safe_psql('postgres', q{SELECT outbox.alter_subscription('plain', batch_linger => '300 ms')});
$alone = enqueue($node, 'plain', '1');
wait_status($node, $alone, 'plain', 'delivered', 8);
is((sizes('/ok?plain'))[-1], 1, 'with a short one it waits so long');

# By bytes: a batch is never larger, but for a single event
subscribe($node, 'bytes', $receiver->url('/ok?bytes'), types => ['bytes'], format => 'batch', batch_bytes => 2048, batch_linger => '100 ms');
@ids = split /\n/, value(q{SELECT outbox.enqueue('bytes', to_jsonb(repeat('x', CASE WHEN i = 20 THEN 5000 ELSE 100 * (i % 4) END))) FROM generate_series(1, 40) i});
wait_delivered('bytes', @ids);
my @over = grep { length $_->{bytes} > 2048 } $receiver->requests('/ok?bytes');
is(join(' ', map { scalar @{ $_->{events} } } @over), '1', 'only one that is larger alone is larger');
is(join(' ', sort(map { $_->{id} } $receiver->delivered_events('/ok?bytes'))), join(' ', sort @ids), 'all of them once');
cmp_ok(scalar $receiver->requests('/ok?bytes'), '<=', 14, 'in few requests');
my @small = grep { length $_->{bytes} < 1200 } $receiver->requests('/ok?bytes');
cmp_ok(scalar @small, '<=', 3, 'which are well filled');

# Events with different headers are not in one batch: headers are the request's
subscribe($node, 'headers', $receiver->url('/ok?headers'), types => ['headers'], format => 'batch', batch_linger => '100 ms');
@ids = split /\n/, value(q{SELECT outbox.enqueue('headers', to_jsonb(i), headers => CASE WHEN i % 4 < 2 THEN jsonb_build_object('x-shop', (i % 4)::text) END) FROM generate_series(0, 11) i});
wait_delivered('headers', @ids);
my %shops = map { my $request = $_; map { $_->{id} => $request->{headers}{'x-shop'} // '-' } @{ $request->{events} } } $receiver->requests('/ok?headers');
is(join(' ', map { $shops{$_} } @ids), '0 1 - - ' x 2 . '0 1 - -', 'each event with its headers');
is((map { $_->{headers}{'content-type'} } $receiver->requests('/ok?headers'))[0], 'application/cloudevents-batch+json; charset=utf-8', 'content type');

# ---- keys ----

# One key fills batches, one at a time; max_in_flight counts requests
subscribe($node, 'one', $receiver->url('/slow/50?one'), types => ['one'], format => 'batch', batch_size => 40);
@ids = enqueue_many('one', 200, q{'k'});
wait_status($node, $ids[-1], 'one', 'delivered');
is(ids($receiver->delivered_events('/slow/50?one')), join(' ', @ids), 'one key: in order');
cmp_ok(scalar $receiver->requests('/slow/50?one'), '<=', 7, 'and in batches');
is(scalar(grep { defined $_->{overlap} } $receiver->requests('/slow/50?one')), 0, 'one at a time');

subscribe($node, 'two', $receiver->url('/hang?two'), types => ['two'], format => 'batch', batch_size => 10, max_in_flight => 2, timeout => '1 min');
@ids = enqueue_many('two', 50, q{'k' || i % 5});
wait_for(sub { $receiver->requests('/hang?two') == 2 }, 'two requests');
is(join(' ', sizes('/hang?two')), '10 10', 'max_in_flight counts requests, each of a full batch');
wait_for(sub { value(q{SELECT in_flight FROM outbox.subscription_status WHERE name = 'two'}) eq '20' }, 'in_flight counts events');
$receiver->control(release => 1);
wait_for(sub { $receiver->control(release => 1); $receiver->delivered_events('/hang?two') == 50 }, 'all of them');

# ---- failures ----

# One event that the receiver refuses: the others are delivered at once, it alone is retried
$receiver->control(script => 'poison', keys => { bad => 422 }, then => 200);
subscribe($node, 'poison', $receiver->url('/script/poison'), types => ['poison'], format => 'batch', batch_linger => '500 ms', retry_base => '1 h');
@ids = enqueue_many('poison', 100, q{CASE WHEN i = 37 THEN 'bad' WHEN i > 90 THEN 'k' END});
wait_delivered('poison', @ids[ 0 .. 35, 37 .. 99 ]);
wait_status($node, $ids[36], 'poison', 'retrying');
is(value("SELECT attempts, last_status_code FROM outbox.event_status('$ids[36]') WHERE subscription = 'poison'"), '1|422', 'the one that is refused had one attempt');
is(join(' ', map { scalar @{ $_->{events} } } grep { ids(@{ $_->{events} }) =~ $ids[36] } $receiver->requests('/script/poison')), '100 50 25 13 6 3 2 1', 'the batch was halved until it was alone');
is(scalar $receiver->requests('/script/poison'), 15, 'and its other halves went once');
like(attempts("subscription = 'poison' AND event_id = '$ids[36]'"), qr/^1 422(, 1 422){7}$/, 'each exchange is logged, all of one attempt');
is(value(q{SELECT count(DISTINCT event_id) FROM outbox.attempt WHERE subscription = 'poison' AND outcome = 'delivered' AND attempt = 1}), '99', 'the first attempt of the others delivered them');
my %delivered;
$delivered{ $_->{id} }++ for $receiver->delivered_events('/script/poison');
is(scalar(grep { $_ > 1 } values %delivered), 0, 'nothing was delivered twice');
my @of_key = grep { my $id = $_->{id}; grep { $_ eq $id } @ids[ 90 .. 99 ] } $receiver->delivered_events('/script/poison');
is(ids(@of_key), join(' ', @ids[ 90 .. 99 ]), 'a key kept its order');

# Within a key the refused event holds back those behind it, and nobody else
$receiver->control(script => 'key', keys => { bad => 500 }, then => 200);
subscribe($node, 'key', $receiver->url('/script/key'), types => ['key'], format => 'batch', batch_size => 16, batch_linger => '500 ms', retry_base => '100 ms', max_attempts => 1000);
@ids = enqueue_many('key', 16, q{CASE WHEN i % 2 = 0 THEN 'bad' ELSE 'good' END});
wait_delivered('key', @ids[ map { 2 * $_ } 0 .. 7 ]);
wait_status($node, $ids[1], 'key', 'retrying');
wait_for(sub { value(q{SELECT head_event_id || ' ' || waiting FROM outbox.blocked_key WHERE subscription = 'key'}) eq "$ids[1] 7" }, 'the others of its key being blocked');
wait_for(sub { value(q{SELECT attempts FROM outbox.delivery_status WHERE event_id = '} . $ids[1] . q{'}) >= 3 }, 'some retries');
$receiver->control(script => 'key', then => 200);
wait_delivered('key', @ids);
is(ids(grep { $_->{key} eq 'bad' } $receiver->delivered_events('/script/key')), ids(map { { id => $_ } } @ids[ map { 2 * $_ + 1 } 0 .. 7 ]), 'then they come in order');
is(value(q{SELECT count(*) FROM outbox.delivery}), '1', 'and leave no row');

# A failure that is the endpoint's: an attempt of each, and together again
$receiver->control(script => 'down', answers => [503], then => 200);
subscribe($node, 'down', $receiver->url('/script/down'), types => ['down'], format => 'batch', batch_size => 8, batch_linger => '500 ms', retry_base => '300 ms');
@ids = enqueue_many('down', 8, q{CASE WHEN i > 4 THEN 'k' END});
wait_delivered('down', @ids);
is((sizes('/script/down'))[0], 8, '503: of a whole batch');
is(value(q{SELECT string_agg(DISTINCT attempt || ' ' || status_code || ' ' || n, ', ') FROM (SELECT attempt, status_code, count(*) AS n FROM outbox.attempt WHERE subscription = 'down' GROUP BY 1, 2) AS a}),
	'1 503 8, 2 200 8', 'it was an attempt of each, and the second one delivered them');
cmp_ok((sort { $b <=> $a } (sizes('/script/down'))[ 1 .. 4 ])[0], '<=', 2, 'in batches of a quarter');
is(ids(grep { $_->{key} eq 'k' } $receiver->delivered_events('/script/down')), join(' ', @ids[ 4 .. 7 ]), 'in order');

# An event that makes its receiver hang up is alone soon too
$receiver->control(script => 'crash', keys => { bad => 'reset/before' }, then => 200);
subscribe($node, 'crash', $receiver->url('/script/crash'), types => ['crash'], format => 'batch', batch_size => 64, batch_linger => '500 ms', retry_base => '50 ms', max_attempts => 8);
@ids = enqueue_many('crash', 64, q{CASE WHEN i = 20 THEN 'bad' END});
wait_status($node, $ids[19], 'crash', 'dead');
wait_delivered('crash', @ids[ 0 .. 18, 20 .. 63 ]);
is(value("SELECT attempts FROM outbox.dead_letter WHERE event_id = '$ids[19]'"), '8', 'it had its attempts');
is((sizes('/script/crash'))[-1], 1, 'the last of them alone');

# Nobody dies in company: statuses without a second try, and the last attempt
$receiver->control(script => 'fatal', keys => { bad => 400 }, then => 200);
subscribe($node, 'fatal', $receiver->url('/script/fatal'), types => ['fatal'], format => 'batch', batch_size => 16, batch_linger => '500 ms', fatal_statuses => [400]);
@ids = enqueue_many('fatal', 16, q{CASE WHEN i IN (3, 4, 11) THEN 'bad' END});
wait_status($node, $ids[$_], 'fatal', 'dead') for 2, 3, 10;
wait_delivered('fatal', @ids[ 0, 1, 4 .. 9, 11 .. 15 ]);
is(value(q{SELECT string_agg(reason || ' ' || attempts, ', ') FROM outbox.dead_letter WHERE subscription = 'fatal'}), 'fatal_status 1, fatal_status 1, fatal_status 1', 'a fatal status kills only whom it was meant for');
$receiver->control(script => 'last', keys => { bad => 503 }, then => 200);
subscribe($node, 'last', $receiver->url('/script/last'), types => ['last'], format => 'batch', batch_size => 16, batch_linger => '500 ms', max_attempts => 1);
@ids = enqueue_many('last', 16, q{CASE WHEN i = 3 THEN 'bad' END});
wait_status($node, $ids[2], 'last', 'dead');
wait_delivered('last', @ids[ 0, 1, 3 .. 15 ]);

# What no member can cause kills them all; but of a key that a dead letter blocks, only the first
subscribe($node, 'refused', 'https://127.0.0.1/', network => 'public', types => ['refused'], format => 'batch', batch_size => 6, batch_linger => '500 ms', on_dead => 'block');
@ids = enqueue_many('refused', 6, q{CASE WHEN i > 2 THEN 'k' END});
wait_status($node, $ids[$_], 'refused', 'dead') for 0, 1, 2;
wait_status($node, $ids[$_], 'refused', 'blocked') for 3 .. 5;
is(value(q{SELECT string_agg(DISTINCT reason, ', ') FROM outbox.dead_letter WHERE subscription = 'refused'}), 'blocked_address', 'a refused address is not for a member to cause');

# An endpoint that refuses everything is not asked about each event at once
subscribe($node, 'broken', $receiver->url('/status/500'), types => ['broken'], format => 'batch', batch_linger => '500 ms', retry_base => '1 h', max_in_flight => 1);
@ids = enqueue_many('broken', 100, 'NULL');
wait_for(sub { value(q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'broken' AND status = 'retrying' AND attempts = 1}) eq '100' }, 'all of them waiting for a retry');
cmp_ok(scalar $receiver->requests('/status/500'), '<', 30, 'asked ' . $receiver->requests('/status/500') . ' times about 100 events');

# 410: disabled, everything kept, no attempt lost
$receiver->control(script => 'gone', answers => [410], then => 200);
subscribe($node, 'gone', $receiver->url('/script/gone'), types => ['gone'], format => 'batch', batch_size => 8, batch_linger => '500 ms');
@ids = enqueue_many('gone', 8, q{CASE WHEN i > 4 THEN 'k' END});
wait_for(sub { value(q{SELECT state FROM outbox.subscription_status WHERE name = 'gone'}) eq 'disabled' }, '410 disabling it');
$node->safe_psql('postgres', q{SELECT outbox.resume('gone')});
wait_delivered('gone', @ids);
is(value(q{SELECT max(attempt) FROM outbox.attempt WHERE subscription = 'gone'}), '1', '410 is no attempt');
is(ids(grep { $_->{key} eq 'k' } $receiver->delivered_events('/script/gone')), join(' ', @ids[ 4 .. 7 ]), 'in order');

# An event that cannot be written in JSON is a dead letter, alone
subscribe($node, 'control', $receiver->url('/ok?control'), types => ['control'], format => 'batch', batch_linger => '500 ms');
@ids = enqueue_many('control', 5, q{CASE WHEN i = 3 THEN E'a\nb' END});
wait_status($node, $ids[2], 'control', 'dead');
wait_delivered('control', @ids[ 0, 1, 3, 4 ]);
is(value("SELECT reason FROM outbox.dead_letter WHERE event_id = '$ids[2]'"), 'bad_request', 'what cannot be written in JSON is a dead letter, alone');

# ---- redriven, and blocked, ones ----

$receiver->control(script => 'last', then => 200);
is(value(q{SELECT outbox.redrive('last')}), '1', 'redriven');
wait_for(sub { value(q{SELECT count(*) FROM outbox.dead_letter WHERE subscription = 'last'}) eq '0' && value(q{SELECT count(*) FROM outbox.delivery WHERE subscription_id = (SELECT id FROM outbox.subscription WHERE name = 'last')}) eq '0' }, 'the redriven one being delivered');

# many exceptions at once are fetched and sent in batches
$receiver->control(script => 'many', then => 429);
subscribe($node, 'many', $receiver->url('/script/many'), types => ['many'], format => 'batch', retry_base => '300 ms', max_attempts => 1);
$node->safe_psql('postgres', q{SELECT outbox.alter_subscription('many', fatal_statuses => '{418}')});
$receiver->control(script => 'many', then => 418);
@ids = enqueue_many('many', 60, 'NULL');
wait_for(sub { value(q{SELECT count(*) FROM outbox.dead_letter WHERE subscription = 'many'}) eq '60' }, '60 dead letters');
$receiver->control(script => 'many', then => 200);
my $before = () = $receiver->requests('/script/many');
is(value(q{SELECT outbox.redrive('many')}), '60', 'all redriven');
wait_for(sub { value(q{SELECT count(*) FROM outbox.delivery WHERE subscription_id = (SELECT id FROM outbox.subscription WHERE name = 'many')}) eq '0' }, 'all of them being delivered');
cmp_ok($receiver->requests('/script/many') - $before, '<', 60, 'in fewer requests');

# ---- changing the format while delivering ----

my $ledger = Outbox::Ledger->new;
my $path = '/random/5/15?change';
subscribe($node, 'change', $receiver->url($path), types => ['load.made'], max_attempts => 100, retry_base => '20 ms');
my $producers = start_producers($node, count => 3, transactions => 30000, keys => 5, pause => 0.004);
my $seen = 0;
for my $format (('batch', 'structured', 'binary') x 2, 'batch')
{
	my $here = () = $receiver->requests($path);
	$node->safe_psql('postgres', "SELECT outbox.alter_subscription('change', format => '$format')");
	wait_for(sub { $receiver->requests($path) >= $here + 40 }, "requests in $format");
}
stop_producers($node);
finish_producers($producers, $ledger);
wait_for(sub { $ledger->complete($receiver, $path) }, 'all of the load', 120);
my $found = $ledger->check($receiver, $path);
is(join(' ', map { scalar @{ $found->{$_} } } qw(lost phantom disorder overlap duplicates)), '0 0 0 0 0', 'while the format changes: nothing lost, phantom, out of order, overlapping or repeated');
my %formats = map { ($_->{headers}{'content-type'} => 1) } $receiver->requests($path);
is(scalar keys %formats, 3, 'all three formats were used');

# The same members are the same id and the same bytes: of all batches in this test
my (%bytes, %ids);
my @wrong;
for my $request (grep { $_->{events} } $receiver->requests)
{
	my $members = join ' ', map { $_->{id} } @{ $request->{events} };
	push @wrong, $request->{id} if ($bytes{ $request->{id} } //= $request->{sha256}) ne $request->{sha256} || ($ids{$members} //= $request->{id}) ne $request->{id};
}
is(scalar @wrong, 0, 'the same members have the same webhook-id and the same bytes');
is(scalar(grep { $_->{id} !~ /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/ } grep { $_->{events} } $receiver->requests), 0, 'each webhook-id is a UUID of version 8');
is(scalar(grep { $_->{events} && !@{ $_->{events} } } $receiver->requests), 0, 'the receiver understood every batch');

done_testing;
