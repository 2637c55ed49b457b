# Whatever operators do to some subscriptions, at random and while their receivers misbehave: the others get every event once and in order, the worker goes on without an error, and
# nothing is left in its counts or its memory.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Ledger;
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{OUTBOX_SEED} // int(rand 1_000_000);
diag "OUTBOX_SEED=$seed repeats what was done, not when";
srand $seed;

my $node = outbox_node('main', conf => [ 'outbox.max_in_flight = 24', 'outbox.max_in_flight_per_tenant = 6', "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $session = session($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub any { return $_[ int rand @_ ] }
sub worker { my ($column) = @_; return sql("SELECT $column FROM outbox._worker()") }

# How much each kind of the worker's memory is in use, by its own account in the server's log.
sub memory
{
	my ($pid) = @_;
	my $offset = -s $node->logfile;
	sql("SELECT pg_log_backend_memory_contexts($pid)");
	wait_for(sub { slurp_file($node->logfile, $offset) =~ /Grand total:/ }, 'the account of the memory');
	my (%used, $log);
	$log = slurp_file($node->logfile, $offset);
	$used{$1} += $2 while $log =~ /level: \d+; (.*?): .*; (\d+) used/g;
	($used{total}) = $log =~ /Grand total: .*; (\d+) used/;
	$used{count} = () = $log =~ /level: \d+; outbox (?:note|chunk|subscription)/g;
	return \%used;
}

# ---- who is left alone ------------------------------------------------------------------------------------------------------------------

my %alone = (
	binary => [ '/ok?binary' ],
	structured => [ '/flaky/1?structured', format => 'structured' ],
	batch => [ '/ok?batch', format => 'batch', batch_size => 20 ],
	failing => [ '/random/' . int(rand 1000) . '/20?failing', format => 'batch', batch_size => 8, batch_linger => '3 ms', max_attempts => 1000, retry_base => '10 ms' ],
	limited => [ '/ok?limited', format => 'batch', rate_limit => 50, max_in_flight => 2 ],
	breaking => [ '/random/' . int(rand 1000) . '/30?breaking', breaker_threshold => 2, breaker_probe => '10 ms', breaker_max => '20 ms', max_attempts => 1000, retry_base => '10 ms' ]);

for my $name (sort keys %alone)
{
	my ($path, @options) = @{ $alone{$name} };
	subscribe($node, $name, $receiver->url($path), types => ['load.made'], @options);
}

# ---- who is not -------------------------------------------------------------------------------------------------------------------------

my @names = map { "poked$_" } 1 .. 6;
my @paths = ('/ok', '/ok', '/status/500', '/status/400', '/status/413', '/gone', '/slow/30', '/slow/300', '/hang', '/reset/before', '/flaky/1', '/random/1/50', '/retry-after/1', '/random/2/90');
my @formats = ('binary', 'structured', 'batch', 'batch');

sub options
{
	return (
		url => $receiver->url(any(@paths) . '?poked'), format => any(@formats), batch_size => any(1, 3, 20, 100), batch_linger => any('0', '1 ms', '20 ms', '200 ms'),
		tenant => any('a', 'a', 'b', 'c'), ordering => any('key', 'key', 'none'), on_dead => any('skip', 'block'), max_in_flight => any(1, 2, 10, 50), rate_limit => any(0.5, 5, 100, 1000),
		breaker_threshold => any(0, 1, 3), breaker_probe => any('1 ms', '50 ms', '1 s'), breaker_max => any('1 s', '2 s'), max_attempts => any(1, 2, 20), max_blocked => any(1, 5, 100, 10000),
		timeout => any('200 ms', '5 s'), retry_base => any('10 ms', '200 ms'));
}
sub list { my (%options) = @_; return join ', ', map { "$_ => " . literal($options{$_}) } sort keys %options }
sub some { my ($n, %options) = @_; my @names = sort keys %options; my %some = map { $_ => $options{$_} } map { any(@names) } 1 .. $n; return %some }
sub subscribe_again
{
	my ($name) = @_;
	my %options = options();
	delete $options{tenant} if rand() < 0.4;
	delete $options{rate_limit} if rand() < 0.6;
	return "SELECT outbox.subscribe('$name', " . list(%options, network => 'private', starting => any('now', 'earliest'), if_not_exists => 'true') . ')';
}
sub noise { my ($n) = @_; return "SELECT count(outbox.enqueue('noise.made', to_jsonb(i), key => 'k' || i % " . any(1, 5, 50) . ", tenant => " . any("'a'", "'b'", "'c'", 'NULL') . ")) FROM generate_series(1, $n) AS i" }

my @actions = (
	sub { noise(any(1, 20, 200)) },
	sub { noise(any(1, 20, 200)) },
	sub { "SELECT outbox.pause('$_[0]')" },
	sub { "SELECT outbox.resume('$_[0]')" },
	sub { "SELECT outbox.resume('$_[0]')" },
	sub { "SELECT outbox.alter_subscription('$_[0]', " . list(some(any(1, 2, 5), options())) . ')' },
	sub { "SELECT outbox.alter_subscription('$_[0]', " . list(some(any(1, 2, 5), options())) . ')' },
	sub { "SELECT outbox.alter_subscription('$_[0]', reset => ARRAY['" . any('tenant', 'rate_limit', 'format', 'max_in_flight') . "'])" },
	sub { "SELECT outbox.redrive('$_[0]')" },
	sub { "SELECT outbox.discard('$_[0]', max_events => " . any(1, 100) . ')' },
	sub { "SELECT outbox.replay('$_[0]', now() - interval '5 s')" },
	sub { "SELECT outbox.cancel_replay('$_[0]')" },
	sub { "SELECT outbox.unsubscribe('$_[0]')" },
	sub { "SELECT outbox.rotate_secret('$_[0]', interval '1 s')" },
	sub { "WITH p AS (SELECT * FROM outbox.pull('pulled', " . any(1, 10, 100) . ", interval '" . any('100 ms', '1 s') . "')) SELECT " . any('count(*)', "outbox.ack('pulled', array_agg(p.event_id), p.token)", "outbox.nack('pulled', array_agg(p.event_id), p.token, " . any('NULL', "'0'") . ')') . ' FROM p GROUP BY p.token' },
	sub { "SELECT outbox." . any('pause', 'resume', 'resume') . "('pulled')" },
	sub { 'SELECT pg_reload_conf()' });

# Does as many random things; what the worker may be asked to do concerns nobody here, an error in C does.
my @internal;

sub poke
{
	my ($n) = @_;
	for (1 .. $n)
	{
		my $name = any(@names);
		my @commands = any(@actions)->($name);
		push @commands, subscribe_again($name) if $commands[0] =~ /unsubscribe/;
		@commands = ('BEGIN', @commands, any('COMMIT', 'COMMIT', 'ROLLBACK')) if rand() < 0.2 && $commands[0] !~ /pull\(/;
		for my $command (@commands)
		{
			my $said = $session->query($command) // 'the connection is lost';
			push @internal, "$command: $said" if $said =~ /XX000|the connection is lost/;
		}
		$session->query('ROLLBACK') if @commands > 1;
	}
}

# All of them gone, and nothing under way.
sub quiet
{
	sql("SELECT outbox.unsubscribe(name) FROM outbox.subscription WHERE name ~ '^(poked|pulled)'");
	$receiver->control(release => JSON::PP::true());
	ok(wait_for(sub { worker('in_flight') eq '0' }, 'the end of all requests'), 'nothing is in flight');
	wait_for(sub { sql('SELECT count(*) FROM outbox.delivery') eq '0' }, 'the end of all exceptions');
}
sub begin
{
	$session->query(subscribe_again($_)) for @names;
	$session->query("SELECT outbox.subscribe('pulled', types => '{noise.made}')");
}

# ---- all of it --------------------------------------------------------------------------------------------------------------------------

my $pid = worker_pid($node);
my $ledger = Outbox::Ledger->new;
my @used;

for my $round (1 .. 2)
{
	my $producers = start_producers($node, count => 2, transactions => 250, tag => "r$round-", pause => '0.005');

	begin();
	poke(120);
	finish_producers($producers, $ledger);
	for my $name (sort keys %alone)
	{
		wait_for(sub { $ledger->complete($receiver, $alone{$name}[0]) }, "round $round: all events at $name", 60);
	}
	quiet();
	push @used, memory($pid);
}
check_ledger($ledger, $receiver, $alone{$_}[0], what => $_, duplicates => 1e9) for sort keys %alone;
is(scalar @{ $ledger->check($receiver, $alone{$_}[0])->{duplicates} }, 0, "$_: each once") for qw(binary batch limited);
is(join("\n", @internal), '', 'no command met an internal error');
is(worker('worker_pid'), $pid, 'the worker is the same');
is(worker("COALESCE(error, '')"), '', 'and had no trouble');
is(sql('SELECT count(*) FROM outbox.subscription_status WHERE in_flight <> 0'), '0', 'in_flight is 0');
diag join ', ', map { "$_ $used[0]{$_} > $used[1]{$_}" } grep { defined $used[0]{$_} && defined $used[1]{$_} && abs($used[0]{$_} - $used[1]{$_}) > 4096 } sort keys %{ $used[0] };
cmp_ok($used[1]{'outbox lanes'}, '<=', $used[0]{'outbox lanes'} + 8192, 'no lane or item is left over');

done_testing();
