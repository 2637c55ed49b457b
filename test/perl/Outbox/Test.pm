# What the TAP tests of outbox have in common.
package Outbox::Test;

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256 sha256);
use Exporter 'import';
use MIME::Base64 qw(decode_base64 encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use Outbox::Ledger;
use Outbox::Receiver;
use Outbox::Session;

our @EXPORT = qw(outbox_node is_reachable key_file new_key install subscribe enqueue session wait_for wait_arriving wait_status worker_pid worker_gone stand_still kill_process signature_of literal
	start_producers stop_producers finish_producers check_ledger);

# A running server with outbox preloaded, created in database postgres and started. Options: conf (lines), arm (default true), preload (more libraries),
# key (true: with a file of keys for secrets), server (where it is installed: another one than that of PATH).
sub outbox_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, $options{server} ? (install_path => $options{server}) : ());
	$node->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
	$node->append_conf('postgresql.conf', join "\n",
		"shared_preload_libraries = '" . join(',', 'outbox', @{ $options{preload} // [] }) . "'",
		'max_worker_processes = 16', 'max_prepared_transactions = 10', 'fsync = on', 'autovacuum_naptime = 1s', 'restart_after_crash = on',
		$options{key} ? "outbox.secret_key_file = '" . key_file($node, new_key()) . "'" : (), @{ $options{conf} // [] }, '');
	$node->start;
	install($node, 'postgres', %options);
	return $node;
}

# The file with the keys of a node, outside its data directory, after writing these keys to it; without any, it is only named.
sub key_file
{
	my ($node, @keys) = @_;
	my $file = $node->basedir . '/outbox.key';
	return $file unless @keys;
	my $mask = umask 077;
	open my $out, '>', "$file.new" or die "cannot write $file: $!";
	print $out "$_\n" for @keys;
	close $out or die;
	umask $mask;
	rename "$file.new", $file or die;
	return $file;
}

my $keys = 0;
sub new_key { return encode_base64(sha256(join ' ', time, $$, ++$keys), '') }

sub install
{
	my ($node, $database, %options) = @_;
	$node->safe_psql($database, 'CREATE EXTENSION outbox');
	$node->safe_psql($database, 'SELECT outbox.start()') if $options{arm} // 1;
}

sub literal { my ($text) = @_; return 'NULL' unless defined $text; return "'" . $text =~ s/'/''/gr . "'" }

# subscribe(node, name, url, option => value…): returns the secret. Retries quickly, without a circuit breaker, unless told otherwise; `database` is none of the options.
sub subscribe
{
	my ($node, $name, $url, %options) = @_;
	my $database = delete $options{database} // 'postgres';
	%options = (network => 'private', retry_base => '50 ms', retry_factor => 1, retry_jitter => 0, breaker_threshold => 0, %options);
	my $list = join ', ', map { "$_ => " . (ref $options{$_} ? 'ARRAY[' . join(',', map { literal($_) } @{ $options{$_} }) . ']' . ($_ eq 'types' ? '::text[]' : '::int[]') : literal($options{$_})) }
		sort keys %options;
	return $node->safe_psql($database, 'SELECT outbox.subscribe(' . literal($name) . ', ' . literal($url) . ", $list)");
}

# enqueue(node, type, payload as JSON, argument => value…): in its own transaction; returns the id.
sub enqueue
{
	my ($node, $type, $payload, %arguments) = @_;
	my $database = delete $arguments{database} // 'postgres';
	return $node->safe_psql($database, 'SELECT outbox.enqueue(' . join(', ', literal($type), literal($payload), map { "$_ => " . literal($arguments{$_}) } sort keys %arguments) . ')');
}

sub session { my ($node, $database) = @_; return Outbox::Session->new($node->connstr($database // 'postgres')) }

# Waits until the code returns something true, and returns that; fails (and returns nothing) after so many seconds (times $OUTBOX_PATIENCE).
my $in_vain = 0;

sub wait_for
{
	my ($code, $what, $seconds) = @_;
	my $began = time;
	my $pause = 0.01;
	for (;;)
	{
		my $result = $code->();
		return $result if $result;
		last if time - $began > ($seconds // 90) * ($ENV{OUTBOX_PATIENCE} // 1);
		sleep $pause;
		$pause *= 1.5 if $pause < 0.2;
	}
	ok(0, "in vain waited for: $what");
	die "in vain waited three times: whatever this is, more waiting will not help\n" if ++$in_vain == 3;
	return;
}

# Like wait_for, but in vain only when nothing more has arrived for a minute, by this count: on a busy machine much takes its time. Does not fail by itself.
sub wait_arriving
{
	my ($code, $count) = @_;
	for (my ($seen, $since) = (0, time); time - $since < 60 * ($ENV{OUTBOX_PATIENCE} // 1); sleep 0.2)
	{
		return 1 if $code->();
		my $now = $count->();
		($seen, $since) = ($now, time) if $now > $seen;
	}
	return;
}

# Does the server answer? (A psql that is refused may be gone before it was told what to ask, and IPC::Run dies of that.)
sub is_reachable { my ($node) = @_; return eval { ($node->psql('postgres', 'SELECT 1'))[0] == 0 } // 0 }

# Waits until outbox.event_status says this of an event for a subscription.
sub wait_status
{
	my ($node, $id, $subscription, $status, $seconds) = @_;
	my $last = '';
	my $found = wait_for(sub {
			$last = $node->safe_psql('postgres', "SELECT status FROM outbox.event_status('$id') WHERE subscription = " . literal($subscription));
			$last eq $status }, "event $id being $status for $subscription", $seconds);
	diag "it is: $last" unless $found;
	return $found;
}

# The delivery worker of a database, once there is one.
sub worker_pid
{
	my ($node, $database) = @_;
	$database //= 'postgres';
	return wait_for(sub {
			$node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE datname = '$database' AND backend_type LIKE 'outbox delivery%' LIMIT 1") },
		"a delivery worker for $database");
}

# Waits until a database has no worker any more: what `stop()` asks for takes as long as what the worker still has to write.
sub worker_gone
{
	my ($node, $database) = @_;
	$database //= 'postgres';
	return wait_for(sub { $node->safe_psql('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = '$database' AND backend_type LIKE 'outbox delivery%'") eq 't' }, "no delivery worker for $database");
}

# Stops a worker (SIGSTOP) where it waits, so that it holds no lock that others need and is not in the middle of a commit.
sub stand_still
{
	my ($node, $pid) = @_;
	return wait_for(sub {
			kill 'STOP', $pid;
			my $waits = $node->safe_psql('postgres', "SELECT coalesce(wait_event_type = 'Extension' AND backend_xid IS NULL, false) FROM pg_stat_activity WHERE pid = $pid");
			kill 'CONT', $pid unless $waits eq 't';
			$waits eq 't' }, "worker $pid standing still");
}

# Kills a process of the server, and waits until that is over: until it is gone, and the server, which restarts, is back.
sub kill_process
{
	my ($node, $pid) = @_;
	kill 'KILL', $pid;
	wait_for(sub { !kill 0, $pid }, "process $pid being gone");
	return wait_for(sub { is_reachable($node) }, 'the server being back');
}

# The Standard Webhooks signature this request ought to carry, computed independently.
sub signature_of
{
	my ($request, $secret) = @_;
	my $key = decode_base64($secret =~ s/^whsec_//r);
	return 'v1,' . encode_base64(hmac_sha256("$request->{headers}{'webhook-id'}.$request->{headers}{'webhook-timestamp'}.$request->{bytes}", $key), '');
}

# Producers: each a psql that runs so many transactions, every tenth rolled back, over its own few keys, and writes down what it saw.
# Options: count (4), transactions (1000), keys (5), settings (SQL before), tag (a prefix for the keys), pause (seconds after each),
# arguments (more of them, for enqueue).
sub start_producers
{
	my ($node, %options) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir();
	my @producers;
	for my $n (1 .. $options{count} // 4)
	{
		open my $script, '>', "$directory/$n.sql" or die;
		print $script "SET application_name = 'producer';\n";
		print $script "$options{settings};\n" if $options{settings};
		my $arguments = $options{arguments} ? ", $options{arguments}" : '';
		for my $i (1 .. $options{transactions} // 1000)
		{
			my $key = sprintf '%s%d-%d', $options{tag} // 'p', $n, $i % ($options{keys} // 5);
			print $script "BEGIN;\nSELECT 'event', '$key', outbox.enqueue('load.made', '{\"producer\": $n, \"i\": $i}', key => '$key'$arguments);\n", $i % 10 == 0 ? "ROLLBACK;\n" : "COMMIT;\n";
			print $script "SELECT pg_sleep($options{pause});\n" if $options{pause};
		}
		close $script;
		my $connection = $node->connstr('postgres');
		my $pid = fork // die;
		if ($pid == 0)
		{
			open STDIN, '<', "$directory/$n.sql";
			open STDOUT, '>', "$directory/$n.out";
			open STDERR, '>', "$directory/$n.err";
			exec 'psql', '-XAt', '-d', $connection or POSIX::_exit(127);
		}
		push @producers, { pid => $pid, out => "$directory/$n.out" };
	}
	return \@producers;
}

# Ends producers that would go on for long: by their connections, so that they still write down what they saw.
sub stop_producers
{
	my ($node) = @_;
	$node->safe_psql('postgres', q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'producer'});
}

# Waits for them to end (by themselves, or because the server is gone) and enters what they saw into the ledger.
sub finish_producers
{
	my ($producers, $ledger) = @_;
	for my $producer (@$producers)
	{
		waitpid $producer->{pid}, 0;
		open my $out, '<', $producer->{out} or die;
		my ($id, $key);
		while (my $line = <$out>)
		{
			chomp $line;
			if ($line =~ /^event\|(.*)\|([0-9a-f-]{36})$/) { ($key, $id) = ($1, $2) }
			elsif ($line eq 'COMMIT' && defined $id) { $ledger->committed($id, $key); undef $id }
			elsif ($line eq 'ROLLBACK' && defined $id) { $ledger->rolled_back($id); undef $id }
		}
		$ledger->unknown($id, $key) if defined $id;
	}
	$? = 0;
}

# The checker's verdict as tests. Duplicates are allowed up to `duplicates` (default: none).
sub check_ledger
{
	my ($ledger, $receiver, $path, %options) = @_;
	my $found = $ledger->check($receiver, $path);
	my $what = $options{what} ? "$options{what}: " : '';
	for my $kind (qw(lost phantom changed disorder overlap))
	{
		is(scalar @{ $found->{$kind} }, 0, "$what$kind 0 of " . $ledger->count) or diag join ' ', "$kind:", grep { defined } @{ $found->{$kind} }[ 0 .. 9 ];
	}
	cmp_ok(scalar @{ $found->{duplicates} }, '<=', $options{duplicates} // 0, $what . @{ $found->{duplicates} } . ' repeated, all with the same id and bytes');
	return $found;
}

1;
