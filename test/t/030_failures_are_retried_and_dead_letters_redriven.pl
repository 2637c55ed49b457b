# Guarantee 2: what fails is tried again as the receiver asks and the subscription says; what is given up is a dead letter that can be sent again.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;

sub sent { my ($path, $id) = @_; return grep { !defined $id || $_->{id} eq $id } $receiver->requests($path) }
sub wait_sent { my ($path, $n, $what, $id) = @_; return wait_for(sub { sent($path, $id) >= $n }, $what) }

# One subscription, one event of its own type, and wait what becomes of it. The name is also the event's type and the label of the path.
sub try
{
	my ($name, $behaviour, $status, %options) = @_;
	my $path = "$behaviour?$name";
	subscribe($node, $name, $receiver->url($path), types => [$name], %options);
	my $id = enqueue($node, $name, qq({"n": "$name"}), key => 'k');
	wait_status($node, $id, $name, $status);
	return ($path, $id);
}

sub dead
{
	my ($name) = @_;
	return $node->safe_psql('postgres', 'SELECT reason, attempts, last_status_code FROM outbox.dead_letter WHERE subscription = ' . literal($name));
}

sub outcomes
{
	my ($id) = @_;
	return $node->safe_psql('postgres', "SELECT string_agg(attempt || ':' || outcome, ' ' ORDER BY at, attempt) FROM outbox.attempt WHERE event_id = '$id'");
}

# Fails twice, then succeeds
my ($path, $id) = try('flaky', '/flaky/2', 'delivered');
my @requests = sent($path);
is(scalar @requests, 3, 'fails twice, then succeeds: three requests');
is(join(' ', map { $_->{status} } @requests), '503 503 200', 'their answers');
is(scalar(grep { $_->{id} eq $id } @requests), 3, 'all with the same webhook-id');
is(scalar(grep { $_->{sha256} eq $requests[0]{sha256} } @requests), 3, 'and the same bytes');
is(outcomes($id), '1:http_5xx 2:http_5xx 3:delivered', 'the attempt log has all three');
like($node->safe_psql('postgres', "SELECT min(response) FROM outbox.attempt WHERE event_id = '$id' AND outcome = 'http_5xx'"), qr/answer 503/, 'with the beginning of the answer');

# Back-off grows
($path, $id) = try('backoff', '/flaky/3', 'delivered', retry_base => '200 ms', retry_factor => 2);
@requests = sent($path);
my @gaps = map { $requests[$_]{at} - $requests[ $_ - 1 ]{at} } 1 .. $#requests;
cmp_ok($gaps[0], '>=', 0.19, 'the first retry waits retry_base');
cmp_ok($gaps[1], '>=', 0.39, 'the second retry_factor times as long');
cmp_ok($gaps[2], '>=', 0.79, 'and so on');

# Retry-After, in seconds and as a date, both longer than the back-off
($path, $id) = try('after', '/retry-after/2', 'delivered');
@requests = sent($path);
is($requests[0]{status}, 429, 'asked to retry after 2 s');
cmp_ok($requests[1]{at} - $requests[0]{at}, '>=', 1.9, 'Retry-After in seconds is honoured');
($path, $id) = try('date', '/retry-date/3', 'delivered');
@requests = sent($path);
is($requests[0]{status}, 503, 'asked to retry at a time');
cmp_ok($requests[1]{at} - $requests[0]{at}, '>=', 1.9, 'Retry-After as an HTTP-date is honoured');
($path, $id) = try('bounded', '/retry-after/3600', 'delivered', retry_max => '1 s');
cmp_ok((sent($path))[1]{at} - (sent($path))[0]{at}, '<', 30, 'but no longer than retry_max');

# Every way to fail is one, with its name; only what nothing else ends has a short timeout, so that a busy machine makes no other way look like it
for my $case (
	[ refused => undef, 'connect' ], [ hanging => '/hang', 'timeout' ], [ dripping => '/drip/20', 'timeout' ], [ reset => '/reset/before', 'connect' ],
	[ resethead => '/reset/headers', 'connect' ], [ garbage => '/garbage', 'protocol' ], [ huge => '/huge-headers', 'protocol' ], [ found => '/redirect', 'http_3xx' ],
	[ notfound => '/status/404', 'http_4xx' ], [ early => '/status/425', 'http_4xx' ], [ late => '/status/408', 'http_4xx' ], [ broken => '/status/500', 'http_5xx' ])
{
	my ($name, $behaviour, $outcome) = @$case;
	my $url = defined $behaviour ? $receiver->url("$behaviour?$name") : 'http://127.0.0.1:1/';
	subscribe($node, $name, $url, types => [$name], max_attempts => 2, $outcome eq 'timeout' ? (timeout => '500 ms', connect_timeout => '500 ms') : ());
	$id = enqueue($node, $name, '{}');
	wait_status($node, $id, $name, 'dead');
	is(outcomes($id), "1:$outcome 2:$outcome", "$name: tried again, then given up, as $outcome");
}
is(scalar $receiver->requests('/redirected'), 0, 'a redirect is never followed');
is(dead('broken'), 'max_attempts|2|500', 'a dead letter says why');
is(dead('refused'), 'max_attempts|2|', 'without a status if there was no answer');

# A 2xx whose body breaks or never ends has been delivered
try('endless', '/endless', 'delivered');
is(scalar sent('/endless?endless'), 1, 'an answer without end is cut, and was a success');

# Fatal statuses
($path, $id) = try('fatal', '/status/422', 'dead', fatal_statuses => [ 400, 422 ]);
is(dead('fatal'), 'fatal_status|1|422', 'a fatal status is a dead letter at once');
is(scalar sent($path), 1, 'after one request');

# give_up_after
($path, $id) = try('patient', '/status/503', 'dead', give_up_after => '1 s', retry_base => '100 ms');
like(dead('patient'), qr/^give_up_after\|\d+\|503$/, 'given up after give_up_after');

# Other events go on: nothing above held anything back
try('other', '/ok', 'delivered');

# Redrive: needs a selector, tells what it would do, does it, and keeps the id and the bytes
$receiver->control(script => 'repair', then => 500);
subscribe($node, 'repair', $receiver->url('/script/repair'), types => ['repair'], max_attempts => 1);
my @ids = map { enqueue($node, 'repair', qq({"n": $_}), key => "k$_") } 1 .. 5;
wait_status($node, $_, 'repair', 'dead') for @ids;
my ($status, undef, $error) = $node->psql('postgres', 'SELECT outbox.redrive()');
isnt($status, 0, 'redrive without a selector is refused');
is($node->safe_psql('postgres', q{SELECT outbox.redrive('repair', dry_run => true)}), '5', 'a dry run counts');
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.dead_letter WHERE subscription = 'repair'}), '5', 'and changes nothing');
$receiver->control(script => 'repair', then => 200);
is($node->safe_psql('postgres', "SELECT outbox.redrive('repair', ids => ARRAY['$ids[0]', '$ids[1]']::uuid[])"), '2', 'redrive two by id');
wait_status($node, $_, 'repair', 'delivered') for @ids[ 0, 1 ];
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.dead_letter WHERE subscription = 'repair'}), '3', 'the others stay');
@requests = sent('/script/repair', $ids[0]);
is(scalar @requests, 2, 'the redriven event was sent again');
is($requests[0]{sha256}, $requests[1]{sha256}, 'the same bytes');

# Discard
is($node->safe_psql('postgres', "SELECT outbox.discard('repair', ids => ARRAY['$ids[2]']::uuid[])"), '1', 'discard one');
wait_status($node, $ids[2], 'repair', 'discarded');
is($node->safe_psql('postgres', q{SELECT outbox.redrive('repair')}), '2', 'redrive the rest');
wait_status($node, $_, 'repair', 'delivered') for @ids[ 3, 4 ];
is(scalar sent('/script/repair', $ids[2]), 1, 'a discarded event is not sent again');
is($node->safe_psql('postgres', q{SELECT string_agg(action || ' ' || count, ', ' ORDER BY id) FROM outbox.operation WHERE subscription = 'repair'}), 'redrive 2, discard 1, redrive 2', 'all of it is recorded in operation');

# Redrive of what still fails: a dead letter again
($path, $id) = try('stubborn', '/status/500', 'dead', max_attempts => 2);
is(scalar sent($path), 2, 'two attempts');
$node->safe_psql('postgres', q{SELECT outbox.redrive('stubborn')});
wait_sent($path, 4, 'the redriven attempts');
wait_status($node, $id, 'stubborn', 'dead');
is(scalar sent($path), 4, 'redriven in vain: as many attempts again, and a dead letter again');

# on_dead = block: the dead letter holds its key until somebody decides
$receiver->control(script => 'block', keys => { same => 500 }, then => 200);
subscribe($node, 'block', $receiver->url('/script/block'), types => ['block'], max_attempts => 1, on_dead => 'block');
@ids = map { enqueue($node, 'block', "$_", key => $_ == 3 ? 'other' : 'same') } 1 .. 3;
wait_status($node, $ids[0], 'block', 'dead');
wait_status($node, $ids[2], 'block', 'delivered');
is(scalar sent('/script/block', $ids[1]), 0, 'on_dead = block: what is behind a dead letter waits');
$receiver->control(script => 'block', then => 200);
$node->safe_psql('postgres', q{SELECT outbox.redrive('block')});
wait_status($node, $_, 'block', 'delivered') for @ids[ 0, 1 ];
is(join(' ', map { $_->{bytes} } grep { $_->{key} eq 'same' && $_->{status} == 200 } sent('/script/block')), '1 2', 'and comes after it in order');

# 410 disables the subscription and keeps its events
$receiver->control(script => 'gone', then => 410);
subscribe($node, 'gone', $receiver->url('/script/gone'), types => ['gone']);
$id = enqueue($node, 'gone', '1', key => 'k');
my $state = sub { $node->safe_psql('postgres', q{SELECT state FROM outbox.subscription_status WHERE name = 'gone'}) };
wait_for(sub { $state->() eq 'disabled' }, 'the subscription being disabled');
is($state->(), 'disabled', '410 disables the subscription');
@ids = ($id, enqueue($node, 'gone', '2', key => 'k'), enqueue($node, 'gone', '3', key => 'k'));
my $before = scalar sent('/script/gone');
$receiver->control(script => 'gone', then => 200);
$node->safe_psql('postgres', q{SELECT outbox.resume('gone')});
wait_status($node, $_, 'gone', 'delivered') for @ids;
is($before, 1, 'nothing was sent while it was disabled');
is(join(' ', map { $_->{bytes} } grep { $_->{status} == 200 } sent('/script/gone')), '1 2 3', 'resumed, all its events arrive, in order');
is(dead('gone'), '', 'none of them died');

# pause and resume
subscribe($node, 'paused', $receiver->url('/ok?paused'), types => ['paused']);
$node->safe_psql('postgres', q{SELECT outbox.pause('paused', 'because')});
$id = enqueue($node, 'paused', '{}');
wait_status($node, enqueue($node, 'other', '{}'), 'other', 'delivered');
is(scalar sent('/ok?paused'), 0, 'a paused subscription sends nothing');
$node->safe_psql('postgres', q{SELECT outbox.resume('paused')});
wait_status($node, $id, 'paused', 'delivered');

# The network policy is public unless somebody says otherwise
my $port = $receiver->port;
($status, undef, $error) = $node->psql('postgres', "SELECT outbox.subscribe('public', 'http://127.0.0.1:$port/ok?public', types => '{public}')");
isnt($status, 0, 'public: http is refused when subscribing');
like($error, qr/HINT:.*network/s, 'with a hint that names the option');
$node->safe_psql('postgres', "SELECT outbox.subscribe('public', 'https://127.0.0.1:$port/ok?public', types => '{public}', ports => '{$port}')");
$id = enqueue($node, 'public', '{}');
wait_status($node, $id, 'public', 'dead');
is($node->safe_psql('postgres', q{SELECT reason, attempts FROM outbox.dead_letter WHERE subscription = 'public'}), 'blocked_address|1', 'public: loopback is not dialled; a dead letter says so at once');
$node->safe_psql('postgres', "SELECT outbox.subscribe('localhost', 'https://localhost:$port/ok?public', types => '{localhost}', ports => '{$port}')");
$id = enqueue($node, 'localhost', '{}');
wait_status($node, $id, 'localhost', 'dead');
is(dead('localhost'), 'blocked_address|1|', 'also when a name leads there');
is(scalar(grep { $_->{path} =~ /public/ } $receiver->requests), 0, 'not a byte arrived');

done_testing;
