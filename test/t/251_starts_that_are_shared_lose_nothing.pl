# Subscriptions that begin near each other read the log from the earliest of their starts. One of them whose start is later by the clock, but has seen fewer xids assigned (two backends take
# these one after the other, side by side), must still get what a transaction between them writes, also when it goes back to the log in the middle.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use Test::More;

my $node = outbox_node('main', arm => 0);
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

my $between = session($node);
my $xid = $between->query('BEGIN; SELECT pg_current_xact_id()');
subscribe($node, 'early', $receiver->url('/ok?early'));
subscribe($node, 'late', $receiver->url('/script/late'), max_in_flight => 1, breaker_threshold => 1, breaker_probe => '10 s', retry_base => '10 s');
my $snapshot = sql("SELECT start_snapshot FROM outbox.subscription WHERE name = 'early'");
sql("UPDATE outbox.subscription SET start_snapshot = '$xid:$xid:', start_next = ($xid + CASE name WHEN 'early' THEN 1 ELSE 0 END)::text::xid8,
	start_clock = (SELECT min(start_clock) FROM outbox.subscription) + CASE name WHEN 'early' THEN 0 ELSE 1 END");

# a chunk of the log, whose last event fails; then the one of the transaction between; then others
my $chunk = 512;
sql("SELECT count(outbox.enqueue('filler.made', '1')) FROM generate_series(2, $chunk)");
enqueue($node, 'last.made', '1', key => 'bad');
my $id = $between->query(q{SELECT outbox.enqueue('between.made', '1')});
sql(q{SELECT count(outbox.enqueue('filler.made', '2')) FROM generate_series(1, 300)});
$between->query('COMMIT');

$receiver->control(script => 'late', answers => [], then => 200, per => 'path', keys => { bad => 503 });
sql('SELECT outbox.start()');
ok(wait_for(sub { sql(q{SELECT state FROM outbox.subscription_status WHERE name = 'late'}) eq 'open' }, 'the breaker opening', 120), 'what was not touched goes back to the log');
is(scalar($receiver->of('/script/late', $id)), 0, 'among it the event of the transaction between');
$receiver->control(script => 'late', answers => [], then => 200, per => 'path');
sql(q{SELECT outbox.resume('late')});
wait_for(sub { sql('SELECT count(*) FROM outbox.subscription_status WHERE lag_events > 0 OR in_flight > 0') eq '0' && 300 <= grep { $_->{path} =~ /late/ && $_->{body} eq '2' } $receiver->requests }, 'all that follows', 120);
is(scalar($receiver->of('/ok?early', $id)), 1, 'it arrives where reading began');
is(scalar($receiver->of('/script/late', $id)), 1, 'and where it was to be read again');

$node->stop('fast');
done_testing();
