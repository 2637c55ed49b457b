# The driver of the fault harness: see README.md. Called by `run`, with a server running (PGHOST, PGPORT, PGDATA), outbox installed in its tree, and receiver and producer built.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Checker;

use Getopt::Long;
use IO::Socket::INET;
use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use POSIX ();
use Time::HiRes qw(time sleep);

my %option = (seed => undef, seconds => undef, events => undef, kills => undef, rate => 1500, mixed => 4, bulk => 1, consumers => 2, limit => 60, points => 1);
GetOptions(\%option, 'seed=i', 'seconds=f', 'events=i', 'kills=i', 'rate=f', 'mixed=i', 'bulk=i', 'consumers=i', 'limit=f', 'drain=f', 'points!', 'pause=f', 'soak', 'only=s', 'contender=s', 'work=s', 'json=s', 'quiet')
	&& !@ARGV or die "see test/fault/README.md\n";
$option{pause} //= $option{soak} ? 10 : 0.4;
$option{drain} //= $option{limit};
$option{seconds} //= 120 unless defined $option{events} || defined $option{kills};
$option{seed} //= POSIX::floor(time * 1000) % 1_000_000_007;
my $work = $option{work} or die "--work DIRECTORY\n";
my $data = $ENV{PGDATA};
my $here = $FindBin::RealBin;
$SIG{PIPE} = 'IGNORE';
$SIG{TERM} = $SIG{INT} = sub { exit 130 };
STDOUT->autoflush(1);
my $began = time;

sub say_it { printf "%7.1f  %s\n", time - $began, join ' ', @_ unless $option{quiet} }

# ---- processes ----------------------------------------------------------------------------------------------------------------------

my %running;

sub launch
{
	my ($name, @command) = @_;
	my $supervised = $command[0] eq 'supervised' && shift @command;
	my $pid = fork // die "cannot fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', "$work/$name.output";
		open STDERR, '>&', \*STDOUT;
		supervise(@command) if $supervised;
		exec @command or POSIX::_exit(127);
	}
	$running{$pid} = $name;
	return $pid;
}

# Starts it again whenever it has died, until told to end. Its standard input ends with us.
sub supervise
{
	my (@command) = @_;
	my ($child, $ending);
	local $SIG{TERM} = sub { $ending = 1; kill 'TERM', $child if $child };
	pipe my $read, my $write or POSIX::_exit(127);
	until ($ending)
	{
		$child = fork // POSIX::_exit(127);
		if ($child == 0)
		{
			$SIG{TERM} = 'DEFAULT';
			open STDIN, '<&', $read;
			exec @command or POSIX::_exit(127);
		}
		kill 'TERM', $child if $ending;
		1 while waitpid($child, 0) != $child;
		sleep 0.1 unless $ending;
	}
	POSIX::_exit(0);
}

sub end_of
{
	my ($pid, $seconds) = @_;
	kill 'CONT', $pid;
	kill 'TERM', $pid;
	my $deadline = time + $seconds;
	while (waitpid($pid, POSIX::WNOHANG) == 0)
	{
		if (time > $deadline) { kill 'KILL', $pid; waitpid $pid, 0; delete $running{$pid}; return 0 }
		sleep 0.01;
	}
	delete $running{$pid};
	return $? == 0;
}

END { my $status = $?; kill 'KILL', keys %running if %running; $? = $status }

sub slurp { my ($file) = @_; open my $in, '<', $file or return ''; local $/; return scalar <$in> // '' }

sub quietly { my (@command) = @_; return system('sh', '-c', 'exec "$@" >/dev/null 2>&1', 'sh', @command) == 0 }

# A statement in a psql of its own; undef if it failed.
sub sql
{
	my ($statement, $database) = @_;
	open my $psql, '-|', 'psql', '-XAtq', '-d', $database // 'postgres', '-c', $statement or die;
	my $said = do { local $/; <$psql> } // '';
	chomp $said;
	return close($psql) ? $said : undef;
}

sub must { my ($statement, $database) = @_; return sql($statement, $database) // die "failed: $statement\n" }

# Its children: pid => title. From /proc, because at times nobody can be asked.
sub children_of
{
	my ($whose) = @_;
	my %found;
	for my $directory (glob '/proc/[0-9]*')
	{
		my ($pid) = $directory =~ /(\d+)$/;
		my ($state, $parent) = slurp("$directory/stat") =~ /^\d+ \(.*\) (\S) (\d+)/s or next;
		next unless $parent == $whose;
		$found{$pid} = { state => $state, title => slurp("$directory/cmdline") =~ s/\0.*//sr };
	}
	return \%found;
}

# What is running on this server.
sub processes
{
	my ($postmaster) = split /\n/, slurp("$data/postmaster.pid");
	return ($postmaster ? children_of($postmaster) : {}, $postmaster);
}

sub pids_of
{
	my ($pattern) = @_;
	my ($processes) = processes();
	return sort { $a <=> $b } grep { $processes->{$_}{title} =~ $pattern } keys %$processes;
}

# ---- who is hurt --------------------------------------------------------------------------------------------------------------------

# Who delivers: the extension, or somebody in its place (contender/). WORKER: its process; LEFT: how much is still to be delivered; TABLES: those that are locked;
# WITHOUT: what producers leave out, because there is nothing like it. START: what else is started.
my ($relay);
my %deliverers = (
	outbox => {
		worker => sub { pids_of(qr/^postgres: outbox delivery/) },
		left => q{SELECT (SELECT count(*) FROM outbox.delivery WHERE status <> 'dead') + (SELECT count(*) FROM outbox.scheduled) + (SELECT coalesce(sum(lag_events + in_flight), 0) FROM outbox.subscription_status)},
		tables => [qw(outbox.event outbox.delivery outbox.cursor_0 outbox.cursor_1 outbox.attempt_log outbox.scheduled outbox.dedup outbox.subscription)],
	},
	relay => {
		worker => sub { $relay ? keys %{ children_of($relay) } : () },
		start => sub { $relay = launch('relay', 'supervised', 'node', "$here/contender/relay.js", 'postgres') },
		left => 'SELECT count(*) FROM outbox.message WHERE sent_at IS NULL',
		tables => ['outbox.message'],
		without => 'scheduled,dedup,pull',
	},
	pg_net => {
		worker => sub { pids_of(qr/^postgres: pg_net/) },
		left => 'SELECT count(*) FROM net.http_request_queue',
		tables => [qw(net.http_request_queue net._http_response)],
		without => 'scheduled,dedup,pull',
	},
);
my $contender = $option{contender};
my $deliverer = $deliverers{ $contender // 'outbox' } or die "--contender relay or pg_net\n";
sub workers { return $deliverer->{worker}->() }

# ---- the plan -----------------------------------------------------------------------------------------------------------------------

my @subscriptions = (
	{ name => 'single', format => 'binary', types => ['one'], log => 'receiver.log', permille => 30, options => q{max_in_flight => 20, timeout => '1 s', breaker_threshold => 0} },
	{ name => 'structured', format => 'structured', types => [ 'one', 'effect' ], log => 'receiver.log', permille => 20, options => q{max_in_flight => 20, timeout => '1 s', breaker_threshold => 5, breaker_probe => '50 ms', breaker_max => '500 ms'} },
	{ name => 'batch', format => 'batch', types => ['bulk'], log => 'receiver.log', permille => 15, options => q{max_in_flight => 8, timeout => '2 s', breaker_threshold => 0} },
	{ name => 'pull', format => 'pull', types => ['pull'], log => '-', effects => 1, options => '' },
	{ name => 'effect', format => 'binary', types => ['effect'], log => 'effects.log', effects => 1, permille => 50, options => q{max_in_flight => 20, timeout => '2 s', breaker_threshold => 0} },
);
@subscriptions = (
	{ name => 'single', format => 'binary', types => ['one'], log => 'receiver.log', permille => 30 },
	{ name => 'second', format => 'binary', types => [ 'one', 'effect' ], log => 'receiver.log', permille => 20 },
	{ name => 'bulk', format => 'binary', types => ['bulk'], log => 'receiver.log', permille => 15 },
	{ name => 'effect', format => 'binary', types => ['effect'], log => 'effects.log', effects => 1, permille => 50 },
) if $contender;

sub secret { my ($name) = @_; return 'whsec_' . encode_base64(substr("$name-a-secret-of-the-fault-harness", 0, 32), '') }

my %port;

sub start_receiver
{
	my ($name, $log, @more) = @_;
	my @paths = map { ('--path', join ',', $_->{name}, secret($_->{name}), $_->{permille}) } grep { $_->{log} eq $log } @subscriptions;
	my $pid = launch($name, "$here/receiver.bin", '--ready', "$work/$name.ready", '--log', "$work/$log", '--seed', $option{seed}, @paths, @more);
	my $deadline = time + 30;
	until (-s "$work/$name.ready") { die "$name does not start: " . slurp("$work/$name.output") if time > $deadline; sleep 0.01 }
	chomp($port{$log} = slurp("$work/$name.ready"));
	return $pid;
}

sub set_up
{
	must('CREATE DATABASE effects');
	if ($contender)
	{
		quietly('psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $_->[0], '-f', "$here/contender/$_->[1].sql") or die "$_->[1].sql fails\n" for [ effects => 'inbox' ], [ postgres => $contender ];
	}
	else { must('CREATE EXTENSION outbox', $_) for 'effects', 'postgres' }
	must('CREATE TABLE effect (seq bigserial PRIMARY KEY, subscription text NOT NULL, id uuid NOT NULL, payload jsonb NOT NULL, request bigint)', $_) for 'postgres', 'effects';
	must(q{CREATE TABLE fault_key (key text PRIMARY KEY, n bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50)});
	for my $type (qw(one bulk effect pull))
	{
		must("INSERT INTO fault_key SELECT '$type-' || i FROM generate_series(0, 19) i UNION ALL SELECT '$type-p' || p || '-' || i FROM generate_series(1, 99) p, generate_series(0, 2) i");
	}
	must(q{CREATE FUNCTION fault_in_vain(type text, key text, p int, s bigint) RETURNS uuid LANGUAGE plpgsql AS $$
		DECLARE id uuid;
		BEGIN
			BEGIN
				UPDATE fault_key SET n = n + 1 WHERE fault_key.key = $2;
				id := outbox.enqueue(type, jsonb_build_object('p', p, 's', s, 'k', key, 'n', 0, 'pad', 'in vain'), key => $2);
				PERFORM 1 / 0;
			EXCEPTION WHEN division_by_zero THEN
			END;
			RETURN id;
		END $$});
	for my $s (@subscriptions)
	{
		my $types = join ',', map { "fault.$_" } @{ $s->{types} };
		if ($contender) { must("INSERT INTO outbox.destination VALUES ('$s->{name}', 'http://127.0.0.1:$port{$s->{log}}/$s->{name}', '" . secret($s->{name}) . "', '{$types}')"); next }
		my $retries = q{retry_base => '50 ms', retry_factor => 2, retry_max => '1 s', max_attempts => 1000, give_up_after => '0'};
		if ($s->{format} eq 'pull') { must("SELECT outbox.subscribe('$s->{name}', types => '{$types}', $retries)"); next }
		must("SELECT outbox.subscribe('$s->{name}', 'http://127.0.0.1:$port{$s->{log}}/$s->{name}', types => '{$types}', network => 'private', format => '$s->{format}', secret => '"
				. secret($s->{name}) . "', $retries, disable_after => '0', $s->{options})");
	}
	must('SELECT outbox.start()') unless $contender;
	$deliverer->{start}->() if $deliverer->{start};
	open my $plan, '>', "$work/plan" or die;
	print $plan "seed $option{seed}\nlimit drain $option{drain}\n", $option{soak} ? "soak\n" : '';
	print $plan join(' ', 'subscription', $_->{name}, $_->{format}, $_->{log}, $_->{effects} // 0, @{ $_->{types} }), "\n" for @subscriptions;
	close $plan;
}

# ---- what a receiver has seen -------------------------------------------------------------------------------------------------------

# Requests, deliveries; began of the last delivery; when the newest connection over which something was delivered was accepted (seconds).
sub stats
{
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port{'receiver.log'}, Timeout => 5) or die "the receiver is gone\n";
	print $socket "GET /_stats HTTP/1.1\r\nHost: x\r\n\r\n";
	my $said = '';
	while ($said !~ /\r\n\r\n.*\n/s) { sysread($socket, $said, 4096, length $said) or die "the receiver says nothing\n" }
	my @numbers = $said =~ /\r\n\r\n(\d+) (\d+) (\d+) (\d+)/ or die;
	return (@numbers[ 0, 1 ], $numbers[2] / 1e6, $numbers[3] / 1e6);
}

# ---- faults -------------------------------------------------------------------------------------------------------------------------

srand $option{seed};
open my $faults, '>', "$work/faults" or die;
$faults->autoflush(1);
my ($kills, @points, %not_reached) = (0);

# What the plan says next. All dice are thrown here, so that the plan does not depend on what happens.
my @kinds = (
	[ 'worker-kill', 30 ], [ 'backend-kill', 8 ], [ 'process-kill', 5 ], [ 'postmaster-kill', 4 ], [ 'immediate', 8 ],
	[ 'worker-term', 8 ], [ 'worker-stop', 5 ], [ 'backend-term', 8 ], [ 'fast', 5 ], [ 'lock', 8 ], [ 'receiver-stop', 3 ], $contender ? () : [ 'launcher-term', 2 ],
);
my @actions = ([ 'kill', 70 ], [ 'error', 11 ], [ 'fatal', 4 ], [ 'term', 6 ], [ 'sleep', 4 ], [ 'stop', 5 ]);
if ($option{soak})    # lives of minutes, for what grows slowly to be seen
{
	for (@kinds, @actions) { $_->[1] *= 0.02 if $_->[0] =~ /kill|term|fatal|fast|immediate/ && $_->[0] ne 'backend-term' }
}

# What it takes to come to points that are not passed in the ordinary course of things.
my %way = (
	restore => sub { kill 'TERM', workers() }, launch => sub { kill 'TERM', workers() }, worker => sub { kill 'TERM', workers() },
	list => sub { sql('SELECT pg_reload_conf()') },
	exception => sub { kill 'TERM', workers() },
	(map { $_ => sub { sql(q{SELECT outbox.alter_subscription('single', description => clock_timestamp()::text)}) } } qw(reload index)),
	replay => sub { sql(q{SELECT outbox.replay('single', clock_timestamp() - interval '2 s')}) },
);

sub draw
{
	my (@from) = @_;
	my $sum = 0;
	$sum += $_->[1] for @from;
	my $dice = rand $sum;
	for (@from) { return $_->[0] if ($dice -= $_->[1]) < 0 }
	return $from[0][0];
}

sub next_fault
{
	my ($weight) = (0);
	$weight += $_->[1] for @kinds;
	my %fault = (
		kind => draw(@kinds, @points ? [ 'point', $weight ] : ()), action => draw(@actions), point => @points ? $points[ rand @points ] : undef, hits => int(rand(2) ** 5),
		which => rand, lasts => 0.2 + rand 2, pause => $option{pause} * 2 * rand);
	$fault{action} = $option{soak} ? 'sleep' : 'kill' if $fault{point} && $fault{point}{kind} eq 'quiet' && $fault{action} =~ /error|fatal/;
	if (defined $option{only})
	{
		$fault{kind} = $option{only};
		($fault{kind}, $fault{point}) = ('point', { name => $1, kind => 'raise' }) if $option{only} =~ /^point:(.*)/;
	}
	return \%fault;
}

sub pick { my ($which, @from) = @_; return @from ? $from[ int($which * @from) ] : undef }

my $receiver;

sub wait_until
{
	my ($seconds, $code) = @_;
	my $deadline = time + $seconds;
	until (my $result = $code->())
	{
		return 0 if time > $deadline;
		sleep 0.02;
	}
	return 1;
}

sub start_again
{
	my $deadline = time + 60;
	until (quietly('pg_ctl', '-s', '-w', '-t', '60', '-D', $data, '-l', "$work/server.log", 'start'))
	{
		die "the server does not start again: see $work/server.log\n" if time > $deadline;
		sleep 0.05;
	}
}

# Makes a fault. Returns what it was, when, when it ended (undef: it ended the connections of the worker at once), and whether it killed; or nothing, if there was nobody to be hurt.
sub make
{
	my ($fault) = @_;
	my $kind = $fault->{kind};
	my $session = qr/^postgres: postgres postgres /;
	my $signal = sub {
		my ($name, @pids) = @_;
		my $pid = pick($fault->{which}, @pids) or return;
		my $at = time;
		return kill($name, $pid) ? ($at, $pid) : ();
	};
	if ($kind eq 'worker-kill') { my ($at) = $signal->('KILL', workers()) or return; return ($kind, $at, undef, 1) }
	if ($kind eq 'worker-term') { my ($at) = $signal->('TERM', workers()) or return; return ($kind, $at, undef, 0) }
	if ($kind eq 'launcher-term') { my ($at) = $signal->('TERM', pids_of(qr/^postgres: outbox launcher/)) or return; return ($kind, $at, $at, 0) }
	if ($kind eq 'backend-kill') { my ($at) = $signal->('KILL', pids_of($session)) or return; return ($kind, $at, undef, 1) }
	if ($kind eq 'backend-term') { my ($at) = $signal->('TERM', pids_of($session)) or return; return ($kind, $at, $at, 0) }
	if ($kind eq 'process-kill') { my ($at) = $signal->('KILL', pids_of(qr/^postgres: (?:checkpointer|walwriter|background writer|autovacuum launcher|outbox launcher)/)) or return; return ($kind, $at, undef, 1) }
	if ($kind eq 'worker-stop' || $kind eq 'receiver-stop')
	{
		my ($at, $pid) = $kind eq 'worker-stop' ? $signal->('STOP', workers()) : (time, $receiver);
		return unless $pid;
		kill 'STOP', $pid;
		sleep $fault->{lasts};
		kill 'CONT', $pid;
		return ($kind, $at, time, 0);
	}
	if ($kind eq 'postmaster-kill')
	{
		my ($before, $postmaster) = processes();
		return unless $postmaster;
		my $at = time;
		kill 'KILL', $postmaster or return;
		start_again();
		return ($kind, $at, undef, 1);
	}
	if ($kind eq 'immediate' || $kind eq 'fast')
	{
		my $at = time;
		quietly('pg_ctl', '-s', '-w', '-t', '60', '-D', $data, '-m', $kind, 'stop') or die "the server does not stop: $kind\n";
		start_again();
		return ($kind, $at, undef, $kind eq 'immediate' ? 1 : 0);
	}
	if ($kind eq 'lock')
	{
		my $table = pick($fault->{which}, @{ $deliverer->{tables} });
		my $at = time;
		quietly('psql', '-Xq', '-d', 'postgres', '-c', "SET lock_timeout = '3 s'; BEGIN; LOCK TABLE $table IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep($fault->{lasts}); COMMIT") or return;
		return ("$kind:$table", $at, time, 0);
	}
	if ($kind eq 'point')
	{
		my $name = $fault->{point}{name};
		my $action = $fault->{action} eq 'sleep' ? 'sleep:' . int($fault->{lasts} * 500) : $fault->{action};
		my $file = "$data/outbox.fault/$name";
		my $way = $way{ $name =~ s/-.*//r };
		my ($before) = workers();
		mkdir "$data/outbox.fault";
		open my $out, '>', "$data/fault.new" or die;
		print $out $action, ' ', $way ? 0 : $fault->{hits}, "\n";
		close $out;
		rename "$data/fault.new", $file or die;
		$way->() if $way;
		my $fired = wait_until(2.5, sub { !-e $file });
		my $at = time;
		if (!$fired && unlink $file) { $not_reached{$name}++; return }
		if ($action eq 'stop')
		{
			my @stopped;
			wait_until(1, sub { my ($now) = processes(); @stopped = grep { $now->{$_}{state} eq 'T' } keys %$now; @stopped > 0 });
			sleep $fault->{lasts} / 2;
			kill 'CONT', @stopped;
			return ("point:$name:stop", $at, time, 0);
		}
		if ($action =~ /error|fatal|term/)
		{
			sleep 0.1;
			my ($after) = workers();
			return ("point:$name:$action", $at, ($before // 0) == ($after // 0) ? $at : undef, 0);
		}
		return ("point:$name:$fault->{action}", $at, $action eq 'kill' ? undef : $at, $action eq 'kill' ? 1 : 0);
	}
	die "what is $kind?\n";
}

sub committed
{
	my $rows = sql('SELECT sum(n) FROM fault_key');
	return defined $rows && $rows ne '' ? $rows : 0;
}

# ---- what grows ---------------------------------------------------------------------------------------------------------------------

open my $samples, '>', "$work/samples" or die;
$samples->autoflush(1);
my $sampled = 0;

sub take_samples
{
	my $at = $sampled = time;
	my ($processes, $postmaster) = processes();
	my ($up) = split ' ', slurp('/proc/uptime');
	my %who = (worker => [workers()], postmaster => [ $postmaster // () ], launcher => [ grep { $processes->{$_}{title} =~ /^postgres: outbox launcher/ } keys %$processes ]);
	for my $name (sort keys %who)
	{
		for my $pid (@{ $who{$name} })
		{
			my ($started) = slurp("/proc/$pid/stat") =~ /^\d+ \(.*\) (?:\S+ ){19}(\d+) /s or next;
			my ($memory) = slurp("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m or next;
			my @descriptors = map { readlink // () } glob "/proc/$pid/fd/*";
			my $files = grep { m{/base/\d+/} } @descriptors;
			printf $samples "%d process %s %d %.2f %d %d %d\n", $at * 1e6, $name, $pid, $up - $started / POSIX::sysconf(POSIX::_SC_CLK_TCK()), $memory * 1024, @descriptors - $files, $files;
		}
	}
	my $tables = sql(q{SET lock_timeout = '1 s'; SELECT format('%s %s %s', c.oid::regclass, pg_total_relation_size(c.oid), coalesce(s.n_dead_tup, 0))
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid WHERE c.relkind = 'r' AND n.nspname IN ('outbox', 'net')}) // return;
	print $samples map { sprintf "%d table %s\n", $at * 1e6, $_ } split /\n/, $tables;
}

# Between faults. What was hurt has two seconds to come to rest before samples are taken; between faults that follow each other quickly, some are taken all the same.
sub rest
{
	my ($seconds) = @_;
	my ($began, $until) = (time, time + $seconds);
	while ((my $left = $until - time) > 0)
	{
		sleep($left < 0.5 ? $left : 0.5);
		take_samples() if time - $began >= 2 && time - $sampled >= 2;
	}
	take_samples() if time - $sampled >= 10;
}

# ---- the run ------------------------------------------------------------------------------------------------------------------------

say_it("seed $option{seed}");
$receiver = start_receiver('receiver', 'receiver.log');
my $effects_receiver = start_receiver('effects', 'effects.log', '--effects', "dbname=effects application_name=effects");
set_up();
@points = map { { name => (split)[0], kind => (split)[2] } } split /\n/, $ENV{FAULT_POINTS} // '' if $option{points} && !$contender;
say_it(@points ? scalar(@points) . ' fault points' : 'no fault points: signals only');

my @producers;
my $producer_count = $option{mixed} + $option{bulk};
for my $n (1 .. $producer_count)
{
	my $is_bulk = $n > $option{mixed};
	my $rate = $is_bulk ? 0.8 * $option{rate} / $option{bulk} : ($option{bulk} ? 0.2 : 1) * $option{rate} / ($option{mixed} || 1);
	push @producers, launch("producer.$n", "$here/producer.bin", '--conninfo', "dbname=postgres application_name=producer-$n", '--ledger', "$work/ledger.$n", '--number', $n, '--seed', $option{seed},
		'--mode', $is_bulk ? 'bulk' : 'mixed', '--rate', $rate, '--without', $deliverer->{without} // '');
}
my @consumers = map { launch("consumer.$_", "$here/consumer.bin", '--conninfo', "dbname=postgres application_name=consumer-$_", '--subscription', 'pull', '--number', $_, '--seed', $option{seed}) } 1 .. ($contender ? 0 : $option{consumers});
wait_until(30, sub { (stats())[1] > 20 }) or die "nothing is delivered: see $work\n";
say_it('load is under way');

my ($made, $stuck, $asked, $produced) = (0, 0, 0, 0);
my $load_began = time;
for (;;)
{
	if (defined $option{events} && time - $asked > 5) { $asked = time; my $sum = committed(); $produced = $sum if $sum > $produced }
	last if (!defined $option{seconds} || time - $load_began >= $option{seconds}) && (!defined $option{kills} || $kills >= $option{kills}) && (!defined $option{events} || $produced >= $option{events});
	if (defined $option{kills} && $kills >= $option{kills} && !defined $option{seconds}) { rest(0.5); next }     # more events, no more faults
	my $fault = next_fault();
	my ($kind, $at, $ended, $killed) = make($fault);
	if (!defined $kind) { sleep 0.1; next }
	my $since;
	if ($relay && !defined $ended && $kind !~ /^worker/)     # its connections to receivers outlive the server
	{
		wait_until($option{limit}, sub { quietly('psql', '-Xq', '-d', 'postgres', '-c', 'SELECT 1') });
		$since = $ended = time;
	}
	print $faults join(' ', int $at * 1e6, $kind =~ s/ /-/gr, defined $ended && !$since ? int $ended * 1e6 : '-', $since ? int $since * 1e6 : ()), "\n";
	$made++;
	$kills += $killed;
	my $recovered = wait_until($option{limit}, sub { my (undef, undef, $newest, $connection) = stats(); return defined $ended ? $newest > $ended : $connection > $at });
	say_it(sprintf '%d %s: %s', $made, $kind, $recovered ? sprintf('delivers again after %.2f s', time - ($since ? $at : $ended // $at)) : 'DOES NOT RECOVER');
	if (!$recovered) { $stuck = 1; last }
	for my $pid (keys %running) { die "$running{$pid} has ended: " . slurp("$work/$running{$pid}.output") if waitpid($pid, POSIX::WNOHANG) == $pid }
	rest($fault->{pause});
}
my $load_ended = time;

say_it('no more faults; producers end');
for (@producers) { kill 'TERM', $_ }
for my $pid (@producers) { end_of($pid, 90) or say_it("a producer did not end well: $work/$running{$pid}.output") }

# When the deliverer says that it is done, it is given another second: whether it is, the judge will say. Who has fallen behind has not lost what is left: a contender gets more time, which is told.
my $drained = wait_until(($contender ? 10 : 1) * $option{drain} + 30, sub {
		my $left = sql($deliverer->{left});
		return defined $left && $left eq '0' });
say_it($drained ? 'drained' : 'NOT DRAINED');
sleep 1;
open my $effect_lines, '>', "$work/effects" or die;
for my $database (qw(postgres effects))
{
	my $lines = must('COPY (SELECT subscription, id, payload FROM effect ORDER BY seq) TO STDOUT', $database);
	print $effect_lines "$lines\n" if $lines ne '';
}
close $effect_lines;
my $pg_net = sql(q{SELECT extversion FROM pg_extension WHERE extname = 'pg_net'});
my $dead = $contender ? 0 : must('SELECT count(*) FROM outbox.dead_letter') + must('SELECT count(*) FROM outbox.gap');
end_of($_, 10) for @consumers, $relay // (), $receiver, $effects_receiver;

my $report = Checker->new($work)->report;
my $log = slurp("$work/server.log") . slurp("$data.log");
my @crashed = $log =~ /^(.*(?:terminated by signal (?:6|11)\b|PANIC|TRAP).*)$/mg;
@{$report}{qw(seed version seconds kills dead crashed not_reached)} = ($option{seed}, $ENV{PGVERSION}, sprintf('%.0f', $load_ended - $load_began), $kills, $dead, scalar @crashed, \%not_reached);
$report->{contender} = join ' ', $contender, $pg_net || () if $contender;
my @odd = grep { slurp($_) =~ /^mistake: /m } glob "$work/*.output";
$report->{events_per_second} = sprintf '%.0f', $report->{events}{committed} / ($load_ended - $load_began);
$report->{ok} = 0 if $dead || @crashed || $stuck || @odd;
print $contender ? "\nNot outbox, but $report->{contender}, without " . $deliverer->{without} =~ s/,/, /gr . ':' : '', "\nseed $option{seed}, PostgreSQL $ENV{PGVERSION}: $made faults, $kills of them kills, in $report->{seconds} s; $report->{events_per_second} events/s\n", Checker::text($report);
print 'nobody came to these points in time: ', join(', ', map { "$_ $not_reached{$_}" } sort keys %not_reached), "\n" if %not_reached;
print "given up, which the plan does not allow: $dead\n" if $dead;
print "crashed, and not shot: $_\n" for @crashed[ 0 .. ($#crashed < 5 ? $#crashed : 5) ];
print "this was not part of the plan: $_\n" . substr(slurp($_), 0, 2000) for @odd;
if (defined $option{json})
{
	delete $report->{examples};
	open my $json, '>>', $option{json} or die "cannot write $option{json}: $!\n";
	print $json JSON::PP->new->canonical->encode($report), "\n";
}
exit($report->{ok} ? 0 : 1);
