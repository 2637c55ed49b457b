# What is committed late, with an id that a subscription has given up before, is given up with a gap too: it is not lost without a trace.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [
	"outbox.event_retention = '1s'", "outbox.segment_size = '128kB'", "outbox.segment_age = '1h'", "outbox.maintenance_interval = '1s'",
	"outbox.max_backlog_age = '2s'", "log_min_messages = 'log'" ]);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub gaps { my ($name) = @_; return sql("SELECT count(*) FROM outbox.gap WHERE subscription = '$name'") }
sub given_up { my ($name) = @_; my @times = slurp_file($node->logfile) =~ /subscription "\Q$name\E" is too far behind/g; return scalar @times }
sub rounds { return sql('SELECT extract(epoch FROM maintained_at) FROM outbox._worker()') }
sub another_round { my $before = rounds(); return wait_for(sub { rounds() > $before }, 'a round of maintenance') }

# Events of 8 kB that do not compress, so that a few fill a segment
sub fill
{
	my ($n) = @_;
	sql("SELECT outbox.enqueue('filled', to_jsonb(x.text)) FROM (SELECT i, string_agg(md5(random()::text || i || j), '') AS text FROM generate_series(1, $n) AS i, generate_series(1, 250) AS j GROUP BY i) AS x");
}

# paused at once: it must not come to the head first, where nothing is behind
sql(q{BEGIN; SELECT outbox.subscribe('late', 'http://127.0.0.1:9/', types => '{late.made}', network => 'private', retry_base => '50 ms'); SELECT outbox.pause('late'); COMMIT});
my $writer = session($node);
$writer->query('BEGIN');
my $late = $writer->query(q{SELECT outbox.enqueue('late.made', '1')});
for (1 .. 3) { fill(17); another_round() }    # a segment each
ok(wait_for(sub { given_up('late') }, 'giving up'), 'a subscription is past the bound while a transaction is open');
is(gaps('late'), '0', 'nothing of that was for it');
$writer->query('COMMIT');
my $before_late = given_up('late');
for (1 .. 2) { fill(17); another_round() }
ok(wait_for(sub { given_up('late') > $before_late }, 'giving up again'), 'and again');
ok(wait_for(sub { gaps('late') > 0 }, 'the gap'), 'what that transaction wrote lies in a gap');
is(sql(q{SELECT sum(events) FROM outbox.gap WHERE subscription = 'late'}), '1', 'which says how much it was');

done_testing();
