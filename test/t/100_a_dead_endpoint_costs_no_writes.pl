# The circuit breaker: an endpoint that fails gets probes only; its events wait in the log, cost no row, no attempt and no write, and arrive when it answers again.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
my %breaker = (breaker_threshold => 3, breaker_probe => '200 ms', breaker_max => '200 ms');

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub status { my ($name, $what) = @_; return sql("SELECT $what FROM outbox.subscription_status WHERE name = '$name'") }
sub is_now { my ($name, $state) = @_; return ok(wait_for(sub { status($name, 'state') eq $state }, "$name: $state"), "$name: $state") }
sub fill { my ($type, $n, $key) = @_; sql("SELECT outbox.enqueue('$type', to_jsonb(i), key => " . ($key // 'NULL') . ") FROM generate_series(1, $n) AS i") }
sub came { my ($path) = @_; return join ' ', map { $_->{bytes} } $receiver->delivered($path) }
sub rows { my ($name) = @_; return sql("SELECT count(*) FROM outbox.delivery AS d JOIN outbox.subscription AS s ON s.id = d.subscription_id WHERE s.name = '$name'") }

# ---- open, probe, close --------------------------------------------------------------------------------------------------------------------

$receiver->control(script => 'dead', then => 503);
subscribe($node, 'dead', $receiver->url('/script/dead'), types => ['dead'], %breaker, max_in_flight => 1, retry_base => '10 s', ordering => 'none', max_attempts => 1000);
subscribe($node, 'marker', $receiver->url('/ok?marker'), types => ['marker']);
sub read_on { wait_status($node, enqueue($node, 'marker', 0), 'marker', 'delivered') }    # everything committed before has been read

fill('dead', 50);
is_now('dead', 'open');
is(status('dead', 'breaker_open_until IS NOT NULL AND next_probe_at IS NOT NULL AND reason IS NULL'), 't', 'and the status says until when, and when it is probed');
like(sql(q{SELECT status || ' ' || value || ' ' || subject || ': ' || detail FROM outbox.health() WHERE check_name = 'breakers_open'}), qr/^warning 1 dead: .*503/, 'health() names it and its last error');

# While it is open: probes with the oldest event, and nothing else
my $tried = () = $receiver->requests('/script/dead');
wait_for(sub { $receiver->requests('/script/dead') > $tried }, 'a probe, before which the rows of all that failed were written');
my @before = map { { %$_ } } $receiver->requests('/script/dead');
my $rows = rows('dead');
cmp_ok($rows, '<=', 3, "of 50 events $rows have a row: those that were tried");
my $lsn = sql('SELECT pg_current_wal_insert_lsn()');
fill('dead', 2000);
read_on();
wait_for(sub { $receiver->requests('/script/dead') >= @before + 5 }, 'five probes');
my @probes = ($receiver->requests('/script/dead'))[ scalar @before .. @before + 4 ];
is(join(' ', map { $_->{bytes} } @probes), '1 1 1 1 1', 'each probe is an attempt of the oldest event');
my @gaps = map { $probes[$_]{at} - $probes[ $_ - 1 ]{at} } 1 .. $#probes;
is(scalar(grep { $_ < 0.155 } @gaps), 0, 'not more often than breaker_max (less a fifth)') or diag "@gaps";
is(rows('dead'), $rows, 'two thousand events later there is no row more');
is(sql(q{SELECT max(attempts) > 4 FROM outbox.delivery_status WHERE subscription = 'dead'}), 't', 'the probes count');
is(sql(q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'dead' AND attempts > 1}), '1', 'for that event alone');

# It answers: all goes on, each event once, those that were tried first
$receiver->control(script => 'dead', then => 200);
is_now('dead', 'active');
wait_for(sub { $receiver->delivered('/script/dead') == 2050 }, 'all of it');
is(scalar(() = $receiver->delivered('/script/dead')), 2050, 'closed by an answer, all its events arrive');
my %times;
$times{ $_->{id} }++ for $receiver->delivered('/script/dead');
is(scalar(grep { $_ > 1 } values %times), 0, 'each of them once');
ok(wait_for(sub { rows('dead') eq '0' }, 'no row is left'), 'no row is left');
is(status('dead', 'breaker_open_until IS NULL AND next_probe_at IS NULL'), 't', 'and no breaker');
is(sql(q{SELECT status || ' ' || value FROM outbox.health() WHERE check_name = 'breakers_open'}), 'ok 0', 'and health() is content');

# ---- an outage costs no writes for its events ----------------------------------------------------------------------------------------------

$receiver->control(script => 'dead', then => 500);
fill('dead', 10);
is_now('dead', 'open');
sql(q{SELECT outbox.alter_subscription('dead', breaker_probe => '1 day', breaker_max => '1 day')});
sql(q{SELECT outbox.alter_subscription('dead', breaker_probe => '1 h', breaker_max => '1 h')});

# what the worker writes while so many events come in: its transactions write heap and index records for rows, and nothing else does in outbox's tables but the producer
my $written = sub { sql(q{SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_all_tables WHERE schemaname = 'outbox' AND relname !~ '^(event_|cursor_|tick_)'}) };
my $settled = sub { my $n = ''; wait_for(sub { my $was = $n; $n = $written->(); $n eq $was && sql('SELECT pg_sleep(0.3)') eq '' }, 'statistics'); return $n };
read_on();
my %grew;
for my $n (1000, 10000)
{
	my $before = $settled->();
	fill('dead', $n, q{'k' || i});
	read_on();
	read_on();
	$grew{$n} = $settled->() - $before;
}
cmp_ok($grew{10000}, '<=', $grew{1000} + 20, "rows written for 1,000 events: $grew{1000}, for 10,000: $grew{10000} (those of the marker)");
cmp_ok(rows('dead'), '<=', 3, 'and they are not in delivery');
cmp_ok(status('dead', 'lag_events'), '>=', 11000, 'they are its lag');
is(status('dead', 'in_flight'), '0', 'and nothing is in flight');

# resume() says that it is well again, though nobody has seen that
$receiver->control(script => 'dead', then => 200);
sql(q{SELECT outbox.resume('dead')});
ok(wait_for(sub { $receiver->delivered('/script/dead') == 2050 + 11010 }, 'all of it', 60), 'resume() closes it: all that waited arrives');

# ---- keys keep their order ------------------------------------------------------------------------------------------------------------------

$receiver->control(script => 'keys', then => 503);
subscribe($node, 'keys', $receiver->url('/script/keys'), types => ['keys'], %breaker, retry_base => '10 s');
fill('keys', 500, q{'k' || i % 7});
is_now('keys', 'open');
fill('keys', 500, q{'k' || i % 7});
$receiver->control(script => 'keys', answers => [ (503) x 2, 200, 200, 500, 200, (500) x 10 ], then => 200);
ok(wait_for(sub { $receiver->delivered('/script/keys') == 1000 }, 'all keys', 60), 'opened and closed again and again, all of it arrives');
my (%last, $disorder, %of);
push @{ $of{ $_->{key} } }, $_->{bytes} for $receiver->delivered('/script/keys');
for my $key (sort keys %of)
{
	my @wanted = grep { "k" . $_ % 7 eq $key } 1 .. 500;
	$disorder .= "$key: @{ $of{$key} }\n" if "@{ $of{$key} }" ne "@wanted @wanted";
}
is($disorder, undef, 'in order for each key, each once');
is(scalar(grep { defined $_->{overlap} } $receiver->requests('/script/keys')), 0, 'never two in flight for one key');

# ---- refused events are not the endpoint's failure --------------------------------------------------------------------------------------------

$receiver->control(script => 'picky', keys => { bad => 422 }, then => 200);
subscribe($node, 'picky', $receiver->url('/script/picky'), types => ['picky'], %breaker, max_attempts => 20, retry_base => '10 ms');
my $bad = enqueue($node, 'picky', 0, key => 'bad');
wait_status($node, $bad, 'picky', 'dead');
is(scalar $receiver->of('/script/picky', $bad), 20, 'twenty times 422: no breaker opens');
is(status('picky', 'state'), 'active', 'for whoever refuses an event is alive');

# ---- the head event may die, then the next one is probed ----------------------------------------------------------------------------------------

$receiver->control(script => 'mortal', then => 503);
subscribe($node, 'mortal', $receiver->url('/script/mortal'), types => ['mortal'], breaker_threshold => 2, breaker_probe => '20 ms', breaker_max => '20 ms', max_in_flight => 1,
	max_attempts => 4, retry_base => '10 s', ordering => 'none');
my @mortal = map { enqueue($node, 'mortal', $_) } 1 .. 4;
wait_status($node, $_, 'mortal', 'dead') for @mortal[ 0, 1, 2 ];
is(join(' ', map { my $n = $_; scalar grep { $_->{bytes} == $n } $receiver->requests('/script/mortal') } 1 .. 3), '4 4 4', 'each probed event dies after its own attempts');
is(sql(q{SELECT string_agg(DISTINCT reason, ' ') FROM outbox.dead_letter WHERE subscription = 'mortal'}), 'max_attempts', 'of too many');
wait_status($node, $mortal[3], 'mortal', 'dead');
ok(wait_for(sub { status('mortal', 'next_probe_at IS NOT NULL AND lag_events = 0') eq 't' }, 'nothing left'), 'with nothing left to probe with it stays open');
$receiver->control(script => 'mortal', then => 200);
wait_status($node, enqueue($node, 'mortal', 5), 'mortal', 'delivered');
is_now('mortal', 'active');

# on_dead = block: a dead letter holds its key, another key is probed
$receiver->control(script => 'block', then => 503);
subscribe($node, 'block', $receiver->url('/script/block'), types => ['block'], breaker_threshold => 2, breaker_probe => '20 ms', breaker_max => '20 ms', max_in_flight => 1,
	max_attempts => 3, retry_base => '10 s', on_dead => 'block');
my @block = map { enqueue($node, 'block', $_, key => $_ < 3 ? 'a' : 'b') } 1 .. 4;
wait_status($node, $block[0], 'block', 'dead');
wait_status($node, $block[2], 'block', 'dead');
$receiver->control(script => 'block', then => 200);
my $other = enqueue($node, 'block', 5, key => 'c');
wait_status($node, $other, 'block', 'delivered');
is(came('/script/block'), '5', 'on_dead = block: what is behind a dead letter is no probe');
sql(q{SELECT outbox.redrive('block')});
wait_status($node, $_, 'block', 'delivered') for @block;
is(came('/script/block') =~ s/^5 //r =~ s/[34]| //gr, '12', 'and comes after it, redriven, in order');

# ---- Retry-After puts the probe off ------------------------------------------------------------------------------------------------------------

subscribe($node, 'asks', $receiver->url('/retry-after/3600/1000'), types => ['asks'], %breaker, ordering => 'none');
fill('asks', 5);
is_now('asks', 'open');
is(status('asks', q{next_probe_at BETWEEN now() + interval '50 min' AND now() + interval '61 min'}), 't', 'who asks for an hour is probed in an hour');

# ---- a change of the options, or of the URL, takes effect at once -----------------------------------------------------------------------------

sql(q{SELECT outbox.alter_subscription('asks', breaker_probe => '100 ms', breaker_max => '100 ms')});
ok(wait_for(sub { $receiver->requests('/retry-after/3600/1000') >= 6 }, 'a probe'), 'a shorter breaker_probe brings it forward');
sql(q{SELECT outbox.alter_subscription('asks', url => } . literal($receiver->url('/ok?asks')) . ')');
wait_status($node, enqueue($node, 'asks', 6), 'asks', 'delivered');
is(status('asks', 'state'), 'active', 'another URL is another endpoint: the breaker is closed');
$receiver->control(script => 'level', then => 500);
subscribe($node, 'level', $receiver->url('/script/level'), types => ['level'], breaker_threshold => 0, retry_base => '10 ms', max_attempts => 1000);
enqueue($node, 'level', 1);
wait_for(sub { $receiver->requests('/script/level') > 30 }, 'many attempts');
is(status('level', 'state'), 'active', 'a threshold of 0 never opens');
sql(q{SELECT outbox.alter_subscription('level', breaker_threshold => 5)});
is_now('level', 'open');

# ---- pausing, and a worker that starts anew ---------------------------------------------------------------------------------------------------

sql(q{SELECT outbox.pause('level')});
is_now('level', 'paused');
sql(q{SELECT outbox.resume('level')});
is_now('level', 'open');
my $pid = worker_pid($node);
my $seen = () = $receiver->requests('/script/level');
sql(q{SELECT outbox.stop()});
wait_for(sub { status('level', 'state') eq 'active' }, 'no worker, no breaker');
sql(q{SELECT outbox.start()});
isnt(worker_pid($node), $pid, 'another worker');
wait_for(sub { $receiver->requests('/script/level') >= $seen + 4 }, 'attempts');
is_now('level', 'open');
cmp_ok(scalar(() = $receiver->requests('/script/level')), '<=', $seen + 6, 'it begins closed, and opens after as many failures again');
unlike(slurp_file($node->logfile), qr/ (?:ERROR|PANIC|FATAL|TRAP):/, 'no error in the log');

done_testing;
