# A little of all that a delivery worker does, in one server: what test/memory watches.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Peer qw(say_all until_closed);
use Outbox::Test;
use Outbox::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', key => 1, conf => [ "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $tls = Outbox::Tls->new;
my $ca = $tls->authority('authority');
$tls->certificate('good', issuer => 'authority', host => 'DNS:localhost');
my $port = $tls->serve('good', $receiver->port);
my %strange = (
	'/chunks' => sub { say_all($_[0], "HTTP/1.1 503 Later\r\nRetry-After: 0\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno!\r\n0\r\nX-Trailer: y\r\n\r\n"); 'next' },
	'/nonsense' => sub { say_all($_[0], "\x00\x01nonsense\r\n\r\n") },
	'/nothing' => sub { },
	'/silent' => sub { until_closed($_[0]) },
);
my $peer = Outbox::Peer->new(%strange);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub all_status { my ($subscription, $status, @ids) = @_; wait_status($node, $_, $subscription, $status, 60) for @ids }

# ---- push: retries, keys, TLS, batches, headers, filters ---------------------------------------------------------------------------------

$receiver->control(script => 'flaky', answers => [ 500, 503, 429 ], then => 200);
subscribe($node, 'flaky', $receiver->url('/script/flaky'), types => ['order.*']);
subscribe($node, 'secure', "https://localhost:$port/ok?secure", types => ['order.*'], ca => $ca, format => 'structured');
subscribe($node, 'batch', $receiver->url('/ok?batch'), types => ['**'], format => 'batch', batch_size => 10, batch_linger => '50 ms');
subscribe($node, 'filter', $receiver->url('/ok?filter'), types => ['order.*'], filter => '$.n > 3', headers => '{"X-Token": "secret"}');
subscribe($node, $_, $peer->url("/$_"), types => ['bad'], max_attempts => 2) for qw(chunks nonsense nothing);
subscribe($node, 'silent', $peer->url('/silent'), types => ['bad'], timeout => '1 s', max_attempts => 1);
sql(q{SELECT outbox.subscribe('pulled', types => '{order.*}')});

my @orders = map { enqueue($node, 'order.paid', qq({"n": $_, "name": "K\x{c3}\x{b6}ln"}), key => 'k' . $_ % 2, headers => '{"X-Shop": "one"}') } 1 .. 6;
my $bad = enqueue($node, 'bad', '{"n": 1}');
my $raw = sql(q{SELECT outbox.enqueue_raw('raw.bytes', '\x00ff', 'application/octet-stream')});
all_status($_, 'delivered', @orders) for qw(flaky secure batch);
all_status('batch', 'delivered', $bad, $raw);
all_status('filter', 'delivered', @orders[ 3 .. 5 ]);
all_status($_, 'dead', $bad) for qw(chunks nonsense nothing silent);
is(scalar(() = $receiver->delivered('/ok?secure')), 6, 'TLS');
is(scalar(() = $receiver->delivered('/ok?filter')), 3, 'a filter');
is(join(' ', grep { $_ ne '200' } map { $_->{status} } $receiver->requests('/script/flaky')), '500 503 429', 'retries');
is(scalar(() = $receiver->delivered_events('/ok?batch')), 8, 'batches');

# ---- pull ------------------------------------------------------------------------------------------------------------------------------------

my @pulled;
my $pull = q{SELECT event_id || ' ' || token FROM outbox.pull('pulled', 3)};
wait_for(sub { push @pulled, map { [split] } split /\n/, sql($pull); @pulled == 6 }, 'six to pull');
my %tokens = map { $_->[1] => 1 } @pulled;
sql("SELECT outbox.nack('pulled', ARRAY['$pulled[0][0]']::uuid[], '$pulled[0][1]', '0 s', 'once more')");
sql("SELECT outbox.ack('pulled', ARRAY['$_->[0]']::uuid[], '$_->[1]')") for @pulled[ 1 .. $#pulled ];
my @again;
wait_for(sub { push @again, map { [split] } split /\n/, sql($pull); @again }, 'the one that was given back');
is($again[0][0], $pulled[0][0], 'given back, it comes again');
sql("SELECT outbox.ack('pulled', NULL, '$again[0][1]')");
all_status('pulled', 'delivered', @orders);

# ---- operators, schedules, duplicates, captures, the receiving side -----------------------------------------------------------------------------

is(sql(q{SELECT outbox.redrive('nothing')}), 1, 'redrive');
all_status('nothing', 'dead', $bad);
is(sql(q{SELECT outbox.replay('filter', '-infinity')}), 3, 'replay');
wait_for(sub { 6 == (() = $receiver->delivered('/ok?filter')) }, 'the replay');
sql(q{SELECT outbox.alter_subscription('filter', types => '{later}', filter => '$ != null')});
sql(q{SELECT outbox.rotate_secret('filter')});
my $later = sql(q{SELECT outbox.enqueue('later', '{"n": 9}', deliver_at => now() + interval '300 ms')});
is(sql(q{SELECT count(DISTINCT outbox.enqueue('later', '{"n": 8}', dedup_key => 'same')) FROM generate_series(1, 3)}), 1, 'duplicates');
all_status('filter', 'delivered', $later);
sql(q{CREATE TABLE thing (id int PRIMARY KEY, name text); SELECT outbox.capture('thing', '{id,name}', 'later')});
sql(q{INSERT INTO thing VALUES (1, 'one'); UPDATE thing SET name = 'uno'; DELETE FROM thing});
wait_for(sub { 11 == (() = $receiver->delivered('/ok?filter')) }, 'what was captured');
is(sql(q{SELECT count(*) FROM generate_series(1, 20) AS i WHERE outbox.accept('me', 'm' || i % 10)}), 10, 'an inbox');
is(sql(q{SELECT state FROM outbox.begin_request('s', 'k', '\x01')}), 'new', 'a request');

# ---- restarts -----------------------------------------------------------------------------------------------------------------------------------

sql('SELECT pg_terminate_backend(worker_pid, 30000) FROM outbox._worker()');
my $last = enqueue($node, 'order.paid', '{"n": 10}');
all_status($_, 'delivered', $last) for qw(flaky secure batch);
sql(q{SELECT outbox.unsubscribe('flaky')});
$node->stop;
$node->start;
$last = enqueue($node, 'order.paid', '{"n": 11}');
all_status($_, 'delivered', $last) for qw(secure batch);
$node->stop;
unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC|AddressSanitizer|runtime error/, 'nobody crashed');

done_testing;
