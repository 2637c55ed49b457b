# Guarantee 8: under continuous load the log stays small. Segments are rotated, sealed and emptied by the worker without making anybody wait, never before everybody
# has read them; what is still to be redriven outlives them; nothing leaves dead rows behind, not even while a snapshot is held open.
# Alone: it measures how long producers take beside a VACUUM.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = outbox_node('main', conf => [
	"outbox.event_retention = '2s'", "outbox.attempt_retention = '2s'", "outbox.segment_size = '128kB'", "outbox.segment_age = '1h'", "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub there { my ($id) = @_; return sql("SELECT count(*) FROM outbox.event WHERE id = '$id'") eq '1' }
sub segment_of { my ($id) = @_; return sql("SELECT g.segment FROM outbox.event AS e JOIN outbox._segments() AS g ON g.relation = e.tableoid WHERE e.id = '$id'") }
sub current { return sql('SELECT segment FROM outbox._segments() WHERE is_current') }
sub arrived { my ($path, $id) = @_; return wait_for(sub { scalar $receiver->of($path, $id) }, "event $id at $path") }
sub dead { return join ' ', map { sql("SELECT COALESCE(sum(n_tup_upd), 0), COALESCE(sum(n_tup_del), 0)" . ($_ eq 'event' ? '' : ', COALESCE(sum(n_dead_tup), 0)') . " FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^${_}_[0-9]+\$'") } qw(event cursor tick attempt_log) }

# A snapshot from before everything, held until the end
my $holder = session($node);
$holder->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
$holder->query('SELECT pg_current_snapshot()');

# Events that fail for good, in the first segment
subscribe($node, 'main', $receiver->url('/ok?main'), types => ['load.made'], max_in_flight => 30);
subscribe($node, 'held', $receiver->url('/ok?held'), types => [ 'load.made', 'pinned' ], max_in_flight => 30);
subscribe($node, 'doomed', $receiver->url('/status/400?doomed'), types => ['doomed'], fatal_statuses => [400]);
subscribe($node, 'later', $receiver->url('/fail-first/1?later'), types => ['later'], retry_base => '1 h', retry_max => '1 h');
subscribe($node, 'matched', $receiver->url('/ok?matched'), types => ['nothing']);
my $doomed = enqueue($node, 'doomed', '{"is": "doomed"}', key => 'k', headers => '{"x-kept": "yes"}');
my $later = enqueue($node, 'later', '{"is": "later"}');
my $first = enqueue($node, 'nothing.special', '{}');
wait_status($node, $doomed, 'doomed', 'dead');
wait_status($node, $later, 'later', 'retrying');
sql(q{SELECT outbox.alter_subscription('matched', types => '{nothing.at.all}')});
is(sql('SELECT count(*) FROM outbox.subscription_match'), '1', 'rules of the past are kept for the events of their time');
my $first_segment = segment_of($first);

# ---- rotation by size, sealing, retirement, under load ----------------------------------------------------------------------------------

my $ledger = Outbox::Ledger->new;
my $producers = start_producers($node, count => 2, transactions => 30000, pause => 0.004);
my %seen;
ok(wait_for(sub { $seen{ current() } = 1; keys %seen >= 4 }, 'segments being rotated'), 'full segments are rotated by the worker');
ok(wait_for(sub { !there($first) }, 'the first segment being retired'), 'and emptied once they are old and read by all');
is(sql("SELECT count(*) FROM outbox.kept_event WHERE id IN ('$doomed', '$later')"), '2', 'what is dead or waits for a retry is kept');
is(sql('SELECT count(*) FROM outbox.kept_event'), '2', 'and nothing else');
ok(wait_for(sub { sql("SELECT count(*) FROM outbox.attempt_log WHERE event_id = '$doomed'") eq '0' }, 'the attempt log being emptied'), 'the attempt log is emptied after its retention');
ok(wait_for(sub { sql('SELECT count(*) FROM outbox.subscription_match') eq '0' }, 'the end of rules of the past'), 'rules of the past go with the events of their time');

# A paused subscription pins what it has not got, and nothing else
sql(q{SELECT outbox.pause('held')});
my $pinned = enqueue($node, 'pinned', '"pinned"');
ok(wait_for(sub { sql("SELECT count(*) FROM outbox._segments() AS g JOIN outbox.event AS e ON e.tableoid = g.relation WHERE e.id = '$pinned' AND g.sealed AND e.created_at < now() - interval '4 s'") eq '1' },
		'the segment of a paused subscription being sealed and old'), 'the segment is sealed');
%seen = ();
wait_for(sub { $seen{ current() } = 1; keys %seen >= 3 }, 'more rotations');
ok(there($pinned), 'a paused subscription pins its segment');
is(sql(q{SELECT subject FROM outbox.health() WHERE check_name = 'log_pinned' AND value > 0}), 'held', 'health() names it');
cmp_ok(sql(q{SELECT pinned_bytes FROM outbox.subscription_status WHERE name = 'held'}), '>', 100_000, 'subscription_status tells how much');
ok(wait_for(sub { sql(q{SELECT h.pinned_bytes > m.pinned_bytes FROM outbox.subscription_status AS h, outbox.subscription_status AS m WHERE h.name = 'held' AND m.name = 'main'}) eq 't' }, 'less pinned by main'), 'and that others pin less');
is(scalar $receiver->requests('/ok?held') > 0 && scalar $receiver->of('/ok?held', $pinned), 0, 'while paused it got nothing');
is(scalar(grep { waitpid($_->{pid}, 1) == 0 } @$producers), 2, 'all of that under load');
sql(q{SELECT outbox.resume('held')});
arrived('/ok?held', $pinned);
stop_producers($node);
finish_producers($producers, $ledger);
wait_for(sub { $ledger->complete($receiver, '/ok?main') && $ledger->complete($receiver, '/ok?held') }, 'everything');
check_ledger($ledger, $receiver, '/ok?main', what => 'main');
{
	local $ledger->{committed} = { %{ $ledger->{committed} }, $pinned => '' };
	check_ledger($ledger, $receiver, '/ok?held', what => 'pinned while paused');
}
ok(wait_for(sub { !there($pinned) }, 'the pinned segment being retired'), 'after resume() its segment is emptied');

# ---- nobody waits for a retirement, and it waits for nobody -----------------------------------------------------------------------------

my $before = current();
my $large = sql(q{SELECT id FROM (SELECT outbox.enqueue('large', to_jsonb(string_agg(md5(i::text || j::text), ''))) AS id FROM generate_series(1, 60) AS i, generate_series(1, 1500) AS j GROUP BY i) AS x ORDER BY id DESC LIMIT 1});
my $segment = segment_of($large);
my $toast = sql("SELECT t.reltoastrelid::regclass FROM pg_class AS t JOIN outbox._segments() AS g ON g.relation = t.oid WHERE g.segment = $segment");
my $vacuum = session($node);
my $vacuum_pid = $vacuum->backend;
$vacuum->query(q{SET vacuum_cost_delay = '100ms'; SET vacuum_cost_limit = 1});
$vacuum->send("VACUUM $toast");
sub vacuuming { return sql("SELECT count(*) FROM pg_locks WHERE pid = $vacuum_pid AND relation = '$toast'::regclass AND mode = 'ShareUpdateExclusiveLock' AND granted") eq '1' }
ok(wait_for(\&vacuuming, 'VACUUM'), "VACUUM $toast is under way");
wait_for(sub { current() ne $segment }, 'rotation');
isnt(current(), $segment, 'a segment is rotated while its TOAST table is being vacuumed');
my $report = '';
ok(wait_for(sub { $report = sql('SELECT action, segment, detail FROM outbox.maintain()'); $report =~ /^busy\|$segment\|/m }, 'retirement finding it busy'), 'maintain() reports that it is busy') or diag $report;
my $slowest = 0;
for my $i (1 .. 50)
{
	my $began = time;
	my $id = enqueue($node, 'load.made', $i);
	my $took = time - $began;
	$slowest = $took if $took > $slowest;
	arrived('/ok?main', $id) if $i == 50;
}
cmp_ok($slowest, '<', 10, 'meanwhile producers do not wait');    # whoever waited for VACUUM would wait until the end
ok(vacuuming(), 'VACUUM was there all the time');
ok(there($large), 'and the segment too');
sql("SELECT pg_cancel_backend($vacuum_pid)");
like($vacuum->receive, qr/57014/, 'VACUUM is over');
ok(wait_for(sub { !there($large) }, 'the segment being retired'), 'then the segment is emptied');

# the same for somebody who reads it, and maintain() by hand
my $reader = session($node);
my $read = enqueue($node, 'read', '{}');
$segment = segment_of($read);
$reader->query('BEGIN');
is($reader->query("SELECT count(*) FROM outbox.event_$segment WHERE id = '$read'"), '1', 'somebody reads a segment');
sql(q{ALTER SYSTEM SET outbox.segment_age = '1s'});
$node->reload;
ok(wait_for(sub { current() ne $segment }, 'rotation by age'), 'a segment that is old enough is rotated, however small');
ok(wait_for(sub { sql('SELECT action, segment FROM outbox.maintain()') =~ /^busy\|$segment$/m }, 'retirement finding it busy'), 'a reader makes retirement wait');
$reader->query('COMMIT');
sql('ALTER SYSTEM SET outbox.auto_maintain = off');
$node->reload;
wait_for(sub { sql('SHOW outbox.auto_maintain') eq 'off' && sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox delivery worker' AND query LIKE 'maintaining%' AND state = 'active'}) eq '0' }, 'the setting');
$report = '';
ok(wait_for(sub { $report .= sql('SELECT action, segment, count FROM outbox.maintain()') . "\n"; !there($read) }, 'maintain() retiring it'), 'maintain() by hand does the rest');
sql('ALTER SYSTEM RESET outbox.auto_maintain');
$node->reload;

# ---- what outlives its segment ----------------------------------------------------------------------------------------------------------

is(sql("SELECT status FROM outbox.event_status('$later') WHERE subscription = 'later'"), 'retrying', 'an event that waits for its retry is known though its segment is gone');
is(sql("SELECT type, key FROM outbox.dead_letter WHERE event_id = '$doomed'"), 'doomed|k', 'so is a dead letter');
sql('SELECT outbox.alter_subscription(\'doomed\', url => ' . literal($receiver->url('/ok?redriven')) . ')');
is(sql(q{SELECT outbox.redrive('doomed')}), '1', 'it is redriven');
arrived('/ok?redriven', $doomed);
my ($request) = $receiver->requests('/ok?redriven');
is("$request->{id} $request->{bytes} $request->{key} $request->{headers}{'x-kept'}", "$doomed {\"is\": \"doomed\"} k yes", 'and delivered as it was');
sql("UPDATE outbox.delivery SET next_attempt_at = now() WHERE event_id = '$later'");    # an hour later …
sql('SELECT outbox.stop()');                                                            # … a worker that knows nothing; the last one ends orderly, for what is aborted is dead rows
worker_gone($node);
sql('SELECT outbox.start()');
ok(wait_for(sub { $receiver->of('/fail-first/1?later', $later) == 2 }, 'the retry'), 'so is the other, when its time has come');
is(join(' ', map { $_->{bytes} } $receiver->of('/fail-first/1?later', $later)), '{"is": "later"} {"is": "later"}', 'with the same bytes');
ok(wait_for(sub { sql('SELECT count(*) FROM outbox.kept_event') eq '0' }, 'kept events being deleted'), 'then they are not kept any longer');

# ---- nothing is left behind -------------------------------------------------------------------------------------------------------------

is($holder->query('SELECT count(*) FROM pg_database') > 0, 1, 'the snapshot from before everything was held all the time');
cmp_ok(sql(q{SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^cursor_'}), '>', 0, 'cursors were written');
is(dead(), '0|0 0|0|0 0|0|0 0|0|0', 'no row of events, cursors, ticks or attempts was updated or deleted, or is dead');
cmp_ok(sql('SELECT sum(bytes) FROM outbox._segments()'), '<', 16 * 200 * 1024, 'the log is small');
$holder->query('COMMIT');

my $log = slurp_file($node->logfile);
is(scalar(() = $log =~ / (?:PANIC|FATAL):(?!.*terminating|.*shutting)/g), 0, 'nobody failed');
done_testing;
