# Guarantees 2 to 5 at every fault point: whoever passes it gets an error, is terminated, killed or stopped for a while. Nothing is lost, nothing is sent that was not committed,
# what is repeated has the same id and bytes, keys keep their order, and the worker is back by itself.
# Needs: FAULTS=1
#
# OUTBOX_FAULT_POINTS=all tries them all, a few words of "POINT:ACTION" those; otherwise a sample of OUTBOX_SEED (the day) is tried.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use List::Util qw(shuffle);
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $sample = 24;
my @all;
for (split /\n/, `$FindBin::RealBin/../fault/points`)
{
	my ($point, undef, $kind) = split /\t/;
	push @all, map { [ $point, $_ ] } ($kind eq 'quiet' ? () : 'error'), 'term', 'kill', 'stop';
}
cmp_ok(scalar @all, '>', 200, 'there are many ways to fail');
my $wanted = $ENV{OUTBOX_FAULT_POINTS} // '';
my $seed = $ENV{OUTBOX_SEED} // int(time / 86400);
srand $seed;
my @faults = $wanted eq 'all' ? @all : $wanted ne '' ? map { [ split /:/ ] } split ' ', $wanted : (shuffle @all)[ 0 .. $sample - 1 ];
diag "OUTBOX_SEED=$seed";

my $node = outbox_node('main', conf => [ 'fsync = off', "outbox.segment_size = '128kB'", "outbox.maintenance_interval = '1s'", "outbox.event_retention = '1s'", "outbox.attempt_retention = '1min'" ]);
my $data = $node->data_dir;
my $receiver = Outbox::Receiver->new(fsync => 0);
my ($push, $batch) = ('/random/5/5?push', '/random/6/5?batch');
my %ledger = map { $_ => Outbox::Ledger->new } qw(push batch);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

# As sql, but the server may just be crashing.
sub try_sql { my ($sql) = @_; return eval { my ($status, $out) = $node->psql('postgres', $sql); $status == 0 ? $out : undef } }

my @patient = (retry_base => '20 ms', retry_max => '200 ms', max_attempts => 1000, types => [ 'load.made', 'load.later' ]);
subscribe($node, 'push', $receiver->url($push), @patient);
subscribe($node, 'batch', $receiver->url($batch), @patient, format => 'batch', batch_size => 20, batch_linger => '10 ms');
sql(q{SELECT outbox.subscribe('pull', types => '{load.made,load.later}')});
subscribe($node, 'waiting', $receiver->url('/status/500?waiting'), types => ['waiting'], retry_base => '1 h');    # an exception for each worker to take over
sql('CREATE TABLE recorded (id uuid PRIMARY KEY); CREATE TABLE consumed (seq bigserial, id uuid, key text)');

enqueue($node, 'waiting', '1');
wait_for(sub { sql('SELECT count(*) FROM outbox.delivery') eq '1' }, 'what waits for its retry');

# The events of one fault. Each is written down in its own transaction: so we know what was committed when a session was lost.
my $round = 0;

sub start_scripts
{
	my $directory = PostgreSQL::Test::Utils::tempdir();
	my %scripts;
	my $transaction = sub {
		my ($type, $key, $i, $more) = @_;
		return "BEGIN;\nWITH e AS (SELECT outbox.enqueue('$type', '{\"i\": $i, \"pad\": \"" . 'x' x 300 . "\"}', key => '$key'$more) AS id) INSERT INTO recorded SELECT id FROM e RETURNING 'event', '$key', id;\n"
			. ($i % 10 == 9 ? "ROLLBACK;\n" : "COMMIT;\n");
	};
	for my $n (1 .. 2)
	{
		$scripts{"now$n"} = [ map { $transaction->('load.made', "r$round-$n-" . $_ % 3, $_, '') . "SELECT pg_sleep(0.005);\n" } 1 .. 2000 ];
	}
	$scripts{later} = [ map { $transaction->('load.later', "r$round-later", $_, ", deliver_at => clock_timestamp() + interval '100 ms', dedup_key => 'r$round-$_'") . "SELECT pg_sleep(0.01);\n" } 1 .. 2000 ];
	$scripts{consumer} = [ (consume() . "SELECT pg_sleep(0.02);\n") x 2000 ];
	my @running;
	for my $name (sort keys %scripts)
	{
		open my $script, '>', "$directory/$name.sql" or die;
		print $script "SET application_name = 'producer';\n", @{ $scripts{$name} };
		close $script;
		my $pid = fork // die;
		if ($pid == 0)
		{
			open STDIN, '<', "$directory/$name.sql";
			open STDOUT, '>', "$directory/$name.out";
			open STDERR, '>', "$directory/$name.err";
			exec 'psql', '-XAt', '-d', $node->connstr('postgres') or POSIX::_exit(127);
		}
		push @running, { pid => $pid, out => "$directory/$name.out" };
	}
	return @running;
}

sub consume
{
	return q{BEGIN; CREATE TEMP TABLE p ON COMMIT DROP AS SELECT * FROM outbox.pull('pull', 50, '2 s'); INSERT INTO consumed (id, key) SELECT event_id, key FROM p;}
		. q{SELECT outbox.ack('pull', NULL, token) FROM p LIMIT 1; COMMIT;} . "\n";
}

sub crashes { return scalar(() = slurp_file($node->logfile) =~ /terminating any other active server processes/g) }

# What makes somebody pass the point.
my %provoke = (
	'worker-before-start' => \&end_worker, 'restore-after-cursors' => \&end_worker, 'restore-after-exceptions' => \&end_worker,
	'http-before-connecting' => \&end_worker,    # connections are kept
	'launch-before-worker' => \&end_worker, 'launch-after-worker' => \&end_worker,
	'cursors-before-emptying' => \&end_worker, 'cursors-before-emptied-commit' => \&end_worker, 'cursors-after-emptied-commit' => \&end_worker,
	'worker-before-last-words' => sub { try_sql(q{ALTER SYSTEM SET outbox.enabled = off}); try_sql('SELECT pg_reload_conf()'); sleep 0.5; try_sql('ALTER SYSTEM RESET outbox.enabled'); try_sql('SELECT pg_reload_conf()') },
	'list-after-reading' => sub { try_sql('SELECT outbox.start()') },
	'reload-before-commit' => \&change, 'reload-after-commit' => \&change, 'index-half-made' => \&change,
	'exception-half-entered' => \&end_worker,
	'replay-before-commit' => \&replay, 'replay-after-commit' => \&replay,
);
# start(): after many ends the launcher would take its time, but not when it is told
sub end_worker { try_sql('SELECT pg_terminate_backend(worker_pid) FROM outbox._worker()'); try_sql('SELECT outbox.start()') }
sub change { try_sql("SELECT outbox.alter_subscription('$_', description => 'round $round')") for qw(push batch) }
sub replay { try_sql(q{SELECT outbox.replay('push', since => now() - interval '10 s')}) }

sub try_fault
{
	my ($point, $action) = @_;
	my $what = "$action at $point";
	my $file = "$data/outbox.fault/$point";
	my $begins_as = $round++;
	my ($hits) = $point =~ /^(?:retire|seal|rotate|cursors|checkpoint|worker|restore|launch|list|reload|index|exception|replay|maintain|http-before-connecting)/ ? 0 : int rand 4;

	# a little of everything
	mkdir "$data/outbox.fault";
	open my $out, '>', "$data/outbox.new" or die;
	print $out "$action $hits\n";
	close $out;
	my $before = crashes();
	my @running = start_scripts();
	sleep 0.1;
	rename "$data/outbox.new", $file or die;
	$provoke{$point}->() if $provoke{$point};
	my $fired = eval { wait_until_true(15, sub { !-e $file || do { $provoke{$point}->() if $provoke{$point} && rand() < 0.05; 0 } }) };
	ok($fired, "$what: somebody passes it");
	unlink $file;
	if ($action eq 'stop')
	{
		my @stopped;
		wait_until_true(5, sub { @stopped = stopped(); @stopped > 0 });
		ok(scalar @stopped, "$what: it stands still");
		sleep 0.3;
		kill 'CONT', @stopped;
	}

	# Their connections are ended, if they have not lost them: until the server answers, for it may just be crashing
	sleep 0.3;
	wait_for(sub { eval { stop_producers($node); 1 } }, "$what: the end of the load");

	my %was = map { $_ => $ledger{$_}->count } keys %ledger;
	finish_producers([ grep { $_->{out} !~ /consumer/ } @running ], $_) for $ledger{push};
	waitpid $_->{pid}, 0 for @running;
	wait_for(sub { is_reachable($node) }, "$what: the server being there");
	settle($ledger{push});
	ok(wait_for(sub { $ledger{push}->complete($receiver, $push) && $ledger{push}->complete($receiver, $batch) && all_consumed() }, "$what: everything that was committed"), "$what: nothing is lost")
		or diag explain { worker => try_sql('SELECT * FROM outbox._worker()'), status => try_sql(q{SELECT name, state, lag_events, in_flight, dead FROM outbox.subscription_status}) };
	ok(wait_for(sub { (try_sql('SELECT LEAST((SELECT count(*) FROM outbox.cursor_0), (SELECT count(*) FROM outbox.cursor_1))') // 1) eq '0' }, "$what: old cursors being emptied"), "$what: old cursors are emptied");
	is(crashes(), $before, "$what: the server did not crash") if $action ne 'kill';
	my $is_dead = sql('SELECT count(*) FROM outbox.dead_letter');
	is($is_dead, '0', "$what: nothing was given up") or diag sql('SELECT subscription, reason, last_error FROM outbox.dead_letter LIMIT 5');
}

# Who of this server stands still.
sub stopped
{
	my ($postmaster) = slurp_file("$data/postmaster.pid") =~ /^(\d+)/;
	return map { /^\s*(\d+)\s+T/ ? $1 : () } split /\n/, `ps -o pid=,stat= --ppid $postmaster`;
}

sub wait_until_true
{
	my ($seconds, $code) = @_;
	my $end = time + $seconds;
	while (time < $end) { return 1 if $code->(); sleep 0.02 }
	return 0;
}

# What became of what nobody saw the end of; and nothing that was seen to be committed is gone.
sub settle
{
	my ($ledger) = @_;
	my %there = map { $_ => 1 } split /\n/, sql('SELECT id FROM recorded');
	for my $id (keys %{ $ledger->{unknown} })
	{
		my $key = delete $ledger->{unknown}{$id};
		$there{$id} ? ($ledger->{committed}{$id} = $key) : ($ledger->{rolled_back}{$id} = 1);
	}
	is(scalar(grep { !$there{$_} } keys %{ $ledger->{committed} }), 0, 'what was committed is there');
}

sub all_consumed
{
	try_sql(consume());
	return (try_sql('SELECT count(*) FROM recorded AS r WHERE NOT EXISTS (SELECT FROM consumed AS c WHERE c.id = r.id)') // 1) eq '0';
}

try_fault(@$_) for @faults;

my %allowed = (duplicates => 1e6);
check_ledger($ledger{push}, $receiver, $push, what => 'push', %allowed);
check_ledger($ledger{push}, $receiver, $batch, what => 'batch', %allowed);
is(sql('SELECT count(*) FROM consumed AS c WHERE NOT EXISTS (SELECT FROM recorded AS r WHERE r.id = c.id)'), '0', 'pull: nothing that was not committed');
is(sql('WITH first AS (SELECT id, key, min(seq) AS seq FROM consumed GROUP BY id, key), placed AS (SELECT seq, lag(seq) OVER (PARTITION BY key ORDER BY id) AS before FROM first) SELECT count(*) FROM placed WHERE seq < before'),
	'0', 'pull: keys keep their order');
my $log = slurp_file($node->logfile);
is(scalar(() = $log =~ /terminated by signal (?:6|11)|PANIC|TRAP/g), 0, 'nobody crashed who was not shot');

done_testing;
