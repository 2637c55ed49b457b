# A hundred thousand events that are overdue are moved into the log in small steps, each exactly once, also across crashes, while live events are delivered.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $many = 100_000;
my $node = outbox_node('main', arm => 0);
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { return $node->safe_psql('postgres', $_[0]) }

subscribe($node, 'live', $receiver->url('/ok?live'), types => ['load.made']);
subscribe($node, 'some', $receiver->url('/ok?some'), types => ['some']);
sql("SELECT count(outbox.enqueue(CASE WHEN i % 500 = 0 THEN 'some' ELSE 'other' END, to_jsonb(i), key => (i % 100)::text, deliver_at => now() + interval '1 min' + i * interval '1 us')) FROM generate_series(1, $many) AS i");
sql(q{UPDATE outbox.scheduled SET deliver_at = deliver_at - interval '1 hour'});
is(sql(q{SELECT value FROM outbox.health() WHERE check_name = 'scheduled_overdue'}), $many, 'health counts what is overdue');
is(sql(q{SELECT count(*) FROM outbox.event}), 0, 'nothing is in the log');

# Live events flow meanwhile; a crash in the middle, then on to the end
my $ledger = Outbox::Ledger->new;
my $holder = session($node);
is($holder->query(q{BEGIN; SELECT count(*) FROM (SELECT FROM outbox.scheduled WHERE payload::int > 50000 FOR UPDATE) AS s}), $many - 50000, 'the later half cannot be moved before the crash');
sql('SELECT outbox.start()');
wait_for(sub { sql('SELECT count(*) FROM outbox.unscheduled') > 0 }, 'the first are moved');
my $producers = start_producers($node, count => 1, transactions => 100);
wait_for(sub { $receiver->delivered('/ok?live') > 5 }, 'live events arrive');
$node->stop('immediate');
finish_producers($producers, $ledger);
$node->start;
$ledger->settle($node);
my $moved = sql('SELECT count(*) FROM outbox.unscheduled');
cmp_ok($moved, '<', $many, "the crash came in the middle ($moved moved)");
$producers = start_producers($node, count => 1, transactions => 300);
finish_producers($producers, $ledger);
wait_for(sub { sql('SELECT count(*) FROM outbox.scheduled') == 0 }, 'all of them moved', 180);
is(sql('SELECT count(*), count(DISTINCT scheduled_id), count(DISTINCT payload) FROM outbox.event WHERE scheduled_id IS NOT NULL'), "$many|$many|$many", 'each is in the log exactly once');
is(sql(q{SELECT count(*) FROM outbox.event AS e JOIN outbox.unscheduled AS u ON u.id = e.scheduled_id AND u.log_id = e.id AND u.status = 'moved'}), $many, 'and a record says where');
is(sql(q{SELECT count(*) FROM (SELECT payload::int < lag(payload::int) OVER (ORDER BY id) AS back FROM outbox.event WHERE scheduled_id IS NOT NULL) AS x WHERE back}), 0, 'in the order of deliver_at');
my ($steps, $largest) = split /\|/, sql('SELECT count(*), max(n) FROM (SELECT count(*) AS n FROM outbox.event WHERE scheduled_id IS NOT NULL GROUP BY xid) AS x');
cmp_ok($largest, '<', $many / 5, "in small steps ($steps, of at most $largest)");
cmp_ok(sql(q{SELECT count(*) FROM outbox.event AS e WHERE e.type = 'load.made' AND e.id < (SELECT max(log_id::text)::uuid FROM outbox.unscheduled)}), '>', 0, 'live events were enqueued meanwhile');
wait_for(sub { $ledger->complete($receiver, '/ok?live') }, 'all live events');
check_ledger($ledger, $receiver, '/ok?live', what => 'live', duplicates => 200);
my %some = map { $_->{id} => $_->{bytes} } $receiver->delivered('/ok?some');
wait_for(sub { %some = map { $_->{id} => $_->{bytes} } $receiver->delivered('/ok?some'); keys %some == $many / 500 }, 'those that somebody wants');
is(sql("SELECT count(*) FROM outbox.event WHERE type = 'some' AND scheduled_id = ANY ('{" . join(',', keys %some) . "}'::uuid[])"), $many / 500, 'arrive under the ids that enqueue() returned');

# Many that are due at the same time, and being cancelled, hold up no other that is due then or later
sql('SELECT outbox.stop()');
wait_for(sub { sql('SELECT worker_pid IS NULL FROM outbox._worker()') eq 't' }, 'stopped');
sql(q{SELECT count(outbox.enqueue('held', to_jsonb(i), deliver_at => now() + interval '1 h')) FROM generate_series(1, 20000) AS i});
my @free = map { sql("SELECT outbox.enqueue('some', '$_', deliver_at => now() + interval '1 h')") } 1, 2;
sql("UPDATE outbox.scheduled SET deliver_at = CASE id WHEN '$free[1]' THEN '2020-01-02' ELSE '2020-01-01' END::timestamptz");
my $session = session($node);
is($session->query(q{BEGIN; SELECT count(*) FROM outbox.scheduled WHERE type = 'held' AND outbox.cancel(id)}), 20000, 'many cancelled, not committed');
sql('SELECT outbox.start()');
wait_status($node, $_, 'some', 'delivered') for @free;
$session->query('ROLLBACK');
wait_for(sub { sql('SELECT count(*) FROM outbox.scheduled') == 0 }, 'the others follow');
is(sql(q{SELECT count(*), count(DISTINCT scheduled_id) FROM outbox.event WHERE type = 'held'}), '20000|20000', 'each once');

$node->stop;
done_testing();
