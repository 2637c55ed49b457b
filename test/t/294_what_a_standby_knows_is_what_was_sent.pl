# A primary is lost in the middle of its work, and its standby promoted. A synchronous one knows everything that was sent, and everything that a producer saw committed: nothing is lost, nothing was sent that never happened, keys keep
# their order. An asynchronous one delivers everything that it knows; what the primary had sent beyond that is what replication lost, and no more.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

for my $kind (qw(synchronous asynchronous))
{
	my $primary = PostgreSQL::Test::Cluster->new("${kind}_primary");
	$primary->init(allows_streaming => 1, extra => [ '--encoding=UTF8', '--no-locale' ]);
	$primary->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\nmax_worker_processes = 16\nwal_sender_timeout = 0\nwal_receiver_timeout = 0\noutbox.source = 'urn:outbox:primary'\n");
	$primary->start;
	install($primary, 'postgres');
	my $receiver = Outbox::Receiver->new(fsync => 0);
	my $path = '/random/8/10?main';
	subscribe($primary, 'main', $receiver->url($path), types => ['load.made'], max_attempts => 100);
	$primary->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new("${kind}_standby");
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf', "outbox.source = 'urn:outbox:standby'");
	$standby->start;
	if ($kind eq 'synchronous')
	{
		$primary->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = '" . $standby->name . "'");
		$primary->reload;
		wait_for(sub { $primary->safe_psql('postgres', 'SELECT sync_state FROM pg_stat_replication') eq 'sync' }, 'the standby being synchronous');
	}

	# Producers that wait for the standby, if it is synchronous, and some that do not. Replication stands still, they and the worker go on as they can, and then the primary is gone.
	my ($ledger, $eager) = map { Outbox::Ledger->new } 1 .. 2;
	my $waiting = start_producers($primary, count => 2, transactions => 100_000, pause => 0.002);
	my $others = start_producers($primary, count => 2, transactions => 100_000, tag => 'local', pause => 0.002, settings => 'SET synchronous_commit = local');
	wait_for(sub { $receiver->delivered($path) > 200 }, 'deliveries');
	my $walreceiver = $standby->safe_psql('postgres', 'SELECT pid FROM pg_stat_wal_receiver');
	kill 'STOP', $walreceiver;
	# what is on its way the standby still gets
	wait_for(sub { $primary->safe_psql('postgres', 'SELECT pg_current_wal_flush_lsn() - sent_lsn > 65536 FROM pg_stat_replication') eq 't' }, 'nothing more being sent to it');
	my $count = $primary->safe_psql('postgres', 'SELECT count(*) FROM outbox.event');
	wait_for(sub { $primary->safe_psql('postgres', 'SELECT count(*) FROM outbox.event') > $count + 200 }, 'events that the standby does not know');
	my $sent = $receiver->requests($path);
	$kind eq 'synchronous' ? sleep 0.5 : wait_for(sub { $receiver->delivered($path) > $sent + 100 }, 'and their deliveries');
	$primary->stop('immediate');
	kill 'CONT', $walreceiver;
	finish_producers($waiting, $ledger);
	finish_producers($others, $eager);
	$standby->promote;
	ok(worker_pid($standby), "$kind: promoted, it goes on");

	my %known = map { $_ => 1 } split /\n/, $standby->safe_psql('postgres', q{SELECT id FROM outbox.event WHERE type = 'load.made'});
	my %sent = map { $_->{id} => 1 } grep { $_->{headers}{'ce-source'} eq 'urn:outbox:primary' } $receiver->requests($path);
	my @phantom = grep { !$known{$_} } keys %sent;
	my @committed = (keys %{ $ledger->{committed} }, keys %{ $eager->{committed} });
	cmp_ok(scalar(grep { !$known{$_} } keys %{ $eager->{committed} }), '>=', 50, "$kind: it does not know what was committed without it");
	if ($kind eq 'synchronous')
	{
		is(scalar @phantom, 0, "$kind: it knows all of the " . keys(%sent) . ' events that were sent');
		is(scalar(grep { !$known{$_} } keys %{ $ledger->{committed} }), 0, "$kind: and all that a producer saw committed");
	}
	else
	{
		my %committed = map { $_ => 1 } @committed, map { keys %{ $_->{unknown} } } $ledger, $eager;
		cmp_ok(scalar @phantom, '>=', 100, "$kind: of " . keys(%sent) . ' events that were sent it does not know ' . @phantom);
		is(scalar(grep { !$committed{$_} } @phantom), 0, "$kind: they had been committed on the primary, all of them");
	}
	$_->settle($standby) for $ledger, $eager;
	$ledger->{$_} = { %{ $ledger->{$_} }, %{ $eager->{$_} } } for qw(committed rolled_back order);
	is(scalar(keys %{ $ledger->{committed} }), scalar(keys %known), "$kind: what it knows is what was committed as far as it was told");
	finish_producers(start_producers($standby, count => 2, transactions => 50, tag => 'new'), $ledger);
	ok(wait_for(sub { $ledger->complete($receiver, $path) }, 'all of it'), "$kind: all that it knows is delivered, and what is new");
	my $found = $ledger->check($receiver, $path);
	is(scalar @{ $found->{$_} }, 0, "$kind: $_ 0 of " . $ledger->count) for qw(lost changed disorder);
	is_deeply([ sort @{ $found->{phantom} } ], [ sort map { $_->{id} } grep { !$known{ $_->{id} } && $_->{headers}{'ce-source'} eq 'urn:outbox:primary' } $receiver->requests($path) ], "$kind: phantom " . @phantom . ', as counted');
	unlike(slurp_file($_->logfile), qr/PANIC|TRAP|terminated by signal/, "$kind: nobody crashed") for $primary, $standby;
	$standby->stop('fast');
	$receiver->stop;
}

done_testing;
