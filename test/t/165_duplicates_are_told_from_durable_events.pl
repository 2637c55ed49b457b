# A dedup_key stands for an event that is there to stay: whoever is told that it is a duplicate may rely on the first one, even if that one's producer commits asynchronously.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

# the WAL writer would flush everything soon enough, and the background writer may
my $node = outbox_node('main', conf => [ 'wal_writer_delay = 10s', 'wal_writer_flush_after = 1GB', 'autovacuum = off', 'bgwriter_lru_maxpages = 0', 'outbox.maintenance_interval = 1' ], arm => 0);
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { return $node->safe_psql('postgres', $_[0]) }

sql('CREATE TABLE noise (n int)');
my ($first, $second) = (session($node), session($node));
kill 'STOP', sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});   # however long its delay is, it may end now; an immediate stop kills it after 5 s
$first->query('SET synchronous_commit = off');
my $alone = $first->query(q{SELECT outbox.enqueue('t', '"alone"', dedup_key => 'alone')});
my $winner = $first->query(q{SELECT outbox.enqueue('t', '"winner"', dedup_key => 'k')});
is($second->query(q{SELECT outbox.enqueue('t', '"duplicate"', dedup_key => 'k')}), $winner, 'the second is told the id of the first');
my $lost = $first->query(q{SELECT outbox.enqueue('t', '"lost"', dedup_key => 'lost')});
$node->stop('immediate');
$_->close for $first, $second;
$node->start;
is(sql(q{SELECT string_agg(payload #>> '{}', ' ' ORDER BY id) FROM outbox.event}), 'alone winner', 'that one survives a crash (and what nobody was told of need not)');
isnt(enqueue($node, 't', '"again"', dedup_key => 'lost'), $lost, 'the key of one that did not is free');

# Many callers with few keys at a time: one event each, everybody told the same
my $callers = 8;
my @sessions = map { session($node) } 1 .. $callers;
$_->send(q{SELECT string_agg(id::text, ' ') FROM (SELECT outbox.enqueue('race', to_jsonb(pg_backend_pid()), dedup_key => i::text) AS id FROM generate_series(1, 200) AS i) AS x}) for @sessions;
my %answers = map { $_->receive => 1 } @sessions;
is(scalar keys %answers, 1, 'in one transaction each: all callers get the same ids');
my @scripts = map { my $n = $_; join ";\n", map { "SELECT outbox.enqueue('race', '$n', dedup_key => 'single-$_')" } 1 .. 200 } 1 .. $callers;
$sessions[$_]->send($scripts[$_]) for 0 .. $#sessions;
%answers = map { $_->receive => 1 } @sessions;
is(scalar keys %answers, 1, 'in a transaction for each key, too');
is(sql(q{SELECT count(*) FROM outbox.event WHERE type = 'race'}), 400, 'one event per key');
is(sql(q{SELECT count(*) FROM outbox.dedup WHERE type = 'race'}), 400, 'one key per event');
$_->close for @sessions;

# Keys expire, by maintenance, also when there are many
is(sql(q{SELECT count(outbox.enqueue('many', '1', dedup_key => i::text)) FROM generate_series(1, 5000) AS i}), 5000, 'many keys');
sql(q{UPDATE outbox.dedup SET at = at - interval '2 days' WHERE type = 'many'});
sql('SELECT outbox.start()');
wait_for(sub { sql(q{SELECT count(*) FROM outbox.dedup WHERE type = 'many'}) == 0 }, 'those that are past the window are removed');
is(sql(q{SELECT count(*) FROM outbox.dedup WHERE type = 'race'}), 400, 'the others stay');

$node->stop;
done_testing();
