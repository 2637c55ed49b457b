# A receiver whose certificate cannot be verified gets nothing, the log of attempts says why, and the certificates of option "ca" count from the commit that changes them.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Peer qw(say_all until_closed);
use Outbox::Test;
use Outbox::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('verifying');
my $receiver = Outbox::Receiver->new;
my $plain = Outbox::Peer->new(accepted => sub { my ($socket) = @_; sysread $socket, my $hello, 4096; say_all($socket, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"); until_closed($socket) });
my $tls = Outbox::Tls->new;
my %host = (host => 'DNS:localhost');
my %ca = map { $_ => $tls->authority($_) } qw(ours theirs);
$tls->certificate('good', issuer => 'ours', %host);
$tls->certificate('expired', issuer => 'ours', %host, begins => -2, ends => -1);
$tls->certificate('early', issuer => 'ours', %host, begins => 1, ends => 2);
$tls->certificate('self', issuer => 'self', %host);
$tls->certificate('foreign', issuer => 'theirs', %host);
$tls->certificate('elsewhere', issuer => 'ours', host => 'DNS:elsewhere.example');

my $inside = $receiver->port;
my $good_port = $tls->serve('good', $inside);
my @old = ('cipher=ALL:@SECLEVEL=0', 'openssl-min-proto-version=TLS1.1', 'openssl-max-proto-version=TLS1.1');

# name, port, what attempt.error says
my @refused = (
	[ 'expired', $tls->serve('expired', $inside), 'certificate has expired' ],
	[ 'early', $tls->serve('early', $inside), 'certificate is not yet valid' ],
	[ 'self', $tls->serve('self', $inside), 'self-signed certificate' ],
	[ 'foreign', $tls->serve('foreign', $inside), 'unable to get local issuer certificate' ],
	[ 'elsewhere', $tls->serve('elsewhere', $inside), 'the certificate is not for this host' ],
	[ 'old', $tls->serve('good', $inside, @old), 'the receiver offers neither TLS 1.2 nor newer' ],
	[ 'plain', $plain->port, 'the receiver does not speak TLS on this port' ],
	[ 'broken-ca', $good_port, 'the certificates of option "ca" are not usable', "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----" ],
	[ 'other-ca', $good_port, 'unable to get local issuer certificate', $ca{theirs} ],
);
subscribe($node, $_->[0], "https://localhost:$_->[1]/ok?$_->[0]", types => ['all'], ca => $_->[3] // $ca{ours}, max_attempts => 2, connect_timeout => '15 s') for @refused;
subscribe($node, 'fine', "https://localhost:$good_port/ok?fine", types => [ 'all', 'ca' ], ca => $ca{ours}, max_attempts => 1, connect_timeout => '15 s');
subscribe($node, 'both', "https://localhost:$good_port/ok?both", types => ['all'], ca => "two of them\n$ca{theirs}\r\n$ca{ours}", max_attempts => 1, connect_timeout => '15 s');

my $id = enqueue($node, 'all', '{}');
wait_status($node, $id, $_, 'delivered') for qw(fine both);
for (@refused)
{
	my ($name, $port, $text) = @$_;
	wait_status($node, $id, $name, 'dead');
	like($node->safe_psql('postgres', "SELECT DISTINCT outcome, status_code, error FROM outbox.attempt WHERE subscription = '$name'"), qr/^tls\|\|https:\/\/localhost: \Q$text\E(?: or the system clock is incorrect)?$/, "$name: told from the others");
	is(scalar($receiver->requests("/ok?$name")), 0, "$name: got nothing");
}
is(scalar($receiver->delivered("/ok?$_")), 1, "$_: delivered") for qw(fine both);

# A change of "ca" applies to what is sent after it, also where a verified connection is still open.
sub next_event
{
	my ($option, $status, $what) = @_;
	$node->safe_psql('postgres', "SELECT outbox.alter_subscription('fine', $option)");
	my $event = enqueue($node, 'ca', '{}');
	ok(wait_status($node, $event, 'fine', $status), $what);
	is(scalar($receiver->of('/ok?fine', $event)), $status eq 'delivered' ? 1 : 0, "$what: seen by the receiver");
}
next_event('ca => ' . literal($ca{theirs}), 'dead', 'other certificates: refused at once');
next_event('ca => ' . literal($ca{ours}), 'delivered', 'the right ones again');
next_event(q{reset => '{ca}'}, 'dead', 'those of the system: refused');
next_event('ca => ' . literal("$ca{theirs}$ca{ours}"), 'delivered', 'the right ones among others');

done_testing;
