# What the benchmarks of test/bench have in common: the server's databases, receivers, producers, the worker's CPU, rounds in turn, and the file of results.
# test/bench/all has started the server, compiled the programs of test/bench and set OUTBOX_BENCH, the directory of all this.
package Outbox::Bench;

use strict;
use warnings;

use Exporter 'import';
use IO::Socket::INET;
use JSON::PP ();
use POSIX ();
use List::Util ();
use Time::HiRes qw(time sleep);

use Outbox::Session;

our @EXPORT = qw($PAYLOAD $CONCURRENCY database sql query_on session timed literal size seconds_of wait_for subscribe worker_cpu worker_memory wal_between wal_now figure growth series say_it
	alternate median percentile nginx sink bare command background finish node_program pgbench like_the_log settle produce latencies push_live push_waiting delivered settings quantiles p99_of_seconds);

my $directory = $ENV{OUTBOX_BENCH} // die "start this with test/bench/all\n";
my ($benchmark) = $0 =~ m{([^/]+)\.pl$};
my $scale = $ENV{BENCH_SCALE} || 1;
mkdir "$directory/$benchmark";

# 160 bytes, and the number of requests in flight that all contenders are given.
our $PAYLOAD = '{"order_id":12345,"amount":99.95,"currency":"EUR","customer":{"id":777,"email":"someone@example.com"},"lines":[{"sku":"A-1","qty":2},{"sku":"B-7","qty":10}]}';
our $CONCURRENCY = 64;

# So many events, rounds of so many seconds: fewer when somebody only tries whether it works (--scale).
sub size { my ($n) = @_; $n = int($n * $scale); return $n < 800 ? 800 : $n - $n % 800 }
sub seconds_of { my ($seconds) = @_; return $scale >= 1 ? $seconds : $seconds * $scale < 1 ? 1 : $seconds * $scale }

sub say_it { print STDERR "    @_\n" }
sub literal { my ($text) = @_; return "'" . $text =~ s/'/''/gr . "'" }

# ---- processes ----

my %running;

# Starts a program that is stopped with this one; returns its process id. Its output goes to a file of that name.
sub background
{
	my ($name, @command) = @_;
	my $pid = fork // die "cannot fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>', "$directory/$benchmark/$name.log";
		open STDERR, '>&', \*STDOUT;
		exec 'setpriv', '--pdeathsig', 'TERM', @command or POSIX::_exit(127);    # whatever becomes of us
	}
	$running{$pid} = $name;
	return $pid;
}

# Waits for one, or stops it first; dies unless it ended well. Returns its output.
sub finish
{
	my ($pid, $stop) = @_;
	kill 'TERM', $pid if $stop;
	waitpid $pid, 0;
	my ($status, $name) = ($?, delete $running{$pid});
	open my $log, '<', "$directory/$benchmark/$name.log" or die;
	my $said = join '', <$log>;
	die "$name: " . substr($said, -1000) . "\n" if $status && !$stop;
	return $said;
}

sub command { return finish(background(@_)) }

# Also when it is told to end
$SIG{TERM} = $SIG{INT} = $SIG{HUP} = sub { exit 1 };

END
{
	my $status = $?;
	for my $pid (keys %running) { kill 'TERM', $pid; waitpid $pid, 0 }
	eval { tidy() };
	$? = $status;
}

sub wait_for
{
	my ($code, $what, $seconds, $pause) = @_;
	my $until = time + ($seconds // 60);
	for (;;)
	{
		my $result = $code->();
		return $result if $result;
		die "in vain waited for: $what\n" if time > $until;
		sleep($pause // 0.01);
	}
}

sub free_port { return IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1)->sockport }

# ---- the database ----

my (@databases, %sessions, $changed);

sub session { my ($database, $options) = @_; return Outbox::Session->new("dbname=$database" . ($options ? " options='$options'" : '')) }

# query_on(session, statements): their output. Dies of an error.
sub query_on
{
	my ($session, $text) = @_;
	my $said = $session->query($text);
	die "the connection was lost: " . ($session->{last_words} // '') . "\n" unless defined $said;
	die "$1\n" if $said =~ /^(?:psql:[^\n]*?)?((?:ERROR|FATAL):.*)/ms;
	return $said;
}

sub sql { my ($database, $text) = @_; return query_on($sessions{$database} //= session($database), $text) }

# Seconds that statements take.
sub timed
{
	my ($session, $text) = @_;
	my $began = time;
	query_on($session, $text);
	return time - $began;
}

# A new database with outbox, armed; it is dropped at the end.
sub database
{
	my ($name, %options) = @_;
	$name = "${benchmark}_$name";
	sql('postgres', "CREATE DATABASE $name");
	push @databases, $name;
	sql($name, 'SET client_min_messages = warning; CREATE EXTENSION outbox; CREATE EXTENSION pgstattuple; CREATE EXTENSION pg_walinspect');
	sql($name, 'CREATE TABLE plain (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), type text NOT NULL, key text, payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now())');
	start($name) unless $options{unarmed};
	return $name;
}

sub start
{
	my ($database) = @_;
	sql($database, 'SELECT outbox.start()');
	wait_for(sub { worker_pid($database) }, "a delivery worker of $database");
}

sub worker_pid { my ($database) = @_; return sql($database, "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'outbox delivery%'") }

# Nanoseconds of CPU that the worker of a database has used.
sub worker_cpu
{
	my ($database) = @_;
	my $pid = worker_pid($database) or die "no delivery worker of $database\n";
	open my $file, '<', "/proc/$pid/schedstat" or die "no /proc/$pid/schedstat\n";
	return (split ' ', <$file>)[0];
}

# Bytes of its own memory, which shared_buffers are not.
sub worker_memory
{
	my ($pid) = @_;
	open my $file, '<', "/proc/$pid/status" or return 0;
	for (<$file>) { return $1 * 1024 if /^RssAnon:\s+(\d+)/ }
	return 0;
}

sub wal_now { return sql($_[0], 'SELECT pg_current_wal_insert_lsn()') }

# Bytes of WAL records from one place to another, without full-page images.
sub wal_between
{
	my ($database, $from, $to) = @_;
	sql($database, "SELECT pg_switch_wal()");
	wait_for(sub { sql($database, "SELECT pg_current_wal_flush_lsn() > '$to'") eq 't' }, 'WAL being flushed');
	return sql($database, "SELECT sum(record_size)::bigint FROM pg_get_wal_stats('$from', '$to')");
}

# settings(name => value, …): of the server, until the end of this benchmark.
sub settings
{
	my (%values) = @_;
	$changed = 1;
	for (sort keys %values) { sql('postgres', "ALTER SYSTEM SET $_ = " . literal($values{$_})) }
	sql('postgres', 'SELECT pg_reload_conf()');
	sleep 0.3;
}

sub tidy
{
	%sessions = ();
	return unless @databases || $changed;
	my $postgres = session('postgres');
	$postgres->query('ALTER SYSTEM RESET ALL') if $changed;
	$postgres->query('SELECT pg_reload_conf()') if $changed;
	$postgres->query("DROP DATABASE IF EXISTS $_ WITH (FORCE)") for @databases;
	@databases = ();
}

# subscribe(database, name, url, option => value…), with as many requests in flight as all contenders, and retries that do not get lost in waiting.
sub subscribe
{
	my ($database, $name, $url, %options) = @_;
	%options = (network => 'private', max_in_flight => $CONCURRENCY, %options);
	sql($database, 'SELECT outbox.subscribe(' . join(', ', literal($name), literal($url), map { "$_ => " . literal($options{$_}) } sort keys %options) . ')');
}

# How many events the worker has delivered, by its own counter, which is in shared memory and not behind.
sub delivered { my ($database) = @_; return sql($database, 'SELECT delivered FROM outbox._worker()') }

# ---- receivers ----

# nginx with one process, which answers 204: { url, https, ca, count => how many requests it has answered }
sub nginx
{
	my ($port, $tls, $status) = (free_port(), free_port(), free_port());
	my $home = "$directory/$benchmark/nginx";
	mkdir $home;
	system("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout $home/key.pem -out $home/cert.pem 2>/dev/null") == 0 or die "openssl failed\n";
	open my $conf, '>', "$home/nginx.conf" or die;
	print $conf <<"END";
worker_processes 1;
daemon off;
pid $home/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
  access_log off;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  keepalive_requests 100000000;
  client_body_temp_path $home/body; proxy_temp_path $home/proxy; fastcgi_temp_path $home/fastcgi; uwsgi_temp_path $home/uwsgi; scgi_temp_path $home/scgi;
  server { listen 127.0.0.1:$port backlog=4096; location / { return 204; } }
  server { listen 127.0.0.1:$tls ssl backlog=4096; ssl_certificate $home/cert.pem; ssl_certificate_key $home/key.pem; location / { return 204; } }
  server { listen 127.0.0.1:$status; location / { stub_status; } }
}
END
	close $conf;
	my $pid = background('nginx', 'nginx', '-p', $home, '-c', "$home/nginx.conf", '-e', 'stderr');
	my $asked = 0;    # requests for the count itself
	my $count = sub {
		my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$status") or return;
		print $socket "GET / HTTP/1.0\r\n\r\n";
		my ($requests) = join('', <$socket>) =~ /^ \d+ \d+ (\d+)/m or die "nginx has no stub_status\n";
		return $requests - ++$asked;
	};
	wait_for(sub { defined $count->() }, 'nginx');
	return { pid => $pid, url => "http://127.0.0.1:$port/", https => "https://localhost:$tls/", ca => "$home/cert.pem", count => $count };
}

# test/bench/sink.c: { url, count => events so far, arrivals(first, n) => when each came, reset }
sub sink
{
	my ($events) = @_;
	my $port = free_port();
	my $file = "$directory/$benchmark/arrivals.$port";
	my $pid = background("sink.$port", "$directory/bin/sink", $port, $file, $events);
	wait_for(sub { IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") }, 'the receiver');
	open my $state, '<:raw', $file or die;
	my $read = sub { my ($from, $n) = @_; sysseek $state, 8 * $from, 0; sysread $state, my $data, 8 * $n; return unpack 'q*', $data };
	return { pid => $pid, url => "http://127.0.0.1:$port/", requests => sub { ($read->(0, 1))[0] }, count => sub { ($read->(1, 1))[0] }, repeated => sub { ($read->(4, 1))[0] },
		arrivals => sub { my ($first, $n) = @_; return $read->(64 + $first, $n) } };
}

# ---- contenders and loads ----

# The bare libcurl loop: requests per second, and CPU microseconds for each.
sub bare { my ($url, $requests, $bytes, @ca) = @_; return split ' ', command('bare', "$directory/bin/bare", $url, $CONCURRENCY, $requests, $bytes // length $PAYLOAD, @ca) }

sub node_program { my ($name) = @_; return ('node', "test/bench/$name.js") }

# pgbench(database, script, clients, seconds, option…): transactions per second. Many clients take more than a second until all have started and filled their caches: that does not count.
sub pgbench
{
	my ($database, $script, $clients, $seconds, @options) = @_;
	my $file = "$directory/$benchmark/pgbench.sql";
	my $warm = $clients > 8 ? 2 : 0;
	open my $out, '>', $file or die;
	print $out $script;
	close $out;
	local $ENV{PGOPTIONS} = '-c synchronous_commit=off';
	my $said = command('pgbench', 'pgbench', '-n', '-M', 'prepared', '-P', 1, '-c', $clients, '-j', $clients < 2 ? 1 : 2, '-T', $warm + POSIX::ceil($seconds), '-f', $file, @options, $database);
	die "pgbench: $said\n" if $said =~ /number of failed transactions: [1-9]/ || $said !~ /^tps = ([0-9.]+)/m;
	my $tps = $1;
	my @rates = grep { $_ } map { /^progress: ([0-9.]+) s, ([0-9.]+) tps/ && $1 > $warm + 0.5 ? $2 : 0 } split /\n/, $said;
	return $warm && @rates ? List::Util::sum(@rates) / @rates : $tps;
}

# A session that has been there for long has all of shared_buffers in its page table; in a new one each page costs a fault when it first writes there, some microseconds on a virtual machine.
sub settle
{
	my ($session) = @_;
	query_on($session, 'CREATE UNLOGGED TABLE settle (x text); ALTER TABLE settle ALTER x SET STORAGE PLAIN');
	query_on($session, q{INSERT INTO settle SELECT repeat('x', 8000) FROM generate_series(1, (SELECT setting::int FROM pg_settings WHERE name = 'shared_buffers'))});
	query_on($session, 'DROP TABLE settle');
}

# What PostgreSQL itself takes to insert single rows like the log's, whose keys rise in both indexes: makes a table for it, and returns pgbench's script.
sub like_the_log
{
	my ($database) = @_;
	sql($database, 'CREATE TABLE like_the_log (LIKE outbox.event_0 INCLUDING ALL)');
	return "\\set g random(1, 1000000)\nINSERT INTO like_the_log (id, xid, epoch, created_at, type, key, payload) "
		. q{VALUES ((lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1e6)::bigint), 16, '0') || replace(right(gen_random_uuid()::text, 17), '-', ''))::uuid, pg_current_xact_id(), 1, now(), }
		. "'order.paid', 'o' || :g, " . literal($PAYLOAD) . "::jsonb);\n";
}

# produce(database, rate, seconds, first, sql, threads): starts test/bench/produce.c. `latencies` reads what it wrote.
sub produce
{
	my ($database, $rate, $seconds, $first, $sql, $threads, $options) = @_;
	my $file = "$directory/$benchmark/produced.$database.$first";
	local $ENV{PGOPTIONS} = $options if $options;
	my $pid = background("produce.$first", "$directory/bin/produce", "dbname=$database", $rate, $seconds, $threads // 4, $first, $file, $sql);
	return { pid => $pid, first => $first, n => int($rate * $seconds), file => $file };
}

# After all has arrived: for each event { seq, due, sent, committed, arrived }, in microseconds. Those that `want` (by number) says.
sub latencies
{
	my ($produced, $sink, $want) = @_;
	open my $file, '<:raw', $produced->{file} or die;
	my ($first, $n) = @{$produced}{qw(first n)};
	my @arrived = $sink->{arrivals}->($first, $n);
	my @events;
	for my $i (0 .. $n - 1)
	{
		read $file, my $data, 24;
		next if $want && !$want->($first + $i);
		my ($due, $sent, $committed) = unpack 'q3', $data;
		push @events, { seq => $first + $i, due => $due, sent => $sent, committed => $committed, arrived => $arrived[$i] };
	}
	return @events;
}

# Events per second while a producer keeps from 2,000 to 6,000 events waiting, as one that just keeps the sender busy:
# push_live(database, type, events, count of the receiver, per event that it counts…). `expression` is the payload, of g.
sub push_live
{
	my ($database, $type, $n, $count, %options) = @_;
	my $session = session($database, '-c synchronous_commit=off');
	my $key = $options{key} // 'NULL';
	my $payload = $options{payload} // literal($PAYLOAD) . '::jsonb';
	my $tenant = $options{tenant} // 'NULL';
	my $types = $options{types} // literal($type);
	my $fan = $options{fan} // 1;
	my $before = $count->();
	my ($made, $began, $delivered) = (0, time, 0);
	my $low = $options{low} // 2000;
	my $piece = $options{piece} // 2000;
	my $cpu = worker_cpu($database);
	while (($delivered = $count->() - $before) < $n * $fan)
	{
		die sprintf("only %d of %d events were delivered in %d s\n", $delivered, $n * $fan, time - $began) if time - $began > 100;
		if ($made < $n && $made - $delivered / $fan < $low + $piece)
		{
			my $to = $made + $piece > $n ? $n : $made + $piece;
			query_on($session, "SELECT count(outbox.enqueue($types, $payload, key => $key, tenant => $tenant)) FROM generate_series(" . ($made + 1) . ", $to) AS g");
			$made = $to;
		}
		else { sleep 0.01 }
	}
	my $seconds = time - $began;
	return wantarray ? ($n * $fan / $seconds, (worker_cpu($database) - $cpu) / 1000 / $n / $fan) : $n * $fan / $seconds;
}

# Events per second, and CPU microseconds of the worker for each, when all wait already: recorded while their subscription is paused.
# push_waiting(database, subscription, type, events, count of the receiver)
sub push_waiting
{
	my ($database, $subscription, $type, $n, $count) = @_;
	my $before = $count->();
	sql($database, 'SELECT outbox.pause(' . literal($subscription) . ')');
	sql($database, 'SELECT count(outbox.enqueue(' . literal($type) . ', ' . literal($PAYLOAD) . "::jsonb)) FROM generate_series(1, $n) AS g");
	sleep 0.5;                                     # the tick that sees them, and its checkpoint
	my ($cpu, $began) = (worker_cpu($database), time);
	sql($database, 'SELECT outbox.resume(' . literal($subscription) . ')');
	wait_for(sub { $count->() - $before >= $n }, "$n deliveries", 100, 0.005);
	my $seconds = time - $began;
	return wantarray ? ($n / $seconds, (worker_cpu($database) - $cpu) / 1000 / $n) : $n / $seconds;
}

# ---- figures ----

sub median { my @sorted = sort { $a <=> $b } @_; return @sorted % 2 ? $sorted[ $#sorted / 2 ] : ($sorted[ @sorted / 2 - 1 ] + $sorted[ @sorted / 2 ]) / 2 }
sub percentile { my ($p, @values) = @_; @values = sort { $a <=> $b } @values; return $values[ $p * $#values ] }
sub quantiles { my @values = sort { $a <=> $b } @_; return map { $values[ $_ * $#values ] } 0.5, 0.99 }

# p99_of_seconds([due, latency], …): [second, p99 of the events that were due in it], …; due in microseconds.
sub p99_of_seconds
{
	my (@events) = @_;
	my %second;
	push @{ $second{ int(($_->[0] - $events[0][0]) / 1e6) } }, $_->[1] for @events;
	return map { [ $_, (quantiles(@{ $second{$_} }))[1] ] } sort { $a <=> $b } keys %second;
}

# alternate(rounds, name => code, …): each code in turn, so many times; its figures by name. The order turns round each time, so that none is always second.
sub alternate
{
	my ($rounds, @pairs) = @_;
	my (@names, %code, %result);
	while (my ($name, $code) = splice @pairs, 0, 2) { push @names, $name; $code{$name} = $code }
	for my $round (1 .. $rounds)
	{
		for my $name ($round % 2 ? @names : reverse @names)
		{
			my $value = $code{$name}->($round);
			push @{ $result{$name} }, $value;
			say_it(sprintf '%-24s %s', $name, number($value));
		}
	}
	return \%result;
}

sub number { my ($x) = @_; return $x >= 1000 ? scalar reverse((reverse sprintf '%.0f', $x) =~ s/(\d{3})(?=\d)/$1,/gr) : $x >= 100 ? sprintf('%.0f', $x) : $x >= 10 ? sprintf('%.1f', $x) : sprintf('%.2f', $x) }

# figure(what, unit => …, ours => value or values, beside => the same, against => its name, goal => '>= 0.8'): a line of the table. The ratio is ours to beside, the median of the rounds' ratios;
# without `beside` the goal is about ours. `ratio` overrides it.
sub figure
{
	my ($what, %figure) = @_;
	my @ours = ref $figure{ours} ? @{ $figure{ours} } : $figure{ours};
	my @beside = ref $figure{beside} ? @{ $figure{beside} } : $figure{beside} // ();
	my $ratio = $figure{ratio} // (@beside ? @ours == @beside ? median(map { $beside[$_] ? $ours[$_] / $beside[$_] : 0 } 0 .. $#ours) : median(@ours) / median(@beside) : undef);
	my $judged = $ratio // median(@ours);
	my $reached;
	if (my ($comparison, $limit) = ($figure{goal} // '') =~ /^([<>])= ([0-9.,]+)/)
	{
		$limit =~ s/,//g;
		$reached = $comparison eq '<' ? $judged <= $limit : $judged >= $limit;
	}
	my %line = (benchmark => $benchmark, what => $what, unit => $figure{unit} // '', ours => number(median(@ours)), beside => @beside ? number(median(@beside)) : '', against => $figure{against} // '',
		ratio => defined $ratio ? sprintf('%.2f', $ratio) : '', goal => $figure{goal} // '', reached => defined $reached ? $reached ? 'yes' : 'no' : '', note => $figure{note} // '',
		rounds => { ours => [ map { 0 + sprintf '%.6g', $_ } @ours ], beside => [ map { 0 + sprintf '%.6g', $_ } @beside ] });
	open my $out, '>>', "$directory/results.jsonl" or die;
	print $out JSON::PP->new->canonical->encode(\%line), "\n";
	close $out;
	say_it(join '  ', "* $what:", $line{ours}, $line{unit}, $line{against} ? "($line{against}: $line{beside})" : (), $line{ratio} ne '' ? "ratio $line{ratio}" : (), $line{goal} ? "to reach: $line{goal}: " . ($line{reached} || '-') : ());
}

# The most that a point costs beside one where there is less: an event that costs less where there is more has not grown.
sub growth
{
	my ($what, $unit, $points) = @_;
	my ($cheapest, $worst) = $points->[0];
	for my $point (@$points)
	{
		$cheapest = $point if $point->[1] < $cheapest->[1];
		$worst = [ $point->[1], $cheapest->[1] ] if !$worst || $point->[1] * $worst->[1] > $worst->[0] * $cheapest->[1];
	}
	figure($what, unit => $unit, ours => $worst->[0], beside => $worst->[1], against => 'where there is less', goal => '<= 1.2', note => 'What an event costs at one point of the curve, beside where it is cheapest of the points before: the worst of these.');
}

# series(name, title, x label, y label, { log => 'x', …}, label => [ [x, y], … ], …): a plot, NAME.png.
sub series
{
	my ($name, $title, $x, $y, $options, @curves) = @_;
	my (@plots, $n);
	open my $script, '>', "$directory/plots/$name.gp" or die;
	print $script "set terminal pngcairo size 900,450 font 'DejaVu Sans,10'\nset output '$name.png'\nset title \"$title\"\nset xlabel '$x'\nset ylabel '$y'\nset grid\nset key tmargin center horizontal\nset yrange [0:*]\n";
	print $script "set logscale $options->{log}\n" . ($options->{log} =~ /x/ ? "set format x '%.0s%c'\n" : '') if $options->{log};
	print $script "set yrange [*:*]\n" if ($options->{log} // '') =~ /y/;
	while (my ($label, $points) = splice @curves, 0, 2)
	{
		my $data = "$name." . ++$n . '.dat';
		open my $out, '>', "$directory/plots/$data" or die;
		print $out "$_->[0] $_->[1]\n" for @$points;
		close $out;
		push @plots, "'$data' using 1:2 with " . ($options->{style} // (@$points > 60 ? 'lines' : 'linespoints')) . " title \"$label\"";
	}
	print $script 'plot ', join(', ', @plots), "\n";
	close $script;
}

1;
