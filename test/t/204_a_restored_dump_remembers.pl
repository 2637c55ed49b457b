# A restored dump knows what was accepted, what was answered, and what was set; its tokens go on ascending.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', arm => 0);

sub sql { my ($sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }

sql(q{SELECT outbox.accept_many('billing', ARRAY(SELECT i::text FROM generate_series(1, 2000) AS i)); SELECT outbox.accept('billing', '1'), outbox.accept('shipping', '1')});
sql(q{SELECT outbox.set_consumer('billing', '30 days', '10 days')});
sql(q{INSERT INTO outbox.inbox VALUES (now() - interval '40 days', 'old', 'billing')});
sql('SELECT outbox.maintain()');
sql(q{SELECT outbox.finish_request('s', 'done', (SELECT token FROM outbox.begin_request('s', 'done', 'f')), '{"order": 1}', 201)});
my $token = sql(q{SELECT token FROM outbox.begin_request('s', 'open', 'f')});
my $status = sql('SELECT * FROM outbox.inbox_status ORDER BY consumer');
like($status, qr/^billing\|2000\|2001\|1\|/, 'before the dump');

my $dump = $node->basedir . '/dump';
command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
sql('CREATE DATABASE copy');
command_ok([ 'pg_restore', '-j', 2, '--exit-on-error', '-d', $node->connstr('copy'), $dump ], 'pg_restore');
sql('CREATE DATABASE clone TEMPLATE copy');
for my $database ('copy', 'clone')
{
	is(sql('SELECT * FROM outbox.inbox_status ORDER BY consumer', $database), $status, "$database: all of it is there");
	is(sql(q{SELECT outbox.accept('billing', '7'), outbox.accept('shipping', '1'), outbox.accept('shipping', '2')}, $database), 'f|f|t', "$database: messages are remembered");
	is(sql(q{SELECT state, response, status FROM outbox.begin_request('s', 'done', 'f')}, $database), 'replay|{"order": 1}|201', "$database: so are answers");
	is(sql(q{SELECT state FROM outbox.begin_request('s', 'open', 'f')}, $database), 'in_progress', "$database: and claims");
	cmp_ok(sql(q{SELECT token FROM outbox.begin_request('s', 'new', 'f')}, $database), '>', $token, "$database: tokens go on");
}
is(sql(q{SELECT outbox.accept('shipping', '2')}), 't', 'each database has an inbox of its own');

# into an extension that is there already, the data alone
sql('CREATE DATABASE late');
sql('CREATE EXTENSION outbox', 'late');
command_ok([ 'pg_restore', '--data-only', '--exit-on-error', '-t', 'inbox', '-t', 'idempotency_key', '-d', $node->connstr('late'), $dump ], 'pg_restore, data only');
is(sql(q{SELECT outbox.accept('billing', '7'), outbox.accept('billing', 'new')}, 'late'), 'f|t', 'messages are remembered');

done_testing;
