# Whether an event costs the same however many subscriptions there are: 1, 10, 100, each for events of its own type.
use strict;
use warnings;

use Outbox::Bench;

my $nginx = nginx();
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
