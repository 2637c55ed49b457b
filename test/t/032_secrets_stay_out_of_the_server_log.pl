# The path of a URL, a signing secret and static headers are secrets: calls that subscribe or change a subscription leave none of them in the server log, whether they succeed or fail.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('discreet', conf => [ 'log_statement = none', 'log_error_verbosity = verbose', q{lock_timeout = '500ms'}, 'log_lock_waits = on', q{deadlock_timeout = '100ms'} ]);
$node->safe_psql('postgres', q{
	CREATE ROLE manager;
	SELECT outbox.grant_role('manager', 'manager');
	CREATE FUNCTION dynamic(command text) RETURNS void LANGUAGE plpgsql AS 'BEGIN EXECUTE command; END';
});
my $secret = 'whsec_SECRETSECRETSECRETSECRETSECRETSE';
my $url = 'https://example.com/T0/hidden-path';
my $headers = q(headers => '{"Authorization": "Bearer hidden-token"}');

sub run
{
	my ($what, $refused, $sql) = @_;
	my $offset = -s $node->logfile;
	my ($status, $out, $err) = $node->psql('postgres', $sql);
	my $log = slurp_file($node->logfile, $offset);
	if (defined $refused)
	{
		like($log, qr/ERROR:  $refused: /, "$what: refused and logged");
		like($err, qr/ERROR: /, "$what: and told");
	}
	else
	{
		is($status, 0, "$what: accepted") or diag $err;
	}
	unlike($log, qr/SECRETSECRET|hidden-path|hidden-token/, "$what: without secrets in the log");
}

run('subscribe', undef, "SELECT outbox.subscribe('one', '$url', secret => '$secret')");
run('alter_subscription', undef, "SELECT outbox.alter_subscription('one', url => '$url/more')");
run('name in use', '42710', "SELECT outbox.subscribe('one', '$url', secret => '$secret')");
run('option', '22023', "SELECT outbox.subscribe('two', '$url', timeout => '1 h', secret => '$secret')");
run('URL', '22023', "SELECT outbox.subscribe('two', '$url#fragment', secret => '$secret')");
run('secret', '22023', "SELECT outbox.subscribe('two', '$url', secret => '${secret}!')");
run('types', '22023', "SELECT outbox.subscribe('two', '$url', types => '{a..b}', secret => '$secret')");
run('network', '42501', "SET ROLE manager; SELECT outbox.subscribe('two', '$url', network => 'private', secret => '$secret')");
run('alter: option', '22023', "SELECT outbox.alter_subscription('one', url => '$url', timeout => '1 h')");
run('alter: name', '42704', "SELECT outbox.alter_subscription('nobody', url => '$url')");
run('alter: network', '42501', "SET ROLE manager; SELECT outbox.alter_subscription('one', url => '$url', network => 'private')");
run('read-only', '25006', "BEGIN READ ONLY; SELECT outbox.subscribe('two', '$url', secret => '$secret')");
run('in a string', '22023', "SELECT dynamic(\$\$SELECT outbox.subscribe('two', '$url', timeout => '1 h', secret => '$secret')\$\$)");

run('rotate_secret', undef, "SELECT outbox.rotate_secret('one', secret => '$secret')");
run('rotate: overlap', '22023', "SELECT outbox.rotate_secret('one', '31 d', '$secret')");
run('rotate: secret', '22023', "SELECT outbox.rotate_secret('one', secret => '${secret}!')");
run('rotate: name', '42704', "SELECT outbox.rotate_secret('nobody', secret => '$secret')");
run('rotate: too many', '54000', "SELECT outbox.rotate_secret('one'), outbox.rotate_secret('one'), outbox.rotate_secret('one', secret => '$secret')");
run('headers', undef, "SELECT outbox.alter_subscription('one', $headers)");
run('subscribe with headers', undef, "SELECT outbox.subscribe('three', '$url', $headers)");
run('headers: option', '22023', "SELECT outbox.alter_subscription('one', $headers, timeout => '1 h')");
run('headers: name in use', '42710', "SELECT outbox.subscribe('one', '$url', $headers)");
run("headers: $_->[0]", '22023', "SELECT outbox.alter_subscription('one', headers => '$_->[1]')")
	for [ name => '{"a b": "hidden-token"}' ], [ reserved => '{"Cookie": "hidden-token"}' ], [ twice => '{"x": "1", "X": "hidden-token"}' ], [ value => '{"x": " hidden-token"}' ],
	[ control => '{"x": "hidden-token\\u0007"}' ], [ array => '["hidden-token"]' ], [ nested => '{"x": ["hidden-token"]}' ];
run('headers: in a string', '22023', "SELECT dynamic(\$\$SELECT outbox.alter_subscription('one', $headers, timeout => '1 h')\$\$)");

# a lock that is waited for in vain, and logged while it is
my $holder = session($node);
$holder->query(q{BEGIN; SELECT FROM outbox.subscription WHERE name = 'one' FOR UPDATE});
run('lock', '55P03', "SELECT outbox.alter_subscription('one', url => '$url')");
$holder->query('COMMIT');

# what hides these statements hides no others
my $offset = -s $node->logfile;
$node->psql('postgres', q{SELECT outbox.pause('nobody'); });
$node->psql('postgres', q{SELECT 'not hidden'::int});
like(slurp_file($node->logfile, $offset), qr/STATEMENT:  SELECT 'not hidden'::int/, 'other statements are logged as ever');

done_testing();
