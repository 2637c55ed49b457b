# Rotation of signing secrets and changes of static headers take effect at once: each request is signed by whoever signs at its time, by both during an overlap, and carries the headers of its time.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', key => 1, conf => [ "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub signatures { my ($request) = @_; return split / /, $request->{headers}{'webhook-signature'} // '' }

# Which of these secrets signed a request, in the order of the signatures; "?" is nobody's
sub signers
{
	my ($request, %secrets) = @_;
	return join ' ', map { my $signature = $_; (grep { signature_of($request, $secrets{$_}) eq $signature } sort keys %secrets)[0] // '?' } signatures($request);
}

# An event that is enqueued now, and the request it becomes
sub one
{
	my ($name) = @_;
	my $id = enqueue($node, $name, '{"n": 1}');
	return wait_for(sub { ($receiver->of("/ok?$name", $id))[0] }, "the request of $id");
}

# ---- step by step -------------------------------------------------------------------------------------------------------------------

my %secret = (a => subscribe($node, 'steps', $receiver->url('/ok?steps'), types => ['steps']));
is(signers(one('steps'), %secret), 'a', 'the first secret signs');
$secret{b} = sql(q{SELECT outbox.rotate_secret('steps')});
is(signers(one('steps'), %secret), 'b a', 'then both do, the newest first');
$secret{c} = sql(q{SELECT outbox.rotate_secret('steps', overlap => '1 h')});
$secret{d} = sql(q{SELECT outbox.rotate_secret('steps', overlap => '30 d')});
is(signers(one('steps'), %secret), 'd c b a', 'as many as there may be');
my (undef, undef, $error) = $node->psql('postgres', q{SELECT outbox.rotate_secret('steps')});
like($error, qr/has too many secrets/, 'and not one more');
is(signers(one('steps'), %secret), 'd c b a', 'which changes nothing');
$secret{e} = sql(q{SELECT outbox.rotate_secret('steps', overlap => '0')});
is(signers(one('steps'), %secret), 'e', 'without an overlap the old ones stop at once');
$secret{f} = sql(q{SELECT outbox.rotate_secret('steps', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')});
is($secret{f}, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'an imported one');
is(signers(one('steps'), %secret), 'f e', 'signs like any other');
my $session = session($node);
$session->query('BEGIN');
$session->query(q{SELECT outbox.rotate_secret('steps')});
is(signers(one('steps'), %secret), 'f e', 'a rotation that is not committed has no effect');
$session->query('ROLLBACK');
is(signers(one('steps'), %secret), 'f e', 'nor has one that is rolled back');

# an overlap ends by itself: nothing wakes the worker but the time
$secret{g} = sql(q{SELECT outbox.rotate_secret('steps', overlap => '8 s')});
is(signers(one('steps'), %secret), 'g f e', 'within a short overlap');
wait_for(sub { sql(q{SELECT bool_and(expires_at <= clock_timestamp()) FROM outbox.secret WHERE kind = 'signing' AND expires_at IS NOT NULL}) ne 'f' }, 'the end of the overlap');
is(signers(one('steps'), %secret), 'g', 'after it the new one alone');
ok(wait_for(sub { sql(q{SELECT count(*) FROM outbox.secret WHERE expires_at IS NOT NULL}) eq '0' }, 'maintenance'), 'and maintenance removes the others');
is(signers(one('steps'), %secret), 'g', 'which changes nothing');
$secret{h} = sql(q{SELECT outbox.rotate_secret('steps')});
$node->restart;
my $worker = worker_pid($node);
is(signers(one('steps'), %secret), 'h g', 'a restart changes nothing either');
is(sql(q{SELECT secret_hint FROM outbox.subscription_status WHERE name = 'steps'}), "..." . substr($secret{h}, -4), 'four characters are shown');

# two at a time: the second one waits for the first, and then goes on from there
my $first = session($node);
my $second = session($node);
sql(q{SELECT outbox.rotate_secret('steps', overlap => '0')});
$first->query('BEGIN');
my $one = $first->query(q{SELECT outbox.rotate_secret('steps')});
$second->send(q{SELECT outbox.rotate_secret('steps')});
wait_for(sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%rotate%'}) eq '1' }, 'the second to wait');
$first->query('COMMIT');
my $two = $second->receive;
chomp($one, $two);
is(signers(one('steps'), one => $one, two => $two), 'two one ?', 'two rotations at a time are two rotations');
is(sql(q{SELECT count(*) FROM outbox.secret WHERE expires_at IS NULL}), '1', 'only one secret has no end');
$second->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
$second->query('SELECT 1');
sql(q{SELECT outbox.rotate_secret('steps', overlap => '0')});
like($second->query(q{SELECT outbox.rotate_secret('steps')}), qr/40001/, 'with an old snapshot the second one fails');
$second->query('ROLLBACK');
is(sql(q{SELECT count(*) FROM outbox.secret WHERE expires_at IS NULL}), '1', 'only one secret has no end');

# ---- static headers -----------------------------------------------------------------------------------------------------------------

subscribe($node, 'headers', $receiver->url('/ok?headers'), types => ['headers'], headers => '{"Authorization": "Bearer token-1", "X-Shop": "7"}');
sub header { my ($request, $name) = @_; return $request->{headers}{$name} // 'none' }
my $request = one('headers');
is(header($request, 'authorization') . ' ' . header($request, 'x-shop'), 'Bearer token-1 7', 'headers are sent with every request');
sql(q{SELECT outbox.alter_subscription('headers', headers => '{"Authorization": "Bearer token-2"}')});
$request = one('headers');
is(header($request, 'authorization') . ' ' . header($request, 'x-shop'), 'Bearer token-2 none', 'others from the commit on');
my $id = enqueue($node, 'headers', '{"n": 2}', headers => '{"AUTHORIZATION": "Bearer forged", "X-Own": "9"}');
$request = wait_for(sub { ($receiver->of('/ok?headers', $id))[0] }, 'the request');
is(header($request, 'authorization') . ' ' . header($request, 'x-own'), 'Bearer token-2 9', "the subscription's win over the event's");
sql(q{SELECT outbox.alter_subscription('headers', reset => '{headers}')});
is(header(one('headers'), 'authorization'), 'none', 'none after a reset');
is(header(one('steps'), 'authorization'), 'none', 'others have none');

# ---- under load ---------------------------------------------------------------------------------------------------------------------

my @secrets = subscribe($node, 'load', $receiver->url('/ok?load'), types => ['load.made'], max_in_flight => 20);
my @token = ('token 0');
sql(q{SELECT outbox.alter_subscription('load', headers => '{"Authorization": "token 0"}')});
my $ledger = Outbox::Ledger->new;
my $producers = start_producers($node, count => 2, transactions => 100_000);
my $target = 0;
sub more { $target = $receiver->requests('/ok?load') + 100; return wait_for(sub { $receiver->requests('/ok?load') >= $target }, 'a hundred requests more') }
more();
my @marks;    # after each change: how many requests had come when it was committed, and what may sign from then on
for my $round (1 .. 6)
{
	my $overlap = $round % 2 ? '1 h' : '0';
	push @secrets, sql("SELECT outbox.rotate_secret('load', overlap => '$overlap')");
	sql(qq{SELECT outbox.alter_subscription('load', headers => '{"Authorization": "token $round"}')});
	# whatever is enqueued from here on is sent later than the changes were committed
	my $mark = enqueue($node, 'load.made', '{"mark": 1}');
	wait_for(sub { ($receiver->of('/ok?load', $mark))[0] }, 'the mark');
	push @marks, [ $mark, $round, $overlap ];
	more();
}
stop_producers($node);
finish_producers($producers, $ledger);
$ledger->committed($_->[0], "mark $_->[1]") for @marks;
wait_for(sub { sql(q{SELECT lag_events FROM outbox.subscription_status WHERE name = 'load'}) eq '0' }, 'the rest');

my %names = map { $_ => $secrets[$_] } 0 .. $#secrets;
my (%seen, @wrong);
my ($newest, $token) = (0, 0);
for my $request ($receiver->requests('/ok?load'))
{
	my $by = signers($request, %names);
	my $with = ($request->{headers}{authorization} // 'none') =~ s/^token //r;
	$seen{$by}++;
	my @by = split ' ', $by;
	# newest first, without a gap, and no one that was stopped: an odd rotation keeps the one before, an even one nobody
	my $right = $by[0] eq '?' ? '?' : $by[0] % 2 ? "$by[0] " . ($by[0] - 1) : $by[0];
	push @wrong, "$by with $with" if $by ne $right || $with !~ /^\d$/ || abs($with - $by[0]) > 1;
}
is("@wrong[0 .. ($#wrong < 4 ? $#wrong : 4)]", '', 'each of ' . (scalar $receiver->requests('/ok?load')) . ' requests was signed by those who signed at its time, and had a token of that time');
is(join(', ', sort keys %seen), '0, 1 0, 2, 3 2, 4, 5 4, 6', 'all of them were seen');
for (@marks)
{
	my ($mark, $round) = @$_;
	my ($request) = $receiver->of('/ok?load', $mark);
	is((split ' ', signers($request, %names))[0] . " $request->{headers}{authorization}", "$round token $round", "round $round: what is enqueued after the change is sent with it");
}
check_ledger($ledger, $receiver, '/ok?load');
is(worker_pid($node), $worker, 'it is still the same worker');
is(sql(q{SELECT count(*) FROM outbox.attempt WHERE error IS NOT NULL}), '0', 'nothing failed');

# ---- nowhere to be seen -------------------------------------------------------------------------------------------------------------

my $log = slurp_file($node->logfile);
my $told = sql(q{SELECT string_agg(t::text, ' ') FROM outbox.attempt AS t}) . sql(q{SELECT string_agg(t::text, ' ') FROM outbox.subscription_status AS t})
	. sql(q{SELECT string_agg(t::text, ' ') FROM outbox.operation AS t}) . sql('SELECT t::text FROM outbox.health() AS t') . sql(q{SELECT string_agg(t::text, ' ') FROM outbox.subscription AS t});
delete $secret{f};    # as an argument it is in the log, for tests log statements
is(scalar(grep { index($log, substr $_, 6) >= 0 } values %secret, @secrets), 0, 'no secret in the server log');
is(scalar(grep { index($told, substr $_, 6, 20) >= 0 } values %secret, @secrets), 0, 'no secret in what can be read');
unlike($told, qr/Bearer|token \d/, 'no header value either');

done_testing();
