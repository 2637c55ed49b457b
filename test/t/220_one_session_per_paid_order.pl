# The example: a payment in one database becomes a session in another, once; whoever is killed in between, and however often everything is sent.
use strict;
use warnings;

use Digest::SHA qw(hmac_sha256_base64);
use FindBin;
use IO::Socket::INET;
use lib "$FindBin::RealBin/../perl";
use MIME::Base64 qw(decode_base64 encode_base64);
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $example = "$FindBin::RealBin/../../examples/orders-and-interviews";

# ---- the one command ----------------------------------------------------------------------------------------------------------------------

{
	my ($out, $err);
	ok(IPC::Run::run([ "$example/run" ], '<', \undef, '>', \$out, '2>', \$err), 'the example runs') or diag "$out$err";
	like($out, qr/^events replayed: 80\npaid orders: 80\nsessions: 80$/m, 'and says what it should');
}

# ---- the same services, each with a server of its own ---------------------------------------------------------------------------------------

my %server;
for my $name ('orders', 'interviews')
{
	my $node = $server{$name} = PostgreSQL::Test::Cluster->new($name);
	$node->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\nmax_worker_processes = 16\n" . ($name eq 'orders' ? "synchronous_commit = off\n" : ''));
	$node->start;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, slurp_file("$example/$name.sql"));
}
sub orders { my ($sql) = @_; return $server{orders}->safe_psql('orders', $sql) }
sub interviews { my ($sql) = @_; return $server{interviews}->safe_psql('interviews', $sql) }
sub crash { my ($name) = @_; $server{$name}->stop('immediate'); $server{$name}->start }

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $secret = orders("SELECT outbox.subscribe('interviews', 'http://127.0.0.1:$port/webhooks', types => '{PaymentCompleted}', format => 'structured', network => 'private', retry_base => '50 ms', retry_factor => 1, max_attempts => 1000, breaker_threshold => 0)");
my $directory = PostgreSQL::Test::Utils::tempdir();
my %running;

# start(what, settings, program, argument…): node, with the settings in its environment; returns its pid
sub start
{
	my ($what, $settings, @command) = @_;
	my $pid = fork // die;
	if ($pid == 0)
	{
		%ENV = (%ENV, %$settings);
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', "$directory/$what";
		open STDERR, '>&', \*STDOUT;
		exec 'node', @command or POSIX::_exit(127);
	}
	$running{$pid} = 1;
	return $pid;
}
sub ended { my ($pid) = @_; waitpid $pid, 0; delete $running{$pid}; my $status = $?; $? = 0; return $status }
sub of { my ($name, $user) = @_; return (PGHOST => $server{$name}->host, PGPORT => $server{$name}->port, PGDATABASE => $name, PGUSER => $user) }
END { my $status = $?; if (%running) { kill 'KILL', keys %running; waitpid $_, 0 for keys %running } $? = $status }

my $receiver;
sub start_receiver
{
	my ($die_at) = @_;
	my %settings = (of('interviews', 'interviews'), PORT => $port, WEBHOOK_SECRET => $secret);
	$receiver = $die_at ? start('receiver', { %settings, DIE_AT => $die_at }, '--require', "$FindBin::RealBin/../drivers/die.js", "$example/receiver.js") : start('receiver', \%settings, "$example/receiver.js");
}
sub kill_receiver { kill 'KILL', $receiver; ended($receiver) }
sub start_payments { return start('payments', { of('orders', 'payments') }, "$example/pay.js", @_) }

# New orders, of candidates of their own. Every fifth has no credit.
my $orders = 0;
sub new_orders
{
	my ($n) = @_;
	my ($first, $last) = ($orders + 1, $orders += $n);
	orders("INSERT INTO candidate SELECT 'candidate ' || i, CASE WHEN i % 5 = 0 THEN 19 ELSE 20 END FROM generate_series($first, $last) AS i");
	orders("INSERT INTO orders SELECT i, 'candidate ' || i, 20 FROM generate_series($first, $last) AS i");
	return $first .. $last;
}
sub sessions { my ($order) = @_; return interviews('SELECT count(*) FROM interview_session' . ($order ? " WHERE order_id = $order" : '')) }
sub all_delivered
{
	return wait_for(sub { orders(q{SELECT bool_and(s.status IN ('delivered', 'dead')) AND NOT EXISTS (SELECT FROM outbox.delivery_status WHERE status <> 'dead') AND NOT EXISTS (SELECT FROM outbox.replay)
		FROM outbox.event AS e CROSS JOIN outbox.event_status(e.id) AS s}) eq 't' }, 'everything being sent', 60);
}

# ---- the receiver dies at each point ----------------------------------------------------------------------------------------------------------

my %left = ('before it verifies' => qr/^0$/, 'after it accepted' => qr/^0$/, 'before it commits' => qr/^0$/, 'while it commits' => qr/^[01]$/, 'before it answers' => qr/^1$/, 'after it answered' => qr/^1$/);
for my $point (sort keys %left)
{
	my ($order) = new_orders(1);
	($order) = new_orders(1) if $order % 5 == 0;
	start_receiver($point);
	ended(start_payments($order));
	is(ended($receiver) & 127, 9, "killed $point");
	like(slurp_file("$directory/receiver"), qr/^dies: $point$/m, '… there');
	# what it had sent to its server may still be under way
	wait_for(sub { interviews(q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'interviews'}) eq '0' }, 'the end of its connections');
	like(sessions($order), $left{$point}, '… which leaves so many sessions');
	start_receiver();
	all_delivered();
	is(sessions($order), '1', '… and in the end one');
	kill_receiver();
}

# ---- everybody dies under load -------------------------------------------------------------------------------------------------------------------

start_receiver();
for my $victim ('receiver', 'interviews', 'receiver', 'orders', 'receiver')
{
	my @ids = new_orders(40);
	my $before = sessions();
	my @payments = map { start_payments(@$_) } [ @ids[ 0 .. 19 ] ], [ @ids[ 20 .. 39 ] ];
	wait_for(sub { sessions() >= $before + 3 }, 'some sessions', 60);
	sleep rand 0.05;    # not to wait for anything: for another moment each time
	if ($victim eq 'receiver') { kill_receiver(); start_receiver() }
	else { crash($victim) }
	ended($_) for @payments;
	is(ended(start_payments(@ids)), 0, "killed under load: $victim; the payments are tried again");
}
kill 0, $receiver or ok(0, 'the receiver outlives the servers');
all_delivered();

# ---- what was given up is redriven, and all of it replayed -----------------------------------------------------------------------------------------

orders(q{SELECT outbox.alter_subscription('interviews', max_attempts => 2)});
kill_receiver();
my @ids = new_orders(20);
ended(start_payments(@ids));
wait_for(sub { orders(qq{SELECT count(*) FROM outbox.dead_letter WHERE key::int >= $ids[0]}) eq '16' }, 'dead letters', 60);
start_receiver();
cmp_ok(orders(q{SELECT outbox.redrive('interviews')}), '>=', 16, 'dead letters are redriven');
all_delivered();

orders(q{SELECT outbox.alter_subscription('interviews', max_attempts => 1000)});
my $paid = orders('SELECT count(*) FROM orders WHERE paid_at IS NOT NULL');
is(orders(q{SELECT outbox.replay('interviews', since => '-infinity')}), $paid, 'there is an event for each paid order, and all are replayed');
wait_for(sub { orders('SELECT sum(replayed) > 0 OR count(*) = 0 FROM outbox.replay') eq 't' }, 'the replay to begin');
kill_receiver();
start_receiver();
all_delivered();
is(orders('SELECT count(*) FROM outbox.dead_letter'), '0', 'nothing was given up');
# (counts that are just being written down are missing for a moment)
ok(wait_for(sub { interviews("SELECT duplicates >= $paid / 2 FROM outbox.inbox_status WHERE consumer = 'interviews'") eq 't' }, 'duplicates'), 'the receiver had seen them all before');

# ---- strangers ---------------------------------------------------------------------------------------------------------------------------------------

sub post
{
	my ($signed_with, $body) = @_;
	my ($id, $time) = ('stranger', time);
	my $signature = hmac_sha256_base64("$id.$time.$body", decode_base64($signed_with =~ s/^whsec_//r));
	$signature .= '=' while length($signature) % 4;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or die "no receiver: $!";
	print $socket "POST /webhooks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nwebhook-id: $id\r\nwebhook-timestamp: $time\r\nwebhook-signature: v1,$signature\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
	return (<$socket> // '') =~ m{^HTTP/1.1 (\d+)} ? $1 : undef;
}
my $forged = '{"id": "x", "type": "PaymentCompleted", "data": {"order": 1000000, "candidate": "mallory"}}';
is(post('whsec_' . encode_base64('x' x 32, ''), $forged), 401, 'who does not know the secret is refused');
is(post($secret, '{"id": "y", "type": "outbox.ping"}'), 204, 'who does is not');

# ---- the books --------------------------------------------------------------------------------------------------------------------------------------------

is(orders('SELECT string_agg(id::text, chr(32) ORDER BY id) FROM orders WHERE paid_at IS NULL'), join(' ', grep { $_ % 5 == 0 } 1 .. $orders), 'every fifth payment was rolled back');
is(interviews('SELECT order_id, candidate FROM interview_session ORDER BY order_id'), orders('SELECT id, candidate FROM orders WHERE paid_at IS NOT NULL ORDER BY id'),
	"one session for each of $paid paid orders, none for the others");

done_testing;
