# See test/bench/isolation.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my ($subscriptions, $sick, $seconds) = map { $ARGV[$_] // (1000, 100, 20)[$_] } 0 .. 2;
my $rate = 100;      # events per second, each for one subscription
my $node = outbox_node('main');
my $well = Outbox::Receiver->new(fsync => 0);
my $ill = Outbox::Receiver->new(fsync => 0);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
my $terminal = Test::More->builder->failure_output;    # standard output is the log's
sub say_it { print $terminal "@_\n" }

# The sick are the first ones; a type for each, so that all get the same load
my @sickness = ('/hang?%d', '/drip/100?%d', '', '/status/500?%d');
sub url { my ($n, $sickly) = @_; return $well->url("/ok?$n") unless $sickly && $n <= $sick; my $path = $sickness[ $n % 4 ]; return $path eq '' ? 'http://127.0.0.1:1/' : $ill->url(sprintf $path, $n) }
sql(join ';', map { "SELECT outbox.subscribe('s$_', " . literal(url($_, 0)) . ", types => '{t$_}', network => 'private', timeout => '5 s', retry_base => '1 s', retry_factor => 1, tenant => 'tenant$_')" } 1 .. $subscriptions);
sql(q{SELECT outbox.alter_subscription('s' || i, breaker_probe => '1 s', breaker_max => '5 s') FROM generate_series(1, } . $sick . ') AS i');

# One event per transaction, at times that are spread evenly, to subscriptions in turn; every tenth is a burst of ten for one of the sick
sub load
{
	my ($label) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir();
	open my $script, '>', "$directory/load.sql" or die;
	my $n = $seconds * $rate;
	for my $i (1 .. $n)
	{
		my $to = 1 + ($i * 7919) % $subscriptions;
		my $burst = 1 + $i % $sick;
		print $script "SELECT outbox.enqueue('t$to', '\"$label\"', tenant => 'tenant$to');\n";
		print $script "SELECT count(outbox.enqueue('t$burst', '\"$label\"', tenant => 'tenant$burst')) FROM generate_series(1, 10);\n" if $i % 10 == 0;
		print $script 'SELECT pg_sleep(' . 0.8 / $rate . ");\n";
	}
	close $script;
	system('psql', '-XAtq', '-o', '/dev/null', '-d', $node->connstr('postgres'), '-f', "$directory/load.sql") == 0 or die;
	my @latency;
	my %made = map { split /\|/ } split /\n/, sql("SELECT id, EXTRACT(epoch FROM created_at) FROM outbox.event WHERE payload = to_jsonb('$label'::text) AND substr(type, 2)::int > $sick");
	wait_for(sub { my %came = map { $_->{id} => 1 } $well->requests; !grep { !$came{$_} } keys %made }, 'all events of the healthy', 60);
	my %seen;
	for my $request ($well->requests)
	{
		my $made = $made{ $request->{id} } // next;
		push @latency, 1000 * ($request->{at} - $made) unless $seen{ $request->{id} }++;
	}
	@latency = sort { $a <=> $b } @latency;
	my ($p50, $p99) = map { $latency[ $_ * $#latency ] } 0.5, 0.99;
	my $state = sql(q{SELECT string_agg(n || ' ' || state, ', ' ORDER BY state) FROM (SELECT state, count(*) AS n FROM outbox.subscription_status GROUP BY state) AS x}) . ', in flight ' . sql('SELECT in_flight FROM outbox._worker()');
	say_it(sprintf '%-8s %5d events of the healthy: p50 %6.2f ms, p99 %6.2f ms, max %7.2f ms  (%s)', $label, scalar @latency, $p50, $p99, $latency[-1], $state);
	return $p99;
}

load('warm-up');
my (@healthy, @beside);
for my $round (1 .. 3)
{
	push @healthy, load("healthy$round");
	sql("SELECT " . join ', ', map { "outbox.alter_subscription('s$_', url => " . literal(url($_, 1)) . ')' } 1 .. $sick);
	push @beside, load("beside$round");
	sql("SELECT " . join ', ', map { "outbox.alter_subscription('s$_', url => " . literal(url($_, 0)) . ')' } 1 .. $sick);
	wait_for(sub { sql(q{SELECT count(*) FROM outbox.subscription_status WHERE lag_events > 0 OR state <> 'active'}) eq '0' }, 'all being well again', 120);
}
my @ratio = sort { $a <=> $b } map { $beside[$_] / $healthy[$_] } 0 .. 2;
say_it(sprintf 'p99 beside the sick / p99 with all healthy: %s; median %.2f', join(' ', map { sprintf '%.2f', $_ } @ratio), $ratio[1]);
$node->stop('fast');
