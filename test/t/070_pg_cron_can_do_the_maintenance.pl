# With outbox.auto_maintain = off nothing rotates or retires segments but maintain(), and pg_cron can call it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', preload => ['pg_cron'],
	conf => [ 'outbox.auto_maintain = off', "outbox.event_retention = '1s'", "outbox.segment_age = '1s'", "cron.database_name = 'postgres'" ]);
$node->append_conf('postgresql.conf', "cron.host = '" . $node->host . "'");
$node->restart;
my $receiver = Outbox::Receiver->new;
subscribe($node, 'all', $receiver->url('/ok'));

my $first = enqueue($node, 'first', '{}');
wait_status($node, $first, 'all', 'delivered');
wait_for(sub { $node->safe_psql('postgres', "SELECT clock_timestamp() > created_at + interval '3 s' FROM outbox.event WHERE id = '$first'") eq 't' }, 'segment and event being old');
my $second = enqueue($node, 'second', '{}');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT tableoid) FROM outbox.event'), '1', 'without maintenance no segment is rotated');

$node->safe_psql('postgres', q{CREATE EXTENSION pg_cron; SELECT cron.schedule('outbox', '* * * * *', 'SELECT outbox.maintain()')});
ok(wait_for(sub { $node->safe_psql('postgres', "SELECT count(*) FROM outbox.event WHERE id IN ('$first', '$second')") eq '0' }, 'the old segment being retired', 300),
	'pg_cron rotates, seals and retires');
is($node->safe_psql('postgres', q{SELECT count(*) FROM cron.job_run_details WHERE status = 'failed'}), '0', 'none of its runs failed');
cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM cron.job_run_details WHERE status = 'succeeded'}), '>', 0, 'they succeeded');
my $third = enqueue($node, 'third', '{}');
ok(wait_for(sub { grep { $_->{id} eq $third } $receiver->requests('/ok') }, 'an event after the retirement'), 'events go on');
is(scalar(grep { $_->{id} eq $second } $receiver->delivered('/ok')), 1, 'nothing was retired before it was delivered');

done_testing;
