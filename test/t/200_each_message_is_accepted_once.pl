# Guarantee: accept() lets one transaction per consumer and message through; 64 clients and an independent count of the effects.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', arm => 0, conf => [ 'max_connections = 100', 'shared_buffers = 64MB', 'synchronous_commit = off', "deadlock_timeout = '100ms'" ]);
my $clients = 64;
my $ids = 3000;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

# What was done is counted outside of outbox: a row per effect, without any constraint that could hide a second one.
sql('CREATE TABLE effect (consumer text, id text, way text)');
sql('CREATE TABLE refused (consumer text, id text)');

my $directory = PostgreSQL::Test::Utils::tempdir();
sub script { my ($name, $text) = @_; open my $file, '>', "$directory/$name" or die; print $file $text; close $file; return "$directory/$name" }
sub pgbench
{
	my ($per_client, @scripts) = @_;
	my ($out, $err) = ('', '');
	my $result = IPC::Run::run([ 'pgbench', '-n', '-M', 'prepared', '--max-tries=100', '-c', $clients, '-j', 2, '-t', $per_client, (map { ('-f', $_) } @scripts), '-d', $node->connstr('postgres') ], '>', \$out, '2>', \$err);
	ok($result, 'the clients end without an error') or diag $err;
	my ($failed) = $out =~ /number of failed transactions: (\d+)/;
	is($failed // 0, 0, 'no transaction failed for good');
	return $out;
}

# One message at a time, a fifth rolled back; in its own transaction, after a savepoint, in batches; at every isolation level
sub one { my ($level, $end) = @_; return <<"SCRIPT" }
\\set id random(1, $ids)
\\set undo random(1, 5)
BEGIN ISOLATION LEVEL $level;
SELECT outbox.accept('one', :id::text)::int AS accepted \\gset
\\if :accepted
INSERT INTO effect VALUES ('one', :id::text, '$level');
\\else
SELECT 1;
\\endif
\\if :undo = 1
ROLLBACK;
\\else
COMMIT;
\\endif
SCRIPT
my $savepoint = script('savepoint', <<"SCRIPT");
\\set id random(1, $ids)
\\set undo random(1, 3)
BEGIN;
SAVEPOINT s;
SELECT outbox.accept('one', :id::text)::int AS accepted \\gset
\\if :accepted
INSERT INTO effect VALUES ('one', :id::text, 'savepoint');
\\endif
\\if :undo = 1
ROLLBACK TO s;
\\endif
COMMIT;
SCRIPT
my $batch = script('batch', <<"SCRIPT");
\\set undo random(1, 5)
BEGIN;
INSERT INTO effect SELECT 'one', unnest(outbox.accept_many('one', ARRAY(SELECT (1 + floor(random() * $ids))::int::text FROM generate_series(1, 10)))), 'batch';
\\if :undo = 1
ROLLBACK;
\\else
COMMIT;
\\endif
SCRIPT
pgbench(60, (map { script($_ =~ s/ //r, one($_)) } 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE'), $savepoint, $batch);

is(sql('SELECT count(*) FROM (SELECT FROM effect GROUP BY consumer, id HAVING count(*) > 1) AS x'), '0', 'no message had its effect twice');
is(sql(q{SELECT count(*) FROM effect AS e FULL JOIN (SELECT * FROM outbox.inbox WHERE consumer = 'one') AS i ON i.message_id = e.id WHERE e.id IS NULL OR i.message_id IS NULL}), '0', 'what was accepted had its effect, and nothing else');
cmp_ok(sql('SELECT count(*) FROM effect'), '>', $ids / 2, 'most were accepted: ' . sql('SELECT count(*) FROM effect'));
cmp_ok(sql('SELECT count(DISTINCT way) FROM effect'), '==', 5, 'in every way');
is(sql("SELECT count(*) FROM generate_series(1, $ids) AS i WHERE outbox.accept('one', i::text) = EXISTS (SELECT FROM effect AS e WHERE e.id = i::text)"), '0', 'and exactly the others are new now');
is(sql(q{SELECT count(*) - count(DISTINCT (message_id, consumer)) FROM outbox.inbox}), '0', 'no id is there twice');
is(sql(q{SELECT accepted = held AND duplicates > 0 FROM outbox.inbox_status WHERE consumer = 'one'}), 't', 'the counts say so too');

# All at once on the same few, so that nearly everybody waits for somebody
sql(q{TRUNCATE effect});
my $hot = script('hot', <<'SCRIPT');
\set id random(1, 20)
BEGIN;
SELECT outbox.accept('hot', :id::text)::int AS accepted \gset
\if :accepted
INSERT INTO effect VALUES ('hot', :id::text, 'hot');
\endif
\set undo random(1, 2)
\if :undo = 1
ROLLBACK;
\else
COMMIT;
\endif
SCRIPT
pgbench(30, $hot);
is(sql('SELECT count(*) - count(DISTINCT id) FROM effect'), '0', 'on the same few messages: none twice');
is(sql(q{SELECT count(*) FROM effect}), sql(q{SELECT count(*) FROM outbox.inbox WHERE consumer = 'hot'}), 'and none without its effect');

# The same for idempotency keys: one response per request, whoever asks
sql('CREATE TABLE charge (key text, token bigint)');
sql(<<'SQL');
CREATE FUNCTION charge(key text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    b record;
BEGIN
    SELECT * INTO b FROM outbox.begin_request('charge', key, sha256(key::bytea));
    IF b.state = 'new' THEN
        INSERT INTO charge VALUES (key, b.token);
        PERFORM outbox.finish_request('charge', key, b.token, to_jsonb(b.token), 201);
        RETURN to_jsonb(b.token);
    END IF;
    ASSERT b.state = 'replay', b.state;
    RETURN b.response;
END $$;
SQL
my $charge = script('charge', <<'SCRIPT');
\set key random(1, 500)
\set undo random(1, 4)
BEGIN;
SELECT charge(:key::text)::text::int8 = (SELECT token FROM charge WHERE key = :key::text) AS same;
\if :undo = 1
ROLLBACK;
\else
COMMIT;
\endif
SCRIPT
my $charge_serializable = script('charge2', <<'SCRIPT');
\set key random(1, 500)
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT charge(:key::text);
COMMIT;
SCRIPT
pgbench(30, $charge, $charge_serializable);
is(sql('SELECT count(*) - count(DISTINCT key) FROM charge'), '0', 'idempotency keys: no request was carried out twice');
is(sql(q{SELECT count(*) FROM charge AS c FULL JOIN (SELECT * FROM outbox.idempotency_key WHERE scope = 'charge') AS k ON k.key = c.key AND k.token = c.token AND k.response = to_jsonb(c.token) WHERE c.key IS NULL OR k.key IS NULL}), '0', 'and each replays the response of the one that was');

done_testing;
