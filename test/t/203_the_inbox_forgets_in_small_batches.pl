# What is old is forgotten in small batches while callers go on; duplicates leave nothing behind.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', arm => 0, conf => [ 'autovacuum = off', "outbox.maintenance_interval = '1s'", "outbox.inbox_retention = '1 h'", "outbox.request_retention = '1 h'", 'max_connections = 30' ]);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

# ---- duplicates ----

sql(q{SELECT count(*) FROM generate_series(1, 1000) AS i WHERE outbox.accept('c', i::text)});
sub traces { return sql(q{SELECT pg_current_xact_id_if_assigned() IS NULL, pg_snapshot_xmax(pg_current_snapshot()), pg_relation_size('outbox.inbox'), pg_relation_size('outbox.inbox_pkey')}) }
sub stat_of
{
	my ($column) = @_;
	return sql("SELECT pg_stat_force_next_flush(), $column FROM pg_stat_user_tables WHERE relid = 'outbox.inbox'::regclass") =~ s/^\|//r;
}
wait_for(sub { stat_of('n_tup_ins') eq '1000' }, 'the statistics');
my $before = traces();
{
	my $session = session($node);
	is($session->query(q{SELECT count(*) FROM generate_series(1, 1000) AS i, generate_series(1, 20) WHERE outbox.accept('c', i::text)}), '0', '20,000 duplicates');
	is($session->query(q{SELECT outbox.accept_many('c', ARRAY(SELECT i::text FROM generate_series(1, 1000) AS i))}), '{}', 'and 1000 in a batch');
	$session->query('BEGIN');
	is($session->query(q{SELECT outbox.accept('c', '1'), pg_current_xact_id_if_assigned() IS NULL}), 'f|t', 'a duplicate needs no transaction id');
	$session->query('COMMIT');
	$session->query('SELECT pg_stat_force_next_flush()');
}
is(traces(), $before, 'no transaction id was used, and no page');
is(stat_of('n_tup_ins || \' \' || n_tup_upd || \' \' || n_tup_del || \' \' || n_dead_tup'), '1000 0 0 0', 'nothing was inserted in vain, nothing is dead');

# Not even when they meet: eight at the same messages, in the same moment
{
	my @crowd = map { session($node) } 1 .. 8;
	$_->send(q{DO $$ BEGIN FOR i IN 1 .. 500 LOOP PERFORM outbox.accept('crowd', i::text); COMMIT; END LOOP; END $$}) for @crowd;
	is($_->receive, '', 'one of a crowd') for @crowd;
	$_->query('SELECT pg_stat_force_next_flush()') for @crowd;
}
is(stat_of('n_tup_ins || \' \' || n_dead_tup'), '1500 0', 'callers who meet insert nothing in vain either');

# ---- expiry, by maintain() ----

sql(q{INSERT INTO outbox.inbox SELECT now() - interval '2 h', 'old ' || i, 'c' FROM generate_series(1, 20000) AS i});
sql(q{SELECT outbox.set_consumer('long', '1 day'), outbox.set_consumer('short', '1 min')});
sql(q{INSERT INTO outbox.inbox SELECT now() - interval '10 min', c || i, c FROM generate_series(1, 100) AS i, unnest(ARRAY['c', 'long', 'short']) AS c});
sql(q{INSERT INTO outbox.inbox SELECT now() - interval '2 h', i::text, 'long' FROM generate_series(1, 100) AS i});
sql(q{INSERT INTO outbox.idempotency_key (token, claimed_at, takeover_at, finished_at, status, scope, key, fingerprint) SELECT i, now(), now(), now() - interval '2 h', 200, 's', i, 'f' FROM generate_series(1, 5000) AS i});

# callers go on meanwhile: an expired message is a duplicate as long as it is there, and new afterwards; a young one is always a duplicate
my $caller = session($node);
$caller->send(<<'SQL');
DO $$
DECLARE
    again integer := 0;
BEGIN
    FOR i IN 1 .. 20000 LOOP
        IF outbox.accept('c', 'old ' || i) THEN
            again := again + 1;
            ASSERT NOT outbox.accept('c', 'old ' || i), 'accepted twice';
        END IF;
        ASSERT NOT outbox.accept('c', (1 + i % 1000)::text), 'forgotten too early';
        ASSERT NOT outbox.accept('long', (1 + i % 100)::text), 'forgotten before its retention';
        COMMIT;
    END LOOP;
    RAISE INFO 'accepted again: %', again;
END $$
SQL
my $expired = 0;
wait_for(sub {
		my $round = sql(q{SELECT COALESCE(sum(count), 0) FROM outbox.maintain() WHERE action = 'expired'});
		$expired += $round;
		return sql(q{SELECT count(*) FROM outbox.inbox WHERE accepted_at < now() - interval '1 h' AND consumer <> 'long'}) eq '0' && sql('SELECT count(*) FROM outbox.idempotency_key') eq '0';
	}, 'expiry', 60);
like($caller->receive, qr/accepted again: \d+/, 'callers had the right answers meanwhile');
is(sql('SELECT sum(expired) FROM outbox.inbox_count'), 20100, 'what was forgotten is counted');
is($expired, 25100, 'and told');
is(sql(q{SELECT string_agg(consumer || ' ' || held, ', ' ORDER BY consumer) FROM outbox.inbox_status WHERE consumer IN ('long', 'short', 'crowd')}), 'crowd 500, long 200, short 0', 'each by its own retention');
is(sql(q{SELECT count(*) FROM outbox.inbox WHERE consumer = 'c' AND message_id NOT LIKE 'old%'}), '1100', 'what is young stays');

# ---- by the worker, without long locks: somebody who has locked a row does not hold it up, nor is anybody held up ----

sql(q{INSERT INTO outbox.inbox SELECT now() - interval '2 h', 'worker ' || i, 'c' FROM generate_series(1, 5000) AS i});
my $locker = session($node);
$locker->query(q{BEGIN; SELECT count(*) FROM (SELECT FROM outbox.inbox WHERE message_id = 'worker 7' FOR UPDATE) AS x});
sql('SELECT outbox.start()');
ok(wait_for(sub { sql(q{SELECT count(*) FROM outbox.inbox WHERE message_id LIKE 'worker%'}) eq '1' }, 'the worker'), 'the worker forgets, all but a row that somebody has locked');
$locker->query('COMMIT');
ok(wait_for(sub { sql(q{SELECT count(*) FROM outbox.inbox WHERE message_id LIKE 'worker%'}) eq '0' }, 'the last one'), 'that one later');
ok(wait_for(sub { sql(q{SELECT duplicates > 20000 FROM outbox.inbox_count WHERE consumer = 'c'}) eq 't' }, 'the counts'), 'and writes down the duplicates');
is(sql(q{SELECT count(*) FROM outbox.health() WHERE check_name = 'maintenance_age' AND status = 'ok'}), '1', 'health() looks after maintenance where there is an inbox');

done_testing;
