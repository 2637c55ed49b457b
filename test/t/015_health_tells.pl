# health() tells of each kind of trouble while it lasts, whose it is and what to do, and no longer.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', key => 1, conf => [ "outbox.maintenance_interval = '1s'", "outbox.event_retention = '1s'", "outbox.segment_age = '1s'", "outbox.segment_size = '1MB'" ]);
my $receiver = Outbox::Receiver->new;

sub sql { my ($sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }
sub health { my ($column, $check, $thresholds, $database) = @_; return sql("SELECT $column FROM outbox.health(" . literal(JSON::PP::encode_json($thresholds // {})) . ") WHERE check_name = '$check'", $database) }

# The check reaches this status (with these thresholds for it), and then names its subject and says what to do
sub tells
{
	my ($check, $status, $limits, $subject) = @_;
	my $thresholds = $limits ? { $check => $limits } : {};
	my $seen = '';
	ok(wait_for(sub { ($seen = health('status', $check, $thresholds)) eq $status }, "$check: $status"), "$check: $status") or diag "it is $seen";
	is(health("COALESCE(subject, ''), action IS NOT NULL, threshold IS NOT NULL, detail IS NOT NULL", $check, $thresholds), ($subject // '') . ($status eq 'ok' ? '|f' : '|t') . '|t|t', "$check: $status, with all that belongs to it");
}

subscribe($node, 'fine', $receiver->url('/ok?fine'), types => [ 'fine', 'large' ]);
my $fine = enqueue($node, 'fine', 1);
wait_for(sub { $receiver->of('/ok?fine', $fine) }, 'its event being delivered, which the log forgets a second later');
wait_for(sub { sql(q{SELECT count(*) FROM outbox.health() WHERE status <> 'ok'}) eq '0' }, 'health');
is(sql(q{SELECT string_agg(check_name || ' ' || status, ', ') FROM outbox.health() WHERE status <> 'ok'}), '', 'nothing is wrong');
is(sql('SELECT count(*) FROM outbox.health()'), '21', 'in twenty-one checks');

# tick_age: a worker that hangs
my $worker = worker_pid($node);
stand_still($node, $worker);
tells('tick_age', 'warning', { warning => 1.5, critical => 100_000 });
tells('tick_age', 'critical', { warning => 1, critical => 2 });
kill 'CONT', $worker;
tells('tick_age', 'ok', { warning => 30, critical => 40 });
cmp_ok(health('value', 'tick_age'), '<', 30, 'tick_age is young again');
is(worker_pid($node), $worker, 'it is still the same worker');

# armed
sql('SELECT outbox.stop()');
tells('armed', 'warning', undef, 'postgres');
like(health('action', 'armed'), qr/outbox\.start\(\)/, 'armed: what to do');
sql('SELECT outbox.start()');
worker_pid($node);
tells('armed', 'ok', undef, 'postgres');
sql('ALTER SYSTEM SET outbox.enabled = off');
$node->reload;
tells('armed', 'warning', undef, 'postgres');
like(health('detail', 'armed'), qr/outbox\.enabled/, 'armed: why');
sql('ALTER SYSTEM RESET outbox.enabled');
$node->reload;
tells('armed', 'ok', undef, 'postgres');

# oldest_undelivered: an endpoint that hangs
subscribe($node, 'hangs', $receiver->url('/hang'), types => ['hangs'], timeout => '10 min');
my $id = enqueue($node, 'hangs', 1);
tells('oldest_undelivered', 'warning', { warning => 1, critical => 1000 }, 'hangs');
tells('oldest_undelivered', 'critical', { warning => 1, critical => 2 }, 'hangs');
wait_for(sub { $receiver->requests('/hang') }, 'the request');
$receiver->control(release => JSON::PP::true);
ok(wait_for(sub { health('status', 'oldest_undelivered', { oldest_undelivered => { warning => 1 } }) eq 'ok' }, 'oldest_undelivered: ok'), 'oldest_undelivered: ok');
sql(q{SELECT outbox.unsubscribe('hangs')});

# log_size and log_pinned: a paused subscription
sql(q{SELECT outbox.pause('fine')});
sql(q{SELECT outbox.enqueue('large', to_jsonb(string_agg(md5(i::text || j::text), ''))) FROM generate_series(1, 30) AS i, generate_series(1, 3000) AS j GROUP BY i});
tells('log_size', 'warning', { warning => 2_500_000, critical => 100_000_000 });
tells('log_size', 'critical', { warning => 1, critical => 2_500_000 });
enqueue($node, 'fine', 2);
tells('log_pinned', 'warning', { warning => 2_500_000, critical => 100_000_000 }, 'fine');
tells('log_pinned', 'critical', { warning => 1, critical => 2_500_000 }, 'fine');
sql(q{SELECT outbox.resume('fine')});
ok(wait_for(sub { health('status', 'log_pinned', { log_pinned => { warning => 2_500_000 } }) eq 'ok' }, 'log_pinned: ok'), 'log_pinned: ok');
ok(wait_for(sub { health('status', 'log_size', { log_size => { warning => 2_500_000 } }) eq 'ok' }, 'log_size: ok'), 'log_size: ok');

# oldest_prepared_xact
sql(q{BEGIN; SELECT outbox.enqueue('fine', '3'); PREPARE TRANSACTION 'forgotten'});
tells('oldest_prepared_xact', 'warning', { warning => 0.5, critical => 1000 }, 'forgotten');
tells('oldest_prepared_xact', 'critical', { warning => 0.5, critical => 1 }, 'forgotten');
sql(q{ROLLBACK PREPARED 'forgotten'});
tells('oldest_prepared_xact', 'ok', { warning => 0.5, critical => 1 });

# scheduled_overdue: nobody moves what is due
sql('SELECT outbox.stop()');
wait_for(sub { sql('SELECT worker_pid IS NULL FROM outbox._worker()') eq 't' }, 'stopped');
sql(q{SELECT outbox.enqueue('due', '1', deliver_at => now() + interval '1 h')});
tells('scheduled_overdue', 'ok');
sql(q{UPDATE outbox.scheduled SET deliver_at = now() - interval '11 s'});
tells('scheduled_overdue', 'warning');
tells('scheduled_overdue', 'critical', { warning => 0.5, critical => 1 });
sql('SELECT outbox.start()');
tells('scheduled_overdue', 'ok');

# dead_letters
subscribe($node, 'refuses', $receiver->url('/status/400'), types => ['refused'], fatal_statuses => [400]);
wait_status($node, enqueue($node, 'refused', $_), 'refuses', 'dead') for 1, 2;
tells('dead_letters', 'warning', undef, 'refuses');
tells('dead_letters', 'critical', { critical => 2 }, 'refuses');
sql(q{SELECT outbox.alter_subscription('refuses', url => } . literal($receiver->url('/ok?redriven')) . q{); SELECT outbox.redrive('refuses')});
tells('dead_letters', 'ok');

# disabled: the endpoint says that it is gone
subscribe($node, 'gone', $receiver->url('/gone'), types => ['gone']);
$id = enqueue($node, 'gone', 1);
tells('disabled', 'warning', undef, 'gone');
sql(q{SELECT outbox.alter_subscription('gone', url => } . literal($receiver->url('/ok?moved')) . q{); SELECT outbox.resume('gone')});
tells('disabled', 'ok');
wait_for(sub { grep { $_->{id} eq $id } $receiver->requests('/ok?moved') }, 'its event being delivered, which the log forgets a second later');

# breakers_open: the endpoint fails again and again
$receiver->control(script => 'fails', then => 503);
subscribe($node, 'fails', $receiver->url('/script/fails'), types => ['fails'], retry_base => '100 ms', retry_factor => 1, max_attempts => 1000, breaker_threshold => 2, breaker_probe => '100 ms', breaker_max => '100 ms');
enqueue($node, 'fails', 1);
tells('breakers_open', 'warning', undef, 'fails');
like(health('detail', 'breakers_open'), qr/503/, 'breakers_open: why');
$receiver->control(script => 'fails', then => 200);
tells('breakers_open', 'ok');

# maintenance_age
sql('ALTER SYSTEM SET outbox.auto_maintain = off');
$node->reload;
tells('maintenance_age', 'warning', { warning => 3, critical => 1000 });
tells('maintenance_age', 'critical', { warning => 3, critical => 4 });
like(sql(q{SELECT outbox.maintain(); SELECT status FROM outbox.health('{"maintenance_age": {"warning": 3}}') WHERE check_name = 'maintenance_age'}), qr/^ok\z/m, 'maintenance_age: ok after maintain()');
sql('ALTER SYSTEM RESET outbox.auto_maintain');
$node->reload;

# worker_slots: none left
sql('CREATE DATABASE other');
install($node, 'other');
subscribe($node, 'other', $receiver->url('/ok?other'), database => 'other');
worker_pid($node, 'other');
$node->append_conf('postgresql.conf', 'max_worker_processes = 3');    # PostgreSQL's logical replication launcher, ours, and one more
$node->restart;
my ($with, $without);     # who has the last slot, once the launcher's own short-lived worker has given it back
wait_for(sub {
		$with = sql(q{SELECT datname FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}) or return 0;
		$without = $with eq 'other' ? 'postgres' : 'other';
		health('status', 'worker_slots', {}, $with) eq 'ok' && health('status', 'worker_slots', {}, $without) eq 'critical' }, 'worker_slots: critical');
is(health("status || ' ' || detail || ' ' || action", 'worker_slots', {}, $without), 'critical no free background worker slot Raise max_worker_processes and restart the server.', 'worker_slots: critical');
is(health("status || ' ' || value", 'armed', {}, $without), 'critical 2', 'armed: critical, for there is no worker');
is(health('status', 'worker_slots', {}, $with), 'ok', 'the other database is well');
sql('SELECT outbox.stop()', $with);
ok(wait_for(sub { health('status', 'armed', {}, $without) eq 'ok' }, 'armed: ok'), 'a slot that becomes free is taken, armed: ok');

# launcher: none, because there was no slot at server start
$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
$node->restart;
tells('launcher', 'critical');
$node->append_conf('postgresql.conf', 'max_worker_processes = 16');
$node->restart;
sql('SELECT outbox.start()', $with);
tells('launcher', 'ok');
ok(wait_for(sub { health('status', 'worker_slots', {}, 'other') eq 'ok' && health('status', 'armed', {}, 'other') eq 'ok' && health('status', 'worker_slots') eq 'ok' }, 'worker_slots: ok'), 'worker_slots: ok, with slots for all');

# preload: not there. What the tables tell is told all the same
sql(q{SELECT outbox.pause('gone')});
$node->append_conf('postgresql.conf', q{shared_preload_libraries = ''});
$node->restart;
tells('preload', 'critical');
is(sql(q{SELECT string_agg(check_name, ' ') FROM outbox.health() WHERE status <> 'ok'}), 'preload', 'nothing else is known to be wrong');
is(sql(q{SELECT count(*) FROM outbox.health() WHERE check_name IN ('dead_letters', 'disabled', 'oldest_prepared_xact')}), '3', 'what the tables tell is told');
my (undef, undef, $error) = $node->psql('postgres', q{SELECT outbox.enqueue('fine', '4')});
like($error, qr/shared_preload_libraries/, 'enqueue() says what is missing') or diag $error;
$node->append_conf('postgresql.conf', q{shared_preload_libraries = 'outbox'});
$node->restart;
tells('preload', 'ok');
ok(wait_for(sub { sql(q{SELECT count(*) FROM outbox.health() WHERE status <> 'ok'}) eq '0' }, 'health'), 'in the end all is well')
	or diag sql(q{SELECT check_name, status, subject, value, detail FROM outbox.health() WHERE status <> 'ok'});

# versions: the extension is another one than the library
sql(q{UPDATE pg_extension SET extversion = '9.9' WHERE extname = 'outbox'});
tells('versions', 'critical');
sql(q{UPDATE pg_extension SET extversion = (SELECT library_version FROM outbox._worker()) WHERE extname = 'outbox'});
tells('versions', 'ok');

done_testing;
