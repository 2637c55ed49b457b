# While events are delivered, each table of the extension is locked against everybody for a while, and rewritten by VACUUM FULL, CLUSTER, REINDEX CONCURRENTLY: nothing is lost or out of
# order, the worker does not fail, and delivery goes on by itself. So it does when they are given columns. Whoever owns the tables cannot empty the log.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
subscribe($node, 'main', $receiver->url('/random/5/10?main'), types => ['load.made'], retry_base => '50 ms');
subscribe($node, 'quick', $receiver->url('/ok?quick'), types => ['quick']);
$node->safe_psql('postgres', q{SELECT outbox.subscribe('pulled', types => '{quick}')});
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

# Enqueued, and delivered, now
my $n = 0;
sub works
{
	my ($what) = @_;
	my $id = enqueue($node, 'quick', ++$n);
	return ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->requests('/ok?quick') }, "a delivery after $what"), "delivery goes on after $what");
}

my $worker = worker_pid($node);
my $ledger = Outbox::Ledger->new;
my $producers = start_producers($node, count => 2, transactions => 100_000, pause => 0.01);
works('nothing');
my @tables = split /\n/, sql(q{SELECT c.relname FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
	JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'outbox' WHERE c.relkind IN ('r', 'p') ORDER BY c.relname});
cmp_ok(scalar @tables, '>=', 30, scalar(@tables) . ' tables');

# ---- locked: one after the other, the parents with their children ------------------------------------------------------------------------------

my $locker = session($node);
for my $table (@tables)
{
	is($locker->query("BEGIN; LOCK TABLE outbox.$table IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(0.2); COMMIT"), '', "$table is locked");
}
works('each table was locked for a moment');
my $patient = session($node);
for my $table (qw(event delivery attempt_log cursor tick subscription secret replay scheduled kept_event))
{
	$locker->query("BEGIN; LOCK TABLE outbox.$table IN ACCESS EXCLUSIVE MODE");
	my $at = sql(q{SELECT turn_at FROM outbox._worker()});
	$patient->send(q{SELECT outbox.enqueue('quick', '"patient"')});
	ok(wait_for(sub { sql("SELECT count(*) FROM outbox._worker() WHERE turn_at > '$at'") eq '1' }, "turns while $table is locked"), "the worker turns while $table is locked");
	$locker->query("SELECT pg_sleep(1.5); COMMIT");
	like($patient->receive, qr/^[0-9a-f-]{36}$/, 'who enqueued meanwhile waited at most for that lock');
	works("$table was locked for longer");
}

# ---- rewritten ---------------------------------------------------------------------------------------------------------------------------------------

for my $table (@tables)
{
	my ($index) = split /\n/, sql("SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'outbox.$table'::regclass AND indisvalid ORDER BY indisprimary DESC LIMIT 1");
	for my $command ("VACUUM FULL outbox.$table", $index ? "CLUSTER outbox.$table USING " . $index =~ s/^outbox\.//r : (), "REINDEX TABLE CONCURRENTLY outbox.$table", "REINDEX TABLE outbox.$table",
		"VACUUM (FREEZE) outbox.$table", "ANALYZE outbox.$table")
	{
		my (undef, undef, $said) = $node->psql('postgres', $command =~ s/^/SET client_min_messages = warning;\n/r);
		is($said, '', $command);
	}
}
works('everything was rewritten');

# ---- with columns of somebody's own, of which we know nothing -------------------------------------------------------------------------------------------

for my $table (qw(event kept_event attempt_log dedup scheduled unscheduled inbox))
{
	sql("ALTER TABLE outbox.$table ADD COLUMN own text, ADD COLUMN gone int; ALTER TABLE outbox.$table DROP COLUMN gone");
	works("$table was given a column");
}
my $later = enqueue($node, 'quick', '"later"', deliver_at => 'now', dedup_key => 'once');
ok(wait_for(sub { grep { $_->{id} eq $later } $receiver->requests('/ok?quick') }, 'a scheduled event'), 'a scheduled event arrives');
is(sql(q{SELECT string_agg(outbox.accept('me', 'm')::text, ' ') FROM generate_series(1, 2)}), 'true false', 'a message is accepted once');

# ---- emptied by hand ---------------------------------------------------------------------------------------------------------------------------------

for my $table ('event', grep { /^event_/ } @tables)
{
	for my $command ("TRUNCATE outbox.$table", "DELETE FROM outbox.$table", "UPDATE outbox.$table SET type = 'x'")
	{
		my ($status, undef, $said) = $node->psql('postgres', "\\set VERBOSITY verbose\n$command");
		next if $said eq '' && $command !~ /^TRUNCATE/;    # rowwise: there was none in it
		like($said, qr/ERROR:  (?:55000|0A000|23514|42501)/, "refused: $command");
	}
}

# ---- in the end --------------------------------------------------------------------------------------------------------------------------------------

stop_producers($node);
finish_producers($producers, $ledger);
$ledger->settle($node);
wait_for(sub { $ledger->complete($receiver, '/random/5/10?main') }, 'all of it', 60);
check_ledger($ledger, $receiver, '/random/5/10?main');
is(worker_pid($node), $worker, 'the worker is the one of the beginning');
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|TRAP|terminated by signal|XX000|could not open relation|cache lookup|restarting outbox/, 'no crash and no internal error');
unlike($log, qr/deadlock detected/, 'no deadlock');
my @pulled = split /\n/, sql(q{SELECT event_id FROM outbox.pull('pulled', 1000)});
is(scalar @pulled, sql(q{SELECT count(*) FROM outbox.event WHERE type = 'quick'}), 'a pull subscription has all of its events');

done_testing;
