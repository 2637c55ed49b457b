# Guarantees 1, 3: whatever way a transaction writes its events, they are delivered if and only if it commits, and then at once; and nobody's events wait for another's transaction.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ 'wal_level = logical', 'max_wal_senders = 4' ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $path = '/ok?main';
subscribe($node, 'main', $receiver->url($path));

sub sql { my ($sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }
sub bodies { my ($type, $where) = @_; return join ' ', sort map { $_->{bytes} } grep { $_->{type} eq $type } $receiver->requests($where // $path) }
sub arrive { my ($type, $expected, $what, $where) = @_; wait_for(sub { bodies($type, $where) eq $expected }, $what); is(bodies($type, $where), $expected, $what) }
sub read_on { my $id = enqueue($node, 'pass', 0); return wait_for(sub { scalar $receiver->of($path, $id) }, 'an event that was committed later') }

# SQLSTATE of a statement that must fail, in a session with VERBOSITY verbose
sub refused { my ($session, $sql) = @_; my $said = $session->query($sql) // ''; return $said =~ /ERROR: +([0-9A-Z]{5}):/ ? $1 : "not refused: $said" }

# Triggers, for each row and for each statement
sql(<<'SQL');
CREATE TABLE orders (id int PRIMARY KEY, state text);
CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outbox.enqueue('trigger.row', to_jsonb(NEW.id), key => NEW.id::text);
    RETURN NEW;
END $$;
CREATE FUNCTION told_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outbox.enqueue('trigger.statement', (SELECT to_jsonb(count(*)) FROM fresh));
    RETURN NULL;
END $$;
CREATE TRIGGER told BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION told();
CREATE TRIGGER told_all AFTER INSERT ON orders REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION told_all();
CREATE FUNCTION told_last() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outbox.enqueue('trigger.deferred', to_jsonb(NEW.id));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER told_last AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION told_last();
SQL
sql('INSERT INTO orders SELECT i FROM generate_series(1, 3) AS i');
sql('BEGIN; INSERT INTO orders VALUES (4); ROLLBACK');
sql('INSERT INTO orders VALUES (1), (5) ON CONFLICT DO NOTHING');
sql(q{COPY orders (id) FROM PROGRAM 'echo 6'});
arrive('trigger.deferred', '1 2 3 5 6', 'a deferred constraint trigger, which fires during COMMIT');
arrive('trigger.statement', '1 1 3', 'a trigger for each statement');
arrive('trigger.row', '1 1 2 3 5 6', 'a trigger for each row; COPY too; that of an INSERT which does nothing fires before it does');

# DO, functions, procedures that commit, loops with EXCEPTION
sql(q{DO $$ BEGIN FOR i IN 1 .. 3 LOOP PERFORM outbox.enqueue('do', to_jsonb(i)); END LOOP; END $$});
arrive('do', '1 2 3', 'DO');
sql(<<'SQL');
DO $$
BEGIN
    FOR i IN 1 .. 20 LOOP
        BEGIN
            PERFORM outbox.enqueue('exception', to_jsonb(i));
            IF i % 2 = 0 THEN
                PERFORM 1 / (i % 2);
            END IF;
            BEGIN
                PERFORM outbox.enqueue('exception', to_jsonb(100 + i));
                IF i % 3 = 0 THEN
                    RAISE EXCEPTION 'no';
                END IF;
            EXCEPTION WHEN raise_exception THEN
                PERFORM outbox.enqueue('exception.handler', to_jsonb(i));
            END;
        EXCEPTION WHEN division_by_zero THEN
            NULL;
        END;
    END LOOP;
END $$;
SQL
arrive('exception', join(' ', sort map { ($_, $_ % 3 ? 100 + $_ : ()) } grep { $_ % 2 } 1 .. 20), 'blocks with EXCEPTION: what they undid is not sent, what they kept is');
arrive('exception.handler', '15 3 9', 'what their handlers enqueue is sent');
sql(<<'SQL');
CREATE PROCEDURE steps() LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 6 LOOP
        PERFORM outbox.enqueue('procedure', to_jsonb(i));
        IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
    END LOOP;
END $$;
CALL steps();
SQL
arrive('procedure', '1 2 4 5', 'a procedure that commits and rolls back');
sql(q{WITH made AS (INSERT INTO orders SELECT 10 + i FROM generate_series(1, 2) AS i RETURNING id) SELECT outbox.enqueue('cte', to_jsonb(id)) FROM made});
arrive('cte', '11 12', 'INSERT … RETURNING in a CTE');

# Deep subtransactions: more than the 64 that a snapshot remembers
sql('DO $$ BEGIN FOR i IN 1 .. 200 LOOP BEGIN PERFORM outbox.enqueue(\'overflow\', to_jsonb(i)); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$');
arrive('overflow', join(' ', sort 1 .. 200), 'two hundred subtransactions');

# SERIALIZABLE: of two that collide one is sent
{
	my @both = map { session($node) } 1, 2;
	sql('CREATE TABLE doctors (id int PRIMARY KEY, on_call boolean); INSERT INTO doctors VALUES (0, true), (1, true)');
	$_->query('BEGIN ISOLATION LEVEL SERIALIZABLE') for @both;
	for my $i (0, 1)
	{
		is($both[$i]->query('SELECT count(*) FROM doctors WHERE on_call'), '2', 'SERIALIZABLE reads');
		$both[$i]->query("UPDATE doctors SET on_call = false WHERE id = $i");
		$both[$i]->query("SELECT outbox.enqueue('serializable', '$i')");
	}
	is($both[0]->query('COMMIT'), '', 'SERIALIZABLE: the first commits');
	is(refused($both[1], 'COMMIT'), '40001', 'the second is refused');
	arrive('serializable', '0', 'of two transactions that collide the one that committed is sent');
	my $one = $both[0];
	$one->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
	$one->query(q{SELECT outbox.enqueue('repeatable', '1')});
	$one->query('COMMIT');
	arrive('repeatable', '1', 'REPEATABLE READ');

	# many SERIALIZABLE producers side by side do not disturb one another: nothing is read that they could conflict on
	my @crowd = map { session($node) } 1 .. 4;
	for my $round (1 .. 5)
	{
		$_->query('BEGIN ISOLATION LEVEL SERIALIZABLE') for @crowd;
		$_->query(q{SELECT outbox.enqueue('crowd', '1')}) for @crowd;
		is(join('', map { $_->query('COMMIT') } @crowd), '', "SERIALIZABLE producers do not collide over the log: round $round");
	}

	# READ ONLY
	$one->query('BEGIN READ ONLY');
	is(refused($one, q{SELECT outbox.enqueue('never', '1')}), '25006', 'READ ONLY is refused');
	$one->query('ROLLBACK');
	$one->query('SET default_transaction_read_only = on');
	is(refused($one, q{SELECT outbox.enqueue_raw('never', '\x01', 'text/plain')}), '25006', 'enqueue_raw too');
	is(refused($one, q{SELECT outbox.enqueue_many('[{"type": "never", "payload": 1}]')}), '25006', 'enqueue_many too');
	is(refused($one, q{INSERT INTO outbox.new_event (type, payload) VALUES ('never', '1')}), '25006', 'new_event too');
}

# Two-phase commit
{
	my $outcome = session($node);
	$outcome->query(q{BEGIN; SELECT outbox.enqueue('prepared', to_jsonb(i)) FROM generate_series(1, 3) AS i; SAVEPOINT s; SELECT outbox.enqueue('prepared', '4'); ROLLBACK TO s; PREPARE TRANSACTION 'yes'});
	$outcome->query(q{BEGIN; SELECT outbox.enqueue('prepared', '5'); PREPARE TRANSACTION 'no'});
	read_on();
	is(bodies('prepared'), '', 'what is prepared is not sent');
	$outcome->query(q{ROLLBACK PREPARED 'no'});
	read_on();
	is(bodies('prepared'), '', 'nor what was rolled back then');
	$outcome->query(q{COMMIT PREPARED 'yes'});
	arrive('prepared', '1 2 3', 'COMMIT PREPARED: it is sent, without a bell');
}

# A transaction that stays open delays its own events and no others
{
	my $slow = session($node);
	$slow->query('BEGIN');
	my $low = $slow->query(q{SELECT outbox.enqueue('slow', '1', key => 'shared')});
	sql(q{SELECT outbox.enqueue('quick', to_jsonb(i), key => 'shared') FROM generate_series(1, 100) AS i}) for 1 .. 5;
	my $last = $slow->query(q{SELECT outbox.enqueue('slow', '2', key => 'shared')});
	wait_for(sub { 500 == grep { $_->{type} eq 'quick' } $receiver->requests($path) }, 'five hundred later events');
	is(scalar(grep { $_->{type} eq 'quick' } $receiver->requests($path)), 500, 'five hundred later events are delivered while it is open');
	cmp_ok($low, 'lt', (sort map { $_->{id} } grep { $_->{type} eq 'quick' } $receiver->requests($path))[0], 'its id is lower than all of theirs');
	is(bodies('slow'), '', 'its own wait');
	$slow->query('COMMIT');
	arrive('slow', '1 2', 'until it commits');
	is(join(' ', map { $_->{bytes} } grep { $_->{type} eq 'slow' } $receiver->requests($path)), '1 2', 'in their order');
}

# A logical replication apply worker, in another database, whose triggers enqueue
{
	sql('CREATE DATABASE copy');
	install($node, 'copy');
	subscribe($node, 'copied', $receiver->url('/ok?copy'), database => 'copy');
	sql('CREATE TABLE source (id int PRIMARY KEY, note text); CREATE PUBLICATION p FOR TABLE source');
	sql(q{SELECT pg_create_logical_replication_slot('s', 'pgoutput')});
	sql(<<'SQL', 'copy');
CREATE TABLE source (id int PRIMARY KEY, note text);
CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outbox.enqueue('applied.' || lower(TG_OP), to_jsonb(NEW.id), key => 'k');
    RETURN NULL;
END $$;
CREATE TRIGGER told AFTER INSERT OR UPDATE ON source FOR EACH ROW EXECUTE FUNCTION told();
ALTER TABLE source ENABLE ALWAYS TRIGGER told;
SQL
	sql("CREATE SUBSCRIPTION s CONNECTION " . literal($node->connstr('postgres')) . " PUBLICATION p WITH (create_slot = false, copy_data = false)", 'copy');
	sql(q{INSERT INTO source SELECT i FROM generate_series(1, 5) AS i});
	sql(q{BEGIN; INSERT INTO source VALUES (6); ROLLBACK});
	sql(q{UPDATE source SET note = 'changed' WHERE id = 2});
	arrive('applied.update', '2', 'an apply worker\'s update is delivered', '/ok?copy');
	arrive('applied.insert', '1 2 3 4 5', 'and its inserts', '/ok?copy');
	is(scalar $receiver->requests('/ok?copy'), 6, 'each once');
	is(join(' ', map { $_->{bytes} } $receiver->requests('/ok?copy')), '1 2 3 4 5 2', 'in their order');
	$node->safe_psql('copy', $_) for 'ALTER SUBSCRIPTION s DISABLE', 'ALTER SUBSCRIPTION s SET (slot_name = NONE)', 'DROP SUBSCRIPTION s';
}

read_on();
is(scalar(grep { $_->{type} eq 'never' } $receiver->requests), 0, 'nothing that was refused is ever sent');
my %times;
$times{"$_->{path} $_->{id}"}++ for $receiver->requests;
is_deeply([ grep { $times{$_} > 1 } keys %times ], [], 'nothing was sent twice');

done_testing;
