# rate_limit: never more requests than the bucket allows, whatever waits, and no busy loop; catching up, resuming and redriving included.
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

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub status { my ($name, $what) = @_; return sql("SELECT $what FROM outbox.subscription_status WHERE name = '$name'") }
sub fill { my ($type, $n) = @_; sql("SELECT outbox.enqueue('$type', to_jsonb(i)) FROM generate_series(1, $n) AS i") }
sub sent { my ($path) = @_; return scalar(() = $receiver->requests($path)) }

# At no time more than a burst and what the rate allows: of any n attempts in a row, the first and the last begin at least (n - burst) / rate apart.
sub holds
{
	my ($name, $rate, $what, $n) = @_;
	my @at;
	wait_for(sub { @at = split /\n/, sql("SELECT EXTRACT(epoch FROM at) FROM outbox.attempt WHERE subscription = '$name' ORDER BY at DESC LIMIT $n"); @at == $n }, 'the attempt log');
	@at = reverse @at;
	my $burst = $rate < 1 ? 1 : int $rate;
	my $worst = -1;
	for my $i (0 .. $#at)
	{
		for my $j ($i + $burst .. $#at)
		{
			my $short = ($j - $i + 1 - $burst) / $rate - ($at[$j] - $at[$i]);
			$worst = $short if $short > $worst;
		}
	}
	return cmp_ok($worst, '<', 0.001, "$what: $n requests at $rate/s");
}

# ---- a backlog ------------------------------------------------------------------------------------------------------------------------------

subscribe($node, 'slow', $receiver->url('/ok?slow'), types => ['slow'], rate_limit => 20, max_in_flight => 50);
subscribe($node, 'free', $receiver->url('/ok?free'), types => ['slow']);
fill('slow', 80);
wait_for(sub { sent('/ok?free') == 80 }, 'the one without a limit');
my $last_free = ($receiver->requests('/ok?free'))[-1]{at};
cmp_ok(scalar(grep { $_->{at} < $last_free } $receiver->requests('/ok?slow')), '<', 80, 'the other one goes on without it');
wait_for(sub { sent('/ok?slow') == 80 }, 'the limited one');
holds('slow', 20, 'a burst of 80', 80);
is(scalar(() = $receiver->delivered('/ok?slow')), 80, 'each event once');
is(join(' ', map { $_->{bytes} } $receiver->requests('/ok?slow')), join(' ', 1 .. 80), 'in the order of their ids, for it sends them as they come');

# ---- it sleeps while it waits ---------------------------------------------------------------------------------------------------------------

subscribe($node, 'rare', $receiver->url('/ok?rare'), types => ['rare'], rate_limit => 0.2);
fill('rare', 2);
wait_for(sub { sent('/ok?rare') == 1 }, 'the first');
my $worker = worker_pid($node);
sub cpu { open my $stat, '<', "/proc/$worker/stat" or die; my @fields = split ' ', <$stat> =~ s/^.*\) //r; return $fields[11] + $fields[12] }    # hundredths of a second
my $before = cpu();
wait_for(sub { sent('/ok?rare') == 2 }, 'the second');
cmp_ok(cpu() - $before, '<', 100, 'waiting five seconds for a token costs ' . (cpu() - $before) / 100 . ' s of CPU');
holds('rare', 0.2, 'one in five seconds', 2);

# ---- changed while it delivers ---------------------------------------------------------------------------------------------------------------

sql(q{SELECT outbox.alter_subscription('rare', rate_limit => 0.001)});
fill('rare', 100);
my $from = sent('/ok?rare');
sql(q{SELECT outbox.alter_subscription('rare', rate_limit => 50)});
wait_for(sub { sent('/ok?rare') == $from + 100 }, 'all of it at the higher rate');
holds('rare', 50, 'raised: at once, not when the lower rate would have allowed the next', 100);
fill('rare', 2000);
wait_for(sub { sent('/ok?rare') > $from + 120 }, 'some');
sql(q{SELECT outbox.alter_subscription('rare', reset => '{rate_limit}')});
ok(wait_for(sub { sent('/ok?rare') == $from + 2100 }, 'the rest', 20), 'reset: without a limit, at once');
sql(q{SELECT outbox.alter_subscription('rare', rate_limit => 10)});
$from = sent('/ok?rare');
fill('rare', 30);
wait_for(sub { sent('/ok?rare') == $from + 30 }, 'thirty more');
holds('rare', 10, 'set again', 30);

# ---- after a pause, and for redriven events --------------------------------------------------------------------------------------------------

sql(q{SELECT outbox.pause('slow')});
fill('slow', 60);
wait_for(sub { sent('/ok?free') == 140 }, 'the one that is not paused');
is(sent('/ok?slow'), 80, 'paused: nothing');
sql(q{SELECT outbox.resume('slow')});
wait_for(sub { sent('/ok?slow') == 140 }, 'what waited');
holds('slow', 20, 'after a pause', 60);

$receiver->control(script => 'redrive', then => 500);
subscribe($node, 'redrive', $receiver->url('/script/redrive'), types => ['redrive'], max_attempts => 1);
fill('redrive', 60);
wait_for(sub { status('redrive', 'dead') eq '60' }, 'sixty dead letters');
$receiver->control(script => 'redrive', then => 200);
sql(q{SELECT outbox.alter_subscription('redrive', rate_limit => 20)});
$from = sent('/script/redrive');
is(sql(q{SELECT outbox.redrive('redrive')}), '60', 'redriven');
wait_for(sub { $receiver->delivered('/script/redrive') == 60 }, 'what was redriven');
holds('redrive', 20, 'redriven events', 60);

# ---- pause_all() and resume_all() --------------------------------------------------------------------------------------------------------------

sql(q{SELECT outbox.pause('free', 'by hand')});
is(sql(q{SELECT outbox.pause_all('maintenance of the receivers')}), '3', 'pause_all() says how many it paused');
is(sql(q{SELECT string_agg(name || ' ' || state || ' ' || reason, ', ' ORDER BY name) FROM outbox.subscription_status}),
	'free paused by hand, rare paused maintenance of the receivers, redrive paused maintenance of the receivers, slow paused maintenance of the receivers', 'all are paused');
subscribe($node, 'later', $receiver->url('/ok?later'), types => ['slow']);
fill('slow', 40);
wait_for(sub { sent('/ok?later') == 40 }, 'one that was made later');
is(sent('/ok?slow') . ' ' . sent('/ok?free'), '140 140', 'nothing is sent to the paused ones');
is(sql(q{SELECT outbox.pause_all()}), '1', 'again: what is paused stays as it is');
is(sql(q{SELECT outbox.resume_all()}), '4', 'resume_all() resumes what pause_all() paused');
wait_for(sub { sent('/ok?slow') == 180 }, 'what waited');
holds('slow', 20, 'after resume_all()', 40);
is(status('free', 'state'), 'paused', 'the one that was paused by hand stays so');
is(sql(q{SELECT outbox.resume_all()}), '0', 'there is nothing left to resume');
is(sql(q{SELECT string_agg(concat_ws(' ', action, selector->>'reason', count), ', ' ORDER BY id) FROM outbox.operation WHERE action IN ('pause_all', 'resume_all')}),
	'pause_all maintenance of the receivers 3, pause_all 1, resume_all 4, resume_all 0', 'all of it is recorded in operation');
sql(q{SELECT outbox.resume('free')});
wait_for(sub { sent('/ok?free') == 180 }, 'what waited there');
unlike(slurp_file($node->logfile), qr/ (?:ERROR|PANIC|FATAL|TRAP):/, 'no error in the log');

done_testing;
