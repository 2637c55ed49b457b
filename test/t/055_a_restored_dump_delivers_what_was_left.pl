# Guarantees 2 and 10: a restored dump sends nothing until start(), and then what had not been delivered when it was dumped; or, if told so, none of it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;
my %path = (done => '/ok?done', late => '/ok?late', failing => '/fail-first/1?failing');

subscribe($node, $_, $receiver->url($path{$_}), $_ eq 'failing' ? (retry_base => '1 h') : ()) for sort keys %path;
$node->safe_psql('postgres', q{SELECT outbox.pause('late')});

sub payloads { my ($name) = @_; return join ' ', map { $_->{bytes} } $receiver->requests($path{$name}) }
sub wait_payloads
{
	my ($name, $expected, $what) = @_;
	wait_for(sub { payloads($name) eq $expected }, $what);
	is(payloads($name), $expected, $what);
}

# The first is delivered to two, fails at one of them, and waits for the third
enqueue($node, 'item.made', 1);
wait_payloads('done', '1', 'delivered before the dump');
wait_for(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'failing' AND status = 'retrying'}) == 1 }, 'a retry waits');
$node->safe_psql('postgres', 'SELECT outbox.stop()');
wait_for(sub { $node->safe_psql('postgres', 'SELECT worker_pid IS NULL FROM outbox._worker()') eq 't' }, 'stopped');
enqueue($node, 'item.made', $_) for 2, 3;

my $dump = $node->basedir . '/dump';
command_ok(['pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres')], 'pg_dump');
for my $copy (qw(copy skipped))
{
	$node->safe_psql('postgres', "CREATE DATABASE $copy");
	command_ok(['pg_restore', '-j', 2, '--exit-on-error', '-d', $node->connstr($copy), $dump], "pg_restore into $copy");
}
isnt($node->safe_psql('copy', 'SELECT outbox.epoch()'), $node->safe_psql('postgres', 'SELECT outbox.epoch()'), 'a restored dump has an epoch of its own');
is($node->safe_psql('copy', 'SELECT count(*) FROM outbox.event'), 3, 'and all the events');

# The original goes on: by the time that its event arrives, a copy that did not wait would have sent something
$node->safe_psql('copy', 'SELECT outbox.enqueue(\'item.made\', \'100\')');
$node->safe_psql('postgres', 'SELECT outbox.start()');
wait_payloads('done', '1 2 3', 'the original delivers what was left; the copies nothing');
is(payloads('late'), '', 'nor to anybody else');

# One copy is told to start: each subscription gets what it had not got, then what was enqueued here
$node->safe_psql('postgres', 'SELECT outbox.stop()');
wait_for(sub { $node->safe_psql('postgres', 'SELECT worker_pid IS NULL FROM outbox._worker()') eq 't' }, 'the original is stopped');
$node->safe_psql('copy', q{SELECT outbox.resume('late')});
$node->safe_psql('copy', 'SELECT outbox.start()');
wait_payloads('done', '1 2 3 2 3 100', 'started, the copy delivers what was left when it was dumped');
wait_payloads('late', '1 2 3 100', 'all of it to whom it was held back');
wait_for(sub { $node->safe_psql('copy', q{SELECT count(*) FROM outbox.subscription_status WHERE name IN ('done', 'late') AND lag_events > 0}) == 0 }, 'the worker having heard the answers');
$node->safe_psql('copy', q{SELECT outbox.alter_subscription('failing', retry_base => '100 ms')});
is($node->safe_psql('copy', q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'failing' AND status = 'retrying'}), 1, 'a retry still waits for its time');

# and goes on from there after a restart, without repeating
$node->safe_psql('copy', q{SELECT pg_terminate_backend(worker_pid) FROM outbox._worker()});
enqueue($node, 'item.made', 101, database => 'copy');
wait_payloads('done', '1 2 3 2 3 100 101', 'a new worker of the copy repeats nothing');
wait_payloads('late', '1 2 3 100 101', 'to nobody');

# The other copy is told to leave the backlog alone
$node->safe_psql('skipped', q{SELECT outbox.resume('late')});
$node->safe_psql('skipped', 'SELECT outbox.start(skip_backlog => true)');
enqueue($node, 'item.made', 200, database => 'skipped');
wait_payloads('late', '1 2 3 100 101 200', 'start(skip_backlog => true) delivers only what came after it');
is($node->safe_psql('skipped', q{SELECT string_agg(status, ' ') FROM outbox.delivery WHERE subscription_id = (SELECT id FROM outbox.subscription WHERE name = 'failing')}), 'discarded', 'a retry of the backlog is discarded');
is($node->safe_psql('skipped', q{SELECT count FROM outbox.operation WHERE action = 'start' ORDER BY id DESC LIMIT 1}), 1, 'and counted in operation');

done_testing();
