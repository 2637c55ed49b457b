# Numbers that come to their end. When the server has no transaction ids left, what was sent is not sent again and again, no worker storms, and anti-wraparound vacuum works on our tables although they have no autovacuum; then everything goes on
# by itself. When the ids pass 2^32, what is committed before, behind and across that moment is delivered: once, in order of its key, also by a worker that begins in between.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = outbox_node('main', conf => [ 'fsync = off', 'wal_level = logical', 'autovacuum_vacuum_cost_delay = 0', "outbox.segment_size = '64kB'", "outbox.maintenance_interval = '1s'", "outbox.event_retention = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub next_xid { return sql('SELECT pg_snapshot_xmax(pg_current_snapshot())') }
sub oldest { return sql('SELECT max(age(datfrozenxid)) FROM pg_database') }
my @names = qw(plain held);
sub path { my ($name) = @_; return "/ok?$name" }

# Restarts the server with this as its next transaction id. PostgreSQL wants a page of the commit log to be there.
sub jump
{
	my ($xid, $what) = @_;
	$node->stop('fast');
	my $file = sprintf '%s/pg_xact/%04X', $node->data_dir, int($xid / 2**20);
	unless (-e $file)
	{
		open my $out, '>', $file or die;
		print $out "\0" x 2**18;
		close $out or die;
	}
	command_ok([ 'pg_resetwal', '-x', $xid, $node->data_dir ], $what);
	$node->start;
}

subscribe($node, $_, $receiver->url(path($_)), types => ['load.made']) for @names;
sql(q{SELECT outbox.subscribe('pulled', types => '{load.made}'); CREATE TABLE consumed (id uuid PRIMARY KEY)});
my $ledger = Outbox::Ledger->new;
sub complete { my ($what, @paths) = @_; return ok(wait_for(sub { !grep { !$ledger->complete($receiver, path($_)) } @paths }, $what), $what) }
sub consume { return sql(q{BEGIN; CREATE TEMP TABLE p ON COMMIT DROP AS SELECT * FROM outbox.pull('pulled', 1000); INSERT INTO consumed SELECT event_id FROM p; SELECT outbox.ack('pulled', NULL, token) FROM p LIMIT 1; COMMIT}) }
sub consumed { consume(); return sql('SELECT count(*) FROM consumed') >= $ledger->count }
finish_producers(start_producers($node, count => 2, transactions => 200), $ledger);
complete('at first, all is well', @names);
ok(wait_for(\&consumed, 'what is to be pulled'), 'and pulled');

# ---- none left, because an old slot keeps vacuum from giving any back --------------------------------------------------------------------------------

sql(q{SELECT outbox.pause('held'); SELECT pg_create_logical_replication_slot('old', 'pgoutput')});
jump(next_xid() - oldest() + 2**31 - 3_000_000 - 60, 'some sixty transaction ids are left');
my $worker = worker_pid($node);
wait_for(sub { sql('SELECT turn_at IS NOT NULL FROM outbox._worker()') eq 't' }, 'its first turn');
stand_still($node, $worker);
finish_producers(start_producers($node, count => 2, transactions => 100, tag => 'few'), $ledger);
kill 'CONT', $worker;
my (undef, undef, $said) = $node->psql('postgres', qq{\\set VERBOSITY verbose\nSELECT outbox.enqueue('load.made', '1')});
like($said, qr/ERROR:  54000: database is not (?:accepting commands|accepting commands that assign new transaction IDs)/, 'then none are: a producer is told');
complete('what had been committed is sent all the same', 'plain');
ok(wait_for(sub { sql('SELECT error FROM outbox._worker()') =~ /^database is not accepting commands/ }, 'the worker being in trouble'), 'nothing can be recorded, and the worker says so');
sub errors { my @errors = slurp_file($node->logfile) =~ /\[$worker\] ERROR:  database is not accepting commands/g; return scalar @errors }
my ($before, $began) = (errors(), time);
sleep 3;
cmp_ok(errors() - $before, '<', 6 * (time - $began), 'that is tried again, not all the time');
is(scalar @{ $ledger->check($receiver, path('plain'))->{duplicates} }, 0, 'nothing is sent again');
my $count = () = $receiver->requests;
sql('SELECT pg_terminate_backend(worker_pid, 30000) FROM outbox._worker()');
$node->wait_for_log(qr/background worker "outbox delivery worker" \(PID \d+\) exited with exit code 1(?s:.*)background worker "outbox delivery worker" \(PID \d+\) exited with exit code 1/, 0);
is(scalar(() = $receiver->requests), $count, 'nor by another worker, which could not record it either');

sql(q{SELECT pg_drop_replication_slot('old')});
ok(wait_for(sub { oldest() < 2**31 - 50_000_000 }, 'vacuum'), 'the slot gone, vacuum gives transaction ids back');
cmp_ok(sql(q{SELECT max(age(relfrozenxid)) FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relfrozenxid <> 0}), '<', 200_000_000, 'on all of our tables, too');
wait_for(sub { ($node->psql('postgres', 'SELECT pg_current_xact_id()'))[0] == 0 }, 'a transaction id');
enqueue($node, 'load.made', '"after"');
ok(wait_for(sub { grep { $_->{bytes} eq '"after"' } $receiver->delivered(path('plain')) }, 'a worker'), 'and delivery goes on by itself');
cmp_ok(scalar @{ $ledger->check($receiver, path('plain'))->{duplicates} }, '<=', 60, 'no more is repeated than could not be recorded');

# ---- 2^32: first halfway there, for old and new ids must not be too far from each other -----------------------------------------------------------------------

jump(3_200_000_000, 'halfway');
ok(wait_for(sub { oldest() < 300_000_000 }, 'vacuum'), 'vacuum again');
jump(2**32 - 300, 'three hundred before 2^32');
cmp_ok(next_xid(), '<', 2**32, 'before 2^32');
my ($long, $subscriber) = (session($node), session($node));
$long->query('BEGIN');
my $late = $long->query(q{SELECT outbox.enqueue('load.made', '"late"', key => 'late')});
$subscriber->query('BEGIN');
$subscriber->query(q{SELECT outbox.subscribe('across', '} . $receiver->url(path('across')) . q{', types => '{load.made}', network => 'private', retry_base => '50 ms')});
my $prepared = sql(q{BEGIN; SELECT outbox.enqueue('load.made', '"prepared"', key => 'prepared'); PREPARE TRANSACTION 'across'});
my $dedup = enqueue($node, 'other', '1', dedup_key => 'd');
is(sql(q{SELECT outbox.accept('c', 'before')}), 't', 'a message is accepted before');
my $producers = start_producers($node, count => 2, transactions => 300, tag => 'across', pause => 0.002);
ok(wait_for(sub { next_xid() > 2**32 + 20 }, '2^32'), '2^32 is behind us');
sql('SELECT pg_terminate_backend(worker_pid, 30000) FROM outbox._worker()');
$subscriber->query('COMMIT');
finish_producers($producers, $ledger);
complete('what was committed on both sides of it is delivered by another worker', 'plain');
sql('SELECT outbox.maintain()') for 1 .. 3;
is(scalar(grep { $_->{id} eq $late || $_->{id} eq $prepared } $receiver->requests(path('plain'))), 0, 'what is open is not sent');
$long->query('COMMIT');
sql(q{COMMIT PREPARED 'across'});
$ledger->committed($late, 'late');
$ledger->committed($prepared, 'prepared');
sql(q{SELECT outbox.resume('held')});
complete('what began before it and is committed behind it is delivered, and what a paused subscription had to wait for', @names);
for my $name (@names)
{
	my $found = $ledger->check($receiver, path($name));
	is(scalar @{ $found->{$_} }, 0, "$name: $_ 0 of " . $ledger->count) or diag "@{ $found->{$_} }" for qw(lost changed disorder overlap);
}
is(scalar @{ $ledger->check($receiver, path('held'))->{duplicates} }, 0, 'held: nothing was sent twice');
ok(wait_for(\&consumed, 'what is to be pulled'), 'pulled, too');
ok(wait_for(sub { 2 == grep { $_->{id} eq $late || $_->{id} eq $prepared } $receiver->delivered(path('across')) }, 'the new subscription'), 'a subscription that was made across it gets what was open at its start');
is(scalar(grep { $_->{key} !~ /^(across|late|prepared)/ } $receiver->requests(path('across'))), 0, 'and nothing of before');
is(enqueue($node, 'other', '2', dedup_key => 'd'), $dedup, 'a duplicate is told');
is(sql(q{SELECT outbox.accept('c', 'before')}), 'f', 'and not accepted');
sql('SELECT outbox.maintain()') for 1 .. 3;
ok(wait_for(sub { sql(q{SELECT count(*) FROM outbox.event WHERE xid < '4294967296'}) == 0 }, 'segments being emptied'), 'segments from before are emptied');
sql('VACUUM');

# ---- ids of subscriptions ----------------------------------------------------------------------------------------------------------------------------------

sql('ALTER TABLE outbox.subscription ALTER id RESTART WITH 2147483647');
subscribe($node, 'last', $receiver->url(path('last')), types => ['load.made']);
my $for_last = enqueue($node, 'load.made', '"for the last one"');
ok(wait_for(sub { grep { $_->{id} eq $for_last } $receiver->delivered(path('last')) }, 'the last subscription'), 'the last subscription that there can be gets its events');
(undef, undef, $said) = $node->psql('postgres', q{\set VERBOSITY verbose}."\n".q{SELECT outbox.subscribe('more', 'https://example.com/')});
like($said, qr/ERROR:  2200H: /, 'another one is refused');
is(sql(q{SELECT count(*) FROM outbox.dead_letter}), '0', 'nothing was given up');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal|XX\d\d\d|could not access status|found xmin/, 'nobody crashed, nothing is damaged');

done_testing;
