# What an event costs a consumer: pull() and ack(), beside a queue table read with SKIP LOCKED. 8 clients, 100 events a call; as they are, and while another session holds a snapshot.
# Both clients get all rows, by prepared statements. The queue table is what people write: a bigserial, DELETE … FOR UPDATE SKIP LOCKED … RETURNING.
use strict;
use warnings;

use Outbox::Bench;
use Time::HiRes qw(time);

my ($many, $few) = (size(300_000), size(50_000));    # while a snapshot is held the queue table is so slow that few must do
my $clients = 8;
my $db = database('db');
sql($db, "CREATE TABLE queue (id bigserial PRIMARY KEY, payload jsonb NOT NULL); SELECT outbox.subscribe('bench', ordering => 'none')");
my $payload = literal($PAYLOAD) . '::jsonb';
my %script = (
	pull => "\\set n 0\nSELECT event_id, payload, token, 1 AS n FROM outbox.pull('bench', 100) \\aset\n\\if :n\nSELECT outbox.ack('bench', NULL, :token);\n\\endif\n",
	queue => "WITH next AS (SELECT id FROM queue ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED) DELETE FROM queue USING next WHERE queue.id = next.id RETURNING queue.*;\n");

# 8 clients make the calls that take n events, if each finds a hundred; left(): how many were left after that
sub drain
{
	my ($name, $n, $left) = @_;
	my $file = "$ENV{OUTBOX_BENCH}/pull/$name.sql";
	open my $out, '>', $file or die;
	print $out $script{$name};
	close $out;
	my $began = time;
	command($name, 'pgbench', '-n', '-M', 'prepared', '-c', $clients, '-j', 2, '-t', $n / 800, '-f', $file, $db);
	my $seconds = time - $began;
	return ($n - $left->()) / $seconds;
}

my $pull = sub {
	my ($n) = @_;
	sql($db, "SELECT count(outbox.enqueue('bench', $payload)) FROM generate_series(1, $n)");
	my $left = 0;
	my $rate = drain('pull', $n, sub {
		for (;;) { my $got = sql($db, "WITH p AS MATERIALIZED (SELECT token FROM outbox.pull('bench', 1000)), a AS (SELECT outbox.ack('bench', NULL, token) AS n FROM (SELECT DISTINCT token FROM p) AS t) SELECT coalesce(sum(n), 0) FROM a"); last unless $got; $left += $got }
		return $left });
	say_it("$left of $n were left") if $left;
	return $rate;
};
my $queue = sub {
	my ($n) = @_;
	sql($db, "INSERT INTO queue (payload) SELECT $payload FROM generate_series(1, $n)");
	sql($db, 'ANALYZE queue');
	my $left;
	my $rate = drain('queue', $n, sub { $left = sql($db, 'SELECT count(*) FROM queue') });
	sql($db, 'DELETE FROM queue') if $left;
	return $rate;
};

# without a row for each attempt, as the queue table has none
my $bare = sub { settings('outbox.attempt_log' => 'failures'); my $rate = $pull->($many); settings('outbox.attempt_log' => 'all'); return $rate };
my $free = alternate(4, queue => sub { $queue->($many) }, pull => sub { $pull->($many) }, 'pull, failures logged' => $bare);
my $holder = session($db);
query_on($holder, 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM plain');
my $held = alternate(3, queue => sub { $queue->($few) }, pull => sub { $pull->($many) });
$holder->close;

figure('pull() and ack(), 8 workers', unit => 'events/s', ours => $free->{pull}, beside => $free->{queue}, against => 'SKIP LOCKED, 8 workers', goal => '>= 2');
figure('the same with outbox.attempt_log = failures: no row for each attempt, as the queue table has none', unit => 'events/s', ours => $free->{'pull, failures logged'}, beside => $free->{queue}, against => 'SKIP LOCKED, 8 workers');
figure('the same while a snapshot is held', unit => 'events/s', ours => $held->{pull}, beside => $held->{queue}, against => 'SKIP LOCKED, 8 workers', goal => '>= 2');
figure('pull() and ack() under a held snapshot, beside without', unit => 'events/s', ours => $held->{pull}, beside => $free->{pull}, against => 'no snapshot held', goal => '>= 0.8');
figure('SKIP LOCKED under a held snapshot, beside without', unit => 'events/s', ours => $held->{queue}, beside => $free->{queue}, against => 'no snapshot held');
