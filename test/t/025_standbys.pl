# A standby refuses to write and delivers nothing; promoted, it goes on by itself and misses nothing that was replicated. With synchronous standbys nothing is sent that
# they have not confirmed, and the worker does not stop working while it waits for them.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => [ '--encoding=UTF8', '--no-locale' ]);
$primary->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\nmax_worker_processes = 16\nwal_sender_timeout = 0\nwal_receiver_timeout = 0\n");
$primary->start;
install($primary, 'postgres');
my $receiver = Outbox::Receiver->new;
subscribe($primary, 'main', $receiver->url('/ok?main'), types => [ 'before', 'made' ]);
subscribe($primary, 'flaky', $receiver->url('/flaky/1000?flaky'), types => ['flaky'], retry_base => '200 ms', max_attempts => 1000);
subscribe($primary, 'held', $receiver->url('/ok?held'), types => [ 'before', 'made' ]);
wait_status($primary, enqueue($primary, 'before', 1), 'main', 'delivered');
$primary->safe_psql('postgres', q{SELECT outbox.pause('held')});

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby);

sub sql { my ($sql) = @_; return $primary->safe_psql('postgres', $sql) }
sub came { my ($path) = @_; return join ' ', sort map { $_->{bytes} } $receiver->requests($path) }
sub wait_came { my ($path, $expected, $what) = @_; wait_for(sub { came($path) eq $expected }, $what); is(came($path), $expected, $what) }

# ---- a hot standby ----------------------------------------------------------------------------------------------------------------------

{
	my $session = session($standby);
	for (
		[ 'outbox.enqueue()', q{SELECT outbox.enqueue('made', '1')} ],
		[ 'outbox.enqueue_raw()', q{SELECT outbox.enqueue_raw('made', '\x01', 'text/plain')} ],
		[ 'outbox.enqueue_many()', q{SELECT outbox.enqueue_many('[{"type": "made", "payload": 1}]')} ],
		[ undef, q{INSERT INTO outbox.new_event (type, payload) VALUES ('made', '1')} ],
		[ undef, q{SELECT outbox.subscribe('new', 'https://example.com/')} ],
		[ undef, q{SELECT outbox.alter_subscription('main', description => 'x')} ],
		[ undef, q{SELECT outbox.pause('main')} ],
		[ undef, q{SELECT outbox.ping('main')} ],
		[ undef, q{SELECT outbox.start()} ],
		[ 'outbox.maintain()', q{SELECT outbox.maintain()} ])
	{
		my ($name, $sql) = @$_;
		my $said = $session->query($sql);
		my ($call) = $sql =~ /(outbox\.\w+)/;
		like($said, qr/ERROR: +25006: cannot (?:execute|assign)/, "a standby refuses $call");
		like($said, qr/cannot execute \Q$name\E during recovery/, 'and says why') if defined $name;
	}
	is($session->query(q{SELECT count(*) FROM outbox.event}), '1', 'the log can be read there');
	is($session->query(q{SELECT count(*) FROM outbox.subscription_status}), '3', 'and the state of subscriptions');
	is($session->query(q{SELECT count(*) > 5 FROM outbox.health()}), 't', 'health() answers') or diag $session->query('SELECT * FROM outbox.health()');
	is($session->query(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox%'}), '0', 'there is no worker on it');
}

# ---- synchronous replication --------------------------------------------------------------------------------------------------------------

my $name = $standby->name;
sql("ALTER SYSTEM SET synchronous_standby_names = '$name'");
$primary->reload;
wait_for(sub { sql(q{SELECT sync_state FROM pg_stat_replication}) eq 'sync' }, 'the standby being synchronous');
enqueue($primary, 'made', 2);
wait_came('/ok?main', '1 2', 'confirmed by its standby, an event is delivered');

# An event that is retried all the time shows that the worker goes on with its other work
enqueue($primary, 'flaky', '"again"');
wait_for(sub { $receiver->requests('/flaky/1000?flaky') >= 2 }, 'retries');

my $walreceiver = $standby->safe_psql('postgres', q{SELECT pid FROM pg_stat_wal_receiver});
kill 'STOP', $walreceiver;
my $producer = session($primary);
$producer->send(q{SELECT outbox.enqueue('made', '3')});
my $local = session($primary);
$local->query('SET synchronous_commit = local');
my $eager = $local->query(q{SELECT outbox.enqueue('made', '4')});    # its COMMIT does not wait for the standby
like($eager, qr/^[0-9a-f-]{36}$/, 'committed here, not confirmed there');
wait_for(sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}) >= 1 }, 'a COMMIT waiting for the standby');
my $tries = () = $receiver->requests('/flaky/1000?flaky');
my $turn = sql('SELECT turn_at FROM outbox._worker()');
wait_for(sub { $receiver->requests('/flaky/1000?flaky') >= $tries + 5 }, 'more retries meanwhile');
cmp_ok(scalar(() = $receiver->requests('/flaky/1000?flaky')), '>=', $tries + 5, 'while the standby is silent the worker goes on with what is durable');
is(sql("SELECT turn_at > '$turn' FROM outbox._worker()"), 't', 'its loop turns');
is($local->query("SELECT count(*) FROM outbox.event WHERE id = '$eager'"), '1', 'the event is there for everybody to see');
is(came('/ok?main'), '1 2', 'but nothing is sent that the standby has not confirmed');
kill 'CONT', $walreceiver;
wait_came('/ok?main', '1 2 3 4', 'confirmed, it is sent');
like($producer->receive, qr/^[0-9a-f-]{36}$/, 'and its producer is free');

# The standby is stopped altogether: the same, also for shutdown and for a new worker
$standby->stop('fast');
$local->query(q{SELECT outbox.enqueue('made', '5')});
$tries = () = $receiver->requests('/flaky/1000?flaky');
wait_for(sub { $receiver->requests('/flaky/1000?flaky') >= $tries + 5 }, 'more retries meanwhile');
is(came('/ok?main'), '1 2 3 4', 'without its standby nothing is sent');
my $worker = worker_pid($primary);
$local->query("SELECT pg_terminate_backend($worker, 10000)");
isnt(worker_pid($primary), $worker, 'a worker that waits for a standby can be ended');
wait_for(sub { my $at = sql('SELECT turn_at FROM outbox._worker() WHERE worker_pid <> 0'); $at ne '' }, 'turns of the next one');
is(came('/ok?main'), '1 2 3 4', 'and the next one waits too');
$standby->start;
wait_came('/ok?main', '1 2 3 4 5', 'until the standby is back');

# ---- promotion --------------------------------------------------------------------------------------------------------------------------

# What is replicated and not delivered: the paused subscription's backlog, and an event for which the endpoint was not ready
is($standby->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox%'}), '0', 'still no worker on the standby');
wait_for(sub { sql(q{SELECT status FROM outbox.delivery_status WHERE subscription = 'flaky'}) eq 'retrying' }, 'the retry having a row');
sql(q{SELECT outbox.pause('flaky'); SELECT outbox.pause('main')});
wait_for(sub { sql(q{SELECT sum(in_flight) FROM outbox.subscription_status WHERE name IN ('flaky', 'main')}) eq '0' }, 'nothing being in flight');
sql(q{SELECT outbox.alter_subscription('flaky', url => '} . $receiver->url('/ok?flaky') . q{', retry_base => '1 h')});
my @late = map { enqueue($primary, 'made', $_) } 6, 7;
$primary->wait_for_catchup($standby);
$primary->stop('immediate');
$standby->promote;
ok(worker_pid($standby), 'promoted, it has a worker by itself');
$standby->safe_psql('postgres', "SELECT outbox.resume('$_')") for qw(main flaky held);
$standby->safe_psql('postgres', q{SELECT outbox.enqueue('made', '8')});
wait_came('/ok?held', '1 2 3 4 5 6 7 8', 'it delivers the backlog that was replicated, and what is new');
wait_for(sub { came('/ok?main') =~ /6.*7.*8$/ }, 'what had not been delivered');
my %sent;
$sent{ $_->{bytes} }++ for $receiver->requests('/ok?main');
is(join(' ', sort keys %sent), '1 2 3 4 5 6 7 8', 'everybody gets what had not been delivered');
wait_for(sub { came('/ok?flaky') eq '"again"' }, 'the retry');
is(came('/ok?flaky'), '"again"', 'a retry that was replicated is made by the promoted server');
my ($newest) = sort { $b->{id} cmp $a->{id} } $receiver->requests('/ok?held');
is($newest->{bytes}, '8', 'ids go on ascending after promotion');

done_testing;
