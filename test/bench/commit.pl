# One event per transaction, asynchronous commit: transactions per second beside a plain INSERT.
use strict;
use warnings;

use Outbox::Bench;
use Time::HiRes qw(time);

my $seconds = seconds_of(4);
my $quiet = database('quiet', unarmed => 1);
my $db = database('delivering');
my $nginx = nginx();
subscribe($db, 'receiver', $nginx->{url}, ordering => 'none');
my $payload = literal($PAYLOAD);
my $number = "\\set g random(1, 1000000)\n";
my $plain = $number . "INSERT INTO plain (type, key, payload) VALUES ('order.paid', 'o' || :g, ${payload}::jsonb);\n";
my $outbox = $number . "SELECT outbox.enqueue('order.paid', ${payload}::jsonb, key => 'o' || :g);\n";
my $pgq = eval { sql($quiet, "SET client_min_messages = warning; CREATE EXTENSION pgq; SELECT pgq.create_queue('q')"); 1 };
my $pgq_script = "SELECT pgq.insert_event('q', 'order.paid', $payload);\n";

pgbench($quiet, $_, 8, seconds_of(2)) for $plain, $outbox;
my $result = alternate(3, plain => sub { pgbench($quiet, $plain, 8, $seconds) }, outbox => sub { pgbench($quiet, $outbox, 8, $seconds) }, $pgq ? (pgq => sub { pgbench($quiet, $pgq_script, 8, $seconds) }) : ());
figure('enqueue, one event per transaction, 8 clients, asynchronous commit', unit => 'tps', ours => $result->{outbox}, beside => $result->{plain}, against => 'plain INSERT', goal => '>= 0.95');
figure('the same beside PgQ', unit => 'tps', ours => $result->{outbox}, beside => $result->{pgq}, against => 'pgq.insert_event()') if $pgq;

# The worker delivers as fast as it can while our turn lasts, and what it left is waited for before the next.
my $idle = sub { my $last = -1; wait_for(sub { my $now = $nginx->{count}->(); my $same = $now == $last; $last = $now; return $same }, 'the backlog being delivered', 100, 0.3) };
my ($cores) = `nproc` =~ /(\d+)/;
my $children = sub { my ($pid) = @_; open my $file, '<', "/proc/$pid/task/$pid/children" or return; return split ' ', <$file> // '' };
my $receiver_cpu = sub { my $sum = 0; for my $pid ($children->($nginx->{pid})) { open my $file, '<', "/proc/$pid/schedstat" or next; $sum += (split ' ', <$file>)[0] } return $sum };
my @taken;    # by worker and receiver, of all cores
my $like_the_log = like_the_log($quiet);
pgbench($quiet, $like_the_log, 8, seconds_of(1));
$result = alternate(3, plain => sub { pgbench($quiet, $plain, 64, seconds_of(3)) }, like_the_log => sub { pgbench($quiet, $like_the_log, 64, seconds_of(3)) }, undelivered => sub { pgbench($quiet, $outbox, 64, seconds_of(3)) },
	outbox => sub {
		my ($before, $began) = (worker_cpu($db) + $receiver_cpu->(), time);
		my $tps = pgbench($db, $outbox, 64, seconds_of(3));
		push @taken, (worker_cpu($db) + $receiver_cpu->() - $before) / 1e9 / (time - $began) / $cores;
		sql($db, 'SELECT outbox.unsubscribe(' . literal('receiver') . ')');
		$idle->();
		subscribe($db, 'receiver', $nginx->{url}, ordering => 'none');
		return $tps });
figure('the same, 64 clients, while the worker delivers', unit => 'tps', ours => $result->{outbox}, beside => $result->{plain}, against => 'plain INSERT, no delivery', goal => '>= 0.95',
	note => sprintf 'Worker and receiver run on the same cores as the producers, and took %.0f %% of their time (median).', 100 * median(@taken));
figure('the same without delivery, beside an INSERT into a table with the same columns and indexes', unit => 'tps', ours => $result->{undelivered}, beside => $result->{like_the_log}, against => 'INSERT into a table like the log, rising keys');
figure('such an INSERT, 64 clients, beside a plain one', unit => 'tps', ours => $result->{like_the_log}, beside => $result->{plain}, against => 'plain INSERT, random uuid key');
figure('64 clients while the worker delivers, beside a plain INSERT with as much less CPU as the delivery took', unit => 'tps', ours => $result->{outbox}, beside => [ map { $result->{plain}[$_] * (1 - $taken[$_]) } 0 .. $#taken ], against => 'plain INSERT, less that');
