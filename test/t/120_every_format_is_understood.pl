# Every format, as its reference libraries understand it: the CloudEvents SDK and the library of Standard Webhooks, both of Node.js.
use strict;
use warnings;
use utf8;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Encode qw(encode);
use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ "outbox.source = 'https://shop.example.com/outbox'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $json = JSON::PP->new->canonical->allow_nonref;
my $trace = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
my @formats = qw(binary structured batch);
my %secret;

$secret{$_} = subscribe($node, $_, $receiver->url("/fail-first/1?$_"), format => $_, batch_linger => '300 ms') for @formats;
$receiver->control(secret => $secret{$_}, path => "/fail-first/1?$_") for @formats;

# [what is enqueued, the content type it has, the key, what is received: data, or base64]
my $binary = join '', map { chr } 0 .. 255;
my @events = (
	[ q{enqueue('order.paid', '{"order": 42, "name": "Zoë \"quoted\" \\\\ / \u0001 😀", "list": [1, 2.50, null, true]}', key => 'Euro € 😀 100% "x"', headers => '{"x-shop": "7"}')},
		'application/json', 'Euro € 😀 100% "x"', { data => { order => 42, name => "Zoë \"quoted\" \\ / \x01 😀", list => [ 1, 2.5, undef, JSON::PP::true ] } } ],
	[ q{enqueue('order.paid', '["an array"]', headers => '{"x-shop": "7"}')}, 'application/json', undef, { data => ['an array'] } ],
	[ q{enqueue('order.paid', '"a string"', headers => '{"x-shop": "7"}')}, 'application/json', undef, { data => 'a string' } ],
	[ qq{enqueue('traced', '{}', headers => '{"traceparent": "$trace", "x-shop": "7"}')}, 'application/json', undef, { data => {} } ],
	[ q{enqueue_raw('text', convert_to(E'two\nlines "é" \\\\', 'UTF8'), 'text/plain', headers => '{"x-shop": "7"}')}, 'text/plain', undef, { data => qq(two\nlines "é" \\) } ],
	[ q{enqueue_raw('xml', '<much wow="xml"/>'::bytea, 'application/xml', headers => '{"x-shop": "7"}')}, 'application/xml', undef, { data => '<much wow="xml"/>' } ],
	[ q{enqueue_raw('bytes', '\x} . unpack('H*', $binary) . q{', 'application/octet-stream', headers => '{"x-shop": "7"}')}, 'application/octet-stream', undef, { base64 => encode_base64($binary, '') } ],
);
my @ids = split /\n/, $node->safe_psql('postgres', encode('UTF-8', 'BEGIN;' . join(';', map { "SELECT outbox.$_->[0]" } @events) . ';COMMIT'));
my @times = split /\n/, $node->safe_psql('postgres', q{SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') FROM outbox.event ORDER BY id});

for my $format (@formats)
{
	wait_status($node, $_, $format, 'delivered') for @ids;
	my @requests = $receiver->requests("/fail-first/1?$format");
	my ($out, $err);
	my $in = join '', map { $json->encode({ secret => $secret{$format}, headers => $_->{headers}, body64 => encode_base64($_->{bytes}, '') }) . "\n" } @requests;
	ok(IPC::Run::run([ 'node', "$FindBin::RealBin/../drivers/cloudevents.js" ], '<', \$in, '>', \$out, '2>', \$err), "$format: the libraries run") or diag $err;
	my @understood = map { $json->decode(Encode::decode('UTF-8', $_)) } split /\n/, $out;

	is(join(', ', map { $_->{error} // () } @understood), '', "$format: every request is understood");
	is(scalar(grep { exists $_->{signed} && defined $_->{signed} && !$_->{signed} } @understood), 0, "$format: every request is signed, says the library");
	is(scalar(grep { ($_->{signature} // '') ne 'valid' } @requests), 0, "$format: every request is signed, says the receiver");
	is(scalar(grep { $_->{headers}{'x-shop'} ne '7' } @requests), 0, "$format: the events' own headers are the requests'");

	my %event;
	for my $understood (@understood)
	{
		for my $event (@{ $understood->{events} })
		{
			# the SDK leaves the decoding of headers (HTTP binding, 3.1.3.2) to its user
			$event->{partitionkey} =~ s/%([0-9A-F]{2})/chr hex $1/ge and utf8::decode($event->{partitionkey}) if $format eq 'binary' && defined $event->{partitionkey};
			my $first = $event{ $event->{id} } //= $event;
			is($json->encode($event), $json->encode($first), "$format: the same in each attempt") if $event != $first;
		}
	}
	for my $i (0 .. $#events)
	{
		my ($enqueued, $content_type, $key, $data) = @{ $events[$i] };
		# the SDK leaves the bytes of a binary request to its user, too
		my ($bytes) = map { encode_base64($_->{bytes}, '') } grep { $_->{id} eq $ids[$i] } @requests;
		my $event = $event{ $ids[$i] };
		if ($format eq 'binary' && $data->{base64}) { delete @{$event}{qw(data base64)}; $event->{base64} = $bytes }
		my %expected = (id => $ids[$i], source => 'https://shop.example.com/outbox', type => $enqueued =~ /\('([^']*)/, specversion => '1.0', time => $times[$i],
			datacontenttype => $content_type, %$data);
		$expected{partitionkey} = $key if defined $key;
		$expected{traceparent} = $trace if $expected{type} eq 'traced';
		is($json->encode({ map { $_ => $event->{$_} } grep { defined $event->{$_} } keys %$event }), $json->encode(\%expected), "$format: $expected{type}, $content_type");
	}
}

# The trace: the attribute is the producer's; the header has a span of its own for each attempt, and a batch has none
my %spans;
for my $format (@formats)
{
	for my $request ($receiver->requests("/fail-first/1?$format"))
	{
		next unless defined $request->{headers}{traceparent};
		like($request->{headers}{traceparent}, qr/^00-0af7651916cd43dd8448eb211c80319c-(?!b7ad6b7169203331|0{16})[0-9a-f]{16}-01$/, "$format: a span of the same trace");
		$spans{ $request->{headers}{traceparent} } = $format;
	}
}
is(join(' ', sort { $a cmp $b } values %spans), 'binary structured', 'one for each request');

# What the binding forbids, or lets only others have
is(scalar(grep { exists $_->{headers}{'ce-datacontenttype'} } $receiver->requests), 0, 'no ce-datacontenttype');
is(scalar(grep { grep { /^ce-/ } keys %{ $_->{headers} } } map { $receiver->requests("/fail-first/1?$_") } qw(structured batch)), 0, 'in JSON no attribute is a header');
is($_->{headers}{'webhook-id'}, JSON::PP::decode_json($_->{bytes})->{id}, 'structured: webhook-id is the id') for ($receiver->requests('/fail-first/1?structured'))[0];

done_testing;
