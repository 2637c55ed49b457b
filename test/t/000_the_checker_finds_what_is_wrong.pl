# The tests that follow trust a receiver and a ledger. Here these are shown every fault they must find.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Ledger;
use Outbox::Receiver;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

my $receiver = Outbox::Receiver->new(fsync => 0);

# Sends a request; returns the socket, so that its answer may be awaited or not.
sub post
{
	my ($path, $id, $key, $body) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $receiver->port) or die "no connection: $!";
	print $socket "POST $path HTTP/1.1\r\nHost: x\r\nwebhook-id: $id\r\nce-partitionkey: $key\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
	return $socket;
}

sub answer { my ($socket) = @_; my $line = <$socket> // ''; return $line =~ m{^HTTP/1.1 (\d+)} ? $1 : '' }

sub found
{
	my ($ledger, $path) = @_;
	my $found = $ledger->check($receiver, $path);
	return join ' ', map { "$_:" . join(',', @{ $found->{$_} }) } grep { @{ $found->{$_} } } sort keys %$found;
}

my $ledger = Outbox::Ledger->new;
$ledger->committed($_, 'k') for qw(a b c);
$ledger->rolled_back('x');
answer(post('/ok?good', $_, 'k', $_)) for qw(a b c);
is(found($ledger, '/ok?good'), '', 'nothing is wrong');
ok($ledger->complete($receiver, '/ok?good'), 'complete');

answer(post('/ok?lost', $_, 'k', $_)) for qw(a c);
answer(post('/status/500', 'b', 'k', 'b'));
is(found($ledger, '/ok?lost'), 'lost:b', 'lost');
ok(!$ledger->complete($receiver, '/ok?lost'), 'incomplete');
like(found($ledger, '/status/500'), qr/^lost:a,b,c$/, 'failed is not delivered');

answer(post('/ok?phantom', $_, 'k', $_)) for qw(a b c x);
is(found($ledger, '/ok?phantom'), 'phantom:x', 'phantom');

answer(post('/ok?twice', $_, 'k', $_)) for qw(a b b c);
is(found($ledger, '/ok?twice'), 'duplicates:b', 'duplicate');

answer(post('/ok?changed', @$_)) for [ 'a', 'k', 'a' ], [ 'b', 'k', 'b' ], [ 'b', 'k', 'B' ], [ 'c', 'k', 'c' ];
is(found($ledger, '/ok?changed'), 'changed:b duplicates:b', 'other bytes under the same id');

answer(post('/ok?order', $_, 'k', $_)) for qw(a c b);
is(found($ledger, '/ok?order'), 'disorder:c', 'out of order');

my @both = map { post('/slow/2000?overlap', $_, 'k', $_) } qw(a b);
is(join(' ', map { answer($_) } @both), '200 200', 'two at once');
answer(post('/slow/2000?overlap', 'c', 'k', 'c'));
is(found($ledger, '/slow/2000?overlap'), 'overlap:b', 'two in flight for one key');

my $given_up = post('/slow/2000?left', 'a', 'k', 'a');
close $given_up;
answer(post('/slow/2000?left', $_, 'k', $_)) for qw(b c);
is(found($ledger, '/slow/2000?left'), 'lost:a', 'who hangs up before the answer was not answered');

# Unknown outcomes may be either
$ledger->unknown('u', 'k');
answer(post('/ok?unknown', $_, 'k', $_)) for qw(a b c u);
is(found($ledger, '/ok?unknown'), '', 'what may have been committed is no phantom');
is(found($ledger, '/ok?good'), '', 'nor is it lost');

# Batches: the same faults, event by event
sub batch
{
	my ($path, $id, @events) = @_;
	my $body = '[' . join(',', map { qq({"id":"$_->[0]","partitionkey":"$_->[1]","data":{"[":["]}\\"", "$_->[2]"]}}) } @events) . ']';
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $receiver->port) or die "no connection: $!";
	print $socket "POST $path HTTP/1.1\r\nHost: x\r\nwebhook-id: $id\r\nContent-Type: application/cloudevents-batch+json; charset=utf-8\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
	return $socket;
}
my ($one, $two, $three) = map { [ $_, 'k', $_ ] } qw(a b c);
answer(batch('/ok?batch', '1', $one, $two, $three));
is(found($ledger, '/ok?batch'), '', 'batch: nothing is wrong');
is(join(' ', map { "$_->{id}$_->{place}" } $receiver->events('/ok?batch')), 'a0 b1 c2', 'batch: its events');
answer(batch('/ok?batch-lost', '1', $one, $three));
is(found($ledger, '/ok?batch-lost'), 'lost:b', 'batch: lost');
answer(batch('/ok?batch-order', '1', $one, $three, $two));
is(found($ledger, '/ok?batch-order'), 'disorder:c', 'batch: out of order');
answer(batch('/ok?batch-changed', @$_)) for [ '1', $one, $two ], [ '2', [ 'b', 'k', 'B' ], $three ];
is(found($ledger, '/ok?batch-changed'), 'changed:b duplicates:b', 'batch: other bytes of an event');
answer(batch('/ok?batch-id', @$_)) for [ '1', $one, $two ], [ '1', $three ], [ '2', $three ];
is(found($ledger, '/ok?batch-id'), 'changed:1,2 duplicates:c', 'batch: other bytes under the same id, the same under another');
@both = (batch('/slow/2000?batch-overlap', '1', [ 'x', 'other', 'x' ], $one), batch('/slow/2000?batch-overlap', '2', $two, $three));
is(join(' ', map { answer($_) } @both), '200 200', 'two batches at once');
is(found($ledger, '/slow/2000?batch-overlap'), 'overlap:b,c phantom:x', 'batch: two in flight for one key; phantom');

# Keep-alive, pipelining, and a body in pieces
my $socket = post('/ok?pieces', 'p', '', "\x00\xff{");
print $socket "POST /ok?pieces HTTP/1.1\r\nHost: x\r\nwebhook-id: q\r\nContent-Length: 5\r\n\r\nab";
$socket->flush;
is(answer($socket), '200', 'the first of two on one connection');
print $socket 'cde';
my $rest = '';
{
	local $SIG{ALRM} = sub { die 'no second answer' };
	alarm 20;
	while ($rest !~ m{HTTP/1.1 200}) { sysread($socket, $rest, 4096, length $rest) or die 'closed' }
	alarm 0;
}
is(join(' ', map { unpack 'H*', $_->{bytes} } $receiver->requests('/ok?pieces')), '00ff7b 6162636465', 'bodies are logged as they came');

done_testing;
