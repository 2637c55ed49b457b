# 10,000 subscriptions of 10,000 tenants, one of which matches each event: what an event costs the worker, beside ten of ten.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(60_000);
my $nginx = nginx();
settings('outbox.max_in_flight' => $CONCURRENCY, 'outbox.max_in_flight_per_tenant' => $CONCURRENCY);
my (%db, %cpu);
for my $tenants (10, 10_000)
{
	my $db = $db{$tenants} = database("n$tenants");
	sql($db, "SELECT count(outbox.subscribe('s' || i, '$nginx->{url}', tenant => 'tenant' || i, network => 'private')) FROM generate_series(1, $tenants) AS i");
}
my $round = sub { my ($tenants, $events) = @_; return push_live($db{$tenants}, 'order.paid', $events, $nginx->{count}, tenant => "'tenant' || (1 + g % $tenants)") };
$round->($_, size(20_000)) for 10, 10_000;
my $result = alternate(5, map { my $tenants = $_; "$tenants tenants" => sub { my ($rate, $cpu) = $round->($tenants, $n); push @{ $cpu{$tenants} }, $cpu; return $rate } } 10, 10_000);
figure('CPU of the worker per event, 10,000 subscriptions of 10,000 tenants', unit => 'µs', ours => $cpu{10_000}, beside => $cpu{10}, against => '10 subscriptions of 10 tenants', goal => '<= 1.2');
figure('events per second, the same', unit => 'events/s', ours => $result->{'10000 tenants'}, beside => $result->{'10 tenants'}, against => '10 subscriptions of 10 tenants');
