# Under network => 'public' nothing is dialled but public addresses on permitted ports: whatever the spelling, the names, redirects or the environment say.
#
# Every connect() of the server is written down before it happens (Outbox::Net), and listeners wait where it must not arrive.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Net;
use Outbox::Peer qw(say_all);
use Outbox::Test;
use Outbox::Tls;
use PostgreSQL::Test::Utils;
use Socket qw(AF_INET6 SOCK_STREAM);
use Test::More;

my $net = Outbox::Net->new;
my $tls = Outbox::Tls->new;
my $trap = Outbox::Peer->new(accepted => sub { });      # whoever comes here was led astray
my $receiver = Outbox::Receiver->new;
my $redirects = Outbox::Peer->new(map { my $to = $_->[1]; ($_->[0] => sub { say_all($_[0], "HTTP/1.1 302 Found\r\nLocation: $to\r\nContent-Length: 0\r\n\r\n"); 'next' }) }
		[ '/loopback', $trap->url('/') ], [ '/metadata', 'http://169.254.169.254/latest/' ], [ '/name', 'https://internal.example/' ], [ '/file', 'file:///etc/passwd' ]);

# The world: two public addresses, which lead to loopback. (They are anycast addresses of the IANA registry, nobody's host.)
my ($public, $public_2) = ('192.0.0.9', '192.0.0.10');
my $ca = $tls->authority('authority');
$tls->certificate('all', issuer => 'authority', host => join ',', map { "DNS:$_.example" } qw(public mixed mixed-6 moving canonical redirecting port));
$net->route($public, 443, $tls->serve('all', $receiver->port));
$net->route($public_2, 443, $tls->serve('all', $redirects->port));
$net->names(
	'public.example' => [ A => $public ],
	'port.example' => [ A => $public ],
	'canonical.example' => [ CNAME => 'public.example' ],
	'mixed.example' => [ A => '127.0.0.1', A => '10.0.0.1', A => $public, A => '169.254.169.254' ],
	'mixed-6.example' => [ AAAA => '::1', AAAA => '::ffff:127.0.0.1', AAAA => '64:ff9b::7f00:1', A => $public ],
	'moving.example' => [ A => $public ],
	'redirecting.example' => [ A => $public_2 ],
	'internal.example' => [ A => '10.1.2.3', A => '192.168.1.1', A => '172.16.0.1' ],
	'loopback.example' => [ A => '127.0.0.1' ],
	'metadata.example' => [ A => '169.254.169.254' ],
	'shared.example' => [ A => '100.100.100.200' ],
	'nothing.example' => [ A => '0.0.0.0' ],
	'alias.example' => [ CNAME => 'localhost' ],
	'alias-2.example' => [ CNAME => 'loopback.example' ],
	'loopback-6.example' => [ AAAA => '::1' ],
	'mapped.example' => [ AAAA => '::ffff:127.0.0.1' ],
	'compatible.example' => [ AAAA => '::127.0.0.1' ],
	'nat64.example' => [ AAAA => '64:ff9b::a9fe:a9fe' ],
	'sixtofour.example' => [ AAAA => '2002:7f00:1::1' ],
	'teredo.example' => [ AAAA => '2001:0:c000:9::80ff:fffe' ],
	'isatap.example' => [ AAAA => '2606:4700::200:5efe:127.0.0.1' ],
	'local-6.example' => [ AAAA => 'fd00:ec2::254', AAAA => 'fe80::1' ],
	'broken.example' => [ SERVFAIL => 1 ],
	'empty.example' => [ AAAA => '2001:db8::1' ]);

# A server whose environment has proxies in it
my $proxy = 'http://127.0.0.1:' . $trap->port;
local %ENV = (%ENV, $net->environment, map { ($_ => $proxy, uc $_ => $proxy) } qw(http_proxy https_proxy all_proxy));
my $node = outbox_node('public');
delete @ENV{ keys %{ { $net->environment } } };

my %of_public = (network => 'public', ca => $ca, max_attempts => 2, connect_timeout => '15 s');
my $port = $trap->port;

# ---- what is public is reached; of an answer that mixes, only that part ----
my @good = qw(public canonical mixed mixed-6 moving);
subscribe($node, $_, "https://$_.example/ok?$_", types => ['good'], %of_public) for @good;
my $id = enqueue($node, 'good', '{}');
for (@good)
{
	wait_status($node, $id, $_, 'delivered') or diag $node->safe_psql('postgres', "SELECT outcome, error FROM outbox.attempt WHERE subscription = '$_'");
	is(scalar($receiver->delivered("/ok?$_")), 1, "$_: delivered");
}
my @dialled = $net->connects;
is(scalar(grep { $_ ne "$public 443" } @dialled), 0, 'nothing else was dialled') or diag join ', ', @dialled;
cmp_ok(scalar(@dialled), '>=', scalar(@good), 'and that is what would be seen');

# ---- what is not, is not dialled ----
my @refused = map { [ "https://$_:$port/", 'blocked_address' ] }
	qw(127.0.0.1 127.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 localhost LOCALHOST sub.localhost 0 0.0.0.0 10.0.0.1 192.168.0.1 172.31.255.255 169.254.169.254
	0xa9fea9fe 2852039166 100.100.100.200 192.0.2.2 198.18.0.1 224.0.0.1 255.255.255.255 [::] [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1]
	[64:ff9b:1::127.0.0.1] [2002:7f00:1::1] [2001:0:7f00:1::1] [2001:0:c000:9::80ff:fffe] [2606:4700::5efe:7f00:1] [fd00:ec2::254] [fe80::1] [fec0::1] [ff02::1] [2001:db8::1]);
push @refused, map { [ "https://$_.example:$port/", 'blocked_address' ] } qw(internal loopback metadata shared nothing alias-2);
push @refused, [ 'https://port.example:8443/', 'blocked_address', "UPDATE outbox.subscription SET ports = '{443}'" ];

# Without IPv6 in the kernel libcurl does not ask for such addresses: then there are none, and the attempt fails otherwise. Nothing is dialled in either case.
my $with_6 = socket(my $socket, AF_INET6, SOCK_STREAM, 0);
push @refused, map { [ "https://$_.example:$port/", $with_6 ? 'blocked_address' : 'max_attempts' ] } qw(loopback-6 mapped compatible nat64 sixtofour teredo isatap local-6 empty);
push @refused, map { [ "https://$_:$port/", 'max_attempts' ] } qw(broken.example unknown.example);
my @either = map { [ "https://$_:$port/" ] } qw(localhost. alias.example 127.0.0.1.);     # libc may know localhost, or say that there is no such name; newer libcurl knows the third

my $n = 0;
my $session = session($node);
for (@refused, @either)
{
	my ($url, undef, $then) = @$_;
	$_->[4] = 'refused-' . ++$n;
	$session->query("SELECT outbox.subscribe('$_->[4]', '$url', types => '{bad}', network => 'public', ports => '{443,8443,$port}', max_attempts => 2, retry_base => '10 ms', retry_factor => 1) IS NOT NULL");
	$session->query("$then WHERE name = '$_->[4]'") if $then;
}
my $bad = enqueue($node, 'bad', '{}');
wait_for(sub { $node->safe_psql('postgres', "SELECT count(*) FROM outbox.dead_letter WHERE event_id = '$bad'") == $n }, "$n dead letters");
my %reason = map { split /\|/, $_, 2 } split /\n/, $node->safe_psql('postgres', "SELECT subscription, reason FROM outbox.dead_letter WHERE event_id = '$bad'");
my %outcome = map { split /\|/, $_, 2 } split /\n/, $node->safe_psql('postgres', "SELECT DISTINCT subscription, outcome FROM outbox.attempt WHERE event_id = '$bad'");
is("$reason{$_->[4]} $outcome{$_->[4]}", "$_->[1] " . ($_->[1] eq 'blocked_address' ? 'blocked' : 'dns'), "$_->[0]: refused") for @refused;

# what subscribe() lets nobody write, the owner of the table could: libcurl's reading of it is judged all the same
my @forced = ("https://\x{ff11}\x{ff12}\x{ff17}.0.0.1:$port/", "https://127\x{3002}0\x{3002}0\x{3002}1:$port/", "https://loc%61lhost:$port/", "https://%31%32%37.0.0.1:$port/", "https://[::1%25lo]:$port/", "https://public.example\@127.0.0.1:$port/",
	"https://127.0.0.1:$port\\\@public.example/", "http://127.0.0.1:$port/", "http://public.example/", "ftp://127.0.0.1:$port/", 'file:///etc/passwd', "https:///127.0.0.1:$port/", "//127.0.0.1:$port/");
utf8::encode($_) for @forced;
my $f = 0;
for (@forced)
{
	$session->query("SELECT outbox.subscribe('forced-" . ++$f . "', 'https://public.example/', types => '{forced}', network => 'public', ports => '{80,443,$port}') IS NOT NULL");
	$session->query("UPDATE outbox.subscription SET url = " . literal($_) . " WHERE name = 'forced-$f'");
}
my $forced = enqueue($node, 'forced', '{}');
wait_for(sub { $node->safe_psql('postgres', "SELECT count(*) FROM outbox.dead_letter WHERE event_id = '$forced' AND reason IN ('blocked_address', 'bad_request')") == $f }, "$f more dead letters");
is($node->safe_psql('postgres', "SELECT count(*) FROM outbox.dead_letter WHERE event_id = '$forced' AND reason IN ('blocked_address', 'bad_request')"), $f, 'URLs that went around the checks are refused')
	or diag $node->safe_psql('postgres', "SELECT s.url, a.outcome, a.error FROM outbox.attempt a JOIN outbox.subscription s ON s.name = a.subscription WHERE event_id = '$forced'");
is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.attempt WHERE error !~ $$^[ -~]+$$'), 0, 'and every error is ASCII');

is(join(', ', ($net->connects)[ scalar(@dialled) .. $net->connects - 1 ]), '', 'nothing was dialled for any of them');
is(scalar($trap->events), 0, 'nothing arrived where it must not');

# ---- a name is judged by what it is when it is dialled ----
my $before = $net->connects;
$net->names('moving.example' => [ A => '127.0.0.1' ]);
$net->names('loopback.example' => [ A => $public ]);
$net->route('127.0.0.1', 443, $trap->port);
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . worker_pid($node) . ')');    # another one, which remembers no names and no connections
my $moved = enqueue($node, 'good', '{"moved": true}');
wait_status($node, $moved, 'moving', 'dead');
is($node->safe_psql('postgres', "SELECT reason FROM outbox.dead_letter WHERE subscription = 'moving'"), 'blocked_address', 'a name that has moved inside is refused');
wait_status($node, $moved, $_, 'delivered') for qw(public mixed);
is(scalar(grep { $_ ne "$public 443" } ($net->connects)[ $before .. $net->connects - 1 ]), 0, 'and was not dialled');

# ---- redirects ----
subscribe($node, "redirect-$_", "https://redirecting.example/$_", types => ['redirect'], %of_public) for qw(loopback metadata name file);
$before = $net->connects;
my $redirected = enqueue($node, 'redirect', '{}');
wait_status($node, $redirected, "redirect-$_", 'dead') for qw(loopback metadata name file);
is($node->safe_psql('postgres', "SELECT DISTINCT outcome, status_code FROM outbox.attempt WHERE event_id = '$redirected'"), 'http_3xx|302', 'redirects are answers like any other');
is(scalar(grep { $_ ne "$public_2 443" } ($net->connects)[ $before .. $net->connects - 1 ]), 0, 'and are not followed');

# ---- proxies: also what may be dialled is dialled directly ----
subscribe($node, 'direct', $receiver->url('/ok?direct'), types => ['direct']);
subscribe($node, 'direct-tls', 'https://public.example/ok?direct-tls', types => ['direct'], %of_public);
my $direct = enqueue($node, 'direct', '{}');
wait_status($node, $direct, $_, 'delivered') for qw(direct direct-tls);
is(scalar($receiver->delivered("/ok?$_")), 1, "$_: no proxy") for qw(direct direct-tls);
is(scalar($trap->events), 0, 'and nothing arrived at the proxy');

done_testing;
