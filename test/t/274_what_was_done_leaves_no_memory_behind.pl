# Neither the delivery worker's memory grows with the events that it has delivered, nor a session's with the calls that it has made.
#
# It is counted to the byte: what PostgreSQL has in its memory contexts, and, by a library that is loaded into the server, what libcurl, OpenSSL and http.c have from malloc().
# Chunks of the event log are kept on purpose, up to a bound: large events drive them out before each count.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $directory = PostgreSQL::Test::Utils::tempdir();
my $compiler = $ENV{CC} // 'cc';
is(system("$compiler -O1 -o '$directory/sink' '$FindBin::RealBin/../bench/sink.c' 2>&1"), 0, 'the receiver is compiled');
is(system("$compiler -shared -fPIC -O1 -Wall -Wextra -Werror -o '$directory/malloc.so' '$FindBin::RealBin/../lib/malloc.c' -ldl 2>&1"), 0, 'the library is compiled');
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $sink = fork // die;
if ($sink == 0)
{
	exec "$directory/sink", $port, "$directory/seen", 0 or POSIX::_exit(127);
}
END { my $status = $?; kill 'TERM', $sink and waitpid $sink, 0 if $sink; $? = $status }

sub watch
{
	my ($pid) = @_;
	my $file;
	open $file, '+<:raw', "$directory/malloc" or open $file, '>:raw', "$directory/malloc" or die;    # it is mapped: never shorter
	print $file pack 'qqq', $pid, 0, 0;
}
sub taken { open my $file, '<:raw', "$directory/malloc" or die; read $file, my $bytes, 24; return (unpack 'qqq', $bytes)[2] }

watch(0);
my $node;
{
	local %ENV = (%ENV, LD_PRELOAD => "$directory/malloc.so", OUTBOX_MALLOC => "$directory/malloc");
	$node = outbox_node('main', conf => [ 'fsync = off', 'shared_buffers = 64MB', 'max_wal_size = 4GB', "log_statement = 'none'", "outbox.maintenance_interval = '1s'" ]);
}
my $session = session($node);

sub sql
{
	my ($sql) = @_;
	my $said = $session->query($sql) // die "the connection was lost: $session->{last_words}\n";
	die "$said\nfor: $sql\n" if $said =~ /^(?:psql:[^\n]*)?(?:ERROR|FATAL):/m;
	return $said;
}

# ---- the worker ----------------------------------------------------------------------------------------------------------------------------

my $url = "http://127.0.0.1:$port";
# so few at a time that the first rounds have as many connections as there will ever be
my @few = (max_in_flight => 4);
subscribe($node, 'batch', "$url/batch", types => ['many'], format => 'batch', batch_linger => '5 ms', @few);
subscribe($node, 'single', "$url/single", types => ['one'], filter => '$.n > 0', headers => '{"X-Token": "secret"}', @few);
subscribe($node, 'refused', "$url/500", types => ['bad'], max_attempts => 3, retry_base => '1 ms', @few);
sql(q{SELECT outbox.subscribe('pulled', types => '{many}')});
my $worker = worker_pid($node);
watch($worker);

sub enqueue_some
{
	my ($type, $n, $arguments) = @_;
	sql("SELECT count(outbox.enqueue('$type', jsonb_build_object('seq', 0, 'n', i), key => 'k' || i % 1000$arguments)) FROM generate_series(1, $n) AS i");
}

my $drain = q{DO $$
DECLARE leased uuid; n int;
BEGIN
	LOOP
		SELECT count(*), min(token::text)::uuid INTO n, leased FROM outbox.pull('pulled', 1000);
		EXIT WHEN n = 0;
		PERFORM outbox.ack('pulled', NULL, leased);
		COMMIT;
	END LOOP;
END $$};

# Some 50,000 events go through, in every way there is.
my $events = 0;

sub round
{
	enqueue_some('many', 10_000, '') for 1 .. 5;
	enqueue_some('one', 2_000, ', headers => \'{"X-Shop": "one"}\'');
	enqueue_some('bad', 100, '');
	enqueue_some('many', 100, ', deliver_at => now()');
	$events += 52_200;
	wait_for(sub {
			sql($drain);
			sql(q{SELECT count(*) FROM outbox.subscription_status WHERE lag_events > 0 OR in_flight > 0}) eq '0' && sql(q{SELECT count(*) FROM outbox.delivery WHERE status NOT IN ('dead', 'discarded')}) eq '0' &&
				sql(q{SELECT count(*) FROM outbox.scheduled}) eq '0' }, 'all of a round', 120);
	sql(q{SELECT outbox.discard('refused')});
}

# Bytes that the worker has in use in its contexts, chunks aside, and that others than PostgreSQL have taken since it was watched.
sub counted
{
	sql(q{SELECT count(outbox.enqueue('large', jsonb_build_object('n', repeat('x', 1000000)))) FROM generate_series(1, 60)});
	wait_for(sub { sql(q{SELECT count(*) FROM outbox.subscription_status WHERE lag_events > 0}) eq '0' }, 'large events to be read');
	my $log = slurp_file($node->logfile);
	my $offset = length $log;
	sql("SELECT pg_log_backend_memory_contexts($worker)");
	wait_for(sub { $log = substr slurp_file($node->logfile), $offset; $log =~ /Grand total: \d+ bytes/ }, 'the worker to say what it has');
	my $taken = taken();    # once it is idle
	cmp_ok(scalar(() = $log =~ /; outbox chunk: /g), '<', 60, 'few enough chunks for all contexts to be told');    # of one parent a hundred
	my %used;
	$used{$1} += $2 while $log =~ /level: \d+; ([^:\n]+?)(?:: \d+ total| containing)[^\n]* (\d+) used/g;
	delete $used{'outbox chunk'};
	my $bytes = 0;
	$bytes += $_ for values %used;
	note "after $events events: $bytes bytes in contexts, $taken elsewhere";
	return { bytes => $bytes, others => $taken, used => \%used };
}

round() for 1 .. 2;
my $before = counted();
round() for 1 .. 6;
my $after = counted();
is(worker_pid($node), $worker, 'all this was one worker');
for my $name (sort keys %{ $after->{used} })
{
	my $grown = $after->{used}{$name} - ($before->{used}{$name} // 0);
	note "$name: $grown" if $grown;
}
cmp_ok($after->{bytes} - $before->{bytes}, '<', 128 * 1024, 'the contexts of the worker have not grown');
cmp_ok($after->{others} - $before->{others}, '<', 128 * 1024, 'nor has what others in it take');    # a byte for each delivery would be as much

# ---- sessions ------------------------------------------------------------------------------------------------------------------------------

sql(q{CREATE TABLE captured (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text); SELECT outbox.capture('captured', '{id,name}', 'change')});
my @calls = (
	'enqueue()' => q{PERFORM outbox.enqueue('call', '{"n": 1}', key => 'k' || i, headers => '{"X-Shop": "one"}', tenant => 't')},
	'enqueue_raw()' => q{PERFORM outbox.enqueue_raw('call', '\x0102', 'text/plain')},
	'enqueue_many()' => q{PERFORM outbox.enqueue_many('[{"type": "call", "payload": 1}, {"type": "call", "payload": 2, "key": "k"}]')},
	'dedup_key' => q{PERFORM outbox.enqueue('call', '1', dedup_key => 'd' || i / 2)},
	'deliver_at' => q{PERFORM outbox.enqueue('call', '1', deliver_at => now() + '1 d')},
	'capture()' => q{INSERT INTO captured (name) VALUES ('one')},
	'accept()' => q{PERFORM outbox.accept('me', 'm' || i / 2)},
	'accept_many()' => q{PERFORM outbox.accept_many('me', ARRAY['n' || i, 'n' || i + 1])},
	'verify_webhook()' => q{PERFORM outbox.verify_webhook('{"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}', '\x01', 'whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=')},
	'pull() and nack()' => q{PERFORM outbox.nack('pulled', NULL, token, '0 s') FROM outbox.pull('pulled', 1)},
	'a refused enqueue()' => q{BEGIN PERFORM outbox.enqueue('call', '1', headers => '{"no name": "x"}'); EXCEPTION WHEN OTHERS THEN NULL; END},
	'an enqueue() that an index refuses' => q{BEGIN PERFORM outbox.enqueue('refused', '1'); EXCEPTION WHEN division_by_zero THEN NULL; END});

sub session_bytes { return sql('SELECT sum(used_bytes) FROM pg_catalog.pg_backend_memory_contexts') }

sub calls
{
	my ($statement, $n, $commit) = @_;
	sql("DO \$\$ BEGIN FOR i IN 1 .. $n LOOP $statement; $commit END LOOP; END \$\$");
}

# By how much so many calls grow it, after some.
sub grown
{
	my ($statement, $n, $commit) = @_;
	for (1 .. 2) { calls($statement, 100, $commit); session_bytes() }
	my $bytes = session_bytes();
	calls($statement, $n, $commit);
	return session_bytes() - $bytes;
}

enqueue_some('many', 1, '');
while (my ($name, $statement) = splice @calls, 0, 2)
{
	sql("CREATE INDEX ON outbox.$_ ((1 / (type <> 'refused')::int))") for @calls ? () : split /\n/, sql(q{SELECT relname FROM pg_class WHERE oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox.event'::regclass)});
	cmp_ok(grown($statement, 1_000, 'COMMIT;'), '<', 4096, "$name, each in a transaction of its own");
	sql('BEGIN');
	cmp_ok(grown($statement, 1_000, ''), '<', 16384, "$name, all in one transaction");
	sql('COMMIT');
}

# nor calls within one query
sql('BEGIN; DECLARE many CURSOR FOR SELECT FROM generate_series(1, 1000) AS i LEFT JOIN LATERAL outbox.pull(\'pulled\', 1 + 0 * i) ON true');
sql('MOVE 500 FROM many');
is(sql(q{SELECT count(*) FROM pg_catalog.pg_backend_memory_contexts WHERE name = 'outbox pull'}), 1, 'all pull()s of a query share their memory');
sql('COMMIT');

done_testing;
