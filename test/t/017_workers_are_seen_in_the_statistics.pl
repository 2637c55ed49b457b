# pg_stat_activity shows launcher and workers and what they do; the counters of the tables that a worker writes grow while it works.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub activity { my ($type, $columns) = @_; return sql("SELECT $columns FROM pg_stat_activity WHERE backend_type = '$type'") }

my $worker = worker_pid($node);
is(activity('outbox launcher', 'application_name, datname IS NULL'), 'outbox launcher|t', 'the launcher, without a database');
is(activity('outbox delivery worker', 'application_name, datname'), 'outbox delivery worker|postgres', 'the worker, with its database');
ok(wait_for(sub { activity('outbox delivery worker', 'state, query') eq 'idle|waiting for events' }, 'rest'), 'at rest it waits for events');
ok(wait_for(sub { activity('outbox delivery worker', q{wait_event_type, xact_start IS NULL, backend_xmin IS NULL, backend_xid IS NULL}) eq 'Extension|t|t|t' }, 'rest'), 'without transaction or snapshot');

subscribe($node, 'main', $receiver->url('/ok?main'));
sql(q{SELECT outbox.enqueue('item.made', to_jsonb(i)) FROM generate_series(1, 100) AS i});
wait_for(sub { $receiver->requests('/ok?main') == 100 }, 'a hundred events');
ok(wait_for(sub { sql(q{SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^attempt_log_'}) eq '100' }, 'the counters'), 'a row of the attempt log is counted for each attempt');
ok(wait_for(sub { sql(q{SELECT sum(n_tup_ins) > 0 FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^cursor_'}) eq 't' }, 'the counters'), 'and the rows of cursors');
is(sql(q{SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^event_'}), '100', 'events are counted where they are enqueued')
	if wait_for(sub { sql(q{SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^event_'}) eq '100' }, 'the counters of producers');
is(sql('SELECT delivered FROM outbox._worker()'), '100', 'the worker counts deliveries itself');

done_testing;
