# pg_upgrade between two installations: the old one is where OLD_SERVER says (test/upgrade), the new one that of PATH.
package Outbox::Upgrade;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;

our @EXPORT = qw(old_server new_node new_version pg_upgrade);

sub old_server { return $ENV{OLD_SERVER} // die "OLD_SERVER says where the old server is\n" }
sub new_version { return (`postgres --version` =~ /(\d+)/)[0] }

# What pg_upgrade wants to fill: nothing but what initdb made. Options: conf (lines), server (installed elsewhere).
sub new_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, $options{server} ? (install_path => $options{server}) : ());
	$node->init(extra => [ '--encoding=UTF8', '--no-locale', new_version() >= 18 ? '--no-data-checksums' : () ]);
	$node->append_conf('postgresql.conf', join "\n", 'max_worker_processes = 16', 'max_prepared_transactions = 10', 'fsync = off', @{ $options{conf} // [] }, '');
	return $node;
}

# pg_upgrade(data directory, node to fill, argument…): what it said, and whether it succeeded.
sub pg_upgrade
{
	my ($from, $new, @arguments) = @_;
	my $bin = $new->config_data('--bindir');
	my $said = '';
	chdir $new->basedir or die;   # 15 and older write their logs here
	my $done = IPC::Run::run([ "$bin/pg_upgrade", '--no-sync', '-d', $from, '-D', $new->data_dir, '-b', old_server() . '/bin', '-B', $bin, '-s', $new->host, '-p', $new->port, '-P', $new->port, @arguments ],
		'<', \undef, '>&', \$said);
	return ($said, $done);
}

1;
