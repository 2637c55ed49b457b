# The filter of a subscription decides by the payload what is sent; a changed one is for what commits from then on, also while there is a backlog; one that fails harms nobody.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
my $worker = worker_pid($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub came { my ($path) = @_; return join ' ', map { $_->{id} } $receiver->requests($path) }
sub alter { my ($name, $filter) = @_; sql("SELECT outbox.alter_subscription('$name', filter => " . literal($filter) . ')') }

# What SQL says: event_status() rests on the same rules, but on its own reading of them.
sub wanted { my ($name) = @_; return join ' ', split /\n/, sql("SELECT e.id FROM outbox.event AS e, outbox.event_status(e.id) AS s WHERE s.subscription = '$name' AND s.status <> 'unmatched' ORDER BY e.id") }

# ---- what fulfils it
subscribe($node, 'all', $receiver->url('/ok?all'), types => ['order']);
subscribe($node, 'big', $receiver->url('/ok?big'), types => ['order'], filter => '$.amount > 100', ordering => 'none');
subscribe($node, 'items', $receiver->url('/ok?items'), types => ['order'], filter => '$.items[*] ? (@.sku starts with "A")');
subscribe($node, 'broken', $receiver->url('/ok?broken'), types => ['order'], filter => '$.at.datetime() < "2026-01-01 00:00:00+00".datetime()');
my %id = map { $_->[0] => enqueue($node, 'order', $_->[1]) } [ small => '{"amount": 1, "at": "2025-01-01 00:00:00"}' ], [ big => '{"amount": 101, "items": [{"sku": "B1"}]}' ],
	[ items => '{"amount": 2, "items": [{"sku": "B1"}, {"sku": "A2"}]}' ], [ text => '"amount"' ], [ huge => '{"amount": 1000, "text": "' . 'x' x 300_000 . '"}' ];
$id{raw} = sql(q{SELECT outbox.enqueue_raw('order', '{"amount": 200}', 'application/json')});
$id{due} = sql(q{SELECT outbox.enqueue('order', '{"amount": 300}', deliver_at => now() + interval '50 ms')});
$id{last} = enqueue($node, 'order', '{"amount": 500, "items": [{"sku": "A"}], "at": "2025-01-01 00:00:00+00"}');
wait_for(sub { 8 == grep { $_->{status} == 200 } $receiver->requests('/ok?all') }, 'all events');
wait_for(sub { came('/ok?big') =~ /$id{due}/ && came('/ok?big') =~ /$id{last}/ && came('/ok?items') =~ /$id{last}/ && came('/ok?broken') =~ /$id{last}/ }, 'the last ones');
is_deeply([ sort split / /, came('/ok?big') ], [ sort @id{qw(big huge due last)} ], 'a predicate must be true');
is(came('/ok?items'), "$id{items} $id{last}", 'another path must find something');
is(came('/ok?broken'), $id{last}, 'one that raises an error is not fulfilled');
wait_status($node, $id{last}, $_, 'delivered') for qw(big items broken);
is(sql("SELECT status FROM outbox.event_status('$id{raw}') WHERE subscription = 'big'"), 'unmatched', 'nor by what has no jsonb payload');
wait_status($node, $id{due}, 'big', 'delivered');
is(sql("SELECT status FROM outbox.event_status('$id{due}') WHERE subscription = 'big'"), 'delivered', 'but by what was scheduled');
sql("SELECT outbox.unsubscribe('$_')") for qw(all big items broken);

# ---- changed, at the head and with a backlog, with transactions open across the change
my $open = session($node);
subscribe($node, $_, $receiver->url("/ok?$_"), types => ['change'], filter => '$.n < 0') for qw(live held);
subscribe($node, 'batch', $receiver->url('/ok?batch'), types => ['change'], filter => '$.n < 0', format => 'batch');
sql(q{SELECT outbox.pause('held')});
sub put { my ($session) = @_; $session->query("SELECT outbox.enqueue('change', jsonb_build_object('n', n)) FROM generate_series(-150, 150) AS n WHERE n <> 0") }
my $other = session($node);
put($other);
$open->query('BEGIN');
put($open);
alter($_, '$.n > 0') for qw(live held batch);
put($other);
$open->query('COMMIT');
alter($_, '$.n % 100 == 0') for qw(live held);
put($other);
sql("SELECT outbox.alter_subscription('$_', reset => '{filter}')") for qw(live held);
put($other);
sql(q{SELECT outbox.resume('held')});
my $marker = enqueue($node, 'change', '{"n": 1}');
for my $name (qw(live held))
{
	wait_status($node, $marker, $name, 'delivered');
	my $expected = wanted($name);
	is(scalar(() = $expected =~ /-4/g) > 0, 1, "$name: SQL has an opinion");
	is(scalar(split / /, $expected), 150 + 150 + 150 + 2 + 300 + 1, "$name: of the old rules, those of the open transaction's commit, and the new ones");
	wait_for(sub { scalar(() = $receiver->requests("/ok?$name")) >= 753 }, "$name: all of them");
	is_deeply([ sort split / /, came("/ok?$name") ], [ sort split / /, $expected ], "$name: what was sent is what SQL says, each once");
}
wait_for(sub { 150 * 5 + 1 <= scalar(() = $receiver->events('/ok?batch')) }, 'batches');
is(scalar(() = $receiver->events('/ok?batch')), 150 * 5 + 1, 'batches have only what fulfils the filter');
is_deeply([ sort map { $_->{id} } $receiver->events('/ok?batch') ], [ sort split / /, wanted('batch') ], 'and all of it');

# ---- a restart of the worker reads the earlier rules back
sql(q{SELECT outbox.pause('held')});
alter('held', '$.n == 7');
put($other);
alter('held', '$.n == 8');
put($other);
$node->stop('immediate');    # restart() takes its mode in another way since 18
$node->start;
sql(q{SELECT outbox.resume('held')});
$other = session($node);
put($other);
$marker = enqueue($node, 'change', '{"n": 8, "marker": true}');
wait_status($node, $marker, 'held', 'delivered');
is_deeply([ (sort split / /, came('/ok?held')) ], [ sort split / /, wanted('held') ], 'the same after a crash');
is(scalar(() = $receiver->requests('/ok?held')), 753 + 3 + 1, 'one of each round');

# ---- strings are compared as UTF-8, whatever the encoding of the database
sql(q{CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'});
install($node, 'latin');
subscribe($node, 'accents', $receiver->url('/ok?accents'), database => 'latin', filter => '$.name > "\u00e9"');
enqueue($node, 'word', '{"name": "\u00e0"}', database => 'latin');
$marker = enqueue($node, 'word', '{"name": "\u00fc"}', database => 'latin');
wait_for(sub { came('/ok?accents') }, 'an event of a database in LATIN1');
is(came('/ok?accents'), $marker, 'it is the one that should come');

# ---- trace and routes see what holds back
subscribe($node, 'failing', $receiver->url('/status/500'), types => ['key'], retry_base => '1 h', retry_max => '1 h', breaker_threshold => 1, breaker_probe => '1 h', breaker_max => '1 h');
my @keyed = map { enqueue($node, 'key', $_, key => 'k') } 1 .. 2;
wait_status($node, $keyed[0], 'failing', 'retrying');
wait_for(sub { sql("SELECT reason FROM outbox.routes('key') WHERE subscription = 'failing'") eq 'open' }, 'the circuit breaker');
like(sql("SELECT detail FROM outbox.trace('$keyed[0]') WHERE subscription = 'failing' AND what = 'waiting'"), qr/^for attempt 2, until .*; the circuit breaker is open, at least until /, 'why it waits');
sql(q{SELECT outbox.resume('failing')});
wait_for(sub { sql("SELECT detail FROM outbox.trace('$keyed[1]') WHERE subscription = 'failing' AND what IN ('blocked', 'pending')") =~ /^behind event $keyed[0] of key k, which is retrying/ }, 'what the second one waits behind');

unlike(slurp_file($node->logfile), qr/ (?:ERROR|PANIC):/, 'without an error in the log');

# ---- an error in a filter takes nothing from the bound on waits for locks: what cancels was held off meanwhile
subscribe($node, 'unanswered', $receiver->url('/ok?unanswered'), types => ['late'], filter => '$.at.datetime() < "2026-01-01 00:00:00+00".datetime()');
subscribe($node, 'refused', $receiver->url('/status/500?refused'), types => ['late'], max_attempts => 1);
my $locker = session($node);
$locker->query('BEGIN; LOCK TABLE outbox.delivery IN ACCESS EXCLUSIVE MODE');
enqueue($node, 'late', '{"at": "2025-01-01 00:00:00"}');
ok(wait_for(sub { slurp_file($node->logfile) =~ /canceling statement due to lock timeout/ }, 'lock_timeout'), 'after an error in a filter the worker waits no longer for a lock than it should');
$locker->query('COMMIT');
done_testing;
