# Names that nobody resolves hold up neither the deliveries to others, nor the worker's other duties, nor a shutdown; and when the name server speaks again, what waited is delivered.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Net;
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $net = Outbox::Net->new;    # when its name server is silent, libc waits for minutes
my $receiver = Outbox::Receiver->new;
my $port = $receiver->port;
my $names = 20;
$net->names('known.example' => [ A => '127.0.0.1' ], map { ("silent-$_.example" => [ SILENT => 1 ]) } 1 .. $names);

my %loaded = $net->environment;
local %ENV = (%ENV, %loaded);
my $node = outbox_node('deaf');
delete @ENV{ keys %loaded };

sub asked { my ($pattern) = @_; my %asked = map { ($_ => 1) } grep { /$pattern/ } $net->queries; return scalar keys %asked }

subscribe($node, "silent-$_", "http://silent-$_.example:$port/ok?silent-$_", types => ['all'], timeout => '10 min', connect_timeout => '10 min', max_in_flight => 10) for 1 .. $names;
my @ids = split /\n/, $node->safe_psql('postgres', q{SELECT outbox.enqueue('all', to_jsonb(i)) FROM generate_series(1, 10) i});
wait_for(sub { asked('^A silent-') == $names }, 'all names being asked for');
is(asked('^A silent-'), $names, "$names names are being resolved, with ten requests waiting for each");

# others, of which one needs a name too
subscribe($node, 'address', $receiver->url('/ok?address'), types => ['other']);
subscribe($node, 'name', "http://known.example:$port/ok?name", types => ['other']);
my $other = enqueue($node, 'other', '{}');
for (qw(address name))
{
	wait_status($node, $other, $_, 'delivered');
	is(scalar($receiver->delivered("/ok?$_")), 1, "$_: delivered meanwhile");
}

# those who wait no longer than they said
subscribe($node, 'impatient', "http://silent-1.example:$port/ok?impatient", types => ['impatient'], timeout => '200 ms', connect_timeout => '200 ms', max_attempts => 2);
my $impatient = enqueue($node, 'impatient', '{}');
wait_status($node, $impatient, 'impatient', 'dead');
is($node->safe_psql('postgres', q{SELECT DISTINCT outcome, error FROM outbox.attempt WHERE subscription = 'impatient'}), 'timeout|http://silent-1.example: name not resolved in time', 'a timeout is kept');

# changes and shutdown; pg_ctl would give up long before libc does
$node->safe_psql('postgres', q{SELECT outbox.unsubscribe('silent-1')});
my $again = enqueue($node, 'other', '{"again": true}');
ok(wait_status($node, $again, 'name', 'delivered'), 'a subscription is deleted while its name is being resolved');
{
	local $ENV{PGCTLTIMEOUT} = 60;
	$node->stop('fast');
	pass('fast shutdown with all of them waiting');
}

# the name server speaks
$net->names(map { ("silent-$_.example" => [ A => '127.0.0.1' ]) } 1 .. $names);
{
	local %ENV = (%ENV, %loaded);
	$node->start;
}
wait_for(sub { grep({ /silent/ } map { $_->{path} } $receiver->delivered) == 10 * ($names - 1) }, 'what waited');
is(scalar(grep { $_->{path} =~ /silent/ } $receiver->delivered), 10 * ($names - 1), 'then all that waited is delivered, once');

done_testing;
