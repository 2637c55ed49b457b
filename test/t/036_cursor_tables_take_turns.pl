# Guarantee 8: cursors are appended to one pair of tables until it is full; then all of them are written to the other pair, and the full one is emptied as a whole.
# Alone: it wants all those subscriptions made before the worker has filled the other pair, too.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ "outbox.maintenance_interval = '1s'", 'outbox.max_subscriptions = 50000', 'log_statement = none' ]);
my $receiver = Outbox::Receiver->new;
my $many = 20100;    # one more than rows fit into a pair

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

subscribe($node, 'one', $receiver->url('/ok?one'), types => ['one']);
subscribe($node, 'held', $receiver->url('/ok?held'), types => ['one']);
my $first = enqueue($node, 'one', 1);
wait_status($node, $first, $_, 'delivered') for qw(one held);
sql(q{SELECT outbox.pause('held')});
enqueue($node, 'one', 2);
wait_for(sub { $receiver->requests('/ok?one') == 2 }, 'the second event');
wait_for(sub { sql(q{SELECT lag_events FROM outbox.subscription_status WHERE name = 'one'}) eq '0' }, 'its outcome');
my $used = sql('SELECT CASE WHEN EXISTS (SELECT FROM outbox.cursor_0) THEN 0 ELSE 1 END');
my $other = 1 - $used;
is(sql("SELECT count(*) FROM outbox.cursor_$other"), '0', 'one pair of tables is in use');

sql(q{SELECT count(outbox.subscribe('many-' || i, 'http://127.0.0.1:1/', network => 'private', types => '{never}')) FROM generate_series(1, } . "$many) AS i");
ok(wait_for(sub { sql("SELECT count(*) FROM outbox.cursor_$other") > $many && sql("SELECT count(*) FROM outbox.cursor_$used") eq '0' }, 'the other pair', 60),
	'a pair that is full is left for the other one, and emptied') or diag sql('SELECT (SELECT count(*) FROM outbox.cursor_0), (SELECT count(*) FROM outbox.cursor_1)');
is(sql("SELECT count(*) FROM outbox.tick_$used"), '0', 'with its ticks');
is(sql("SELECT count(DISTINCT subscription_id) FROM outbox.cursor_$other"), $many + 3, 'everybody\'s cursor is in the other one: of all subscriptions, and of the head');
is(sql(q{SELECT COALESCE(sum(n_tup_upd), 0), COALESCE(sum(n_tup_del), 0), COALESCE(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^(cursor|tick)_'}), '0|0|0', 'no row was updated or deleted, none is dead');

# the next worker finds its place there
sql('SELECT pg_terminate_backend(worker_pid, 30000) FROM outbox._worker()');
enqueue($node, 'one', 3);
sql(q{SELECT outbox.resume('held')});
wait_for(sub { $receiver->requests($_) == 3 }, "all events at $_") for '/ok?one', '/ok?held';
is(join(' ', map { $_->{bytes} } $receiver->requests($_)), '1 2 3', "a new worker goes on from there, without repeating: $_") for '/ok?one', '/ok?held';

done_testing;
