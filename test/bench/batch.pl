# Events in CloudEvents batches of 100: events per second, beside what the bare libcurl loop makes of requests.
# 150,000 events where it does 40,000 requests is a ratio of 3.75.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(400_000);
my $db = database('db');
my $sink = sink(1);
subscribe($db, 'receiver', $sink->{url}, ordering => 'none', format => 'batch', types => '{batch}');
my $payload = literal($PAYLOAD =~ s/order_id/seq/r) . '::jsonb';    # the receiver counts the events in a batch by this word
push_live($db, 'batch', size(50_000), $sink->{count}, payload => $payload, piece => 10_000, low => 40_000);

my @cpu;
my $requests = $sink->{requests}->();
my $events = $sink->{count}->();
my $result = alternate(3, bare => sub { (bare($sink->{url}, size(60_000)))[0] },
	outbox => sub { my ($rate, $cpu) = push_live($db, 'batch', $n, $sink->{count}, payload => $payload, piece => 10_000, low => 40_000); push @cpu, $cpu; return $rate });
figure('push in batches of 100', unit => 'events/s', ours => $result->{outbox}, beside => $result->{bare}, against => 'requests/s of the bare libcurl loop', goal => '>= 3.75');
figure('CPU of the worker per event, the same', unit => 'µs', ours => \@cpu);
