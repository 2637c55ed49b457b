# replay() delivers events of the log once more, with the same id and bytes, marked, a few at a time beside what is new, in order per key; across crashes, pauses and retention.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub rows { my ($name) = @_; return sql("SELECT count(*) FROM outbox.delivery AS d JOIN outbox.subscription AS s ON s.id = d.subscription_id WHERE s.name = '$name'") }
sub tally { my ($path, @ids) = @_; my %times; $times{ scalar $receiver->of($path, $_) }++ for @ids; return join ' ', map { "$times{$_} events $_ times" } sort keys %times }
sub marked { my ($path) = @_; return grep { defined $_->{headers}{'webhook-replay'} } $receiver->requests($path) }
sub operations { my ($name) = @_; return sql("SELECT string_agg(action || ' ' || count, ', ' ORDER BY id) FROM outbox.operation WHERE subscription = '$name'") }
sub at_end { my ($name) = @_; return wait_for(sub { sql("SELECT count(*) FROM outbox.replay WHERE subscription = '$name'") eq '0' && rows($name) eq '0' }, "the end of the replay for $name") }
sub many { my ($n, $type, $keys) = @_; return split /\n/, sql("SELECT outbox.enqueue('$type', to_jsonb(i), key => 'k' || i % " . ($keys // 5) . ") FROM generate_series(1, $n) AS i") }
sub arrived { my ($path, @ids) = @_; return wait_for(sub { !grep { !$receiver->of($path, $_) } @ids }, scalar(@ids) . " events at $path") }

# What is in flight is not replayed: the worker must have heard the answers.
sub recorded { my ($name, @ids) = @_; return wait_for(sub { sql("SELECT count(DISTINCT event_id) FROM outbox.attempt WHERE subscription = '$name' AND event_id IN (" . join(',', map { literal($_) } @ids) . ')') == @ids }, "answers of $name") }

# Each key's requests that were marked come in the order of their ids, and none overlaps another of its key.
sub check_order
{
	my ($path, $what) = @_;
	my (%last, $disorder);
	for my $request (marked($path))
	{
		my $key = $request->{headers}{'ce-partitionkey'};
		$disorder .= " $request->{id}" if ($last{$key} // '') gt $request->{id};
		$last{$key} = $request->{id};
	}
	is($disorder // '', '', "$what: in order per key");
	is(scalar(grep { defined $_->{overlap} } $receiver->requests($path)), 0, "$what: never two in flight for a key");
}

# ---- the plain case ---------------------------------------------------------------------------------------------------------------------

my $secret = subscribe($node, 'plain', $receiver->url('/ok?plain'), types => [ 'a.**', 'b' ]);
my @a = (many(100, 'a.x'), many(100, 'a.y'));
my @b = many(20, 'b');
my @c = many(5, 'c');
arrived('/ok?plain', @a, @b);
recorded('plain', @a, @b);
is(sql(q{SELECT outbox.replay('plain', '-infinity')}), '220', 'replay() says how many events of the log are for the subscription');
at_end('plain');
is(tally('/ok?plain', @a, @b), '220 events 2 times', 'each is delivered once more');
is(tally('/ok?plain', @c), '5 events 0 times', 'and what is not for it is not');
is(scalar marked('/ok?plain'), 220, 'the repetition is marked');
is(join(' ', sort keys %{ { map { $_->{headers}{'webhook-replay'} => 1 } marked('/ok?plain') } }), 'true', 'by a field of the request');
is(scalar(grep { my ($first, $second) = $receiver->of('/ok?plain', $_); $first->{bytes} ne $second->{bytes} || defined $first->{headers}{'webhook-replay'} } @a), 0, 'the bytes are the same, and the first time was not marked');
is(scalar(grep { $_->{headers}{'webhook-signature'} ne signature_of($_, $secret) } marked('/ok?plain')), 0, 'it is signed as ever');
check_order('/ok?plain', 'replayed');
ok(wait_for(sub { sql(q{SELECT count(*) FILTER (WHERE replay), count(*) FILTER (WHERE NOT replay), count(*) FILTER (WHERE replay AND attempt <> 1) FROM outbox.attempt WHERE subscription = 'plain'}) eq '220|220|0' }, 'attempts'), 'so it is in the log of attempts');
is(operations('plain'), 'replay 220, replay_done 220', 'that somebody asked for it is recorded, and its end');
is(sql(q{SELECT role = current_user, selector ->> 'subscription', selector ->> 'since' FROM outbox.operation WHERE action = 'replay_done'}), 't|plain|-infinity', 'with who and what');
like(sql("SELECT string_agg(detail, ' / ' ORDER BY at) FROM outbox.trace('$a[0]') WHERE what = 'attempt'"), qr{^attempt 1: delivered.* / attempt 1 of a replay: delivered}, 'trace() tells them apart');
is(sql("SELECT status FROM outbox.event_status('$a[0]') WHERE subscription = 'plain'"), 'delivered', 'and it is delivered');

# Types and times
is(sql(q{SELECT outbox.replay('plain', '-infinity', types => '{*.y,c}')}), '100', 'types narrow it');
at_end('plain');
is(tally('/ok?plain', @a[ 100 .. 199 ]), '100 events 3 times', 'to those');
is(tally('/ok?plain', @a[ 0 .. 99 ], @b, @c), '5 events 0 times 120 events 2 times', 'and no others');
my $middle = "(SELECT created_at FROM outbox.event WHERE id = '$b[0]')";
is(sql("SELECT outbox.replay('plain', $middle)"), '20', 'since: from then on');
at_end('plain');
is(sql("SELECT outbox.replay('plain', '-infinity', $middle, '{a.x}')"), '100', 'until: before that');
at_end('plain');
is(tally('/ok?plain', @a, @b), '220 events 3 times', 'in time and type');
is(sql("SELECT outbox.replay('plain', now() + interval '1 h')"), '0', 'nothing is in the future');
is(sql('SELECT count(*) FROM outbox.replay'), '0', 'and there is nothing to do');

# ---- what is ahead, waits, is dead, or was discarded -------------------------------------------------------------------------------------

subscribe($node, 'mixed', $receiver->url('/script/mixed'), types => ['mixed'], fatal_statuses => [400], retry_base => '1 h', retry_max => '1 h', on_dead => 'block', breaker_threshold => 0);
$receiver->control(script => 'mixed', answers => [], then => 200, keys => { dead => 400, held => 400, discarded => 400, retrying => 500 });
my %mixed = map { $_ => enqueue($node, 'mixed', "\"$_\"", key => $_) } qw(fine dead held discarded retrying);
wait_status($node, $mixed{fine}, 'mixed', 'delivered');
wait_status($node, $mixed{$_}, 'mixed', 'dead') for qw(dead held discarded);
wait_status($node, $mixed{retrying}, 'mixed', 'retrying');
sql("SELECT outbox.discard(ids => '{$mixed{discarded}}')");
my $behind = enqueue($node, 'mixed', '"behind"', key => 'held');
sql(q{SELECT outbox.alter_subscription('mixed', on_dead => 'block'); SELECT outbox.pause('mixed')});
my @ahead = map { enqueue($node, 'mixed', '"ahead"', key => "ahead$_") } 1 .. 3;
$receiver->control(script => 'mixed', answers => [], then => 200, keys => {});
is(sql(q{SELECT outbox.replay('mixed', '-infinity')}), '9', 'replay() of a paused subscription');
ok(wait_for(sub { sql(q{SELECT taken FROM outbox.replay WHERE subscription = 'mixed'}) eq 't' }, 'taking it up'), 'is taken up');
is(scalar marked('/script/mixed'), 0, 'and waits');
sql(q{SELECT outbox.resume('mixed')});
arrived('/script/mixed', @ahead);
wait_for(sub { operations('mixed') =~ /replay_done/ }, 'the end');
wait_status($node, $_, 'mixed', 'delivered') for @mixed{qw(fine dead held)}, $behind, @ahead;
is(tally('/script/mixed', @ahead), '3 events 1 times', 'what was ahead of it comes once');
is(join(' ', sort map { $_->{key} } marked('/script/mixed')), 'dead fine held', 'what was delivered or dead is replayed');
is(sql("SELECT string_agg(status, ' ') FROM outbox.event_status('$mixed{retrying}') WHERE subscription = 'mixed'"), 'retrying', 'what waits for its retry goes on waiting');
is(sql("SELECT string_agg(status, ' ') FROM outbox.event_status('$mixed{discarded}') WHERE subscription = 'mixed'"), 'discarded', 'and what was discarded stays so');
is(sql(q{SELECT count(*) FROM outbox.dead_letter WHERE subscription = 'mixed'}), '0', 'the dead letters are no more');
my ($held) = grep { $_->{id} eq $mixed{held} } marked('/script/mixed');
my ($after) = $receiver->of('/script/mixed', $behind);
cmp_ok($held->{seq}, '<', $after->{seq}, 'what a dead letter held back comes after it');

# ---- a few at a time, and what is new does not wait for them ------------------------------------------------------------------------------

subscribe($node, 'slow', $receiver->url('/slow/60?slow'), types => ['slow'], max_in_flight => 2);
my @slow = many(300, 'slow', 3);
arrived('/slow/60?slow', @slow);
recorded('slow', @slow);
sql(q{SELECT outbox.replay('slow', '-infinity')});
wait_for(sub { marked('/slow/60?slow') >= 20 }, 'the replay being under way');
my ($most, @new) = (0);
for my $i (1 .. 5)
{
	push @new, enqueue($node, 'slow', '"new"', key => 'k' . $i % 3);
	my $now = rows('slow');
	$most = $now if $now > $most;
	arrived('/slow/60?slow', $new[-1]);
}
cmp_ok(scalar marked('/slow/60?slow'), '<', 300, 'new events arrive while the replay goes on');
cmp_ok(sql(q{SELECT lag_seconds FROM outbox.subscription_status WHERE name = 'slow'}), '<', 60, 'which is not a lag');
cmp_ok($most, '<=', 30, "it never makes many rows at once ($most)");
like(sql(q{SELECT events || ' ' || (replayed BETWEEN 20 AND 299) FROM outbox.replay WHERE subscription = 'slow'}), qr/^300 true$/, 'its progress can be seen');

# a worker that ends in the middle, and a crash, after the cursors that say what became of the new events
recorded('slow', @new);
my $heard = sql('SELECT clock_timestamp()');
wait_for(sub { sql("SELECT max(at) > '$heard' FROM outbox.cursor WHERE subscription_id = 0") eq 't' }, 'a checkpoint');
sql('SELECT pg_terminate_backend(worker_pid, 10000) FROM outbox._worker()');
wait_for(sub { marked('/slow/60?slow') >= 120 }, 'going on after a restart');
$node->stop('immediate');
$node->start;
at_end('slow');
is(scalar(grep { (grep { defined $_->{headers}{'webhook-replay'} } $receiver->of('/slow/60?slow', $_)) == 0 } @slow), 0, 'none is left out');
my $repeated = grep { (grep { defined $_->{headers}{'webhook-replay'} } $receiver->of('/slow/60?slow', $_)) > 1 } @slow;
cmp_ok($repeated, '<=', 150, "no more than what was under way came again ($repeated of 300)");
is(tally('/slow/60?slow', @new), '5 events 1 times', 'and what is new came once') or diag join ' ', @new;
is(operations('slow'), 'replay 300, replay_done 300', 'at the end the count is right');

# ---- batches ----------------------------------------------------------------------------------------------------------------------------

subscribe($node, 'batches', $receiver->url('/ok?batches'), types => ['batched'], format => 'batch');
my @batched = many(50, 'batched');
sub in_batches { my (%times); $times{ $_->{id} }++ for $receiver->events('/ok?batches'); return join ' ', sort map { $times{$_} // 0 } @batched }
wait_for(sub { in_batches() eq join ' ', (1) x 50 }, 'the batches');
recorded('batches', @batched);
is(sql(q{SELECT outbox.replay('batches', '-infinity')}), '50', 'batches can be replayed');
at_end('batches');
is(in_batches(), join(' ', (2) x 50), 'each event comes once more, in batches');
cmp_ok(scalar(marked('/ok?batches')), '>', 0, 'which are marked');

# ---- events that were scheduled -----------------------------------------------------------------------------------------------------------

subscribe($node, 'scheduled', $receiver->url('/ok?scheduled'), types => ['later']);
my $later = sql(q{SELECT outbox.enqueue('later', '1', deliver_at => now() + interval '0.3 s')});
arrived('/ok?scheduled', $later);
recorded('scheduled', $later);
is(sql(q{SELECT outbox.replay('scheduled', '-infinity')}), '1', 'an event that was scheduled can be replayed');
at_end('scheduled');
is(tally('/ok?scheduled', $later), '1 events 2 times', 'under the id that it was enqueued with');

# ---- cancelling, unsubscribing ------------------------------------------------------------------------------------------------------------

sql(q{SELECT outbox.pause('plain')});
sql(q{SELECT outbox.replay('plain', '-infinity'); SELECT outbox.replay('plain', '-infinity', types => '{b}')});
is(sql(q{SELECT outbox.cancel_replay('plain')}), '2', 'cancel_replay() says how many there were');
is(sql(q{SELECT outbox.cancel_replay('plain')}), '0', 'and then there are none');
like(operations('plain'), qr/, cancel_replay 0$/, 'it is recorded');
sql(q{SELECT outbox.resume('plain')});
my $marker = enqueue($node, 'b', '"marker"', key => 'marker');
arrived('/ok?plain', $marker);
is(tally('/ok?plain', @a, @b), '220 events 3 times', 'nothing of them is sent');
sql(q{SELECT outbox.pause('plain')});
sql(q{SELECT outbox.replay('plain', '-infinity'); SELECT outbox.unsubscribe('plain')});
is(sql('SELECT count(*) FROM outbox.replay'), '0', 'unsubscribe() takes replays along');

# Two of a subscription go one after the other
subscribe($node, 'two', $receiver->url('/ok?two'), types => [ 'a.x', 'b' ]);
sql(q{BEGIN; SELECT outbox.replay('two', '-infinity', types => '{b}'); SELECT outbox.replay('two', '-infinity', types => '{a.x}'); COMMIT});
at_end('two');
is(tally('/ok?two', @b), '20 events 1 times', 'a subscription gets what was recorded before it began');
is(tally('/ok?two', @a[ 0 .. 99 ]), '100 events 1 times', 'and so it does by a second replay');
is(operations('two'), 'replay 21, replay 100, replay_done 21, replay_done 100', 'which begins when the first has ended');

# ---- retention --------------------------------------------------------------------------------------------------------------------------

sub there { my ($id) = @_; return sql("SELECT count(*) FROM outbox.event WHERE id = '$id'") eq '1' }
sql(q{SELECT outbox.pause('two'); SELECT outbox.replay('two', '-infinity', types => '{b}')});
wait_for(sub { sql('SELECT taken FROM outbox.replay') eq 't' }, 'taking it up');
my $first = sql("SELECT g.segment FROM outbox._segments() AS g JOIN outbox.event AS e ON e.tableoid = g.relation WHERE e.id = '$b[0]'");
sql("ALTER SYSTEM SET $_") for q{outbox.event_retention = '1s'}, q{outbox.segment_age = '1s'};
$node->reload;
ok(wait_for(sub { sql("SELECT count(*) FROM outbox._segments() WHERE segment = $first AND sealed") eq '1' }, 'the segment being full'), 'its segment is full and old');
my $before = sql('SELECT extract(epoch FROM maintained_at) FROM outbox._worker()');
wait_for(sub { sql("SELECT extract(epoch FROM maintained_at) > $before + 2 FROM outbox._worker()") eq 't' }, 'rounds of maintenance');
ok(there($b[0]), 'a replay that is not at its end holds what it needs of the log');
sql(q{SELECT outbox.resume('two')});
wait_for(sub { operations('two') =~ /replay_done 21$/ }, 'the end');
at_end('two');
is(tally('/ok?two', @b), '20 events 2 times', 'so that it gets it');
ok(wait_for(sub { !there($b[0]) }, 'the log being emptied'), 'then the log is emptied');

# but not for ever
my @late = many(10, 'b');
arrived('/ok?two', @late);
sql(q{SELECT outbox.pause('two'); SELECT outbox.replay('two', '-infinity')});
sql(q{ALTER SYSTEM SET outbox.max_backlog_age = '2s'});
$node->reload;
ok(wait_for(sub { operations('two') =~ /replay_expired 0$/ }, 'the replay being given up'), 'one that takes longer than outbox.max_backlog_age is given up, which is recorded');
ok(wait_for(sub { !there($late[0]) }, 'the log being emptied'), 'and holds the log no longer');
sql(q{SELECT outbox.resume('two')});

# What was given up in a gap can be replayed while it is in the log
sql(q{SELECT outbox.pause('two')});
my $reader = session($node);
$reader->query('BEGIN');
$reader->query('SELECT count(*) FROM outbox.event');    # nothing can be emptied while it is open
my @lost = many(10, 'b');
ok(wait_for(sub { sql(qq{SELECT count(*) FROM outbox.gap WHERE subscription = 'two' AND to_id >= '$lost[-1]'}) ne '0' }, 'the gap'), 'events are given up');
sql(q{ALTER SYSTEM SET outbox.max_backlog_age = '1h'});
$node->reload;
is(sql(qq{SELECT outbox.replay('two', outbox._event_time('$lost[0]'))}), '10', 'and replayed');
sql(q{SELECT outbox.resume('two')});
arrived('/ok?two', @lost);
wait_status($node, $lost[0], 'two', 'delivered');
$reader->query('COMMIT');
at_end('two');
is(tally('/ok?two', @lost), '10 events 1 times', 'so that they are delivered after all');

# ---- refusals ---------------------------------------------------------------------------------------------------------------------------

for my $case ([ q{'nobody', '-infinity'}, qr/42704.*subscription "nobody" does not exist/ ], [ q{'two', NULL}, qr/22004.*since must not be null/ ], [ q{'two', 'today', 'yesterday'}, qr/22023.*until must be later than since/ ],
	[ q{'two', 'today', types => '{x..y}'}, qr/22023.*invalid event type pattern/ ])
{
	my (undef, undef, $error) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT outbox.replay($case->[0])");
	like($error, $case->[1], "replay($case->[0]) is refused");
}
is(scalar(() = slurp_file($node->logfile) =~ / PANIC: |TRAP:/g), 0, 'nobody crashed');
done_testing;
