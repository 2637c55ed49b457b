# "Duplicate" and "replay" are said only of commits that are on disk, even if those were asynchronous and the server crashes at once.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Nobody flushes the WAL by himself
my $node = outbox_node('main', arm => 0, conf => [ 'wal_writer_delay = 10s', 'wal_writer_flush_after = 1GB', 'autovacuum = off', 'checkpoint_timeout = 1h', 'bgwriter_delay = 10s', 'max_wal_size = 1GB' ]);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub crash { $node->stop('immediate'); $node->start }

my $n = 0;

# A crash after an asynchronous commit (`winner`), with or without somebody having been told of it (`told`): what `told` says afterwards. A new name for each try.
sub after_crash
{
	my ($winner, $told, $tell) = @_;
	my $name = 'm' . ++$n;
	my $session = session($node);
	my $other = session($node);
	my @said;
	$_->query('SELECT 1') for $session, $other;
	$session->query('SET synchronous_commit = off');
	$session->query($winner =~ s/NAME/$name/gr);
	push @said, $other->query($told =~ s/NAME/$name/gr) if $tell;
	$_->close for $session, $other;
	crash();
	push @said, sql($told =~ s/NAME/$name/gr);
	return join ' then ', @said;
}

my %cases = (
	'accept' => [ q{SELECT outbox.accept('c', 'NAME')}, q{SELECT outbox.accept('c', 'NAME')}, 't', 'f' ],
	'accept in a savepoint' => [ q{BEGIN; SAVEPOINT s; SELECT outbox.accept('c', 'NAME'); RELEASE s; COMMIT}, q{SELECT outbox.accept('c', 'NAME')}, 't', 'f' ],
	'accept_many' => [ q{SELECT outbox.accept_many('c', '{NAME,x}')}, q{SELECT outbox.accept_many('c', '{NAME}')}, '{NAME}', '{}' ],
	'finish_request' => [
		q{SELECT outbox.finish_request('s', 'NAME', token, '1', 200) FROM claim('NAME') AS token},
		q{SELECT state FROM outbox.begin_request('s', 'NAME', 'f')}, 'in_progress', 'replay' ]);

# For this the claim is committed first, which is always durable
sql(<<'SQL');
CREATE EXTENSION dblink;
CREATE FUNCTION claim(key text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT t FROM dblink('dbname=postgres host=' || split_part(current_setting('unix_socket_directories'), ',', 1) || ' port=' || current_setting('port'),
                                 format('SELECT token FROM outbox.begin_request(''s'', %L, ''f'')', key)) AS x (t bigint));
END $$;
SQL

for my $case (sort keys %cases)
{
	my ($winner, $told, $lost, $kept) = @{ $cases{$case} };

	# the case is real: without anybody told, such a commit is lost (unless somebody happened to flush: then once more)
	my $control = '';
	for my $try (1 .. 5)
	{
		$control = after_crash($winner, $told, 0);
		last if $control eq $lost =~ s/NAME/m$n/r;
	}
	is($control, $lost =~ s/NAME/m$n/r, "$case: a crash undoes an asynchronous commit that nobody knows of");
	is(after_crash($winner, $told, 1), "$kept then $kept", "$case: but not one that somebody was told of");
}

# A claim commits synchronously, whatever the session says
for my $try (1 .. 3)
{
	my $session = session($node);
	$session->query('SET synchronous_commit = off');
	is($session->query("SELECT state FROM outbox.begin_request('claims', '$try', 'f')"), 'new', 'claimed');
	$session->close;
	crash();
	is(sql("SELECT state FROM outbox.begin_request('claims', '$try', 'f')"), 'in_progress', 'a claim survives a crash');
}

# Rows that were frozen, and a commit log that was cut, are no obstacle
sql(q{SELECT outbox.accept('old', i::text) FROM generate_series(1, 10) AS i});
$node->psql('postgres', q{VACUUM (FREEZE) outbox.inbox});
is(sql(q{SELECT count(*) FROM generate_series(1, 10) AS i WHERE outbox.accept('old', i::text)}), '0', 'frozen ones are duplicates');
$node->stop;
command_ok([ 'pg_resetwal', '-x', '200000000', '-D', $node->data_dir ], 'far later');
open my $clog, '>', $node->data_dir . '/pg_xact/' . sprintf('%04X', int(200_000_000 / 32768 / 32)) or die;   # of the present time, empty
print $clog "\0" x (8192 * 32);
close $clog;
$node->start;
is(sql(q{SELECT count(*) FROM generate_series(1, 10) AS i WHERE outbox.accept('old', i::text)}), '0', 'and a long time later');
$node->psql('postgres', "ALTER DATABASE template0 ALLOW_CONNECTIONS true");
$node->psql($_, 'VACUUM (FREEZE)') for 'template0', 'template1', 'postgres';
ok(!-e $node->data_dir . '/pg_xact/0000', 'the commit log was cut');
is(sql(q{SELECT count(*) FROM generate_series(1, 10) AS i WHERE outbox.accept('old', i::text)}), '0', 'their transactions are forgotten, they are not');
is(sql(q{SELECT outbox.accept('old', '11'), outbox.accept('old', '11')}), 't|f', 'new ones are accepted');

done_testing;
