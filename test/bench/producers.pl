# What producers feel of delivery: while it runs flat out, while it is switched off, and while the receiver is down.
#
# What they feel of the CPU that it takes is not meant. So a plain INSERT is measured beside the same delivery, and the figure is the ratio to it, beside that ratio without any delivery.
use strict;
use warnings;

use Outbox::Bench;

my $seconds = seconds_of(3);
my $db = database('db');
my $nginx = nginx();
my $payload = literal($PAYLOAD);
my $number = "\\set g random(1, 1000000)\n";
my $plain = $number . "INSERT INTO plain (type, key, payload) VALUES ('order.paid', 'o' || :g, ${payload}::jsonb);\n";
my $outbox = $number . "SELECT outbox.enqueue('order.paid', ${payload}::jsonb, key => 'o' || :g);\n";

sub compared
{
	my ($label, $between) = @_;
	my (@ratio, @tps);
	for my $round (1 .. 4)
	{
		my %tps;
		for my $which ($round % 2 ? qw(plain outbox) : qw(outbox plain))
		{
			$between->() if $between;
			$tps{$which} = pgbench($db, $which eq 'plain' ? $plain : $outbox, 8, $seconds);
		}
		push @ratio, $tps{outbox} / $tps{plain};
		push @tps, $tps{outbox};
	}
	say_it(sprintf '%-24s ours %.0f tps; ours / plain INSERT: %s', $label, median(@tps), join ' ', map { sprintf '%.3f', $_ } @ratio);
	return (\@ratio, \@tps);
}

my ($idle, $idle_tps) = compared('nobody subscribed');

sql($db, 'SELECT outbox.stop()');
sleep 1;
my ($off, $off_tps) = compared('delivery switched off');
sql($db, 'SELECT outbox.start()');

# Nobody listens at this port: the circuit breaker opens, and its events wait.
subscribe($db, 'down', 'http://127.0.0.1:1/');
my ($down, $down_tps) = compared('receiver down');
sql($db, q{SELECT outbox.unsubscribe('down')});

# A backlog that lasts: topped up before each round
subscribe($db, 'busy', $nginx->{url}, ordering => 'none', types => '{busy}');
my $filler = session($db, '-c synchronous_commit=off');
my $made = 0;
my $top_up = sub {
	while ($made - $nginx->{count}->() < size(200_000)) { query_on($filler, "SELECT count(outbox.enqueue('busy', ${payload}::jsonb)) FROM generate_series(1, 20000)"); $made += 20000 }
};
$top_up->();
my $before = $nginx->{count}->();
my ($busy, $busy_tps) = compared('delivery flat out', $top_up);
say_it(sprintf '%d requests were made meanwhile', $nginx->{count}->() - $before);

for ([ 'delivery flat out', $busy ], [ 'delivery switched off', $off ], [ 'the receiver down', $down ])
{
	my ($what, $ratios) = @$_;
	figure("producers' speed, 8 clients, $what, beside a plain INSERT then; against the same when nothing is delivered", ours => median(@$ratios), beside => median(@$idle), against => 'nothing delivered', goal => '>= 0.95');
}
