# What recording an event costs in bulk: many in one transaction, in one statement.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(200_000);
my $db = database('db', unarmed => 1);    # nobody delivers: this is the producer's cost alone
my $pgq = eval { sql($db, "SET client_min_messages = warning; CREATE EXTENSION pgq; SELECT pgq.create_queue('q')"); 1 };
say_it("without PgQ: $@") unless $pgq;
sql($db, "CREATE TABLE typical (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregate_id text, event_type text, event_data jsonb, status text DEFAULT 'PENDING', retry_count int DEFAULT 0, created_at timestamptz DEFAULT now());
	CREATE INDEX ON typical (created_at) WHERE status = 'PENDING'");
my $session = session($db, '-c synchronous_commit=off');
my $payload = literal($PAYLOAD);

my %how = (
	plain => sub { query_on($session, 'TRUNCATE plain'); return "INSERT INTO plain (type, key, payload) SELECT 'order.paid', 'o' || g, ${payload}::jsonb FROM generate_series(1, $n) AS g" },
	typical => sub { query_on($session, 'TRUNCATE typical'); return "INSERT INTO typical (event_type, aggregate_id, event_data) SELECT 'order.paid', 'o' || g, ${payload}::jsonb FROM generate_series(1, $n) AS g" },
	outbox => sub { return "SELECT count(outbox.enqueue('order.paid', ${payload}::jsonb, key => 'o' || g)) FROM generate_series(1, $n) AS g" },
	pgq => sub { return "SELECT count(pgq.insert_event('q', 'order.paid', $payload)) FROM generate_series(1, $n) AS g" });
my %time = map { my $statement = $how{$_}; $_ => sub { my $text = $statement->(); return 1e6 * timed($session, $text) / $n } } keys %how;

$time{$_}->() for grep { $_ ne 'pgq' || $pgq } sort keys %time;    # warm: no full-page images afterwards, files there
my $result = alternate(5, plain => $time{plain}, outbox => $time{outbox}, $pgq ? (pgq => $time{pgq}) : (), typical => $time{typical});
figure('enqueue in bulk, time per event', unit => 'µs', ours => $result->{outbox}, beside => $result->{plain}, against => 'plain INSERT, random uuid key', goal => '<= 0.75');
figure('the same beside PgQ', unit => 'µs', ours => $result->{outbox}, beside => $result->{pgq}, against => 'pgq.insert_event()', goal => '<= 0.5') if $pgq;
figure('the same beside a table with a status and an index on it', unit => 'µs', ours => $result->{outbox}, beside => $result->{typical}, against => 'typical outbox table');
