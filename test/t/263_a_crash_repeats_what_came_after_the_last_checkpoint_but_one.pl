# Guarantee 4: a crash repeats what was done since the last checkpoint but one, and what was in flight; also when some requests are always slow, and hold the cursor back.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use Test::More;
use Time::HiRes qw(time);

my ($lives, $checkpoints, $in_flight) = (4, 6, 20);
my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
my $path = '/script/some-are-slow?some';
$receiver->control(script => 'some-are-slow', keys => { map { ("slow-$_" => 'slow/700') } 0 .. 9 });
subscribe($node, 'some', $receiver->url($path), types => ['load'], max_in_flight => $in_flight);

# Every hundredth is slow; one key in a thousand of the others, so that none waits for another one
my $made = 0;
sub produce
{
	my ($count) = @_;
	$node->safe_psql('postgres', "SELECT count(outbox.enqueue('load', to_jsonb(i), key => CASE WHEN i % 100 = 50 THEN 'slow-' || (i / 100) % 10 ELSE 'quick-' || i % 1000 END))"
			. " FROM generate_series($made, $made + $count - 1) i");
	$made += $count;
}

# For each life of the worker: since when something may be repeated, and when the next one was there
my @lives;
my $worker = worker_pid($node);
produce(20000);
for my $life (1 .. $lives)
{
	my $since = $life == 1 ? 0 : $lives[-1]{back};
	my $checkpoint = wait_for(sub {
			my @at = split /\n/, $node->safe_psql('postgres', "SELECT extract(epoch FROM at) FROM outbox.cursor WHERE subscription_id = 0 ORDER BY seq DESC LIMIT $checkpoints");
			return @at == $checkpoints && $at[-1] > $since && $at[1] }, "life $life: $checkpoints checkpoints");
	kill_process($node, $worker);
	my $before = $worker;
	wait_for(sub { is_reachable($node) && ($worker = worker_pid($node) // $before) != $before }, "life $life: another worker");
	push @lives, { checkpoint => $checkpoint, back => time };
}
wait_for(sub { my %ids = map { $_->{id} => 1 } $receiver->delivered($path); keys %ids == $made }, 'everything', 180);

my (%before, @repeated, @old);
for my $request (grep { $_->{key} =~ /^quick/ } $receiver->delivered($path))
{
	my $was = $before{ $request->{id} };
	$before{ $request->{id} } = $request->{at};
	defined $was or next;
	my ($life) = grep { $was <= $lives[$_]{back} } 0 .. $#lives;
	$repeated[$life]++;
	$old[$life]++ if $was < $lives[$life]{checkpoint};
}
for my $life (0 .. $#lives)
{
	cmp_ok($old[$life] // 0, '<=', $in_flight, sprintf 'life %d: %d were repeated, no more than were in flight at the last checkpoint but one were older than that', $life + 1, $repeated[$life] // 0);
}
cmp_ok(scalar(grep { $_ } @repeated), '>', 0, 'something was repeated at all');

done_testing;
