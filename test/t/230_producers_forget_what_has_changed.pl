# What a session remembers of the log's tables from one event to the next is forgotten when they change, by whomever: every event is in every index, and in the columns there are.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use Test::More;

my $node = outbox_node('main', arm => 0);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sql('CREATE EXTENSION amcheck');
my $session = session($node);
sub record { my ($type) = @_; return $session->query("SELECT outbox.enqueue('$type', '1')") }

# What is wrong with the btrees of the segments: above all, rows that are not in them.
sub missing
{
	my $wrong = '';
	for my $index (split /\n/, sql(q{SELECT i.indexrelid::regclass FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
		WHERE i.indrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox.event'::regclass) AND a.amname = 'btree' ORDER BY 1}))
	{
		my ($code, undef, $error) = $node->psql('postgres', "SELECT bt_index_check('$index', true)");
		$wrong .= "$index: $error\n" if $code != 0;
	}
	return $wrong;
}

my $segment = sub { record('first.made'); return sql('SELECT DISTINCT tableoid::regclass FROM outbox.event') }->();
like($segment, qr/^outbox\.event_\d+$/, 'a session has recorded an event, and knows the segment');

sql("CREATE INDEX more ON $segment (type)");
record('indexed.made');
is(missing(), '', 'an index that somebody has added gets the next event');

sql("DROP INDEX outbox.more");
like(record('dropped.made'), qr/^[0-9a-f-]{36}$/, 'one that somebody has dropped is not looked for');

sql("REINDEX TABLE $segment");
record('rebuilt.made');
is(missing(), '', 'rebuilt indexes get the next event');

$session->query('BEGIN');
record('before.made');
$session->query("SAVEPOINT s; CREATE INDEX own ON $segment (created_at)");
record('within.made');
$session->query('ROLLBACK TO s');
record('undone.made');
$session->query("CREATE INDEX own ON $segment (type, created_at)");
record('again.made');
$session->query('COMMIT');
record('after.made');
is(missing(), '', 'so do those that the session itself has made, and taken back');
is(sql("SELECT count(*) FROM outbox.event WHERE type IN ('before.made', 'within.made', 'undone.made', 'again.made', 'after.made')"), '4', 'and none of its events is lost');

$session->query('BEGIN');
record('held.made');
my $concurrent = session($node);
$concurrent->send("CREATE INDEX CONCURRENTLY late ON $segment (key, type)");
ok(wait_for(sub { sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'") eq '1' }, 'the builder waiting'),
	'an index is being built beside an open transaction');
record('held.made');
$session->query('COMMIT');
for (1 .. 20) { record('beside.made') }
$concurrent->receive;
record('built.made');
is(missing(), '', 'it has all events in the end');

# what changes between the lock on the segment and that on its index
$session->query('SET allow_in_place_tablespaces = on');
$session->query(q{CREATE TABLESPACE elsewhere LOCATION ''});
record('near.made');
$concurrent->query("BEGIN; ALTER INDEX ${segment}_pkey SET TABLESPACE elsewhere");
$session->send(q{SELECT outbox.enqueue('moved.made', '1')});
ok(wait_for(sub { sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%moved.made%' AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'") eq '1' }, 'the producer waiting'),
	'a producer waits for an index that is being moved');
$concurrent->query('COMMIT');
like($session->receive, qr/^[0-9a-f-]{36}$/, 'and goes on afterwards');
is(missing(), '', 'its event is in the index where that is now');

# an index that the session itself all but dropped: the server has forgotten it, and brings no news
my $other = session($node);
record('near.made');
record('near.made');
$other->query('BEGIN; LOCK TABLE pg_catalog.pg_index IN SHARE MODE');
$session->query(q{SET lock_timeout = '100ms'});
like($session->query('DROP INDEX outbox.late'), qr/55P03/, 'an index is dropped in vain');
$session->query('RESET lock_timeout');
$session->query('SELECT repeat(chr(64 + i % 26), 300 + i) FROM generate_series(1, 2000) AS i');    # what was freed is used again
like(record('kept.made'), qr/^[0-9a-f-]{36}$/, 'the next event is recorded');
$other->query('ROLLBACK');
is(missing(), '', 'in that index too');

# indexes of which more than memory is known
sql('CREATE FUNCTION nested(value text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF value = \'refused.made\' THEN RAISE check_violation; END IF;
	IF value = \'nested.made\' AND current_setting(\'application_name\') = \'producer\' THEN PERFORM outbox.enqueue(\'inner.made\', \'1\'); END IF;
	RETURN upper(value);
END
$$');
sql("CREATE INDEX expression ON $segment (nested(type))");
sql("CREATE INDEX partial ON $segment (type) WHERE type LIKE 'special%'");
sql("CREATE INDEX inverted ON $segment USING gin (payload)");
sql("CREATE INDEX ranges ON $segment USING brin (created_at)");
$session->query(q{SET application_name = 'producer'});
for (1 .. 3) { record('special.made'); record('nested.made') }
is(missing(), '', 'indexes on expressions, and partial ones, get each event');
is(sql("SET enable_seqscan = off; SELECT count(*) FROM $segment WHERE payload @> '1'"), sql("SELECT count(*) FROM $segment"), 'so do those that are no btrees');
is(sql("SELECT count(*) FROM outbox.event WHERE type = 'inner.made'"), '3', 'an expression may record events itself');

like(record('refused.made'), qr/23514/, 'an expression that raises refuses the event');
$session->query('BEGIN; SAVEPOINT s');
like(record('refused.made'), qr/23514/, 'in a subtransaction too');
$session->query('ROLLBACK TO s');
record('special.made');
$session->query('COMMIT');
sql("DROP INDEX outbox.expression, outbox.partial, outbox.inverted, outbox.ranges");
record('plain.made');
is(missing(), '', 'after that, the session goes on');
is(sql("SELECT count(*) FROM outbox.event WHERE type = 'refused.made'"), '0', 'without the event that was refused');

sql('ALTER TABLE outbox.event ADD COLUMN note text DEFAULT \'of old\'');
record('noted.made');
is(sql("SELECT count(*) FROM outbox.event WHERE type = 'noted.made' AND note IS NULL"), '1', 'a column that somebody has added is null in new events');

# locks
sub locked { my ($pid) = @_; return sql("SELECT string_agg(relation::regclass::text, ' ' ORDER BY relation::regclass::text) FROM pg_locks WHERE pid = $pid AND mode = 'RowExclusiveLock' AND relation IN
	(SELECT '$segment'::regclass UNION SELECT indexrelid FROM pg_index WHERE indrelid = '$segment'::regclass)") }
my $pid = $session->query('SELECT pg_backend_pid()');
$session->query('BEGIN');
record('locked.made');
my $all = locked($pid);
like($all, qr/\Q$segment\E .*\Q$segment\E_pkey/, 'the segment and its indexes are locked until the transaction ends');
$session->query('ROLLBACK');
$session->query('BEGIN; SAVEPOINT s');
record('locked.made');
$session->query('ROLLBACK TO s');
is(locked($pid), '', 'a subtransaction that is undone gives the locks back');
record('locked.made');
is(locked($pid), $all, 'and the next event takes them again');
$session->query('COMMIT');

# a session's ids share nothing but the time
my @others = map { session($node) } 1 .. 3;
my %random;
for my $each (@others) { $random{ substr $_, 19 }++ for split /\n/, $each->query(q{SELECT outbox.enqueue('random.made', '1') FROM generate_series(1, 100)}) }
is(scalar keys %random, 300, 'no random part of an id comes twice, in one session or several');

# another installation
sql('DROP EXTENSION outbox CASCADE; CREATE EXTENSION outbox');
record('new.made');
is(sql("SELECT count(*) FROM outbox.event WHERE type = 'new.made'"), '1', 'after DROP and CREATE EXTENSION, the session writes to the new log');
is(missing(), '', 'with its indexes');

done_testing();
