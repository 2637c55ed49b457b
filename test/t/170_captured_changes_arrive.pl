# Guarantees 1 and 5 for captured tables: a change arrives if and only if its transaction committed, in order; a restored copy of the table goes on capturing.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new;
my $path = '/ok?captured';
subscribe($node, 'captured', $receiver->url($path), types => ['public.orders.*'], max_in_flight => 100);

my $json = JSON::PP->new->canonical;
sub payloads { return map { $json->encode(JSON::PP::decode_json($_->{bytes})) } $receiver->requests($path) }

# One change that commits between others that do not
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE orders (gone text, id int PRIMARY KEY, status text, note text, secret text);
ALTER TABLE orders DROP COLUMN gone;
SELECT outbox.capture('orders', '{status,note}');
BEGIN;
INSERT INTO orders VALUES (1, 'rolled back');
ROLLBACK;
INSERT INTO orders VALUES (1, 'new', NULL, 'x');
BEGIN;
UPDATE orders SET status = 'rolled back';
ROLLBACK;
UPDATE orders SET status = 'paid';
SQL
my @expected = (
	'{"new":{"note":null,"status":"new"},"op":"insert","table":"public.orders"}',
	'{"changed":["status"],"new":{"note":null,"status":"paid"},"old":{"note":null,"status":"new"},"op":"update","table":"public.orders"}');
wait_for(sub { scalar $receiver->requests($path) >= @expected }, 'the changes');
is_deeply([payloads()], \@expected, 'what committed arrives, in order, and nothing else');
is_deeply([map { "$_->{headers}{'ce-type'} $_->{headers}{'ce-partitionkey'}" } $receiver->requests($path)], ['public.orders.insert 1', 'public.orders.update 1'], 'with its type and key');

# Ten thousand rows in one COPY
my $rows = $node->basedir . '/rows';
open my $file, '>', $rows or die;
print $file "$_\tcopied\t\\N\t\\N\n" for 1001 .. 11000;
close $file;
$node->safe_psql('postgres', "\\copy orders FROM '$rows'");
my %keys;
wait_for(sub { scalar $receiver->requests($path) >= 10_002 }, '10,000 rows of one COPY', 120);
$keys{ $_->{headers}{'ce-partitionkey'} }++ for grep { $_->{bytes} =~ /"copied"/ } $receiver->requests($path);
is(join(' ', scalar keys %keys, (sort { $a <=> $b } keys %keys)[ 0, -1 ], (grep { $_ != 1 } values %keys)), '10000 1001 11000', 'COPY of 10,000 rows: an event for each, once');

# A dump of the table, after a column has been renamed and another dropped: the copy's column numbers are not those of the original
$node->safe_psql('postgres', q{
	ALTER TABLE orders RENAME COLUMN status TO state;
	ALTER TABLE orders RENAME COLUMN id TO number;
	ALTER TABLE orders DROP COLUMN note;
	TRUNCATE orders});
my $dump = $node->basedir . '/dump';
command_ok(['pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres')], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
command_ok(['pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), $dump], 'pg_restore');
sub numbers { my ($database) = @_; return $node->safe_psql($database, q{SELECT string_agg(attname || ' ' || attnum, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attnum > 0 AND NOT attisdropped}) }
is(numbers('postgres'), 'number 2, state 3, secret 5', 'columns of the original');
is(numbers('copy'), 'number 1, state 2, secret 3', 'columns of the copy');

my $mark = $node->safe_psql('copy', 'SELECT max(id::text) FROM outbox.event');
$node->safe_psql('copy', q{INSERT INTO orders VALUES (7, 'new', 'x'); UPDATE orders SET secret = 'y'; UPDATE orders SET state = 'paid'; ALTER TABLE orders RENAME state TO status; DELETE FROM orders; TRUNCATE orders});
is($node->safe_psql('copy', "SELECT type, key, payload FROM outbox.event WHERE id > '$mark' ORDER BY id"), join("\n",
		'public.orders.insert|7|{"op": "insert", "new": {"state": "new"}, "table": "public.orders"}',
		'public.orders.update|7|{"op": "update", "new": {"state": "paid"}, "old": {"state": "new"}, "table": "public.orders", "changed": ["state"]}',
		'public.orders.delete|7|{"op": "delete", "old": {"status": "paid"}, "table": "public.orders"}',
		'public.orders.truncate||{"op": "truncate", "table": "public.orders"}'), 'the restored table goes on capturing, and following');

# The table alone, restored by its owner, who needs the right to capture
$node->safe_psql('postgres', q{CREATE DATABASE alone; CREATE ROLE regress_owner LOGIN; ALTER TABLE orders OWNER TO regress_owner});
command_ok(['pg_dump', '-Fc', '-t', 'orders', '-f', $dump, '-d', $node->connstr('postgres')], 'pg_dump of the table');
$node->safe_psql('alone', q{CREATE EXTENSION outbox; GRANT CREATE ON SCHEMA public TO regress_owner; SELECT outbox.grant_role('regress_owner', 'publisher')});
command_ok(['pg_restore', '--exit-on-error', '-U', 'regress_owner', '-d', $node->connstr('alone'), $dump], 'pg_restore by the owner');
$node->safe_psql('alone', q{INSERT INTO orders VALUES (8, 'new')});
is($node->safe_psql('alone', 'SELECT key, payload FROM outbox.event'), '8|{"op": "insert", "new": {"state": "new"}, "table": "public.orders"}', 'captures');

done_testing();
