# A crash can leave the row of an exception, but not the cursor that had passed its event. The event is delivered by its row, and not again when the log is read that far: not by the worker that delivered it, and not by the one
# after it, though what was before it is still under way.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use Test::More;

my $node = outbox_node('main');
my $session = session($node);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

# Events as [id, token of its lease]: so many; or as many as it takes to get this one, too
sub take
{
	my ($count, $wanted) = @_;
	my @taken;
	wait_for(sub {
			my $said = $session->query("SELECT event_id, token FROM outbox.pull('some', " . ($wanted ? 1000 : $count - @taken) . ')') // '';
			push @taken, [ $1, $2 ] while $said =~ /^([-0-9a-f]{36})\|([-0-9a-f]{36})$/mg;
			return $wanted ? (grep { $_->[0] eq $wanted } @taken) > 0 : @taken == $count }, $wanted // "$count events");
	return @taken;
}

sub ack
{
	my %by_token;
	push @{ $by_token{ $_->[1] } }, $_->[0] for @_;
	$session->query("SELECT outbox.ack('some', '{" . join(',', @{ $by_token{$_} }) . "}', '$_')") for keys %by_token;
}

# A lane holds a thousand events, so it is behind the head when more of them come at once. Behind the second thousand is one that fails. The worker must be killed before its next
# checkpoint: tried until that succeeds
sql(q{SELECT outbox.subscribe('some', types => '{load}', ordering => 'none')});
my $subscription = sql('SELECT id FROM outbox.subscription');
my $failed;
for my $try (1 .. 30)
{
	my $worker = worker_pid($node);    # not later: it all has to happen between two checkpoints
	my @ids = split /\n/, $session->query(q{SELECT outbox.enqueue('load', to_jsonb(i)) FROM generate_series(1, 2001) i});
	my $before = wait_for(sub {
			sql("SELECT c.seq FROM (SELECT * FROM outbox.cursor WHERE subscription_id = $subscription ORDER BY seq DESC LIMIT 1) c,"
					. " (SELECT * FROM outbox.cursor WHERE subscription_id = 0 ORDER BY seq DESC LIMIT 1) h WHERE NOT c.at_head AND c.base < h.base AND coalesce(c.after < '$ids[999]', true)") },
		'the lane being behind the head');
	ack(take(1000)) for 1 .. 2;
	my ($last) = take(1);
	$session->query("SELECT outbox.nack('some', NULL, '$last->[1]', '0 s')");
	wait_for(sub { $session->query("SELECT count(*) FROM outbox.delivery WHERE event_id = '$ids[-1]'") }, 'the row of the one that failed');
	$session->query(q{SELECT outbox.enqueue('other', '1')});      # its commit flushes the row
	stand_still($node, $worker);
	my $hit = sql("SELECT max(seq) FROM outbox.cursor WHERE subscription_id = $subscription") == $before;
	if ($hit) { kill_process($node, $worker); $failed = $ids[-1]; last }
	kill 'CONT', $worker;
	ack(take(1));
}
ok($failed, 'the worker was killed when the row was written, and the cursor was not');
$session = session($node);

my @first = take(1, $failed);
cmp_ok(scalar(@first), '<', 2001, 'its row brings it, before the log is read that far');
ack(grep { $_->[0] eq $failed } @first);
wait_for(sub { sql("SELECT count(*) FROM outbox.delivery WHERE event_id = '$failed'") eq '0' }, 'its row being gone');    # those before it, still held, get rows now
ack(grep { $_->[0] ne $failed } @first);
my $end = $session->query(q{SELECT outbox.enqueue('load', '"end"')});
my @rest = take(1, $end);
is(scalar(@first) + @rest, 2002, 'all of them come again, once');
is(scalar(grep { $_->[0] eq $failed } @rest), 0, 'it does not');

# ---- one is held, the next one failed, the worker ends; the next worker delivers that by its row, while the first one is still held
ack(@rest);
sql(q{SELECT outbox.subscribe('others', types => '{other}')});
my ($held, $again) = split /\n/, $session->query(q{SELECT outbox.enqueue('load', to_jsonb(i)) FROM generate_series(1, 2) i});
my %token = map { @$_ } take(2);
$session->query("SELECT outbox.nack('some', '{$again}', '$token{$again}', '0 s')");
sub rows { my ($id) = @_; return sql("SELECT count(*) FROM outbox.delivery WHERE event_id = '$id'") }
wait_for(sub { rows($again) }, 'the row of the one that failed');
my $worker = worker_pid($node);
sql("SELECT pg_terminate_backend($worker)");
wait_for(sub { (worker_pid($node) // $worker) != $worker }, 'another worker');
%token = map { @$_ } take(2);
is(join(' ', sort keys %token), "$held $again", 'both come again');
$session->query(q{SELECT outbox.enqueue('other', '2')});
wait_for(sub { $session->query(q{SELECT count(*) FROM outbox.pull('others', 10)}) }, 'the head being at what is new');
is(rows($held), 0, 'the one that is held has no row');
ack([ $again, $token{$again} ]);
ok(wait_for(sub { !rows($again) && rows($held) }, 'the rows'), 'once the one that failed is done, the one before it needs a row, for the cursor to pass both');
kill_process($node, worker_pid($node));
$session = session($node);
$end = $session->query(q{SELECT outbox.enqueue('load', '"end"')});
my %came;
wait_for(sub { $came{$_}++ for ($session->query(q{SELECT event_id FROM outbox.pull('some', 10)}) // '') =~ /^[-0-9a-f]{36}$/mg; $came{$held} && $came{$end} }, 'what is left');    # when its lease has ended
is(join(' ', sort keys %came), "$held $end", 'the next worker delivers only that again');

done_testing;
