# disable_after: an endpoint with nothing but failures for so long is disabled, with its events kept; a restart does not begin that time anew, a success ends it.
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
sub kept { my ($name, $what) = @_; return sql("SELECT $what FROM outbox.subscription WHERE name = '$name'") }
sub is_now { my ($name, $state) = @_; return ok(wait_for(sub { status($name, 'state') eq $state }, "$name: $state"), "$name: $state") }
my %hopeless = (retry_base => '50 ms', max_attempts => 1000, ordering => 'none');

# ---- it is disabled, its events are kept ------------------------------------------------------------------------------------------------------

$receiver->control(script => 'dead', then => 503);
subscribe($node, 'dead', $receiver->url('/script/dead'), types => ['dead'], %hopeless, disable_after => '2 s', breaker_threshold => 5, breaker_probe => '50 ms', breaker_max => '50 ms');
my $began = sql('SELECT clock_timestamp()');
my @ids = map { enqueue($node, 'dead', $_) } 1 .. 3;
is_now('dead', 'disabled');
like(status('dead', 'reason'), qr/^nothing but failures since 20.*, \d+ of them in a row$/, 'with the reason');
is(sql("SELECT state_since >= '$began'::timestamptz + interval '2 s' FROM outbox.subscription WHERE name = 'dead'"), 't', 'not before disable_after is over');
is(kept('dead', "failing_since BETWEEN '$began' AND clock_timestamp()"), 't', 'since when it was failing is written down');
is(sql(q{SELECT subject FROM outbox.health() WHERE check_name = 'disabled' AND status = 'warning'}), 'dead', 'health() names it');
is(status('dead', 'dead'), '0', 'none of its events died');
push @ids, enqueue($node, 'dead', 4);
my $sent = () = $receiver->requests('/script/dead');

# resumed, it has all the time again: longer than this test needs, and shorter than the past
sql(q{SELECT outbox.alter_subscription('dead', disable_after => '10 min')});
sql(q{UPDATE outbox.subscription SET failing_since = now() - interval '1 h' WHERE name = 'dead'});
my $resumed = sql('SELECT clock_timestamp()');
sql(q{SELECT outbox.resume('dead')});
is(kept('dead', "failing_since IS NULL OR failing_since >= '$resumed'"), 't', 'resume() forgets the failures');    # there may be new ones
wait_for(sub { $receiver->requests('/script/dead') >= $sent + 4 }, 'attempts');
isnt(status('dead', 'state'), 'disabled', 'and it gets another chance');
$receiver->control(script => 'dead', then => 200);
wait_status($node, $_, 'dead', 'delivered') for @ids;
is(status('dead', 'state'), 'active', 'it is well');
is(kept('dead', 'failing_since IS NULL'), 't', 'and nothing says otherwise');

# ---- a success ends it -------------------------------------------------------------------------------------------------------------------------

$receiver->control(script => 'moody', then => 503);
subscribe($node, 'moody', $receiver->url('/script/moody'), types => ['moody'], %hopeless, disable_after => '20 s');
my $moody = enqueue($node, 'moody', 1);
ok(wait_for(sub { kept('moody', 'failing_since IS NOT NULL') eq 't' }, 'failing_since'), 'a while of failures is written down');
my $version = kept('moody', 'xmin');
$sent = () = $receiver->requests('/script/moody');
wait_for(sub { $receiver->requests('/script/moody') >= $sent + 20 }, 'twenty more failures');
is(kept('moody', 'xmin'), $version, 'once: more failures write nothing more');
$receiver->control(script => 'moody', then => 200);
wait_status($node, $moody, 'moody', 'delivered');
ok(wait_for(sub { kept('moody', 'failing_since IS NULL') eq 't' }, 'no failing_since'), 'and is forgotten with the first success');
$version = kept('moody', 'xmin');
wait_status($node, enqueue($node, 'moody', $_), 'moody', 'delivered') for 2, 3;
is(kept('moody', 'xmin'), $version, 'successes write nothing there');

# ---- a restart does not begin it anew; 4xx are failures too --------------------------------------------------------------------------------------

subscribe($node, 'refuses', $receiver->url('/status/404'), types => ['refuses'], %hopeless, disable_after => '1 h');
enqueue($node, 'refuses', 1);
wait_for(sub { $receiver->requests('/status/404') >= 12 }, 'failures');
is(kept('refuses', 'state'), 'active', 'many failures in a short time do not disable');
$node->stop('fast');
$node->start;
sql(q{UPDATE outbox.subscription SET failing_since = now() - interval '50 min' WHERE name = 'refuses'});    # as if time had passed
my $pid = worker_pid($node);
sql('SELECT outbox.stop()');
worker_gone($node);
sql('SELECT outbox.start()');
isnt(worker_pid($node), $pid, 'a new worker');
$sent = () = $receiver->requests('/status/404');
wait_for(sub { $receiver->requests('/status/404') >= $sent + 12 }, 'failures');
is(kept('refuses', 'state'), 'active', 'fifty minutes are not an hour');
sql(q{SELECT outbox.alter_subscription('refuses', disable_after => '50 min')});
is_now('refuses', 'disabled');
like(status('refuses', 'reason'), qr/^nothing but failures since/, 'the time before the restart counts, and a change of disable_after at once');

# but not all of the time in which nothing was tried
sql(q{SELECT outbox.alter_subscription('refuses', disable_after => '10 s'); SELECT outbox.resume('refuses')});
sql('SELECT outbox.stop()');
wait_for(sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}) eq '0' }, 'no worker');
sql(q{UPDATE outbox.subscription SET failing_since = now() - interval '10 d' WHERE name = 'refuses'});
$sent = () = $receiver->requests('/status/404');
sql('SELECT outbox.start()');
wait_for(sub { $receiver->requests('/status/404') >= $sent + 10 }, 'failures');
is_now('refuses', 'disabled');
is(sql(q{SELECT s.state_since >= w.started_at + interval '1 s' FROM outbox.subscription AS s, outbox._worker() AS w WHERE s.name = 'refuses'}), 't', 'a worker that starts gives a grace of a tenth');

# ---- another URL -----------------------------------------------------------------------------------------------------------------------------------

sql(q{UPDATE outbox.subscription SET failing_since = now() - interval '10 d' WHERE name = 'refuses'});
sql(q{SELECT outbox.alter_subscription('refuses', url => } . literal($receiver->url('/ok?refuses')) . ')');
is(kept('refuses', 'failing_since IS NULL'), 't', 'another URL has no past');

# ---- never -----------------------------------------------------------------------------------------------------------------------------------------

subscribe($node, 'forever', $receiver->url('/status/500'), types => ['forever'], %hopeless, disable_after => '0');
enqueue($node, 'forever', 1);
wait_for(sub { $receiver->requests('/status/500') >= 40 }, 'many failures');
is(kept('forever', 'state, failing_since'), 'active|', 'disable_after => 0: never, and nothing is written');
unlike(slurp_file($node->logfile), qr/ (?:ERROR|PANIC|TRAP):/, 'no error in the log');

done_testing;
