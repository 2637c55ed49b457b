# What order per key costs: 10,000 keys, beside no order.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(60_000);
my $db = database('db');
my $nginx = nginx();
my $key = "'k' || (1 + g * 7919 % 10000)";
my %count;
for (qw(key none)) { subscribe($db, $_, $nginx->{url}, ordering => $_, types => "{$_}"); push_live($db, $_, size(10_000), $nginx->{count}, key => $key) }
my $result = alternate(5, map { my $ordering = $_; $ordering => sub { scalar push_live($db, $ordering, $n, $nginx->{count}, key => $key) } } qw(none key));
figure('push with order per key, 10,000 keys', unit => 'events/s', ours => $result->{key}, beside => $result->{none}, against => 'without order', goal => '>= 0.9');
