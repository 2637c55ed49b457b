# The path of a URL and a signing secret are secrets: calls that subscribe or change a subscription leave neither in the server log, whether they succeed or fail.
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
	unlike($log, qr/SECRETSECRET|hidden-path/, "$what: without secrets in the log");
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
