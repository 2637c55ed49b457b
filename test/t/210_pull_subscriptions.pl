# Pull subscriptions: leases, order per key, acknowledgement with the transaction, expiry, dead letters, and what becomes of tokens.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my @sessions = map { session($node) } 1 .. 3;
my ($one, $two, $three) = @sessions;

sub make { my ($name, @options) = @_; $node->safe_psql('postgres', "SELECT outbox.subscribe('$name', types => '{$name}'" . join('', map { ", $_" } @options) . ')') }
sub put { my ($type, $payload, $key) = @_; return enqueue($node, $type, $payload, defined $key ? (key => $key) : ()) }

# pull(session, name, max, lease): its rows
sub pull
{
	my ($session, $name, $max, $lease) = @_;
	return map { [ split /\|/ ] } split /\n/, $session->query(sprintf q{SELECT event_id, key, payload, attempt, token, type FROM outbox.pull('%s', %d, '%s')}, $name, $max // 100, $lease // '60 s');
}

# pull_until(session, name, n): pulls until it has so many rows
sub pull_until
{
	my ($session, $name, $n, @more) = @_;
	my @rows;
	wait_for(sub { push @rows, pull($session, $name, $n - @rows, @more); @rows >= $n }, "$n events to pull from $name");
	return @rows;
}

sub fails_with
{
	my ($session, $sql, $state, $message, $what) = @_;
	like($session->query($sql), qr/^ERROR:  $state: [^\n]*$message/, $what);
}

# ---- the ordinary way
is(make('plain'), '', 'a pull subscription has no secret');
my @ids = map { put('plain', $_) } 1 .. 5;
my @rows = pull_until($one, 'plain', 5);
is_deeply([ map { $_->[0] } @rows ], \@ids, 'all events, oldest first');
is_deeply([ map { $_->[2] } @rows ], [ 1 .. 5 ], 'with their payloads');
is_deeply([ map { $_->[3] } @rows ], [ (1) x 5 ], 'for the first time');
is(scalar(keys %{ { map { $_->[4] => 1 } @rows } }), 1, 'and one token');
my $token = $rows[0][4];
is(scalar(pull($two, 'plain')), 0, 'what is leased is not given to another');
is($one->query("SELECT outbox.ack('plain', ARRAY['$ids[0]', '$ids[1]']::uuid[], '$token')"), 2, 'two acknowledged');
wait_status($node, $_, 'plain', 'delivered') for @ids[ 0, 1 ];
fails_with($one, "SELECT outbox.ack('plain', ARRAY['$ids[0]']::uuid[], '$token')", '55000', 'is not in lease', 'an event is settled once');
is($one->query("SELECT outbox.ack('plain', NULL, '$token')"), 3, 'the rest');
wait_status($node, $_, 'plain', 'delivered') for @ids;
fails_with($one, "SELECT outbox.ack('plain', NULL, '$token')", '55000', 'is not held any more', 'then the token is stale');
is($node->safe_psql('postgres', "SELECT count(*) FROM outbox.attempt WHERE subscription = 'plain' AND outcome = 'delivered'"), 5, 'an attempt each');

# ---- acknowledged is what commits
@ids = map { put('plain', $_) } 1 .. 2;
@rows = pull_until($one, 'plain', 2);
$token = $rows[0][4];
$one->query('BEGIN');
$one->query("SELECT outbox.ack('plain', NULL, '$token')");
fails_with($two, "SELECT outbox.ack('plain', ARRAY['$ids[0]']::uuid[], '$token')", '55P03', 'being settled by another transaction', 'one transaction settles');
$one->query('ROLLBACK');
is($one->query("SELECT outbox.ack('plain', ARRAY['$ids[0]']::uuid[], '$token')"), 1, 'rolled back, the lease is still held');
$one->query('BEGIN');
$one->query('SAVEPOINT s');
$one->query("SELECT outbox.ack('plain', NULL, '$token')");
$one->query('ROLLBACK TO s');
$one->query('COMMIT');
is($one->query("SELECT outbox.nack('plain', ARRAY['$ids[1]']::uuid[], '$token', '0', 'not today')"), 1, 'nor does what was rolled back to a savepoint count');
@rows = pull_until($two, 'plain', 1);
is("$rows[0][0] $rows[0][3]", "$ids[1] 2", 'refused, it comes again, for the second time');
$one->query('BEGIN');
$one->query('SAVEPOINT s');
$one->query("SELECT outbox.ack('plain', NULL, '$rows[0][4]')");
$one->query('ROLLBACK TO s');
$one->query("SELECT outbox.ack('plain', NULL, '$rows[0][4]')");
$one->query('COMMIT');
wait_status($node, $ids[1], 'plain', 'delivered');
is($node->safe_psql('postgres', "SELECT error FROM outbox.attempt WHERE event_id = '$ids[1]' AND outcome = 'nack'"), 'not today', 'the attempt says why');
my $late = put('plain', 6);
@rows = pull_until($one, 'plain', 1);
$one->query('BEGIN');
$one->query("SELECT outbox.ack('plain', NULL, '$rows[0][4]')");
fails_with($one, "PREPARE TRANSACTION 'x'", '0A000', 'cannot PREPARE', 'a transaction that acknowledged cannot be prepared');
is($one->query("SELECT outbox.ack('plain', NULL, '$rows[0][4]')"), 1, 'and has acknowledged nothing');

# ---- a snapshot of long ago does not hide what was leased
$three->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
$three->query('SELECT count(*) FROM outbox.event');
my $new = put('plain', 7);
@rows = pull_until($three, 'plain', 1);
is($rows[0][0], $new, 'pulled in a transaction that cannot see it');
$three->query("SELECT outbox.ack('plain', NULL, '$rows[0][4]')");
$three->query('COMMIT');
wait_status($node, $new, 'plain', 'delivered');

# ---- order per key
make('keys');
my %order;
for my $n (1 .. 12) { push @{ $order{ 'k' . $n % 3 } }, put('keys', $n, 'k' . $n % 3) }
my @first = pull_until($one, 'keys', 4);
my %held = map { $_->[1] => 1 } @first;
my @second;
push @second, pull($two, 'keys') for 1 .. 3;
is(scalar(grep { $held{ $_->[1] } } @second), 0, 'a key that is leased to one is not given to another');
my %got;
push @{ $got{ $_->[1] } }, $_->[0] for @first, @second;
is_deeply($got{$_}, [ @{ $order{$_} }[ 0 .. $#{ $got{$_} } ] ], "$_ in order") for sort keys %got;
my ($bad) = @first;
$one->query("SELECT outbox.nack('keys', ARRAY['$bad->[0]']::uuid[], '$bad->[4]', '0')");
is(scalar(grep { $_->[1] eq $bad->[1] } pull($two, 'keys')), 0, 'nor when its first event failed, while others of the key are leased') if (grep { $_->[1] eq $bad->[1] } @first) > 1;
$one->query("SELECT outbox.ack('keys', NULL, '$bad->[4]')");
$two->query("SELECT outbox.ack('keys', NULL, '$_')") for keys %{ { map { $_->[4] => 1 } @second } };
my @rest;
wait_for(sub { my @more = pull($three, 'keys'); push @rest, @more; $three->query("SELECT outbox.ack('keys', NULL, '$more[0][4]')") if @more; @first + @second + @rest >= 13 }, 'the rest of the keys');
is($rest[0][0], $bad->[0], 'the one that failed is the next of its key');
wait_status($node, $_, 'keys', 'delivered') for map { @$_ } values %order;

# ---- leases end, and can be made longer
make('expiring', "max_attempts => 2", "on_dead => 'skip'");
my ($slow, $behind) = split /\n/, $node->safe_psql('postgres', q{SELECT unnest(outbox.enqueue_many('[{"type": "expiring", "payload": 1, "key": "k"}, {"type": "expiring", "payload": 2, "key": "k"}]'))});
@rows = pull_until($one, 'expiring', 2, '200 ms');
is(scalar(@rows), 2, 'events of one key, together');
my @again = pull_until($two, 'expiring', 2);
is_deeply([ map { $_->[0] . $_->[3] } @again ], [ "${slow}2", "${behind}2" ], 'after its end a lease is somebody else\'s, in order, and an attempt more');
fails_with($one, "SELECT outbox.ack('expiring', NULL, '$rows[0][4]')", '55000', "lease $rows[0][4] of subscription \"expiring\" is not held any more", 'the first one hears that its token is stale, by name');
fails_with($one, "SELECT outbox.extend('expiring', '$rows[0][4]')", '55000', 'is not held any more', 'and cannot extend it');
is($two->query("SELECT outbox.nack('expiring', ARRAY['$slow']::uuid[], '$again[0][4]', '1 h', 'broken')"), 1, 'given up');
wait_status($node, $slow, 'expiring', 'dead');
is($node->safe_psql('postgres', "SELECT reason, attempts, last_error FROM outbox.dead_letter WHERE event_id = '$slow'"), 'max_attempts|2|broken', 'after max_attempts it is a dead letter');
$two->query("SELECT outbox.ack('expiring', NULL, '$again[0][4]')");
wait_status($node, $behind, 'expiring', 'delivered');
is($node->safe_psql('postgres', "SELECT outbox.redrive('expiring')"), 1, 'redriven');
@rows = pull_until($one, 'expiring', 1, '3 s');
is($rows[0][0], $slow, 'it can be pulled again');
my $until = $one->query("SELECT outbox.extend('expiring', '$rows[0][4]', '1 h') > now() + '59 min'");
is($until, 't', 'a lease made longer');
my $marker = put('expiring', 3);
my @marker = pull_until($two, 'expiring', 1, '3 s');
wait_for(sub { my @r = pull($two, 'expiring'); @r && $r[0][0] eq $marker }, 'a lease that was not, to end');
is($one->query("SELECT outbox.ack('expiring', NULL, '$rows[0][4]')"), 1, 'outlives the others');

# ---- with the worker gone, and back
make('lasting');
@ids = map { put('lasting', $_) } 1 .. 3;
@rows = pull_until($one, 'lasting', 2);
$one->query("SELECT outbox.ack('lasting', ARRAY['$rows[1][0]']::uuid[], '$rows[0][4]')");
wait_for(sub { $node->safe_psql('postgres', "SELECT status FROM outbox.delivery WHERE event_id = '$rows[0][0]'") eq 'leased' }, 'what is leased while later ones are done has a row');
is($node->safe_psql('postgres', "SELECT status FROM outbox.event_status('$rows[0][0]') WHERE subscription = 'lasting'"), 'leased', 'event_status() says so');
$node->restart;
worker_pid($node);
@sessions = map { session($node) } 1 .. 3;
($one, $two, $three) = @sessions;
my @after = pull_until($one, 'lasting', 1);
is($after[0][0], $ids[2], 'after a restart the one that was never leased can be pulled at once');
fails_with($one, "SELECT outbox.ack('lasting', NULL, '$rows[0][4]')", '55000', 'is not held any more', 'tokens are stale');
is(scalar(pull($one, 'lasting')), 0, 'what was leased for long stays so until its lease would have ended');
is($node->safe_psql('postgres', "SELECT next_attempt_at > now() FROM outbox.delivery WHERE event_id = '$rows[0][0]'"), 't', 'which is known');

# ---- paused, gone, refused
$node->safe_psql('postgres', "SELECT outbox.pause('plain', 'test')");
put('plain', 8);
is(scalar(pull($one, 'plain')), 0, 'nothing comes from a paused subscription');
$node->safe_psql('postgres', "SELECT outbox.resume('plain')");
@rows = pull_until($one, 'plain', 1);
$node->safe_psql('postgres', "SELECT outbox.unsubscribe('plain')");
fails_with($one, "SELECT outbox.ack('plain', NULL, '$rows[0][4]')", '42704', 'does not exist', 'unsubscribed');
fails_with($one, "SELECT * FROM outbox.pull('nobody')", '42704', 'does not exist', 'unknown');
fails_with($one, "SELECT * FROM outbox.pull('keys', 0)", '22023', 'max_events', 'none');
fails_with($one, "SELECT * FROM outbox.pull('keys', 1001)", '22023', 'max_events', 'too many');
fails_with($one, "SELECT * FROM outbox.pull('keys', 1, '0')", '22023', 'lease', 'no lease');
fails_with($one, "SELECT * FROM outbox.pull('keys', 1, '1 day')", '22023', 'lease', 'too long a lease');
fails_with($one, "SELECT * FROM outbox.pull(NULL)", '22004', 'subscription must not be null', 'NULL');
fails_with($one, "SELECT outbox.ack('keys', '{NULL}', gen_random_uuid())", '22004', 'ids must not contain null', 'NULL id');
fails_with($one, "SELECT outbox.nack('keys', NULL, gen_random_uuid(), '-1 s')", '22023', 'retry_in', 'backwards');
fails_with($one, 'BEGIN READ ONLY; SELECT * FROM outbox.pull($$keys$$)', '25006', 'read-only', 'read-only');
$one->query('ROLLBACK');
is($one->query("SELECT outbox.ack('keys', '{}', gen_random_uuid())"), 0, 'nothing is nothing');
$node->safe_psql('postgres', q{SELECT outbox.subscribe('pushed', 'https://example.com/')});
fails_with($one, "SELECT * FROM outbox.pull('pushed')", '55000', 'is not a pull subscription', 'pushed');
fails_with($one, "SELECT outbox.rotate_secret('keys')", '55000', 'has no secret', 'no secret');
fails_with($one, "SELECT outbox.subscribe('odd', format => 'batch')", '22023', '"format"', 'options of requests');
fails_with($one, "SELECT outbox.alter_subscription('keys', url => 'https://example.com/')", '22023', '"url"', 'a pull subscription stays one');
fails_with($one, "SELECT outbox.alter_subscription('keys', rate_limit => 1)", '22023', '"rate_limit"', 'and sends nothing');
$one->query('BEGIN');
$one->query("SELECT outbox.subscribe('young')");
$one->query('COMMIT');
is(scalar(pull($one, 'young')), 0, 'a subscription can be pulled from as soon as it is committed');

# ---- and without a worker
$node->safe_psql('postgres', 'SELECT outbox.stop()');
wait_for(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}) eq '0' }, 'the worker to end');
fails_with($one, "SELECT * FROM outbox.pull('keys')", '55000', 'delivery worker of this database is not running', 'no worker');

done_testing();
