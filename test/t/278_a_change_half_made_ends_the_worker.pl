# An error in the middle of a change of what the worker has in memory: it ends, and the next one begins at the cursors. One that went on with half a change would lose events.
# Needs: FAULTS=1
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => ["outbox.maintenance_interval = '1s'"]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $log = $node->logfile;
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub arrives { my ($id, $path, $what) = @_; ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->delivered($path) }, $what), $what) }

# The next one who passes this point so many times and once more gets an error there.
sub fail_at
{
	my ($point, $hits) = @_;
	my $directory = $node->data_dir . '/outbox.fault';
	mkdir $directory;
	append_to_file("$directory/$point.new", "error $hits\n");
	rename "$directory/$point.new", "$directory/$point" or die;
	return "$directory/$point";
}

subscribe($node, 'main', $receiver->url('/ok?main'), types => ['load']);
arrives(enqueue($node, 'load', '1'), '/ok?main', 'an event before');
my $worker = worker_pid($node);

# Which lane wants which type is put down anew when a change is loaded, and once more when the rules before it are history.
my $fault = fail_at('index-half-made', 1);
sql(q{SELECT outbox.alter_subscription('main', types => '{load,more}')});
ok(wait_for(sub { !-e $fault }, 'the error'), 'what is wanted by whom is half put down');
my $id = enqueue($node, 'more', '2');
arrives($id, '/ok?main', 'an event after that arrives');
isnt(worker_pid($node), $worker, 'from the next worker');
$worker = worker_pid($node);

# A dead letter that comes back to life is an exception that the worker does not know.
subscribe($node, 'strict', $receiver->url('/status/400?strict'), types => ['strict'], fatal_statuses => [400]);
my $dead = enqueue($node, 'strict', '3');
wait_for(sub { sql('SELECT count(*) FROM outbox.dead_letter') eq '1' }, 'a dead letter');
$fault = fail_at('exception-half-entered', 0);
sql(q{SELECT outbox.alter_subscription('strict', url => '} . $receiver->url('/ok?strict') . q{')});
sql(qq{SELECT outbox.redrive('strict', ARRAY['$dead']::uuid[])});
ok(wait_for(sub { !-e $fault }, 'the error'), 'an exception is half entered');
arrives($dead, '/ok?strict', 'it arrives');
isnt(worker_pid($node), $worker, 'from the next worker');

my $said = slurp_file($log);
is(scalar(() = $said =~ /outbox delivery worker ends, to begin again at its cursors/g), 2, 'which is said');
unlike($said, qr/terminated by signal|PANIC/, 'nobody crashed');

done_testing;
