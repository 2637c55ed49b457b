# Subscriptions are found by tenant, type and first word of a type, and those that begin together or fall behind together read together. Whatever the short cut: each gets what the
# rules in SQL say, once, in order; and the log is not read once for each of them.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
my $worker = worker_pid($node);
my $seed = $ENV{OUTBOX_SEED} // int rand 1_000_000;
srand $seed;
diag "OUTBOX_SEED=$seed";

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub one_of { return $_[ rand @_ ] }
sub words { my ($most, @words) = @_; return join '.', map { one_of(@words) } 1 .. 1 + rand $most }
sub pattern { return words(3, qw(a a b b c *), one_of('*', '**')) }
sub patterns { my %patterns = map { pattern() => 1 } 1 .. 1 + rand 3; return 'ARRAY[' . join(',', map { literal($_) } sort keys %patterns) . ']' }
sub event { return 'SELECT outbox.enqueue(' . literal(words(3, qw(a b c))) . ", '{}', tenant => " . one_of(qw(NULL NULL 't1' 't2')) . ')' }
sub events { my ($n) = @_; return join '; ', map { event() } 1 .. $n }

# What came, as "subscription id" => how often
sub came
{
	my %came;
	$came{ ($_->{path} =~ /\?(.*)/)[0] . " $_->{id}" }++ for $receiver->requests;
	return \%came;
}

# The difference between what came and what should have come, in words.
sub difference
{
	my ($wanted) = @_;
	my $came = came();
	return join ', ', (map { "missing $_" } grep { !$came->{$_} } sort keys %$wanted), (map { $wanted->{$_} ? "$came->{$_} times $_" : "not for it $_" } grep { !$wanted->{$_} || $came->{$_} > 1 } sort keys %$came);
}

sub all_requests { return scalar(() = $receiver->requests) }

sub agrees
{
	my ($query, $what) = @_;
	my %wanted = map { $_ => 1 } split /\n/, sql($query);
	ok(wait_arriving(sub { my $came = came(); keys %$came >= keys %wanted && !grep { !$came->{$_} } keys %wanted }, \&all_requests), "$what: all of it");
	wait_for(sub { sql('SELECT count(*) FROM outbox.subscription_status WHERE lag_events > 0') eq '0' }, "$what: nothing left");
	cmp_ok(scalar keys %wanted, '>', 50, "$what: " . keys(%wanted) . ' deliveries');
	is(difference(\%wanted), '', "$what: no more, no less");
}

# ---- random rules, of subscriptions that begin within one transaction, beside which events are committed
my $by_judge = q{SELECT s.name || ' ' || e.id FROM outbox.event AS e, outbox.subscription AS s
	WHERE outbox._mismatch(s.types, s.tenant, s.filter, e.type, e.tenant, e.payload) IS NULL AND NOT pg_visible_in_snapshot(e.xid, s.start_snapshot)};
my ($one, $other) = (session($node), session($node));
sub begin
{
	my ($n) = @_;
	return "SELECT outbox.subscribe('s$n', " . literal($receiver->url("/ok?s$n")) . ', types => ' . patterns() . ', tenant => ' . one_of(qw(NULL NULL NULL 't1' 't2')) .
		", network => 'private', ordering => 'none')";
}
$one->query('BEGIN');
$other->query('BEGIN');
for my $n (1 .. 60)
{
	$one->query(begin($n));
	$other->query($_) for split /; /, events(3);
	sql(events(2)) if $n % 5 == 0;
	$other->query('COMMIT; BEGIN') if $n % 20 == 10;
}
$one->query('COMMIT');
sql(events(100));
$other->query('COMMIT');
sql(join ';', map { begin($_) } 61 .. 70);
sql(events(100));
agrees($by_judge, 'random rules');

# ---- a ping is for one subscription, whatever its rules
my %tenant = map { split /\|/ } split /\n/, sql(q{SELECT COALESCE(tenant, '-'), min(name) FROM outbox.subscription GROUP BY tenant});
my %ping = map { $tenant{$_} => sql("SELECT outbox.ping('$tenant{$_}')") } sort keys %tenant;
wait_for(sub { my $came = came(); !grep { !$came->{"$_ $ping{$_}"} } keys %ping }, 'the pings');
is(join(' ', sort map { ($_->{path} =~ /\?(.*)/)[0] } grep { my $id = $_->{id}; grep { $_ eq $id } values %ping } $receiver->requests), join(' ', sort keys %ping), 'a ping arrives, with a tenant too, and only where it is for');

# ---- rules that change while events flow: event_status() says what was for whom
sql("SELECT outbox.unsubscribe(name) FROM outbox.subscription WHERE substr(name, 2)::int > 12");

# What was open when a change looked, and was matched before that was committed, was matched by the rules before it
sql("SELECT outbox.subscribe('watch', " . literal($receiver->url('/ok?watch')) . ", types => '{open.*}', network => 'private'); SELECT outbox.subscribe('changed', " . literal($receiver->url('/ok?changed')) . ", types => '{open.a}', network => 'private')");
my %judged;
for my $round (1 .. 10)
{
	my ($was, $is) = $round % 2 ? qw(a b) : qw(b a);
	$other->query('BEGIN');
	my %open = map { $_ => $other->query("SELECT outbox.enqueue('open.$_', '{}')") } qw(a b);
	$one->query('BEGIN');
	$one->query("SELECT outbox.alter_subscription('changed', types => '{open.$is}')");
	$other->query('COMMIT');
	wait_for(sub { my $came = came(); $came->{"watch $open{a}"} && $came->{"watch $open{b}"} }, 'both are matched');
	$one->query('COMMIT');
	wait_for(sub { sql('SELECT count(*) FROM outbox.subscription_match WHERE NOT met') eq '0' && came()->{"changed $open{$was}"} }, 'the change is met');
	wait_status($node, $open{$was}, 'changed', 'delivered');    # recorded after it came
	$judged{ join ' ', map { sql("SELECT status FROM outbox.event_status('$open{$_}') WHERE subscription = 'changed'") . (came()->{"changed $open{$_}"} ? ' came' : '') } $was, $is }++;
}
is(join(', ', map { "$judged{$_} times $_" } sort keys %judged), '10 times delivered came unmatched', 'what a change did not apply to yet is not said to be wanted');
sql("SELECT outbox.unsubscribe('watch'), outbox.unsubscribe('changed')");

my $before = sql('SELECT id FROM outbox.event ORDER BY id DESC LIMIT 1');
for my $round (1 .. 40)
{
	my $name = 's' . int 1 + rand 12;
	$other->send(events(8));
	sql("SELECT outbox.alter_subscription('$name', types => " . patterns() . ')');
	$other->receive;
}
# Until the worker has met a change, event_status() cannot tell up to where it has matched by the rules before; a ping that comes after it shows that it has
my %last_ping = map { $_ => sql("SELECT outbox.ping('s$_')") } 1 .. 12;
wait_for(sub { my $came = came(); !grep { !$came->{"s$_ $last_ping{$_}"} } keys %last_ping }, 'the last pings');
my $ids = "(SELECT e.id FROM outbox.event AS e WHERE e.id > '$before')";
my %wanted = map { $_ => 1 } split /\n/, sql("SELECT st.subscription || ' ' || e.id FROM $ids AS e, outbox.event_status(e.id) AS st WHERE st.status <> 'unmatched'");
cmp_ok(scalar keys %wanted, '>', 100, 'rules that change: ' . keys(%wanted) . ' deliveries');
my %new = map { $_ => 1 } split /\n/, sql("SELECT id FROM $ids AS e");
sub new_ones { my $came = came(); return { map { $_ => $came->{$_} } grep { $new{ (split / /)[1] } } keys %$came } }
wait_for(sub { my $came = new_ones(); !grep { !$came->{$_} } keys %wanted }, 'what the rules of the moment wanted')
	or diag map { my ($name, $id) = split / /; "$_: " . sql("SELECT e.type, e.xid, s.types FROM outbox.event AS e, outbox.subscription AS s WHERE e.id = '$id' AND s.name = '$name'") . "\n" .
		sql("SELECT at, what, detail FROM outbox.trace('$id') WHERE subscription = '$name' OR subscription IS NULL") . "\n" .
		sql("SELECT m.* FROM outbox.subscription_match AS m, outbox.subscription AS s WHERE s.name = '$name' AND m.subscription_id = s.id") . "\n" } grep { !new_ones()->{$_} } sort keys %wanted;
wait_for(sub { sql('SELECT count(*) FROM outbox.subscription_status WHERE lag_events > 0') eq '0' }, 'nothing left');
is(join(' ', grep { !$wanted{$_} } sort keys %{ new_ones() }), '', 'rules that change: nothing that they did not want');

# ---- who falls behind together reads together
sql('SELECT outbox.unsubscribe(name) FROM outbox.subscription');
my $all = 8;
sql(join ';', map { "SELECT outbox.subscribe('all$_', " . literal($receiver->url("/ok?all$_")) . ", types => '{bulk.**}', network => 'private', max_in_flight => " . ($_ % 4 + 1) . ')' } 1 .. $all);
enqueue($node, 'bulk.first', '{}');
wait_for(sub { sql('SELECT count(*) FROM outbox.subscription_status WHERE lag_events > 0') eq '0' && $all == grep { $_->{path} =~ /all/ } $receiver->requests }, 'all at the head');
sub rows_read { return sql(q{SELECT pg_stat_force_next_flush(); SELECT sum(idx_tup_fetch) FROM pg_stat_all_tables WHERE relid IN (SELECT s.relation FROM outbox._segments() AS s)}) =~ s/\s//gr }
my $read = rows_read();
my $n = 2500;
sql("SELECT count(outbox.enqueue('bulk.event', to_jsonb(i), key => 'k' || i % 7)) FROM generate_series(1, $n) AS i");
ok(wait_arriving(sub { $all * ($n + 1) <= grep { $_->{path} =~ /all/ } $receiver->requests }, \&all_requests), 'a large transaction, everywhere');
my (%last, @disorder, %times);
for my $request (grep { $_->{path} =~ /all/ } $receiver->requests)
{
	my $lane = "$request->{path} $request->{headers}{'ce-partitionkey'}";
	$times{"$request->{path} $request->{id}"}++;
	push @disorder, "$lane $request->{id}" if ($last{$lane} // '') ge $request->{id};
	$last{$lane} = $request->{id};
}
is(scalar @disorder, 0, 'each key in order') or diag join "\n", @disorder[ 0 .. 3 ];
is(scalar(grep { $_ != 1 } values %times), 0, 'each event once');
is(worker_pid($node), $worker, 'by the same worker');
wait_for(sub { rows_read() - $read >= $n }, 'the counters of the server');
my $times_read = (rows_read() - $read) / $n;
cmp_ok($times_read, '<', $all / 2, sprintf('%d subscriptions read the log %.1f times', $all, $times_read));
$node->stop('fast');
done_testing();
