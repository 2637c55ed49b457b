# Who has accepted a message, or claimed a request, may crash, be prepared, be slow, or be on a server that fails over: others get it, or do not, and never both.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', arm => 0, conf => [ 'wal_level = replica', 'max_wal_senders = 4', 'max_connections = 30' ]);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub waits { my ($pid) = @_; return wait_for(sub { sql("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid") eq 't' }, 'the second one to wait') }
sub refused { my ($session, $sql) = @_; my $said = $session->query($sql) // ''; return $said =~ /ERROR: +([0-9A-Z]{5}):/ ? $1 : "not refused: $said" }

sql('CREATE TABLE effect (who text)');

# The owner's session is ended
{
	my ($owner, $second) = map { session($node) } 1, 2;
	my $pid = $second->backend;
	$owner->query(q{BEGIN; SELECT outbox.accept('c', 'ended'); INSERT INTO effect VALUES ('owner')});
	$second->send(q{SELECT outbox.accept('c', 'ended')});
	waits($pid);
	sql('SELECT pg_terminate_backend(' . $owner->backend . ')');
	is($second->receive, 't', 'accept: the owner was terminated: the second one has it');
}

# The second one gives up waiting
{
	my ($owner, $second) = map { session($node) } 1, 2;
	my $pid = $second->backend;
	$owner->query(q{BEGIN; SELECT outbox.accept('c', 'cancelled')});
	$second->send(q{SELECT outbox.accept('c', 'cancelled')});
	waits($pid);
	sql("SELECT pg_cancel_backend($pid)");
	like($second->receive, qr/57014/, 'it can be cancelled while it waits');
	$second->query(q{SET lock_timeout = '10ms'});
	is(refused($second, q{SELECT outbox.accept('c', 'cancelled')}), '55P03', 'and lock_timeout holds');
	$owner->query('COMMIT');
	is($second->query(q{SELECT outbox.accept('c', 'cancelled')}), 'f', 'later it is a duplicate');
}

# The server crashes under the owner
{
	my ($owner, $second) = map { session($node) } 1, 2;
	$owner->query(q{BEGIN; SELECT outbox.accept('c', 'crash'); INSERT INTO effect VALUES ('crash')});
	$second->query(q{SELECT outbox.accept('c', 'before the crash')});
	kill_process($node, $owner->backend);
	is($owner->query('SELECT 1'), undef, 'the owner is gone');
	is(sql(q{SELECT outbox.accept('c', 'crash'), outbox.accept('c', 'before the crash')}), 't|f', 'after a crash: what was open is free, what was committed is not');
	is(sql(q{SELECT count(*) FROM effect WHERE who = 'crash'}), '0', 'and had no effect');
}

# Prepared transactions, across a crash
for my $outcome ('COMMIT', 'ROLLBACK')
{
	my $second = session($node);
	my $pid = $second->backend;
	sql(qq{BEGIN; SELECT outbox.accept('c', 'prepared $outcome'); SELECT outbox.begin_request('s', 'prepared $outcome', 'f'); PREPARE TRANSACTION 'p'});
	$node->stop('immediate');
	$node->start;
	$second = session($node);
	$pid = $second->backend;
	my $third = session($node);
	my $third_pid = $third->backend;
	$second->send(qq{SELECT outbox.accept('c', 'prepared $outcome')});
	$third->send(qq{SELECT state FROM outbox.begin_request('s', 'prepared $outcome', 'f')});
	waits($_) for $pid, $third_pid;
	sql("$outcome PREPARED 'p'");
	is($second->receive, $outcome eq 'COMMIT' ? 'f' : 't', "$outcome PREPARED decides, after a crash too");
	is($third->receive, $outcome eq 'COMMIT' ? 'in_progress' : 'new', 'for a request as well');
}

# A lease ends by itself; the slow owner is fenced off
{
	my ($owner, $second) = map { session($node) } 1, 2;
	$_->query(q{SET outbox.request_lease = '5s'}) for $owner, $second;
	my $token = $owner->query(q{SELECT token FROM outbox.begin_request('s', 'slow', 'f')});
	like($second->query(q{SELECT state, takeover_at > now() FROM outbox.begin_request('s', 'slow', 'f')}), qr/^in_progress\|t$/, 'a claim holds for its lease');
	my $taken = wait_for(sub { my $said = $second->query(q{SELECT state, token FROM outbox.begin_request('s', 'slow', 'f')}); return $said =~ /^new\|(\d+)$/ && $1 }, 'the end of the lease');
	cmp_ok($taken, '>', $token, 'then it is taken over, with a higher token');
	$owner->query(q{BEGIN; INSERT INTO effect VALUES ('fenced')});
	is(refused($owner, "SELECT outbox.finish_request('s', 'slow', $token, '\"owner\"', 200)"), '55006', 'the slow owner cannot finish it');
	$owner->query('COMMIT');
	is(sql(q{SELECT count(*) FROM effect WHERE who = 'fenced'}), '0', 'and what it wrote with it is undone');
	is(refused($owner, "SELECT outbox.fail_request('s', 'slow', $token)"), '55006', 'nor give it up');
	is($second->query("SELECT outbox.finish_request('s', 'slow', $taken, '\"second\"', 200)"), '', 'the second one can');
	is($owner->query(q{SELECT state, response FROM outbox.begin_request('s', 'slow', 'f')}), 'replay|"second"', 'and the first one learns of it');
}

# A standby refuses, and knows everything when it is promoted
{
	sql(q{SELECT outbox.accept('c', 'replicated')});
	sql(q{SELECT outbox.finish_request('s', 'replicated', (SELECT token FROM outbox.begin_request('s', 'replicated', 'f')), '1', 200)});
	my $later = sql(q{SELECT token FROM outbox.begin_request('s', 'claimed', 'f')});
	$node->backup('copy');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'copy', has_streaming => 1);
	$standby->start;
	sql(q{SELECT outbox.accept('c', 'streamed')});
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
	my $reader = session($standby);
	is(refused($reader, q{SELECT outbox.accept('c', 'replicated')}), '25006', 'a standby refuses accept()');
	is(refused($reader, q{SELECT outbox.accept_many('c', '{x}')}), '25006', 'and accept_many()');
	is(refused($reader, q{SELECT outbox.begin_request('s', 'new', 'f')}), '25006', 'and begin_request()');
	is($reader->query(q{SELECT held > 0 FROM outbox.inbox_status WHERE consumer = 'c'}), 't', 'it shows the inbox');
	$reader->close;
	$node->stop('immediate');
	$standby->promote;
	is($standby->safe_psql('postgres', q{SELECT outbox.accept('c', 'replicated'), outbox.accept('c', 'streamed'), outbox.accept('c', 'new')}), 'f|f|t', 'promoted, it knows what was accepted');
	is($standby->safe_psql('postgres', q{SELECT a.state, b.state FROM outbox.begin_request('s', 'replicated', 'f') AS a, outbox.begin_request('s', 'claimed', 'f') AS b}), 'replay|in_progress', 'and requests');
	cmp_ok($standby->safe_psql('postgres', q{SELECT token FROM outbox.begin_request('s', 'after', 'f')}), '>', $later, 'tokens go on ascending');
}

done_testing;
