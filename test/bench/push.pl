# One event per request, full path: from enqueue() to the receiver, beside what libcurl can do at all, and beside relays and job queues.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(60_000);
my $db = database('db');
my $nginx = nginx();
subscribe($db, 'receiver', $nginx->{url}, ordering => 'none');
sql($db, "CREATE TABLE typical_outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), event_type text, event_data jsonb, status text DEFAULT 'PENDING', created_at timestamptz DEFAULT now());
	CREATE INDEX ON typical_outbox (created_at) WHERE status = 'PENDING'");

say_it(command('wrk', 'wrk', '-t', 1, '-c', $CONCURRENCY, '-d', '2s', $nginx->{url}) =~ /(Requests\/sec.*)/ ? "the receiver can do (wrk): $1" : '');
push_live($db, 'warm', size(10_000), $nginx->{count});

my (@cpu, @bare_cpu, @live);
my $relay = sub {
	sql($db, 'TRUNCATE typical_outbox; INSERT INTO typical_outbox (event_type, event_data) SELECT ' . literal('order.paid') . ', ' . literal($PAYLOAD) . "::jsonb FROM generate_series(1, $n / 2); ANALYZE typical_outbox");
	return (split ' ', command('relay', node_program('relay'), $db, $nginx->{url}, $CONCURRENCY, $n / 2))[0] };
my $queue = sub { my ($name) = @_; return sub { (split ' ', command($name, node_program($name), $db, $nginx->{url}, $CONCURRENCY, size(5_000)))[0] } };

my $has_node = eval { command('relay-there', 'node', '-e', q{require('pg'); require('undici')}); 1 };
my $result = alternate(5,
	bare => sub { my ($rate, $cpu) = bare($nginx->{url}, $n); push @bare_cpu, $cpu; return $rate },
	outbox => sub { my ($rate, $cpu) = push_waiting($db, 'receiver', 'order.paid', $n, $nginx->{count}); push @cpu, $cpu; return $rate },
	live => sub { scalar push_live($db, 'order.paid', $n, $nginx->{count}) },
	$has_node ? (relay => $relay) : ());
figure("push, one event per request, $CONCURRENCY at a time, full path", unit => 'events/s', ours => $result->{outbox}, beside => $result->{bare}, against => 'bare libcurl loop', goal => '>= 0.8',
	note => 'Ours reads, matches, signs, records and keeps its place; the loop does nothing but requests. The events of all contenders wait already.');
figure('the same while a producer enqueues them', unit => 'events/s', ours => $result->{live}, beside => $result->{bare}, against => 'bare libcurl loop, no producer');
figure('CPU of the worker per event, the same', unit => 'µs', ours => \@cpu, beside => \@bare_cpu, against => 'bare libcurl loop');
if ($has_node)
{
	figure('push, one event per request, beside a relay', unit => 'events/s', ours => $result->{outbox}, beside => $result->{relay}, against => 'Node.js, SKIP LOCKED, unsigned', goal => '>= 1.5');
	for (qw(graphile-worker pg-boss))
	{
		my $figures = eval { alternate(2, $_ => $queue->($_)) } or say_it("$_: $@"), next;
		figure("push, one event per request, beside $_", unit => 'events/s', ours => median(@{ $result->{outbox} }), beside => median(@{ $figures->{$_} }), against => $_);
	}
}
