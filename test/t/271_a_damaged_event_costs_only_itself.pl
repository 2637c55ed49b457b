# The disk has lost a page of an event: that event becomes a dead letter (internal), and all others are delivered, those of its key too. The same if it is scheduled.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ 'fsync = off' ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

subscribe($node, 'push', $receiver->url('/ok?push'), types => [ 'order.**', 'later' ]);
subscribe($node, 'batch', $receiver->url('/ok?batch'), types => ['order.**'], format => 'batch');
subscribe($node, 'other', $receiver->url('/ok?other'), types => ['nothing.at.all']);
sql(q{SELECT outbox.subscribe('pull', types => '{order.**}')});
sql(q{SELECT outbox.pause_all('until it is damaged')});

# Nobody reads or moves anything before it is damaged
sql('SELECT outbox.stop()');
worker_gone($node);

# A large one between small ones: nobody else has anything on the pages in its middle
my $large = join '', map { chr(65 + int rand 26) } 1 .. 60000;
substr $large, 30000, 20, 'MIDDLE-OF-AN-EVENT-X';
my @ids = map { my $i = $_; enqueue($node, 'order.paid', $i == 3 ? "\"$large\"" : $i, key => 'k') } 1 .. 6;
my $bad = $ids[2];
substr $large, 30000, 20, 'MIDDLE-OF-A-LATER-ON';
my ($bad_later, $good_later) = map { sql(q{SELECT outbox.enqueue('later', } . literal($_) . q{, deliver_at => clock_timestamp() + interval '3 s')}) } "\"$large\"", '"small"';
sql('CHECKPOINT');
my @files = map { $node->data_dir . '/' . sql("SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = '$_'::regclass") }
	sql("SELECT tableoid::regclass FROM outbox.event WHERE id = '$bad'"), 'outbox.scheduled';
$node->stop('fast');

for my $file (@files)
{
	open my $in, '+<:raw', $file or die "cannot open $file: $!";
	local $/;
	my $at = index <$in>, 'MIDDLE-OF-A';
	cmp_ok($at, '>', 8192, 'it is found on the disk');
	seek $in, $at - $at % 8192, 0;
	print $in "\0" x 8192;
	close $in;
}
$node->start;
isnt(($node->psql('postgres', "SELECT payload FROM outbox.event WHERE id = '$bad'"))[0], 0, 'the event cannot be read any more');
sql('SELECT outbox.start()');
sql('SELECT outbox.resume_all()');

my @good = grep { $_ ne $bad } @ids;
for my $path ('/ok?push', '/ok?batch')
{
	my %there;
	wait_for(sub { %there = map { $_->{id} => 1 } $receiver->delivered_events($path); !grep { !$there{$_} } @good }, "the others at $path");
	is_deeply([ grep { !$there{$_} } @ids ], [$bad], "$path: all but that one are delivered");
}
ok(wait_for(sub { sql("SELECT count(*) FROM outbox.dead_letter WHERE event_id = '$bad' AND reason = 'internal' AND subscription IN ('push', 'batch')") eq '2' }, 'dead letters'), 'that one is a dead letter, internal');
my $after = enqueue($node, 'order.paid', '7', key => 'k');
ok(wait_for(sub { scalar $receiver->of('/ok?push', $after) }, 'a later one'), 'its key goes on');
my %pulled;
wait_for(sub { $pulled{$_} = 1 for split /\n/, sql(q{SELECT event_id FROM outbox.pull('pull')}); !grep { !$pulled{$_} } @good }, 'what can be pulled');
ok(!$pulled{$bad}, 'a consumer does not get it');

# what was scheduled
ok(wait_for(sub { scalar $receiver->of('/ok?push', $good_later) }, 'the other one that was scheduled'), 'scheduled: the other one is delivered');
ok(wait_for(sub { sql("SELECT count(*) FROM outbox.dead_letter WHERE event_id = '$bad_later' AND subscription = 'push' AND reason = 'internal'") eq '1' }, 'a dead letter'), 'scheduled: the damaged one is a dead letter');
is(sql("SELECT status FROM outbox.event_status('$bad_later') WHERE subscription = 'push'"), 'dead', 'scheduled: event_status() says so');
is(sql('SELECT count(*) FROM outbox.scheduled'), '0', 'scheduled: nothing waits for ever');

done_testing;
