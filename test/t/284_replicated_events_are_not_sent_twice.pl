# Logical replication. A subscriber that has outbox too sends what was enqueued in it, and nothing that was replicated into it, whatever is published, also after a restart; what the publisher
# empties it keeps. A plain database that subscribes to the inserts of outbox.event gets every event once, while segments are filled and emptied.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @ring = ("outbox.segment_size = '8kB'", "outbox.event_retention = '0'", "outbox.maintenance_interval = '1s'");
my $publisher = outbox_node('publisher', conf => [ 'wal_level = logical', 'max_wal_senders = 8', 'max_replication_slots = 8', "outbox.source = 'urn:outbox:publisher'", @ring ]);
my $subscriber = outbox_node('subscriber', conf => [ "outbox.source = 'urn:outbox:subscriber'", 'wal_retrieve_retry_interval = 200ms' ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($node, $sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }
sub wait_sent { my ($id) = @_; return wait_for(sub { grep { $_->{id} eq $id } $receiver->delivered('/ok?theirs') }, "event $id of the publisher") }
sub from { my ($source) = @_; return grep { $_->{headers}{'ce-source'} eq "urn:outbox:$source" } $receiver->delivered }

subscribe($publisher, 'gone', $receiver->url('/ok?gone'));
sql($publisher, q{SELECT outbox.unsubscribe('gone')});
subscribe($publisher, 'theirs', $receiver->url('/ok?theirs'));    # another id than that of the subscriber's own
subscribe($subscriber, 'own', $receiver->url('/ok?own'));
my $worker = worker_pid($subscriber);
my @own = map { enqueue($subscriber, 'own.made', $_) } 1 .. 3;
wait_status($subscriber, $_, 'own', 'delivered') for @own;
my $early = enqueue($publisher, 'early.made', 1);

# ---- a plain database, inserts only ---------------------------------------------------------------------------------------------------------

sql($publisher, q{CREATE PUBLICATION inserts FOR TABLE outbox.event WITH (publish = 'insert')});
sql($publisher, q{CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'insert')});
sql($publisher, 'CREATE PUBLICATION whatever FOR ALL TABLES');    # updates and deletes too: a table that has them needs a replica identity
sql($subscriber, 'CREATE DATABASE plain');
sql($subscriber, 'CREATE SCHEMA outbox; CREATE TABLE outbox.event (id uuid, xid xid8, epoch bigint, created_at timestamptz, type text, key text, tenant text, payload jsonb, body bytea, content_type text, headers jsonb, traceparent text, scheduled_id uuid)', 'plain');
sql($subscriber, "CREATE TABLE outbox.event_$_ () INHERITS (outbox.event)", 'plain') for 0 .. 15;
sql($subscriber, 'CREATE SUBSCRIPTION plain CONNECTION ' . literal($publisher->connstr('postgres')) . ' PUBLICATION inserts', 'plain');
wait_for(sub { sql($subscriber, q{SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'}, 'plain') == 0 }, 'the first copy');

my @ids;
for my $round (1 .. 6)
{
	push @ids, split /\n/, sql($publisher, "SELECT outbox.enqueue('item.made', to_jsonb(repeat('x', 300)), key => 'k' || i % 5) FROM generate_series(1, 60) AS i");
	wait_sent($ids[-1]);
	sql($publisher, 'SELECT outbox.maintain()') for 1 .. 2;
}
wait_for(sub { sql($publisher, 'SELECT count(*) FROM outbox.event') < @ids }, 'segments being emptied');
$publisher->wait_for_catchup('plain');
is(sql($subscriber, q{SELECT count(*), count(DISTINCT id) FROM outbox.event WHERE type = 'item.made'}, 'plain'), @ids . '|' . @ids, 'a plain subscriber to the inserts of outbox.event has each event once');
is(sql($subscriber, q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM outbox.event WHERE type = 'item.made'}, 'plain'), join(' ', sort @ids), 'the same ones');

# ---- another installation, everything -----------------------------------------------------------------------------------------------------------------

sql($subscriber, 'DELETE FROM outbox.operation; ALTER TABLE outbox.operation ALTER id RESTART WITH 1000000');    # its identities would be in the way of the publisher's
sql($subscriber, 'CREATE SUBSCRIPTION everything CONNECTION ' . literal($publisher->connstr('postgres')) . ' PUBLICATION everything WITH (copy_data = true)');
wait_for(sub { sql($subscriber, q{SELECT count(*) FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid WHERE s.subname = 'everything' AND r.srsubstate <> 'r'}) == 0 }, 'the first copy', 180)
	or diag substr(slurp_file($subscriber->logfile), -2000);
my @later = map { enqueue($publisher, 'item.made', $_) } 1 .. 20;
wait_sent($_) for @later;
push @own, map { enqueue($subscriber, 'own.made', $_) } 4 .. 6;
wait_status($subscriber, $_, 'own', 'delivered') for @own;
wait_for(sub { sql($subscriber, "SELECT count(*) FROM outbox.event WHERE id = '$later[-1]'") eq '1' }, 'the events being replicated');
is(sql($subscriber, "SELECT count(*) FROM outbox.subscription WHERE name = 'theirs'"), 1, 'replicated, with the subscription that they are for');

sub sends_nothing
{
	my ($what) = @_;
	my $id = enqueue($subscriber, 'own.made', '"after"');
	push @own, $id;
	wait_status($subscriber, $id, 'own', 'delivered');
	my %published = map { $_ => 1 } $early, @ids, @later;
	is(scalar(grep { $published{ $_->{id} } } from('subscriber')), 0, "$what, the subscriber sends nothing of the publisher's");
	my %times;
	$times{ $_->{id} }++ for $receiver->delivered('/ok?theirs');
	is(scalar(grep { $published{$_} && $times{$_} > 1 } keys %times), 0, "$what: no event was sent twice");
}
sends_nothing('replicating');
sql($subscriber, 'SELECT pg_terminate_backend(worker_pid, 30000) FROM outbox._worker()');
sends_nothing('after a new worker');
$subscriber->restart;
sends_nothing('after a restart');
sql($subscriber, 'SELECT outbox.stop()');
worker_gone($subscriber);
sql($subscriber, 'SELECT outbox.start()');
sends_nothing('after stop() and start()');

# What the publisher empties, the subscriber keeps: its own events are in tables of that name
sql($publisher, q{ALTER PUBLICATION everything SET (publish = 'insert, truncate')});
my $mine = sql($subscriber, q{SELECT count(*) FROM outbox.event WHERE epoch = outbox.epoch()});
cmp_ok($mine, '>=', scalar @own, "its own $mine");
for my $round (1 .. 4)
{
	my ($id) = reverse split /\n/, sql($publisher, "SELECT outbox.enqueue('item.made', to_jsonb(repeat('x', 300))) FROM generate_series(1, 60) AS i");
	wait_sent($id);
	sql($publisher, 'SELECT outbox.maintain()') for 1 .. 2;
}
wait_for(sub { slurp_file($subscriber->logfile) =~ /cannot truncate table "\w+" by replication/ }, 'a TRUNCATE being refused');
like(slurp_file($subscriber->logfile), qr/ERROR:  cannot truncate table "\w+" by replication\n.*DETAIL: .*\n.*HINT: .*publish = 'insert'/, 'a TRUNCATE that comes by replication is refused, with a hint');
is(sql($subscriber, q{SELECT count(*) FROM outbox.event WHERE epoch = outbox.epoch()}), $mine, 'the subscriber keeps its own events');
unlike(slurp_file($_->logfile), qr/PANIC|TRAP|terminated by signal|XX000|cache lookup/, $_->name . ': no crash and no internal error') for $publisher, $subscriber;

# ---- a publication of everything stops nobody at the publisher ----------------------------------------------------------------------------------------

sql($publisher, q{SELECT outbox.alter_subscription('theirs', fatal_statuses => ARRAY[400], url => '} . $receiver->url('/status/400?theirs') . q{')});
my $dead = enqueue($publisher, 'item.made', '"dead"');
wait_for(sub { sql($publisher, q{SELECT count(*) FROM outbox.dead_letter}) eq '1' }, 'a dead letter');
for (1 .. 2)
{
	sql($publisher, 'SELECT pg_terminate_backend(worker_pid, 30000) FROM outbox._worker()');
	worker_pid($publisher);
}
sql($publisher, q{SELECT outbox.alter_subscription('theirs', url => '} . $receiver->url('/ok?theirs') . q{'); SELECT outbox.redrive('theirs')});
wait_sent($dead);
sql($publisher, $_) for q{SELECT outbox.replay('theirs', since => now() - interval '1 hour')},
	q{SELECT outbox.cancel(outbox.enqueue('item.made', '1', deliver_at => now() + interval '1 hour'))},
	q{SELECT outbox.accept('consumer', 'message'); SELECT outbox.begin_request('scope', 'key', '\x01')}, 'SELECT outbox.stop()';
wait_for(sub { sql($publisher, 'SELECT worker_pid IS NULL FROM outbox._worker()') eq 't' }, 'stopped');    # skip_backlog is refused while there is one
sql($publisher, $_) for 'SELECT outbox.start(skip_backlog => true)', q{SELECT outbox.unsubscribe('theirs')}, 'SELECT outbox.maintain()';
unlike(slurp_file($publisher->logfile), qr/does not have a replica identity/, 'FOR ALL TABLES stops nobody at the publisher');
is(sql($publisher, q{SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r' AND relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)})
		=~ s/ attempt_log_\d//gr, 'attempt_log event tick', 'each table of which rows are changed or deleted has a replica identity');
sql($subscriber, $_) for 'ALTER SUBSCRIPTION everything DISABLE', 'ALTER SUBSCRIPTION everything SET (slot_name = NONE)', 'DROP SUBSCRIPTION everything';

done_testing;
