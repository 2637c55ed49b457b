# Guarantees 1, 3, 6: an event is delivered if and only if its transaction committed, whenever that was, signed and with all its attributes.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Digest::SHA qw(sha256_hex);
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;
my $path = '/ok?main';
my $secret = subscribe($node, 'main', $receiver->url($path));
like($secret, qr/^whsec_[A-Za-z0-9+\/]{32,}={0,2}$/, 'subscribe shows the signing secret');

sub sent { my ($id) = @_; return grep { $_->{id} eq $id } $receiver->requests($path) }
sub wait_sent { my ($id, $what) = @_; wait_for(sub { scalar sent($id) }, $what); return (sent($id))[0] }

# One event, in one transaction with a business write
$node->safe_psql('postgres', 'CREATE TABLE orders (id int PRIMARY KEY, total numeric)');
my $trace = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
my $began = time;
my $id = $node->safe_psql('postgres', <<SQL);
BEGIN;
SET LOCAL outbox.traceparent = '$trace';
INSERT INTO orders VALUES (42, 19.99);
SELECT outbox.enqueue('order.paid', '{"order": 42, "total": "19.99", "note": "déjà vu €"}', key => 'order "42" €', headers => '{"X-Shop": "Köln", "x-empty-ish": "0"}');
COMMIT;
SQL
like($id, qr/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/, 'enqueue returns a UUID of version 7');
my $request = wait_sent($id, 'the request');
my $headers = $request->{headers};
is($request->{method}, 'POST', 'POST');
is($headers->{'webhook-id'}, $id, 'webhook-id is the event id');
ok($began <= $headers->{'webhook-timestamp'} && $headers->{'webhook-timestamp'} <= $request->{at}, 'webhook-timestamp is the time of the attempt') or diag "$began $headers->{'webhook-timestamp'} $request->{at}";
is($headers->{'webhook-signature'}, signature_of($request, $secret), 'the signature is what Standard Webhooks says');
is($headers->{'ce-specversion'}, '1.0', 'ce-specversion');
is($headers->{'ce-id'}, $id, 'ce-id');
is($headers->{'ce-type'}, 'order.paid', 'ce-type');
is($headers->{'ce-source'}, 'urn:outbox:postgres', 'ce-source');
like($headers->{'ce-time'}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/, 'ce-time is RFC 3339');
is($headers->{'ce-partitionkey'}, 'order%20%2242%22%20%E2%82%AC', 'ce-partitionkey is the key, percent-encoded');
is($headers->{'ce-traceparent'}, $trace, "ce-traceparent is the producer's");
like($headers->{traceparent}, qr/^00-0af7651916cd43dd8448eb211c80319c-(?!b7ad6b7169203331|0000000000000000)[0-9a-f]{16}-01$/, 'traceparent: same trace, a span of its own');
is($headers->{'content-type'}, 'application/json', 'content-type');
is_deeply(JSON::PP::decode_json($request->{bytes}), { order => 42, total => '19.99', note => "d\x{e9}j\x{e0} vu \x{20ac}" }, 'the body is the payload');
is($headers->{'x-empty-ish'}, '0', "the event's own headers are sent");
is($headers->{'x-shop'}, "K\x{f6}ln", 'as bytes, also beyond ASCII');
ok(!exists $headers->{$_}, "no $_ header") for qw(expect transfer-encoding ce-datacontenttype cookie authorization);
wait_status($node, $id, 'main', 'delivered');
is($node->safe_psql('postgres', "SELECT attempts, last_status_code, delivered_at IS NOT NULL FROM outbox.event_status('$id')"), '1|200|t', 'event_status tells');

# Raw bytes
$id = $node->safe_psql('postgres', q{SELECT outbox.enqueue_raw('order.scanned', '\x00ff0d0a2278', 'application/octet-stream')});
$request = wait_sent($id, 'raw bytes');
is($request->{bytes}, "\x00\xff\x0d\x0a\x22\x78", 'enqueue_raw: the body is the bytes');
is($request->{headers}{'content-type'}, 'application/octet-stream', 'enqueue_raw: with their content type');
is($request->{headers}{'webhook-signature'}, signature_of($request, $secret), 'enqueue_raw: signed');
ok(!exists $request->{headers}{'ce-partitionkey'}, 'no ce-partitionkey without a key');

# Many, in order
my @ids = split /\n/, $node->safe_psql('postgres', q{SELECT unnest(outbox.enqueue_many((SELECT jsonb_agg(jsonb_build_object('type', 'many.made', 'payload', to_jsonb(i), 'key', 'many') ORDER BY i) FROM generate_series(1, 50) i)))});
is(scalar @ids, 50, 'enqueue_many returns the ids');
is(join(' ', sort @ids), "@ids", 'ascending');
wait_sent($ids[-1], 'the last of many');
is(join(' ', map { $_->{bytes} } grep { $_->{key} eq 'many' } $receiver->requests($path)), join(' ', 1 .. 50), 'delivered in order of their key');

# new_event, for ORMs
$id = $node->safe_psql('postgres', q{INSERT INTO outbox.new_event (type, payload, key) VALUES ('orm.made', '{"by": "orm"}', 'o') RETURNING id});
is(wait_sent($id, 'an INSERT into new_event')->{bytes}, '{"by": "orm"}', 'INSERT INTO new_event is the same');

# As large as may be
$id = $node->safe_psql('postgres', q{SELECT outbox.enqueue('big.made', jsonb_build_object('x', repeat('0123456789abcdef', 62500)))});
$request = wait_sent($id, 'a megabyte');
is(length $request->{bytes}, 1_000_009, 'a megabyte arrives');
is($request->{headers}{'webhook-signature'}, signature_of($request, $secret), 'signed');

# Rolled back: whole transactions, savepoints, exceptions; whatever follows is delivered, so they had their chance
my @never;
push @never, $node->safe_psql('postgres', q{BEGIN; SELECT outbox.enqueue('never', '1'); ROLLBACK});
my @both = split /\n/, $node->safe_psql('postgres', <<'SQL');
BEGIN;
SELECT outbox.enqueue('kept', '1');
SAVEPOINT a;
SELECT outbox.enqueue('never', '2');
ROLLBACK TO a;
SELECT outbox.enqueue('kept', '2');
SAVEPOINT b;
SELECT outbox.enqueue('kept', '3');
RELEASE b;
COMMIT;
SQL
push @never, $both[1];
$node->safe_psql('postgres', q{DO $$ BEGIN
    BEGIN PERFORM outbox.enqueue('never', '3'); RAISE EXCEPTION 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;
    PERFORM outbox.enqueue('kept', '4');
END $$});
my ($failed, undef, $error) = $node->psql('postgres', q{BEGIN; SELECT outbox.enqueue('never', '4'); SELECT 1/0; COMMIT});
like($error, qr/division by zero/, 'a transaction failed');
$id = enqueue($node, 'kept', '5');
wait_sent($id, 'the event after those rolled back');
wait_sent($both[$_], 'an event beside a rolled back savepoint') for 0, 2, 3;
is(join(' ', sort map { $_->{bytes} } grep { $_->{type} eq 'kept' } $receiver->requests($path)), '1 2 3 4 5', 'what was committed beside rolled back parts is delivered');
is(scalar(grep { $_->{type} eq 'never' } $receiver->requests($path)), 0, 'what was rolled back is never sent');

# A long transaction: its event has a lower id than many that are delivered before it commits
my $slow = session($node);
$slow->query('BEGIN');
my $late = $slow->query(q{SELECT outbox.enqueue('late', '{}', key => 'late')});
my @later = map { enqueue($node, 'early', "$_") } 1 .. 20;
wait_sent($_, 'an event that overtakes a long transaction') for @later;
cmp_ok($late, 'lt', $later[0], 'the long transaction has the lower id');
is(scalar sent($late), 0, 'an uncommitted event is not sent');
# more subtransactions than a snapshot can list, every third rolled back, open while others are delivered
$slow->query(q{DO $$ DECLARE id uuid; ids text := ''; BEGIN
    FOR i IN 1 .. 300 LOOP
        BEGIN id := outbox.enqueue('late', to_jsonb(i)); IF i % 3 = 0 THEN RAISE division_by_zero; END IF; ids := ids || ' ' || id; EXCEPTION WHEN division_by_zero THEN NULL; END;
    END LOOP;
    PERFORM set_config('my.ids', ids, true);
END $$});
my @late = split ' ', $slow->query(q{SELECT current_setting('my.ids')});
wait_sent($_, 'an event that overtakes many subtransactions') for map { enqueue($node, 'early', $_) } 31, 32;
$slow->query('COMMIT');
ok(wait_sent($late, 'a late commit'), 'an event that commits late is delivered then');
wait_sent($_, 'an event of a subtransaction') for @late;
is(join(' ', sort map { $_->{id} } grep { $_->{type} eq 'late' } $receiver->requests($path)), join(' ', sort $late, @late), 'so are those of 200 of its subtransactions, and not those of 100 that were rolled back');

# Two-phase commit
my $prepared = $node->safe_psql('postgres', q{BEGIN; SELECT outbox.enqueue('prepared', '{}'); PREPARE TRANSACTION 'one'});
my $abandoned = $node->safe_psql('postgres', q{BEGIN; SELECT outbox.enqueue('never', '5'); PREPARE TRANSACTION 'two'});
wait_sent(enqueue($node, 'early', '21'), 'an event beside prepared transactions');
is(scalar sent($prepared), 0, 'a prepared event is not sent');
$node->safe_psql('postgres', q{COMMIT PREPARED 'one'});
ok(wait_sent($prepared, 'COMMIT PREPARED'), 'an event arrives after COMMIT PREPARED');
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'two'});

# A prepared transaction outlives a restart, before which the worker must have heard all answers
wait_for(sub { $node->safe_psql('postgres', q{SELECT lag_events FROM outbox.subscription_status WHERE name = 'main'}) eq '0' }, 'all answers');
$prepared = $node->safe_psql('postgres', q{BEGIN; SELECT outbox.enqueue('prepared', '{}'); PREPARE TRANSACTION 'three'});
$node->restart;
wait_sent(enqueue($node, 'early', '22'), 'an event after a restart');
$node->safe_psql('postgres', q{COMMIT PREPARED 'three'});
ok(wait_sent($prepared, 'COMMIT PREPARED after a restart'), 'also when the server was restarted in between');

# Nothing came twice, nothing that should not
wait_sent(enqueue($node, 'early', '23'), 'the last event');
is(scalar(grep { $_->{type} eq 'never' } $receiver->requests($path)), 0, 'in the end still nothing that was rolled back');
my %times;
$times{ $_->{id} }++ for $receiver->requests($path);
is_deeply([ grep { $times{$_} > 1 } sort keys %times ], [], 'each event was sent once');

# Types and tenants
subscribe($node, 'words', $receiver->url('/ok?words'), types => [ 'order.*', '**.done' ]);
subscribe($node, 'acme', $receiver->url('/ok?acme'), tenant => 'acme');
enqueue($node, $_, '{}') for qw(order.paid order.paid.twice order done a.b.done);
enqueue($node, 'x', '"of acme"', tenant => 'acme');
$id = enqueue($node, 'order.last', '{}', tenant => 'other');
wait_for(sub { grep { $_->{id} eq $id } $receiver->requests('/ok?words') }, 'the last order');
is(join(' ', map { $_->{type} } sort { $a->{id} cmp $b->{id} } $receiver->requests('/ok?words')), 'order.paid done a.b.done order.last', 'types: * is one word, ** any number');
is(join(' ', map { $_->{bytes} } $receiver->requests('/ok?acme')), '"of acme"', 'a subscription with a tenant sees the events of this tenant only');

$receiver->stop;
done_testing;
