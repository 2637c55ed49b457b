# TLS with keep-alive, beside plain HTTP.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(60_000);
my $db = database('db');
my $nginx = nginx();
open my $ca, '<', $nginx->{ca} or die;
my $pem = join '', <$ca>;
subscribe($db, 'http', $nginx->{url}, ordering => 'none', types => '{http}');
subscribe($db, 'https', $nginx->{https}, ordering => 'none', types => '{https}', ca => $pem);
push_live($db, $_, size(10_000), $nginx->{count}) for qw(http https);
my $result = alternate(3,
	http => sub { scalar push_live($db, 'http', $n, $nginx->{count}) },
	https => sub { scalar push_live($db, 'https', $n, $nginx->{count}) },
	'bare http' => sub { (bare($nginx->{url}, $n))[0] },
	'bare https' => sub { (bare($nginx->{https}, $n, undef, $nginx->{ca}))[0] });
figure('push over TLS with keep-alive', unit => 'events/s', ours => $result->{https}, beside => $result->{http}, against => 'plain HTTP', goal => '>= 0.7');
figure('the bare libcurl loop over TLS', unit => 'requests/s', ours => $result->{'bare https'}, beside => $result->{'bare http'}, against => 'plain HTTP');
