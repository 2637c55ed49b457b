# Isolation: subscriptions that hang, drip, refuse or fail take nothing from the others; slots and turns are shared between tenants, then subscriptions.
# Alone: it counts turns, which want a receiver that keeps up.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ 'outbox.max_in_flight = 20', 'outbox.max_in_flight_per_tenant = 8' ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $worker = worker_pid($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub delivered { my ($path) = @_; return scalar(() = $receiver->delivered($path)) }
sub hanging { my ($pattern) = @_; return scalar grep { $_->{path} =~ $pattern && !defined $_->{how} && $_->{status} == 0 } $receiver->requests }
sub set { my ($setting, $value) = @_; sql("ALTER SYSTEM SET $setting = $value"); $node->reload }

# Many subscriptions in one statement: name => path, options
sub subscribe_all { my (%urls) = @_; my $options = delete $urls{options}; sql(join ';', map { "SELECT outbox.subscribe('$_', " . literal($receiver->url($urls{$_})) . ", network => 'private', $options)" } sort keys %urls) }

# ---- a hundred events for each of forty subscriptions, half of which are sick -----------------------------------------------------------------

my @well = map { "well$_" } 1 .. 20;
my %sick = map { my $n = $_; "sick$n" => ("/hang?$n", "/drip/50?$n", "/status/500?$n", "/reset/before?$n")[ $n % 4 ] } 1 .. 20;
my $sick_options = q{types => '{load}', timeout => '10 min', max_attempts => 1000, breaker_threshold => 0, retry_base => '5 ms', retry_factor => 1};
subscribe_all(options => q{types => '{load}'}, map { $_ => "/ok?$_" } @well);
subscribe_all(options => $sick_options, %sick);
for my $round (1 .. 5)
{
	sql(q{SELECT outbox.enqueue('load', to_jsonb(i), key => 'k' || i % 10) FROM generate_series(1, 20) AS i});
	ok(wait_for(sub { !grep { delivered("/ok?$_") < 20 * $round } @well }, 'the well ones', 60), "round $round: those that are well get all of it");
}
is(scalar(grep { delivered("/ok?$_") != 100 } @well), 0, 'each event once');
cmp_ok(hanging(qr/hang|drip/), '>=', 8, 'while the sick ones hang');
cmp_ok(sql('SELECT sum(in_flight) FROM outbox.subscription_status'), '<=', 20, 'within outbox.max_in_flight');
is(delivered($_), 0, "$_: nothing arrived there") for map { $sick{"sick$_"} } 1 .. 4;

# as many as hang may, and all that are well at once: still
sql(q{SELECT outbox.enqueue('load', to_jsonb(i)) FROM generate_series(1, 500) AS i});
ok(wait_for(sub { !grep { delivered("/ok?$_") < 600 } @well }, 'the well ones', 60), 'a burst without keys: those that are well get all of it');
sql("SELECT outbox.unsubscribe('$_')") for @well, sort keys %sick;
is(worker_pid($node), $worker, 'in one worker');
sql('SELECT outbox.stop()');    # what drips would go on for long
wait_for(sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}) eq '0' }, 'no worker');
sql('SELECT outbox.start()');
$worker = worker_pid($node);

# ---- one alone has all slots at once ---------------------------------------------------------------------------------------------------------------

set('outbox.max_in_flight', 40);
subscribe($node, 'alone', $receiver->url('/hang?alone'), types => ['alone'], max_in_flight => 20, timeout => '10 min', ordering => 'none');
sql(q{SELECT outbox.enqueue('alone', to_jsonb(i)) FROM generate_series(1, 100) AS i});
ok(wait_for(sub { hanging(qr/alone/) == 20 }, 'twenty requests'), 'one that is alone has its max_in_flight at once, with nothing answered yet');
$receiver->control(script => 'second', answers => [ 200 ], then => 'hang');
subscribe($node, 'second', $receiver->url('/script/second'), types => ['second'], max_in_flight => 30, timeout => '10 min', ordering => 'none');
enqueue($node, 'second', 0);
wait_for(sub { delivered('/script/second') == 1 }, 'a first answer');
sql(q{SELECT outbox.enqueue('second', to_jsonb(i)) FROM generate_series(1, 100) AS i});
ok(wait_for(sub { hanging(qr/second/) == 10 }, 'ten requests'), 'another one that has answered still gets its share of the second half');
sql(q{SELECT outbox.unsubscribe('alone'); SELECT outbox.unsubscribe('second')});
$receiver->control(release => JSON::PP::true);

# ---- a tenant has so many requests in flight, whatever its subscriptions want ----------------------------------------------------------------------

subscribe_all(options => q{types => '{crowd}', tenant => 'crowd', timeout => '10 min'}, map { ("crowd$_" => "/hang?crowd$_") } 1 .. 5);
subscribe_all(options => q{types => '{crowd}', tenant => 'crowd'}, map { ("calm$_" => "/ok?calm$_") } 1 .. 3);
sql(q{SELECT outbox.enqueue('crowd', to_jsonb(i), tenant => 'crowd') FROM generate_series(1, 50) AS i});
ok(wait_for(sub { !grep { delivered("/ok?calm$_") < 50 } 1 .. 3 }, 'the calm ones of the tenant'), 'within a tenant too those that hang leave slots to the others');
cmp_ok(hanging(qr/crowd/), '<=', 8, 'a tenant has no more than outbox.max_in_flight_per_tenant in flight');
cmp_ok(sql(q{SELECT sum(in_flight) FROM outbox.subscription_status WHERE tenant = 'crowd'}), '<=', 8, 'and so says the status');
sql("SELECT outbox.unsubscribe('$_')") for map({ "crowd$_" } 1 .. 5), map { "calm$_" } 1 .. 3;
$receiver->control(release => JSON::PP::true);

# ---- a tenant with fifty subscriptions gets no more turns than one with one -------------------------------------------------------------------------

set('outbox.max_in_flight', 2);
subscribe_all(options => q{types => '{turn}', tenant => 'many'}, map { ("many$_" => "/slow/5?many$_") } 1 .. 50);
subscribe_all(options => q{types => '{turn}', tenant => 'few'}, few => '/slow/5?few');
subscribe_all(options => q{types => '{turn}'}, own => '/slow/5?own');
sql('SELECT outbox.pause_all()');
sql(q{SELECT outbox.enqueue('turn', to_jsonb(i), tenant => t) FROM generate_series(1, 60) AS i, unnest('{many,few}'::text[]) AS t});
wait_for(sub { sql('SELECT sum(in_flight) FROM outbox.subscription_status') eq '0' }, 'nothing being in flight');
sql('SELECT outbox.resume_all()');
wait_for(sub { delivered('/slow/5?few') == 60 && delivered('/slow/5?own') >= 100 }, 'those that are one');
my @few = sort { $a <=> $b } map { $_->{seq} } $receiver->requests('/slow/5?few');
my $many = grep { $_->{path} =~ /many/ && $_->{seq} > $few[0] && $_->{seq} < $few[-1] } $receiver->requests;
cmp_ok($many, '<=', 2 * 60, "while one subscription of a tenant sent 60, fifty of another sent $many");
cmp_ok($many, '>=', 20, 'which had their turns, too');
my @own = (sort { $a <=> $b } map { $_->{seq} } $receiver->requests('/slow/5?own'))[ 0 .. 59 ];
my $beside = grep { $_->{path} =~ /many/ && $_->{seq} > $own[0] && $_->{seq} < $own[-1] } $receiver->requests;
cmp_ok($beside, '<=', 2 * 60, "a subscription without a tenant takes turns like a tenant ($beside)");
my %turns;
$turns{ $_->{path} }++ for grep { $_->{path} =~ /many/ && $_->{seq} < $few[-1] } $receiver->requests;
my ($least, $most) = (sort { $a <=> $b } map { $turns{"/slow/5?many$_"} // 0 } 1 .. 50)[ 0, -1 ];
cmp_ok($most - $least, '<=', 2, "and the fifty took turns among themselves: $least to $most each");
set('outbox.max_in_flight', 40);
ok(wait_for(sub { !grep { delivered("/slow/5?many$_") < 60 } 1 .. 50 }, 'the rest', 60), 'all of it arrives; a higher outbox.max_in_flight holds at once');
is(scalar(grep { delivered("/slow/5?many$_") != 60 } 1 .. 50), 0, 'each once');

# a subscription may change its tenant with requests in flight
sql(q{SELECT outbox.unsubscribe('many' || i) FROM generate_series(1, 50) AS i; SELECT outbox.unsubscribe('few'); SELECT outbox.unsubscribe('own')});
subscribe($node, 'mover', $receiver->url('/hang?mover'), types => ['move'], timeout => '10 min', ordering => 'none');
sql(q{SELECT outbox.enqueue('move', to_jsonb(i), tenant => 'b') FROM generate_series(1, 50) AS i});
wait_for(sub { hanging(qr/mover/) == 10 }, 'ten requests');
sql(q{SELECT outbox.alter_subscription('mover', tenant => 'a')});
sql(q{SELECT outbox.alter_subscription('mover', tenant => 'b')});
sql(q{SELECT outbox.alter_subscription('mover', url => } . literal($receiver->url('/ok?mover')) . q{)});
$receiver->control(release => JSON::PP::true);
ok(wait_for(sub { delivered('/hang?mover') + delivered('/ok?mover') == 50 }, 'all of it'), 'a subscription that moves from tenant to tenant keeps its events and its slots');
sql(q{SELECT outbox.unsubscribe('mover')});
wait_for(sub { sql('SELECT in_flight FROM outbox._worker()') eq '0' }, 'nothing being in flight');

is(worker_pid($node), $worker, 'all of that in one worker');
unlike(slurp_file($node->logfile), qr/ (?:ERROR|PANIC|FATAL|TRAP):/, 'no error in the log');

done_testing;
