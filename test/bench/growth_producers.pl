# Whether an event costs the same however many producers there are, from 1 to 64: what a plain INSERT does, ours does as often.
use strict;
use warnings;

use Outbox::Bench;

my $payload = literal($PAYLOAD) . '::jsonb';
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
