# Whether an event costs the same however large things are: subscriptions, events in the log, producers. Three curves; each figure is how many times as much an event costs where there is more.
use strict;
use warnings;

use Outbox::Bench;

my $payload = literal($PAYLOAD) . '::jsonb';
my $nginx = nginx();

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

# 1, 10, 100 subscriptions, each for events of its own type
{
	my (@points, %db);
	for my $many (1, 10, 100)
	{
		my $db = $db{$many} = database("subscriptions$many");
		subscribe($db, "s$_", $nginx->{url}, types => "{t$_}", ordering => 'none', max_in_flight => $many == 1 ? $CONCURRENCY : 10) for 0 .. $many - 1;
	}
	settings('outbox.max_in_flight' => $CONCURRENCY, 'outbox.max_in_flight_per_tenant' => $CONCURRENCY);
	my %cpu;
	alternate(5, map { my $many = $_; "$many subscriptions" => sub { my ($rate, $cpu) = push_live($db{$many}, '', size(30_000), $nginx->{count}, types => "'t' || g % $many"); push @{ $cpu{$many} }, $cpu; return $cpu } } 1, 10, 100);
	@points = map { [ $_, median(@{ $cpu{$_} }) ] } 1, 10, 100;
	growth('growth from 1 to 100 subscriptions: CPU of the worker per event', 'µs', \@points);
	series('growth-subscriptions', 'CPU of the worker per event', 'subscriptions', 'µs', { log => 'x' }, 'one of them matches' => \@points);
}

# 10^4 to 10^7 events in the log, and as many rows in a plain table beside it: recording one, and delivering one. What a large table costs anybody (buffers, checkpoints that do not come) both pay.
{
	my $db = database('log');
	my (@record, @insert, @deliver);
	sql($db, "ALTER TABLE plain SET (autovacuum_enabled = off); SELECT outbox.subscribe('receiver', '$nginx->{url}', types => '{live}', ordering => 'none', network => 'private', max_in_flight => $CONCURRENCY)");
	my $session = session($db, '-c synchronous_commit=off');
	settle($session);
	my ($held, $sample) = (0, size(50_000));
	my %many = (
		outbox => sub { "SELECT count(outbox.enqueue('other', $payload, key => 'o' || g)) FROM generate_series(1, $_[0]) AS g" },
		plain => sub { "INSERT INTO plain (type, key, payload) SELECT 'other', 'o' || g, $payload FROM generate_series(1, $_[0]) AS g" });
	push_live($db, 'live', size(10_000), $nginx->{count});
	for my $target (map { size($_) } 10_000, 100_000, 1_000_000, 10_000_000)
	{
		my $filler = background("plain.$target", 'psql', '-XAtqd', $db, '-c', 'SET synchronous_commit = off', '-c', $many{plain}->($target - $held));    # beside the other, to save time
		while ($held < $target)
		{
			my $piece = $target - $held > 500_000 ? 500_000 : $target - $held;
			query_on($session, $many{outbox}->($piece));
			$held += $piece;
		}
		finish($filler);
		my $times = alternate(3, map { my $statement = $many{$_}->($sample); $_ => sub { return 1e6 * timed($session, $statement) / $sample } } qw(plain outbox));
		push_live($db, 'live', size(1000), $nginx->{count});    # the worker has been through all that is not to be delivered
		my @cpu = map { (push_live($db, 'live', size(30_000), $nginx->{count}))[1] } 1 .. 2;
		push @record, [ $held, median(@{ $times->{outbox} }) ];
		push @insert, [ $held, median(@{ $times->{plain} }) ];
		push @deliver, [ $held, median(@cpu) ];
		say_it(sprintf '%d events in the log: recording %.2f µs, a plain INSERT %.2f µs, delivering %.2f µs of CPU', $held, $record[-1][1], $insert[-1][1], $deliver[-1][1]);
	}
	growth('growth from 10^4 to 10^7 events in the log: time to record one', 'µs', \@record);
	figure('growth from 10^4 to 10^7 events in the log: how many times as long the last takes as the first, beside a plain INSERT into a table that grows as much', ours => $record[-1][1] / $record[0][1], beside => $insert[-1][1] / $insert[0][1], against => 'plain INSERT', goal => '<= 1.2');
	growth('growth from 10^4 to 10^7 events in the log: CPU of the worker to deliver one', 'µs', \@deliver);
	series('growth-log', 'Cost of an event', 'events in the log', 'µs', { log => 'x' }, 'recording (time)' => \@record, 'a plain INSERT (time)' => \@insert, 'delivering (CPU of the worker)' => \@deliver);
}

# 1 to 64 producers: what a plain INSERT does, ours does as often
{
	my $db = database('producers', unarmed => 1);
	my $number = "\\set g random(1, 1000000)\n";
	my $plain = $number . "INSERT INTO plain (type, key, payload) VALUES ('order.paid', 'o' || :g, $payload);\n";
	my $outbox = $number . "SELECT outbox.enqueue('order.paid', $payload, key => 'o' || :g);\n";
	my $like_the_log = like_the_log($db);
	pgbench($db, $_, 8, 1) for $plain, $outbox, $like_the_log;
	my (%points, %ratio);
	for my $clients (1, 4, 16, 64)
	{
		my $result = alternate(3, plain => sub { pgbench($db, $plain, $clients, seconds_of(2)) }, like_the_log => sub { pgbench($db, $like_the_log, $clients, seconds_of(2)) }, outbox => sub { pgbench($db, $outbox, $clients, seconds_of(2)) });
		for my $other (qw(plain like_the_log)) { push @{ $ratio{$other} }, [ $clients, median(map { $result->{$other}[$_] / $result->{outbox}[$_] } 0 .. $#{ $result->{outbox} }) ] }
		push @{ $points{$_} }, [ $clients, median(@{ $result->{$_} }) ] for keys %$result;
	}
	growth('growth from 1 to 64 producers: time per event beside a plain INSERT', '', $ratio{plain});
	growth('growth from 1 to 64 producers: time per event beside an INSERT into a table with the same columns and indexes', '', $ratio{like_the_log});
	series('growth-producers', 'Events per second, one per transaction', 'producers', 'tps', { log => 'x' }, 'outbox.enqueue()' => $points{outbox}, 'plain INSERT' => $points{plain}, 'INSERT into a table like the log' => $points{like_the_log});
}
