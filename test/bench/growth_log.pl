# Whether an event costs the same however many there are in the log: recording one, and delivering one, from 10^4 to 10^7; and recording beside as many rows in a plain table. What a large table costs anybody (buffers, checkpoints that do not come) both pay.
use strict;
use warnings;

use Outbox::Bench;

my $payload = literal($PAYLOAD) . '::jsonb';
my $nginx = nginx();
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
