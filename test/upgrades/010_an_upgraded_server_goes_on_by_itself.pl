# Guarantees 2, 4, 5 and 10: a server that pg_upgrade has brought to another major version goes on by itself, in the databases where it had been started, with everything that was undelivered,
# and repeats nothing that was delivered. While pg_upgrade runs, nothing is sent.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use Outbox::Upgrade;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# What came from so many requests on, and before others: the receiver sees the old server once, and what each upgraded copy of it does.
package Part { our @ISA = 'Outbox::Receiver'; sub requests { my ($self, $path) = @_; return grep { !defined $path || $_->{path} eq $path } @{ $self->{parts} } } }

my $old = outbox_node('old', server => old_server(), key => 1, arm => 0,
	conf => [ 'fsync = off', "outbox.segment_size = '128kB'", "outbox.maintenance_interval = '1s'", "outbox.source = 'urn:outbox:shop'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);

sub sql { my ($sql, $server, $database) = @_; return ($server // $old)->safe_psql($database // 'postgres', $sql) }
sub workers { my ($server) = @_; return sql(q{SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_stat_activity WHERE backend_type = 'outbox delivery worker'}, $server) }
sub health { my ($server, $database) = @_; return sql(q{SELECT string_agg(check_name || ' ' || status, ', ' ORDER BY check_name) FROM outbox.health() WHERE status <> 'ok'}, $server, $database) }

sub is_healthy
{
	my ($server, $expected, $what) = @_;
	my $found;
	wait_for(sub { ($found = health($server)) eq $expected }, $what);
	is($found, $expected, $what) or diag sql(q{SELECT check_name, subject, value, threshold, detail FROM outbox.health() WHERE status <> 'ok'}, $server);
}

# Every row of every table of the extension, and every sequence, in short
sub contents
{
	my ($server) = @_;
	my $queries = sql(q{SELECT CASE relkind WHEN 'r' THEN format('SELECT %L, count(*), md5(string_agg(t::text, %L ORDER BY t::text)) FROM ONLY outbox.%I AS t', relname, ' ', relname)
		ELSE format('SELECT %L, last_value, is_called::text FROM outbox.%I', relname, relname) END FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'S')}, $server);
	return sql(join(' UNION ALL ', split /\n/, $queries) . ' ORDER BY 1', $server);
}

# ---- a server in the middle of its work, whose transaction ids need more than 32 bits ------------------------------------------------------------

$old->stop;
$old->command_ok([ 'pg_resetwal', '-e', 3, '-D', $old->data_dir ], 'the fourth round of transaction ids');
$old->start;
sql('SELECT outbox.start()');
my $secret = subscribe($old, 'live', $receiver->url('/ok?live'), types => ['load.*']);
$receiver->control(path => '/ok?live', secret => $secret);
$receiver->control(script => $_, answers => [], then => 503) for qw(down dead);
subscribe($old, 'batch', $receiver->url('/ok?batch'), types => ['load.*'], format => 'batch');
subscribe($old, 'down', $receiver->url('/script/down?down'), types => ['load.*'], retry_base => '200 ms', max_attempts => 1000, max_blocked => 50);
subscribe($old, 'held', $receiver->url('/ok?held'), types => ['load.*']);
subscribe($old, 'dead', $receiver->url('/script/dead?dead'), types => ['dead'], max_attempts => 1);
subscribe($old, 'later', $receiver->url('/ok?later'), types => ['later.*']);
subscribe($old, 'again', $receiver->url('/ok?again'), types => ['again']);
subscribe($old, 'captured', $receiver->url('/ok?captured'), types => ['public.**']);
sql(q{SELECT outbox.subscribe('pulled', types => '{pull}')});

# Others: one that delivers, too, one that was stopped, one that was never started
for my $database (qw(other stopped quiet))
{
	sql("CREATE DATABASE $database");
	install($old, $database, arm => $database ne 'quiet');
	subscribe($old, $database, $receiver->url("/ok?$database"), database => $database);
	enqueue($old, 'thing.made', '"before"', database => $database);
}
wait_for(sub { 1 == (() = $receiver->delivered("/ok?$_")) }, "the first event of $_") for qw(other stopped);
sql('SELECT outbox.stop()', $old, 'stopped');

# A transaction that begins early and commits late: `held` has gone past it, but not over it
my $ledger = Outbox::Ledger->new;
my $late = session($old);
$late->query('BEGIN');
my ($late_id, $late_xid) = split /\|/, $late->query(q{SELECT outbox.enqueue('load.made', '"late"', key => 'late'), pg_current_xact_id()});
my $producers = start_producers($old, count => 2, transactions => 500, pause => 0.002);
wait_for(sub { 100 < (() = $receiver->delivered('/ok?held')) }, 'a hundred events');
sql(q{SELECT outbox.pause('held')});
finish_producers($producers, $ledger);
cmp_ok($late_xid, '>', 3 * 2**32, 'its id needs more than 32 bits');
my $sees = 'later';
wait_for(sub { $sees = sql(qq{SELECT EXISTS (SELECT FROM pg_snapshot_xip(t.snapshot) AS x WHERE x = '$late_xid') FROM outbox.cursor AS c JOIN outbox.subscription AS s ON s.id = c.subscription_id
	JOIN outbox.tick AS t USING (epoch, tick) WHERE s.name = 'held' AND NOT c.at_head ORDER BY c.seq DESC LIMIT 1}); $sees eq 't' }, 'a place at which `held` stands');
is($sees, 't', 'which is one where it was not committed yet');
$late->query('COMMIT');
$ledger->committed($late_id, 'late');

# A dead letter, something replayed, leased, scheduled, claimed and accepted; a table with a dropped column
my $dead = enqueue($old, 'dead', '{}');
wait_status($old, $dead, 'dead', 'dead');
my @again = map { enqueue($old, 'again', $_) } 1 .. 3;
wait_status($old, $_, 'again', 'delivered') for @again;
my @pull = map { enqueue($old, 'pull', $_) } 1 .. 3;
my @leased;
wait_for(sub { push @leased, split /\n/, sql(q{SELECT event_id || ' ' || token FROM outbox.pull('pulled', 1, '1 h')}); @leased == 2 }, 'two events are leased');
my ($acked, $token) = split ' ', $leased[0];
is(sql("SELECT outbox.ack('pulled', NULL, '$token')"), 1, 'one of them is acknowledged');
wait_status($old, $acked, 'pulled', 'delivered');
my $tomorrow = sql(q{SELECT outbox.enqueue('later.tomorrow', '1', deliver_at => now() + interval '1 day', dedup_key => 'tomorrow')});
my $once = sql(q{SELECT outbox.enqueue('once', '1', dedup_key => 'once')});
is(sql(q{SELECT outbox.accept('me', 'm1')}), 't', 'a message is accepted');
sql(q{SELECT outbox.finish_request('s', 'done', (outbox.begin_request('s', 'done', '\x01')).token, '{"a": 1}', 201)});
sql(q{SET outbox.request_lease = '1 d'; SELECT outbox.begin_request('s', 'going on', '\x02')});
sql(q{CREATE TABLE thing (gone int, id int PRIMARY KEY, name text); SELECT outbox.capture('thing', '{id,name}'); ALTER TABLE thing DROP COLUMN gone});

wait_for(sub { sql(q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'down' AND status IN ('retrying', 'blocked')}) == 50 }, 'as many as `down` may go past wait');
cmp_ok(sql(q{SELECT count(*) FROM outbox.blocked_key WHERE subscription = 'down'}), '>', 5, 'keys are blocked');
for my $name (qw(live batch))
{
	wait_for(sub { my %seen = map { $_->{id} => 1 } $receiver->delivered_events("/ok?$name"); $ledger->count == keys %seen }, "all is delivered to $name");
}

# Switched off, it records what nobody has seen; then it is shut down
$old->append_conf('postgresql.conf', 'outbox.enabled = off');
$old->reload;
wait_for(sub { workers($old) eq '' }, 'it is switched off');
finish_producers(start_producers($old, count => 2, transactions => 50, tag => 'unseen'), $ledger);
enqueue($old, 'thing.made', '"unseen"', database => $_) for qw(other stopped);
my $due = sql(q{SELECT outbox.enqueue('later.due', '2', deliver_at => now() + interval '1 second')});
sql(q{INSERT INTO thing VALUES (1, 'one')});
sql(q{SELECT outbox.replay('again', '-infinity')});
my $before = contents($old);
my $last_id = sql('SELECT max(id::text) FROM outbox.event');
my $last_xid = sql('SELECT pg_current_xact_id()');
is(sql(q{SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_collation AS o ON o.oid = ANY (i.indcollation) WHERE c.relnamespace = 'outbox'::regnamespace AND o.collname <> 'C'}), 0,
	'no index depends on how an operating system sorts, which may be another one there');
my $epoch = sql('SELECT outbox.epoch()');
my @segments = split /\n/, sql('SELECT tableoid::regclass FROM outbox.event GROUP BY 1');
cmp_ok(scalar @segments, '>', 1, 'the log has rotated');
$old->stop;
my @then = $receiver->requests;

# ---- upgraded ---------------------------------------------------------------------------------------------------------------------------------

sub upgrade
{
	my ($mode) = @_;
	my $from = $old->basedir . "/$mode";
	my $new = new_node("new-$mode", conf => [ "shared_preload_libraries = 'outbox'", "outbox.secret_key_file = '" . key_file($old) . "'", "outbox.segment_size = '128kB'",
		"outbox.maintenance_interval = '1s'", "outbox.source = 'urn:outbox:shop'" ]);
	my $sent = () = $receiver->requests;
	system_or_bail('cp', '-a', $old->data_dir, $from);
	append_to_file("$from/postgresql.conf", "outbox.enabled = on\n");
	for my $check ('--check', '--verbose')
	{
		my ($said, $done) = pg_upgrade($from, $new, "--$mode", $check);
		ok($done, "pg_upgrade --$mode $check") or diag $said;
	}
	is(scalar(() = $receiver->requests), $sent, "--$mode: nothing is sent while it runs");
	return $new;
}

# What the old server and this one have sent, so far.
sub part
{
	my ($began) = @_;
	my @now = $receiver->requests;
	return bless { parts => [ @then, @now[ $began .. $#now ] ] }, 'Part';
}

sub goes_on
{
	my ($new, $mode, $began) = @_;
	my $what = "--$mode";
	my $sent = sub { return part($began)->delivered_events($_[0]) };
	my $all_are = sub { my ($path, $ledger) = @_; my %seen = map { $_->{id} => 1 } $sent->($path); return $ledger->count == keys %seen };

	wait_for(sub { workers($new) eq 'other postgres' }, "$what: workers come up by themselves");
	is(workers($new), 'other postgres', "$what: workers come up by themselves, where it was started");
	is(sql(q{SELECT count(*) FROM outbox.operation WHERE action = 'start'}, $new), 1, "$what: nobody has started it");

	# What was not delivered is, once, in order and with the same bytes; what was, is not sent again
	wait_for(sub { $all_are->($_, $ledger) }, "$what: all to $_", 60) for '/ok?live', '/ok?batch', '/script/down?down';
	sql(q{SELECT outbox.resume('held')}, $new);
	wait_for(sub { $all_are->('/ok?held', $ledger) }, "$what: all to /ok?held", 60);
	wait_for(sub { $sent->('/ok?other') == 2 && $sent->('/ok?again') == 6 && $sent->('/ok?captured') && $sent->('/ok?later') }, "$what: the others");
	check_ledger($ledger, part($began), $_, what => "$what, $_") for '/ok?live', '/ok?batch', '/script/down?down', '/ok?held';
	is(join(' ', sort map { $_->{id} . ($_->{headers}{'webhook-replay'} ? ' replay' : '') } $sent->('/ok?again')), join(' ', sort @again, map { "$_ replay" } @again), "$what: a replay that was asked for is made");
	is(join(' ', map { $_->{body} } $sent->('/ok?other')), '"before" "unseen"', "$what: another database goes on, too");
	is(join(' ', map { $_->{id} } $sent->('/ok?later')), $due, "$what: what became due meanwhile is sent");
	is(scalar(() = $sent->('/ok?captured')), 1, "$what: so is a captured change");
	is(scalar(grep { ($_->{signature} // '') ne 'valid' } $sent->('/ok?live')), 0, "$what: signed with a secret that is encrypted");
	is(join(' ', map { $_->{body} } $sent->('/ok?stopped')), '"before"', "$what: nothing is sent where it was stopped");
	is(scalar(() = $sent->('/ok?quiet')), 0, "$what: or was never started");
	is(health($new, $_), 'armed warning', "$what: $_: health() says so") for qw(stopped quiet);
	is(health($new, 'other'), '', "$what: and nothing of the other database");

	# Who comes back finds what he left
	like(($new->psql('postgres', sprintf q{SELECT outbox.ack('pulled', NULL, '%s')}, (split ' ', $leased[1])[1]))[2], qr/is not held any more/, "$what: a lease ends with the old server");
	my (%pulled, $token);
	wait_for(sub { for (split /\n/, sql(q{SELECT event_id || ' ' || token FROM outbox.pull('pulled')}, $new)) { my ($id, $held) = split; $pulled{$id}++; $token = $held } keys %pulled == 2 }, "$what: two to pull");
	is(join(' ', sort keys %pulled), join(' ', sort grep { $_ ne $acked } @pull), "$what: what was not acknowledged is pulled again, and nothing else");
	sql("SELECT outbox.ack('pulled', NULL, '$token')", $new);
	is(sql(q{SELECT outbox.enqueue('once', '1', dedup_key => 'once')}, $new), $once, "$what: a dedup_key is known");
	is(sql("SELECT status FROM outbox.event_status('$tomorrow')", $new), 'scheduled', "$what: what is due tomorrow waits");
	is(sql("SELECT outbox.cancel('$tomorrow')", $new), 't', "$what: and can be cancelled");
	is(sql(q{SELECT outbox.accept('me', 'm1'), outbox.accept('me', 'm2')}, $new), 'f|t', "$what: an accepted message is a duplicate");
	is(sql(q{SELECT state, response, status FROM outbox.begin_request('s', 'done', '\x01')}, $new), 'replay|{"a": 1}|201', "$what: an idempotency key has its response");
	is(sql(q{SELECT state FROM outbox.begin_request('s', 'going on', '\x02')}, $new), 'in_progress', "$what: and one that is claimed is");
	is_healthy($new, 'dead_letters warning', "$what: health() says what there is to do, as before");
	$receiver->control(script => 'dead', answers => [], then => 200);
	is(sql(q{SELECT outbox.redrive('dead')}, $new), 1, "$what: a dead letter is redriven");
	wait_for(sub { grep { $_->{id} eq $dead } $sent->('/script/dead?dead') }, "$what: it is delivered");
	is_healthy($new, '', "$what: then health() is content");

	# Ids and transaction ids go on from where they were, so that what is new is sent, and only that
	is(sql('SELECT outbox.epoch()', $new), $epoch, "$what: it is the same installation");
	my $more = Outbox::Ledger->new;
	finish_producers(start_producers($new, count => 2, transactions => 50, tag => 'new'), $more);
	wait_for(sub { my %seen = map { $_->{id} => 1 } $sent->('/ok?live'); !grep { !$seen{$_} } keys %{ $more->{committed} } }, "$what: what is new");
	is(sql("SELECT min(id::text) > '$last_id' AND min(xid::text::bigint) > $last_xid FROM outbox.event WHERE key LIKE 'new%'", $new), 't', "$what: ids and transaction ids have gone on");
	is(scalar(() = $sent->('/ok?live')), $ledger->count + $more->count, "$what: what is new is sent, once, and nothing else");

	# The log is emptied, of what the old server wrote, too
	my $old_events = sub { return sql("SELECT count(*) FROM outbox.event WHERE xid::text::bigint <= $last_xid", $new) };
	cmp_ok($old_events->(), '>', 0, "$what: the log has what the old server wrote");
	$new->append_conf('postgresql.conf', "outbox.event_retention = 0\noutbox.segment_age = '1 s'");
	$new->reload;
	wait_for(sub { $old_events->() == 0 }, "$what: the log being emptied");
	is($old_events->(), 0, "$what: when it is done, it is emptied");
	$new->stop;
	unlike(slurp_file($new->logfile), qr/PANIC|TRAP|terminated by signal|ERROR:.*(?:tick|cursor|segment)/, "$what: nobody crashed");
}

for my $mode (qw(copy link), new_version() >= 18 ? 'swap' : ())
{
	my $new = upgrade($mode);
	my $began = () = $receiver->requests;
	if ($mode eq 'copy')
	{
		$new->append_conf('postgresql.conf', 'outbox.enabled = off');
		$new->start;
		is(contents($new), $before, 'every row of the old server is there');
		is(sql(q{SELECT detail FROM outbox.health() WHERE check_name = 'armed'}, $new), 'outbox.enabled is off: nothing is delivered', 'a server that is switched off says so');
		is(workers($new), '', 'and sends nothing');
		$new->stop;
		$new->append_conf('postgresql.conf', 'outbox.enabled = on');
	}
	$receiver->control(script => 'down', answers => [], then => 200);
	$receiver->control(script => 'dead', answers => [], then => 503);
	$new->start;
	goes_on($new, $mode, $began);
}

done_testing;
