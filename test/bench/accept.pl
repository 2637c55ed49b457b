# accept() beside INSERT … ON CONFLICT DO NOTHING: ids that are new, and ids that have been there. Called by a handler in PL/pgSQL, and by 8 clients that send one statement a transaction.
use strict;
use warnings;

use Outbox::Bench;

my $seconds = seconds_of(4);
my $db = database('db', unarmed => 1);
sql($db, 'CREATE TABLE seen (consumer text, message_id text, accepted_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (message_id, consumer))');
my %call = (accept => sub { "SELECT outbox.accept('billing', $_[0]);\n" }, insert => sub { "INSERT INTO seen (consumer, message_id) VALUES ('billing', $_[0]) ON CONFLICT DO NOTHING;\n" });
my $known = 50_000;
sql($db, "SELECT count(outbox.accept('billing', 'known-' || i)) FROM generate_series(1, $known) AS i; INSERT INTO seen (consumer, message_id) SELECT 'billing', 'known-' || i FROM generate_series(1, $known) AS i");
my %id = (new => "gen_random_uuid()::text", duplicate => "'known-' || :i");
my $number = "\\set i random(1, $known)\n";

for my $kind (qw(new duplicate))
{
	my %run = map { my $script = $number . $call{$_}->($id{$kind}); $_ => sub { pgbench($db, $script, 8, $seconds) } } keys %call;
	pgbench($db, $number . $call{$_}->($id{$kind}), 8, 1) for keys %call;
	my $result = alternate(3, insert => $run{insert}, accept => $run{accept});
	figure("accept(), $kind ids, 8 clients", unit => 'tps', ours => $result->{accept}, beside => $result->{insert}, against => 'INSERT … ON CONFLICT DO NOTHING', goal => $kind eq 'new' ? '>= 1.0' : '>= 1.5');
}

# A handler that goes through what has arrived, in one transaction: what the call itself costs.
my $n = size(50_000);
my $session = session($db, '-c synchronous_commit=off');
query_on($session, "DO \$\$ BEGIN
	CREATE FUNCTION accept_all(ids text[]) RETURNS bigint LANGUAGE plpgsql AS 'DECLARE id text; n bigint := 0; BEGIN FOREACH id IN ARRAY ids LOOP IF outbox.accept(''billing'', id) THEN n := n + 1; END IF; END LOOP; RETURN n; END';
	CREATE FUNCTION insert_all(ids text[]) RETURNS bigint LANGUAGE plpgsql AS 'DECLARE id text; n bigint := 0; BEGIN FOREACH id IN ARRAY ids LOOP INSERT INTO seen (consumer, message_id) VALUES (''billing'', id) ON CONFLICT DO NOTHING; IF FOUND THEN n := n + 1; END IF; END LOOP; RETURN n; END';
END \$\$; CREATE TEMP TABLE batch (ids text[])");
my %ids = (new => 'gen_random_uuid()::text', duplicate => "'known-' || (1 + i % $known)");
for my $kind (qw(new duplicate))
{
	my %run = map { my $function = $_; $function => sub {
		query_on($session, "TRUNCATE batch; INSERT INTO batch SELECT array_agg($ids{$kind}) FROM generate_series(1, $n) AS i");
		return $n / timed($session, "SELECT ${function}_all(ids) FROM batch") } } qw(insert accept);
	$run{$_}->() for qw(insert accept);
	my $result = alternate(5, insert => $run{insert}, accept => $run{accept});
	figure("accept(), $kind ids, in a handler's loop", unit => 'ids/s', ours => $result->{accept}, beside => $result->{insert}, against => 'INSERT … ON CONFLICT DO NOTHING', goal => $kind eq 'new' ? '>= 1.0' : '>= 1.5');
}
