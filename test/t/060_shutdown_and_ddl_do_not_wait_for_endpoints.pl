# With every endpoint hanging, shutdown, DROP DATABASE, CREATE DATABASE … TEMPLATE and DROP EXTENSION take no longer than without.
# Alone: it measures how long a shutdown takes.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;

sub hanging { my ($path) = @_; return grep { !defined $_->{how} } $receiver->requests($path) }

# Ten requests that hang, in this database
sub hang_in
{
	my ($database, $path) = @_;
	subscribe($node, 'hang', $receiver->url($path), types => ['hang'], timeout => '10 min', database => $database);
	$node->safe_psql($database, q{SELECT outbox.enqueue('hang', to_jsonb(i)) FROM generate_series(1, 10) i});
	wait_for(sub { hanging($path) == 10 }, "ten hanging requests of $database");
}

sub quickly
{
	my ($what, $code) = @_;
	my $began = time;
	$code->();
	cmp_ok(time - $began, '<', 5, "$what: within 5 s");
}

sub works
{
	my ($database, $what) = @_;
	my $id = enqueue($node, 'ping', '{}', database => $database);
	ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->requests("/ok?$database") }, "a delivery from $database"), "$what: $database delivers");
}

$node->safe_psql('postgres', 'CREATE DATABASE shop');
install($node, 'shop');
for my $database (qw(postgres shop))
{
	subscribe($node, 'ping', $receiver->url("/ok?$database"), types => ['ping'], database => $database);
	works($database, 'several databases at once');
	hang_in($database, "/hang?$database");
}
works($_, 'beside hanging requests') for qw(postgres shop);

# Databases
quickly('CREATE DATABASE of a stranger', sub { $node->safe_psql('postgres', 'CREATE DATABASE stranger STRATEGY = file_copy') });
quickly('DROP DATABASE of a stranger', sub { $node->safe_psql('postgres', 'DROP DATABASE stranger') });
is(scalar hanging("/hang?$_"), 10, "and the requests of $_ still hang") for qw(postgres shop);
quickly('CREATE DATABASE … TEMPLATE', sub { $node->safe_psql('postgres', 'CREATE DATABASE clone TEMPLATE shop') });
works('shop', 'after CREATE DATABASE … TEMPLATE');
my $in_clone = enqueue($node, 'ping', '{"clone": true}', database => 'clone');
works('shop', 'again');
is(scalar(grep { $_->{id} eq $in_clone } $receiver->requests), 0, 'a clone by TEMPLATE sends nothing');
is($node->safe_psql('clone', 'SHOW outbox.armed'), '', 'it is not armed');

# A command that fails lets the worker come back
my ($status) = $node->psql('postgres', 'ALTER DATABASE shop RENAME TO clone');
isnt($status, 0, 'a command that fails');
works('shop', 'after a command that failed');

quickly('ALTER DATABASE … RENAME', sub { $node->safe_psql('postgres', 'ALTER DATABASE shop RENAME TO store') });
{
	my $id = enqueue($node, 'ping', '{}', database => 'store');
	ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->requests('/ok?shop') }, 'a delivery from the renamed database'), 'a renamed database delivers');
}
quickly('DROP DATABASE with a worker in it', sub { $node->safe_psql('postgres', 'DROP DATABASE store') });
wait_for(sub { !hanging('/hang?shop') }, 'its connections being closed');
is(scalar hanging('/hang?shop'), 0, 'its requests are gone');
works('postgres', 'after DROP DATABASE');

# The extension
quickly('DROP EXTENSION, rolled back', sub { $node->safe_psql('postgres', 'BEGIN; DROP EXTENSION outbox; ROLLBACK') });
works('postgres', 'after a DROP EXTENSION that was rolled back');
quickly('DROP EXTENSION', sub { $node->safe_psql('postgres', 'DROP EXTENSION outbox') });
wait_for(sub { !hanging('/hang?postgres') }, 'the requests of a dropped extension being abandoned');
is(scalar hanging('/hang?postgres'), 0, 'a dropped extension keeps no connection');
install($node, 'postgres');
subscribe($node, 'ping', $receiver->url('/ok?postgres'), types => ['ping']);
works('postgres', 'after CREATE EXTENSION');

# The worker itself
my $worker = worker_pid($node);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
works('postgres', 'after pg_terminate_backend of the worker');
isnt(worker_pid($node), $worker, 'it is another worker');

# The switches
$node->append_conf('postgresql.conf', 'outbox.enabled = off');
$node->reload;
wait_for(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}) eq '0' }, 'the worker ending when outbox.enabled is off');
my $id = enqueue($node, 'ping', '{"while": "off"}');
$node->append_conf('postgresql.conf', 'outbox.enabled = on');
$node->reload;
ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->requests('/ok?postgres') }, 'the event enqueued while off'), 'outbox.enabled off and on: nothing is lost');
$node->safe_psql('postgres', 'SELECT outbox.stop()');
wait_for(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}) eq '0' }, 'the worker ending after stop()');
$id = enqueue($node, 'ping', '{"while": "stopped"}');
$node->safe_psql('postgres', 'SELECT outbox.start()');
ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->requests('/ok?postgres') }, 'the event enqueued while stopped'), 'stop() and start(): nothing is lost');

# Fast shutdown
hang_in('postgres', '/hang?again');
quickly('fast shutdown', sub { $node->stop('fast') });
$node->start;
works('postgres', 'after a restart');
wait_for(sub { hanging('/hang?again') == 10 }, 'the interrupted requests being repeated');
my %ids;
$ids{ $_->{id} }++ for $receiver->requests('/hang?again');
is(scalar keys %ids, 10, 'what was in flight at the shutdown is sent again, under the same ids');

done_testing;
