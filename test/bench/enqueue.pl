# What recording an event costs in bulk: many in one transaction, in one statement, each time into what is empty (on a virtual machine, memory that a growing file is the first to use costs as much as the event). `floor` is what none of our code can go below: PostgreSQL's own INSERT of such rows, with ids that are there
# already, into a table like one of the log's.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(200_000);
my $db = database('db', unarmed => 1);    # nobody delivers: this is the producer's cost alone
my $pgq = eval { sql($db, "SET client_min_messages = warning; CREATE EXTENSION pgq; SELECT pgq.create_queue('q')"); 1 };
say_it("without PgQ: $@") unless $pgq;
sql($db, "CREATE TABLE typical (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregate_id text, event_type text, event_data jsonb, status text DEFAULT 'PENDING', retry_count int DEFAULT 0, created_at timestamptz DEFAULT now());
	CREATE INDEX ON typical (created_at) WHERE status = 'PENDING'");
sql($db, "CREATE TABLE floor (LIKE outbox.event_0 INCLUDING ALL); CREATE UNLOGGED TABLE ids AS SELECT lpad(to_hex(g), 32, '0')::uuid AS id, g FROM generate_series(1, $n) AS g; VACUUM ANALYZE ids");
my $session = session($db, '-c synchronous_commit=off');
my $payload = literal($PAYLOAD);

my %how = (
	plain => sub { query_on($session, 'TRUNCATE plain'); return "INSERT INTO plain (type, key, payload) SELECT 'order.paid', 'o' || g, ${payload}::jsonb FROM generate_series(1, $n) AS g" },
	floor => sub { query_on($session, 'TRUNCATE floor'); return "INSERT INTO floor (id, xid, epoch, created_at, type, key, payload) SELECT id, pg_current_xact_id(), 1, now(), 'order.paid', 'o' || g, ${payload}::jsonb FROM ids" },
	typical => sub { query_on($session, 'TRUNCATE typical'); return "INSERT INTO typical (event_type, aggregate_id, event_data) SELECT 'order.paid', 'o' || g, ${payload}::jsonb FROM generate_series(1, $n) AS g" },
	outbox => sub { query_on($session, 'SET client_min_messages = warning; DROP EXTENSION outbox; CREATE EXTENSION outbox'); return "SELECT count(outbox.enqueue('order.paid', ${payload}::jsonb, key => 'o' || g)) FROM generate_series(1, $n) AS g" },
	pgq => sub { query_on($session, 'TRUNCATE pgq.event_1'); return "SELECT count(pgq.insert_event('q', 'order.paid', $payload)) FROM generate_series(1, $n) AS g" });
my %time = map { my $statement = $how{$_}; $_ => sub { my $text = $statement->(); return 1e6 * timed($session, $text) / $n } } keys %how;

$time{$_}->() for grep { $_ ne 'pgq' || $pgq } sort keys %time;    # warm: no full-page images afterwards, files there
my $result = alternate(5, plain => $time{plain}, outbox => $time{outbox}, floor => $time{floor}, $pgq ? (pgq => $time{pgq}) : (), typical => $time{typical});
figure('enqueue in bulk, time per event', unit => 'µs', ours => $result->{outbox}, beside => $result->{plain}, against => 'plain INSERT, random uuid key', goal => '<= 0.75');
figure('the same beside PgQ', unit => 'µs', ours => $result->{outbox}, beside => $result->{pgq}, against => 'pgq.insert_event()', goal => '<= 0.5') if $pgq;
figure('the same beside a table with a status and an index on it', unit => 'µs', ours => $result->{outbox}, beside => $result->{typical}, against => 'typical outbox table');
figure('the same beside the least that such a row takes', unit => 'µs', ours => $result->{outbox}, beside => $result->{floor}, against => 'INSERT into a table like the log, ids there already');
figure('that least beside a plain INSERT', unit => 'µs', ours => $result->{floor}, beside => $result->{plain}, against => 'plain INSERT, random uuid key');
