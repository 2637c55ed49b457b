# Every block of SQL in the README runs as it stands there.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
# enabled is off: the subscriptions of the examples lead out of here
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\noutbox.enabled = off\n");
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE app; CREATE TABLE orders (id int, total numeric)');

my $readme = slurp_file("$FindBin::RealBin/../../README.md");
my @blocks = $readme =~ /^```sql\n(.*?)^```$/msg;
cmp_ok(scalar @blocks, '>=', 5, 'the README has ' . @blocks . ' blocks of SQL');

# the one that creates the extension comes first; what pulls needs a worker
for my $block (sort { ($b =~ /CREATE EXTENSION/) <=> ($a =~ /CREATE EXTENSION/) } grep { !/outbox\.pull/ } @blocks)
{
	my $sql = $block =~ /\$1/ ? "PREPARE example AS $block;\nEXECUTE example('{}', 'k');" : $block;
	my ($status, undef, $error) = $node->psql('postgres', $sql, on_error_stop => 1);
	is($status, 0, (split /\n/, $block)[0]) or diag $error;
}

# so do the calls within its text that need no id
for my $call (grep { !/\$/ } $readme =~ /`SELECT (outbox\.[^`…]*)`/g)
{
	my ($status, undef, $error) = $node->psql('postgres', "SELECT $call");
	is($status, 0, $call) or diag $error;
}
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.event WHERE type = 'order.paid'}), '2', 'the examples recorded their events');

# Pulling, statement by statement: a token is what pull() gave. Nothing else is sent meanwhile.
$node->safe_psql('postgres', 'SELECT outbox.pause_all($$a test$$); SELECT outbox.start()');
$node->append_conf('postgresql.conf', 'outbox.enabled = on');
$node->reload;
worker_pid($node);
for my $block (grep { /outbox\.pull/ } @blocks)
{
	my $token;
	for my $statement (grep { /\S/ } split /;[^\n]*\n/, $block)
	{
		my @rows;
		$statement =~ s/\$token/'$token'/;
		enqueue($node, 'product.changed', '{"id": 1}') if $statement =~ /outbox\.pull/;
		wait_for(sub {
				my ($status, $out, $error) = $node->psql('postgres', $statement, on_error_stop => 1);
				is($status, 0, $statement) or diag $error unless @rows;
				@rows = ($out);
				$statement !~ /outbox\.pull/ || $out ne '' }, 'an event to pull');
		$token = (split /\|/, $rows[0])[-1] if $statement =~ /outbox\.pull/;
		is($rows[0], '1', 'one event acknowledged') if $statement =~ /outbox\.ack/;
	}
}

done_testing;
