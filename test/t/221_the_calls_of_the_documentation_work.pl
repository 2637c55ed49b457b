# The functions that doc/drivers.md shows do what they should, with the rights it asks for: the code of the document is what runs here.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $document = "$FindBin::RealBin/../../doc/drivers.md";
my $drivers = "$FindBin::RealBin/../drivers";

my ($tables) = slurp_file($document) =~ /^```sql\n(.*?)^```$/ms;
$node->safe_psql('postgres', $tables);
$node->safe_psql('postgres', q{CREATE ROLE app LOGIN; GRANT ALL ON orders, invoice TO app; SELECT outbox.grant_role('app', 'publisher'), outbox.grant_role('app', 'consumer')});
$node->safe_psql('postgres', 'INSERT INTO orders SELECT generate_series(1, 300)');

for my $case ([ 'node-postgres', 'node', "$drivers/documented.js", $document, 1, 150 ], [ 'psycopg', '/usr/bin/python3', "$drivers/documented.py", $document, 151, 300 ])
{
	my ($what, @command) = @$case;
	my ($out, $err, $ran);
	{
		local @ENV{qw(PGHOST PGPORT PGUSER PGDATABASE)} = ($node->host, $node->port, 'app', 'postgres');
		$ran = IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err);
	}
	ok($ran, "$what: pay, receive, work") or diag $err;
	is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT order_id) FROM invoice WHERE order_id BETWEEN $command[3] AND $command[4]"), '150|150', "$what: an invoice for each order");
}
ok(wait_for(sub { $node->safe_psql('postgres', q{SELECT s.status, count(*) FROM outbox.event AS e CROSS JOIN outbox.event_status(e.id) AS s GROUP BY 1}) eq 'delivered|300' }, 'the last ones'), 'all that was pulled is settled');

done_testing;
