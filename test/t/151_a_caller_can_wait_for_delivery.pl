# CALL wait_delivered(): true as soon as everybody has the event, false when it is over; it holds no snapshot while it waits.
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
my ($one, $two) = map { session($node) } 1 .. 2;
my $one_pid = $one->backend;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub wait_call { my ($id, $timeout) = @_; return "CALL outbox.wait_delivered('$id', '$timeout')" }

# Waits until the session sleeps in wait_delivered(), and returns what is to be seen of it.
sub sleeping
{
	my ($pid) = @_;
	return wait_for(sub { my $free = sql("SELECT backend_xid IS NULL AND backend_xmin IS NULL FROM pg_stat_activity WHERE pid = $pid AND state = 'active' AND wait_event_type = 'Extension' AND query LIKE 'CALL outbox.wait_delivered%'"); $free eq 't' && $free },
		'a session that waits');
}

subscribe($node, 'push', $receiver->url('/ok'), types => ['a', 'both']);
is($one->query(wait_call(enqueue($node, 'a', 1), '30 s')), 't', 'delivered');
is($one->query(wait_call(enqueue($node, 'nobody', 1), '30 s')), 't', 'wanted by nobody');
my $id = $one->query(q{SELECT outbox.enqueue('a', '2')});
is($one->query(wait_call($id, '30 s')), 't', 'in the session that enqueued it');
is($one->query(wait_call($id, '0')), 't', 'and again, without waiting');

# ---- several at once, without a snapshot
sql(q{SELECT outbox.pause('push')});
my @ids = map { enqueue($node, 'a', $_) } 1 .. 4;
my @waiting = map { session($node) } 1 .. 5;
my @pids = map { $_->backend } @waiting;
$waiting[$_]->send(wait_call($ids[$_ % 4], '60 s')) for 0 .. 4;
is(sleeping($_), 't', 'who waits has neither snapshot nor transaction id') for @pids;
is($one->query(wait_call($ids[0], '1 ms')), 'f', 'false at the timeout');
$two->send(wait_call($ids[0], '100 ms'));
is($two->receive, 'f', 'also when others wait');
sql(q{SELECT outbox.resume('push')});
is($waiting[$_]->receive, 't', "session $_ hears of it") for 0 .. 4;
is(sql("SELECT count(*) FROM outbox.event_status('$_') WHERE status = 'delivered'"), '1', 'and it is true') for @ids;

# ---- both kinds of subscriptions
sql(q{SELECT outbox.subscribe('pulled', types => '{both}')});
$id = enqueue($node, 'both', 1);
$one->send(wait_call($id, '60 s'));
wait_status($node, $id, 'push', 'delivered');
sleeping($one_pid);
my $token;
wait_for(sub { $token = $two->query(q{SELECT token FROM outbox.pull('pulled')}) }, 'it, to be pulled');
$two->query("SELECT outbox.ack('pulled', NULL, '$token')");
is($one->receive, 't', 'true when the pull subscription has it as well');

# ---- what will not be delivered
$node->safe_psql('postgres', q{SELECT outbox.unsubscribe('pulled')});
subscribe($node, 'refusing', $receiver->url('/status/400'), types => ['bad'], fatal_statuses => [400]);
$id = enqueue($node, 'bad', 1);
is($one->query(wait_call($id, '60 s')), 'f', 'false at once for a dead letter');
is(sql("SELECT status FROM outbox.event_status('$id') WHERE subscription = 'refusing'"), 'dead', 'which it is');
$id = sql(q{SELECT outbox.enqueue('a', '1', deliver_at => now() + interval '1 day')});
is($one->query(wait_call($id, '10 ms')), 'f', 'a scheduled event is waited for');
sql("SELECT outbox.cancel('$id')");
is($one->query(wait_call($id, '60 s')), 'f', 'not a cancelled one');
$id = sql(q{SELECT outbox.enqueue('a', '1', deliver_at => now() + interval '300 ms')});
is($one->query(wait_call($id, '60 s')), 't', 'until it is due, and delivered');

# ---- discarded, or nobody is left, while somebody waits
subscribe($node, 'slow', $receiver->url('/status/500'), types => ['slow'], retry_base => '1 h', retry_max => '1 h');
$id = enqueue($node, 'slow', 1);
wait_status($node, $id, 'slow', 'retrying');
$one->send(wait_call($id, '60 s'));
sleeping($one_pid);
sql("SELECT outbox.unsubscribe('slow')");
is($one->receive, 't', 'when who it is for is gone, everybody has it');

# ---- without a log of attempts only cursors tell
$node->append_conf('postgresql.conf', 'outbox.attempt_log = none');
$node->reload;
wait_for(sub { sql('SHOW outbox.attempt_log') eq 'none' }, 'the setting');
is($one->query(wait_call(enqueue($node, 'a', 3), '60 s')), 't', 'no attempt is logged');

# ---- interrupts, and what is refused
sql(q{SELECT outbox.pause('push')});
$id = enqueue($node, 'a', 4);
$one->send(wait_call($id, '60 s'));
sleeping($one_pid);
sql("SELECT pg_cancel_backend($one_pid)");
like($one->receive, qr/57014/, 'it can be cancelled');
like($one->query("SET statement_timeout = '50ms'; " . wait_call($id, '60 s')), qr/57014/, 'and has the time that statements have');
$one->query('SET statement_timeout = 0');
like($one->query('BEGIN; ' . wait_call($id, '1 s')), qr/25001/, 'not in a transaction block');
$one->query('ROLLBACK');
like($one->query(q{DO $$ DECLARE d boolean; BEGIN CALL outbox.wait_delivered(outbox.enqueue('a', '5'), '1 s', d); END $$}), qr/25001/, 'not for an event of this transaction');
like($one->query(wait_call('00000000-0000-7000-8000-000000000000', '60 s')), qr/42704/, 'not for an unknown one');
$two->query('BEGIN');
my $uncommitted = $two->query(q{SELECT outbox.enqueue('a', '6')});
like($one->query(wait_call($uncommitted, '60 s')), qr/42704/, 'nor for one that is not committed');
$two->query('ROLLBACK');

# ---- publishers and consumers may
sql("CREATE ROLE $_ LOGIN; SELECT outbox.grant_role('$_', '$_')") for qw(publisher consumer);
for my $role (qw(publisher consumer))
{
	my $session = session($node);
	$session->query("SET ROLE $role");
	is($session->query(wait_call($id, '1 ms')), 'f', "a $role may wait");
	$session->close;
}
$_->close for @waiting, $one, $two;
unlike(slurp_file($node->logfile), qr/ PANIC:/, 'and that is all');
done_testing;
