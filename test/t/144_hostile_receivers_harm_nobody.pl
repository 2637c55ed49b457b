# Whatever a receiver answers, however long it takes and however much it says: attempts end, the worker stays small and alive, its neighbours get their events, and what was said can be read
# in a database of any encoding.
# Alone: it measures the memory of a process.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Peer qw(say_all reset_at_close until_closed);
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $ok = "HTTP/1.1 200 OK\r\n";
my $oh = "HTTP/1.1 500 Oh\r\n";
my $chunked = "Transfer-Encoding: chunked\r\n\r\n";
my $ugly = "a\0b\xff\xfe\xc3\x28 \xe4\x81 %s \\x00 \$1 ' \"";

sub says { my ($text, $then, @args) = @_; return sub { say_all($_[0], $text); $then ? $then->($_[0], @args) : () } }
sub next_one { return 'next' }    # the connection lives on
sub drip { my ($socket, $text) = @_; for (split //, $text) { say_all($socket, $_) or return; sleep 0.02 } }
sub for_ever { my ($socket, $text) = @_; 1 while say_all($socket, $text x 100) }

# name => [ how its attempts end, what it does ]. Those that only a timeout ends have a short one, all others one that would fail the test.
my %hostile = (
	'silence' => [ 'timeout', \&until_closed ],
	'drip' => [ 'timeout', says('', \&drip, "${ok}X: " . 'y' x 1000) ],
	'drip-body' => [ 'http_5xx 500', says("${oh}Content-Length: 1000\r\n\r\n", \&drip, 'y' x 25) ],
	'reset' => [ 'connect', says('', \&reset_at_close) ],
	'reset-head' => [ 'connect', says("${ok}Content-", sub { sleep 0.05; reset_at_close(@_) }) ],
	'reset-body' => [ 'http_5xx 500', says("${oh}Content-Length: 100\r\n\r\nhello", sub { sleep 0.05; reset_at_close(@_) }) ],
	'close' => [ 'connect', sub { } ],
	'close-head' => [ 'connect|protocol', says("${ok}Content-") ],
	'endless-body' => [ 'http_5xx 500', says("$oh\r\n", \&for_ever, 'x' x 1000) ],
	'enormous-body' => [ 'http_5xx 500', says("${oh}Content-Length: 10000000000\r\n\r\n", \&for_ever, 'x' x 1000) ],
	'endless-fields' => [ 'protocol', says($ok, \&for_ever, "X-Some: field\r\n") ],
	'endless-field' => [ 'protocol', says("${ok}X: ", \&for_ever, 'x' x 1000) ],
	'thousands-of-fields' => [ 'protocol', says($ok . "A: b\r\n" x 5000 . "Content-Length: 0\r\n\r\n", \&until_closed) ],
	'folded' => [ 'protocol', says("${ok}X: a\r\n", \&for_ever, " more\r\n") ],
	'no-line' => [ 'protocol', says('', \&for_ever, 'x' x 1000) ],
	'garbage' => [ 'protocol', says(join '', map { chr((37 * $_) % 256) } 1 .. 4096) ],
	'nul' => [ 'protocol', says("${ok}X: a\0b\r\nContent-Length: 0\r\n\r\n", \&until_closed) ],
	'http-0.9' => [ 'protocol', says('<html>hello</html>') ],
	'ssh' => [ 'protocol', says("SSH-2.0-OpenSSH_9.2\r\n", \&until_closed) ],
	'continue' => [ 'protocol', says('', \&for_ever, "HTTP/1.1 100 Continue\r\n\r\n") ],
	'hints' => [ 'protocol', says('', \&for_ever, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n") ],
	'upgrade' => [ 'timeout', says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", \&until_closed) ],
	'upgrade-flood' => [ 'protocol', says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", \&for_ever, 'x' x 1000) ],
	'chunk-size' => [ 'http_5xx 500', says("$oh${chunked}ffffffffffffffffffff\r\n", \&until_closed) ],
	'chunk-extension' => [ 'timeout|http_5xx 500|http_5xx 500, timeout', says("$oh${chunked}1;", \&for_ever, 'x' x 1000) ],
	'chunks' => [ 'http_5xx 500', says("$oh$chunked", \&for_ever, "1\r\nx\r\n") ],
	'trailers' => [ 'http_5xx 500', says("$oh${chunked}0\r\n", \&for_ever, "X-Trailer: y\r\n") ],
	'too-short' => [ 'http_5xx 500', says("${oh}Content-Length: 1000\r\n\r\nhello") ],
	'too-long' => [ 'http_5xx 500', says("${oh}Content-Length: 2\r\n\r\nhello$ok\r\n", \&until_closed) ],
	'gzip-bomb' => [ 'http_5xx 500', says("${oh}Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03", \&for_ever, "\0" x 1000) ],
	'ugly' => [ 'http_5xx 500', says("HTTP/1.1 500 \xff\xc3\x28\r\nX-\xe4: \xff\r\nContent-Length: " . length($ugly) . "\r\n\r\n$ugly", \&next_one) ],
	'ten-years' => [ 'http_5xx 503', says("HTTP/1.1 503 Later\r\nRetry-After: 315360000\r\nContent-Length: 0\r\n\r\n", \&next_one) ],
	'minus-one' => [ 'http_4xx 429', says("HTTP/1.1 429 Later\r\nRetry-After: -1\r\nContent-Length: 0\r\n\r\n", \&next_one) ],
	'nine-thousand' => [ 'http_5xx 503', says("HTTP/1.1 503 Later\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n", \&next_one) ]);

my $peer = Outbox::Peer->new((map { ("/$_" => $hostile{$_}[1]) } keys %hostile), '/patience' => \&until_closed);
my $slammed = Outbox::Peer->new(accepted => \&reset_at_close);
my $deaf = Outbox::Peer->new(accepted => sub { sleep 3600 });
my $receiver = Outbox::Receiver->new;
my $node = outbox_node('attacked', conf => [ 'outbox.max_payload = 32MB' ]);
my %short = (timeout => '500 ms', connect_timeout => '500 ms');
my %long = (timeout => '10 min', connect_timeout => '10 min');
my %options = (retry_base => '10 ms', retry_max => '20 ms', max_attempts => 2, max_in_flight => 10);

sub peak
{
	my ($pid) = @_;
	return slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB/m ? $1 / 1024 : undef;
}

# ---- all at once, and a neighbour ----
subscribe($node, 'neighbour', $receiver->url('/ok?neighbour'), types => ['all']);
wait_status($node, enqueue($node, 'all', '{"first": true}'), 'neighbour', 'delivered');
my $worker = worker_pid($node);
my $can_measure = -r "/proc/$worker/status" && slurp_file("/proc/$worker/maps") !~ /libasan/;
my $peak = $can_measure ? peak($worker) : 0;
my $session = session($node);
sub list { my (%list) = @_; return join ', ', map { "$_ => '$list{$_}'" } sort keys %list }
$hostile{handshake} = ['timeout'];    # a TLS handshake that nobody answers
my %at = ((map { ($_ => $peer->url("/$_")) } keys %hostile), slammed => $slammed->url('/'), handshake => $deaf->url('/') =~ s/^http:/https:/r);
$session->query("SELECT outbox.subscribe('$_', '$at{$_}', types => '{all}', network => 'private', " . list(%options, ($hostile{$_}[0] // '') =~ /^timeout/ ? %short : %long) . ') IS NOT NULL') for sort keys %at;
$session->query("SELECT outbox.subscribe('deaf', '" . $deaf->url('/') . "', types => '{large}', network => 'private', " . list(%options, %short) . ') IS NOT NULL');
subscribe($node, 'patience', $peer->url('/patience'), types => ['all'], timeout => '10 min', max_in_flight => 10);
my $events = 3;
my $large = $node->safe_psql('postgres', q{SELECT outbox.enqueue('large', to_jsonb(repeat('x', 16000000)))});
my @ids = split /\n/, $node->safe_psql('postgres', "SELECT outbox.enqueue('all', to_jsonb(i)) FROM generate_series(1, $events) i");

wait_for(sub { $receiver->delivered('/ok?neighbour') == $events + 1 }, 'the events of the neighbour');
is(scalar($receiver->delivered('/ok?neighbour')), $events + 1, 'a neighbour gets its events');
wait_for(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM outbox.dead_letter}) == $events * keys(%at) + 1 }, 'dead letters');
$hostile{slammed} = ['connect'];
my %ends;
for (split /\n/, $node->safe_psql('postgres', q{SELECT subscription, string_agg(DISTINCT concat_ws(' ', outcome, status_code), ', '), count(*) FROM outbox.attempt WHERE outcome <> 'delivered' GROUP BY subscription}))
{
	my ($name, $outcomes, $count) = split /\|/;
	$ends{$name} = "$outcomes, $count attempts";
}
like(delete $ends{$_} // '', qr/^(?:$hostile{$_}[0]), @{[2 * $events]} attempts$/, "$_: all attempts end") for sort keys %at;
is(delete $ends{deaf}, 'timeout, 2 attempts', 'deaf: all attempts end');
is(join(', ', %ends), '', 'and there are no others');
is($node->safe_psql('postgres', q{SELECT DISTINCT reason FROM outbox.dead_letter}), 'max_attempts', 'a Retry-After of ten years is clamped');
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.attempt_log WHERE octet_length(response) > 1024 OR error !~ '^[ -~]+$'}), 0, 'what is kept is bounded, errors are ASCII');
wait_for(sub { $peer->events('^asked /patience') == $events }, 'patience');
is(scalar($peer->events('^asked /patience')), $events, 'meanwhile requests hang that may');
is(scalar($peer->events('^ended /patience')), 0, 'and still do');
is(worker_pid($node), $worker, 'it is the same worker');
SKIP:
{
	skip 'there is no /proc to say how much memory it has, or it has more for AddressSanitizer', 1 unless $can_measure;
	my $grown = peak($worker) - $peak;
	cmp_ok($grown, '<', 128, sprintf 'its peak of memory has grown by %.1f MB, for %d requests at once', $grown, $events * keys %at);
}
$session->query("SELECT outbox.pause('patience')");
wait_status($node, enqueue($node, 'all', '{"last": true}'), 'neighbour', 'delivered');
is(scalar($receiver->delivered('/ok?neighbour')), $events + 2, 'the neighbour gets another one');

# ---- what was said can be read, in every encoding ----
for my $encoding (qw(UTF8 LATIN1 SQL_ASCII))
{
	my $database = lc "in_$encoding";
	$node->safe_psql('postgres', "CREATE DATABASE $database ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	install($node, $database);
	my @bad = qw(ugly nul garbage gzip-bomb);
	subscribe($node, $_, $at{$_}, types => ['all'], database => $database, %options, %long, response_kept => 40) for @bad;
	my $id = enqueue($node, 'all', '{}', database => $database);
	wait_for(sub { $node->safe_psql($database, 'SELECT count(*) FROM outbox.dead_letter') == @bad }, "dead letters in $encoding");
	is($node->safe_psql($database, q{SELECT DISTINCT encode(a.response, 'hex') FROM outbox.attempt_log a JOIN outbox.subscription s ON s.id = a.subscription_id WHERE s.name = 'ugly'}), unpack('H*', substr $ugly, 0, 40), "$encoding: the bytes of an answer, as they came");
	my ($status, $out, $err) = $node->psql($database, qq{
		SELECT to_jsonb(a) FROM outbox.attempt a; SELECT to_jsonb(d) FROM outbox.dead_letter d; SELECT to_jsonb(t) FROM outbox.trace('$id') t; SELECT to_jsonb(e) FROM outbox.event_status('$id') e;
		SELECT to_jsonb(s) FROM outbox.subscription_status s; SELECT to_jsonb(h) FROM outbox.health() h;});
	is("$status $err", '0 ', "$encoding: everything can be looked at");
}

my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|terminated by signal|invalid byte sequence|was terminated/, 'nothing crashed');
done_testing;
