# Guarantees 2, 6: whatever is the first to touch shared memory after a restart, and whatever is rolled back under the worker, it misses nothing.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => ['outbox.auto_maintain = off']);
my $receiver = Outbox::Receiver->new;
subscribe($node, 'all', $receiver->url('/ok?all'));
sub received { my ($id) = @_; return scalar(grep { $_->{id} eq $id } $receiver->requests('/ok?all')) }

# Prepared before a crash, committed after it, and nothing else enqueued in between
my $first = enqueue($node, 'some.made', 1);
wait_status($node, $first, 'all', 'delivered');
my $prepared = $node->safe_psql('postgres', q{BEGIN; SELECT outbox.enqueue('some.made', '2'); PREPARE TRANSACTION 'late'});
$node->stop('immediate');
$node->start;
wait_for(sub { worker_pid($node) }, 'a worker');
$node->safe_psql('postgres', q{COMMIT PREPARED 'late'});
wait_for(sub { received($prepared) }, 'an event prepared before a crash and committed after it');
is(received($prepared), 1, 'an event prepared before a crash and committed after it is delivered');

# The extension dropped, made anew and started, and all of that rolled back, while an event waits for a worker that is stopped
my $pid = worker_pid($node);
stand_still($node, $pid);
my $waiting = enqueue($node, 'some.made', 3);
$node->safe_psql('postgres', 'SET client_min_messages = error; BEGIN; DROP EXTENSION outbox; CREATE EXTENSION outbox; SELECT outbox.start(); ROLLBACK');
kill 'CONT', $pid;
wait_for(sub { received($waiting) }, 'an event from before a DROP EXTENSION that was rolled back');
is(received($waiting), 1, 'an event from before a DROP EXTENSION that was rolled back is delivered');
my $last = enqueue($node, 'some.made', 4);
wait_for(sub { received($last) }, 'what comes after it');
is(received($last), 1, 'and what comes after it');

done_testing();
