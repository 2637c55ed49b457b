# A disk that is full. For data: producers are told, the worker lives on and says what is wrong, and sends no more than a crash may repeat; for WAL: the server goes down, as PostgreSQL does, and nothing has been sent that
# it then does not know. Either way, when there is room again, everything that was committed is delivered and nothing else was.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $directory = PostgreSQL::Test::Utils::tempdir();
my $compiler = $ENV{CC} // 'cc';
is(system("$compiler -shared -fPIC -O1 -Wall -Wextra -Werror -o '$directory/disk.so' '$FindBin::RealBin/../lib/disk.c' -ldl 2>&1"), 0, 'the disk is compiled');
my %loaded = (LD_PRELOAD => "$directory/disk.so", OUTBOX_DISK => "$directory/full");

# full(data, WAL): from now on
sub full
{
	open my $out, -e "$directory/full" ? '+<' : '>', "$directory/full" or die;
	print $out pack 'CC', @_;
	close $out or die;
}
full(0, 0);

my $node;
sub loaded { my ($code) = @_; local %ENV = (%ENV, %loaded); return $code->() }
loaded(sub { $node = outbox_node('main', conf => [ 'min_wal_size = 32MB', 'max_wal_size = 32MB', 'wal_recycle = off', 'autovacuum = off', "outbox.maintenance_interval = '1s'" ]) });
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
subscribe($node, 'plain', $receiver->url('/ok?plain'), types => ['load.made']);
subscribe($node, 'batch', $receiver->url('/ok?batch'), types => ['many.made'], format => 'batch', batch_size => 100, batch_linger => '0');
sql(q{SELECT outbox.subscribe('pulled', types => '{load.made}'); CREATE TABLE consumed (id uuid PRIMARY KEY)});
my $ledger = Outbox::Ledger->new;
sub complete { my ($what) = @_; return ok(wait_for(sub { $ledger->complete($receiver, '/ok?plain') }, $what), $what) }
sub consume { return sql(q{BEGIN; CREATE TEMP TABLE p ON COMMIT DROP AS SELECT * FROM outbox.pull('pulled', 1000); INSERT INTO consumed SELECT event_id FROM p; SELECT outbox.ack('pulled', NULL, token) FROM p LIMIT 1; COMMIT}) }
finish_producers(start_producers($node, count => 2, transactions => 100), $ledger);
complete('at first there is room');

# ---- for data ----------------------------------------------------------------------------------------------------------------------------------

my $many = 16_000;
sql(q{SELECT outbox.pause('batch')});
sql("SELECT count(outbox.enqueue('many.made', to_jsonb(i))) FROM generate_series(1, $many) AS i");
sub of_many { my %there = map { $_->{id} => 1 } $receiver->delivered_events('/ok?batch'); return scalar keys %there }
my $worker = worker_pid($node);
full(1, 0);
finish_producers(start_producers($node, count => 2, transactions => 500, tag => 'full'), $ledger);
my $session = session($node);
my $said = '';
ok(wait_for(sub { ($said = $session->query(q{SELECT count(outbox.enqueue('other', to_jsonb(repeat(md5(i::text), 100)))) FROM generate_series(1, 1000) AS i})) =~ /ERROR/ }, 'a refusal'), 'no room for data');
like($said, qr/ERROR:  53100: could not extend file/, 'a producer is told');
$session->close;
complete('what had been committed is sent all the same');
sql(q{SELECT outbox.resume('batch')});
ok(wait_for(sub { sql('SELECT error FROM outbox._worker()') =~ /^could not extend file/ }, 'the worker being in trouble'), 'nothing can be recorded, and the worker says so');
my $last = -1;
wait_for(sub { my $was = $last; sleep 1; ($last = of_many()) == $was && $last > 0 }, 'the worker having stopped to send');
cmp_ok($last, '<', 12_000, "no more than a crash may repeat is sent: $last of $many");
cmp_ok($last, '>', 0, 'but that');
is(worker_pid($node), $worker, 'the worker is the same');
full(0, 0);
ok(wait_for(sub { of_many() == $many }, 'all'), 'when there is room, the rest follows by itself');
finish_producers(start_producers($node, count => 2, transactions => 50, tag => 'again'), $ledger);
complete('and what is new');
check_ledger($ledger, $receiver, '/ok?plain');
is(scalar(() = $receiver->delivered_events('/ok?batch')), $many, 'nothing was sent twice');

# The same, and a crash before there is room
sql(q{SELECT outbox.pause('batch')});
sql("SELECT count(outbox.enqueue('many.made', to_jsonb(i))) FROM generate_series(1, $many) AS i");
full(1, 0);
sql(q{SELECT outbox.resume('batch')});
ok(wait_for(sub { of_many() > $many }, 'some'), 'no room again, and some are sent');
$last = -1;
wait_for(sub { my $was = $last; sleep 1; ($last = of_many()) == $was }, 'the worker having stopped to send');
$node->stop('immediate');
full(0, 0);
loaded(sub { $node->start });
ok(wait_for(sub { of_many() == 2 * $many }, 'all'), 'after a crash, everything is sent');
cmp_ok(scalar(() = $receiver->delivered_events('/ok?batch')) - 2 * $many, '<', 12_000, 'and what could not be recorded again');

# ---- for WAL -----------------------------------------------------------------------------------------------------------------------------------

my $log = -s $node->logfile;
my $unsure = Outbox::Ledger->new;
my $producers = start_producers($node, count => 2, transactions => 100_000, tag => 'wal');
my $others = start_producers($node, count => 2, transactions => 100_000, tag => 'async', settings => 'SET synchronous_commit = off');
wait_for(sub { $receiver->requests('/ok?plain') > $ledger->count + 100 }, 'deliveries');
full(0, 1);
$node->psql('postgres', 'SELECT pg_switch_wal()');
finish_producers($producers, $ledger);
finish_producers($others, $unsure);
ok(wait_for(sub { substr(slurp_file($node->logfile), $log) =~ /PANIC:  could not write to file "pg_wal\/xlogtemp/ }, 'a PANIC'), 'no room for WAL: the server goes down');
my $up = is_reachable($node);
full(0, 0);
unless ($up)
{
	my $pid = eval { slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/ ? $1 : undef };
	wait_for(sub { is_reachable($node) || !defined $pid || !kill 0, $pid }, 'the end of the postmaster, or recovery');
	unless (is_reachable($node))
	{
		$node->{_pid} = undef;
		loaded(sub { $node->start });
	}
}
ok(wait_for(sub { is_reachable($node) }, 'the server'), 'there is room, and the server is back');
is($ledger->settle($node)->{forgotten}, 0, 'what was committed is there');
$unsure->settle($node);
$ledger->{$_} = { %{ $ledger->{$_} }, %{ $unsure->{$_} } } for qw(committed rolled_back order);
finish_producers(start_producers($node, count => 2, transactions => 50, tag => 'last'), $ledger);
complete('all of it is delivered');
check_ledger($ledger, $receiver, '/ok?plain', duplicates => 12_000);
ok(wait_for(sub { consume(); sql('SELECT count(*) FROM consumed') >= $ledger->count }, 'pulled'), 'and pulled');
is(sql('SELECT count(*) FROM outbox.dead_letter'), '0', 'nothing was given up');

done_testing;
