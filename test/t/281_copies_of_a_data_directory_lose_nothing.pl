# Guarantees 2 and 10 for copies of a whole server that are made in the middle of its work: a base backup and a server restored to a moment of the past send nothing before start(), and then
# everything that had not been delivered; a standby, promoted, goes on by itself, and its old primary, when it comes back, says what it is: another server that delivers.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $origin = PostgreSQL::Test::Cluster->new('origin');
$origin->init(allows_streaming => 1, has_archiving => 1, extra => [ '--encoding=UTF8', '--no-locale' ]);
$origin->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\nmax_worker_processes = 16\noutbox.source = 'urn:outbox:origin'\n");
$origin->start;
install($origin, 'postgres');
my $receiver = Outbox::Receiver->new(fsync => 0);
my %path = (held => '/ok?held', live => '/slow/20?live', flaky => '/random/3/20?flaky');
subscribe($origin, $_, $receiver->url($path{$_}), types => ['load.made'], max_in_flight => 4, retry_base => '200 ms') for sort keys %path;
$origin->safe_psql('postgres', q{SELECT outbox.pause('held')});

sub from { my ($source, $path) = @_; return grep { $_->{headers}{'ce-source'} eq "urn:outbox:$source" } $receiver->delivered($path) }
sub sql { my ($server, $sql) = @_; return $server->safe_psql('postgres', $sql) }
sub ids { my ($server) = @_; return split /\n/, sql($server, q{SELECT id FROM outbox.event WHERE type = 'load.made'}) }
sub health { my ($server) = @_; return sql($server, q{SELECT check_name || ' ' || status FROM outbox.health() WHERE status <> 'ok' AND check_name IN ('preload', 'versions', 'launcher', 'worker_slots', 'armed', 'log_size', 'secrets_unreadable')}) }

# Gets its due, each once: what the server has and the origin had not delivered before this moment.
sub is_delivered
{
	my ($server, $moment, $what) = @_;
	my @ids = ids($server);
	for my $name (sort keys %path)
	{
		my %before = map { $_->{id} => 1 } grep { $_->{at} < $moment } from('origin', $path{$name});
		my @due = grep { !$before{$_} } @ids;
		my %sent;
		wait_for(sub { %sent = (); $sent{ $_->{id} }++ for from($server->name, $path{$name}); !grep { !$sent{$_} } @due }, "$what: what is due to $name", 60);
		is(scalar(grep { !$sent{$_} } @due), 0, "$what: $name gets all of its " . @due);
		is(scalar(grep { $_ > 1 } values %sent), 0, "$what: once");
	}
	is(health($server), '', "$what: health() has nothing more to say");
}

sub is_quiet
{
	my ($server, $what) = @_;
	wait_for(sub { sql($server, 'SELECT pg_is_in_recovery()') eq 'f' }, "$what: the end of recovery");
	wait_for(sub { !-e $server->data_dir . '/outbox.quiet' }, "$what: being disarmed");
	cmp_ok(scalar(my @there = ids($server)), '>=', 50, "$what: events");
	is(health($server), 'armed warning', "$what: health() says that it is not armed");
	like(sql($server, q{SELECT action FROM outbox.health() WHERE check_name = 'armed'}), qr/outbox\.start\(\)/, "$what: and what to do");
	enqueue($server, 'load.made', '"here"');
	is(scalar(() = from($server->name)), 0, "$what: it has sent nothing");
}

sub copy_of
{
	my ($name, $backup, %options) = @_;
	my $server = PostgreSQL::Test::Cluster->new($name);
	$server->init_from_backup($origin, $backup, %options);
	$server->append_conf('postgresql.conf', "outbox.source = 'urn:outbox:$name'\narchive_mode = off");   # not into its origin's archive
	return $server;
}

my $ledger = Outbox::Ledger->new;
my $producers = start_producers($origin, count => 2, transactions => 10_000, pause => 0.005);
wait_for(sub { ids($origin) >= 50 }, 'the first events');

# ---- backups and a moment of the past, in mid-stream ----------------------------------------------------------------------------------------

$origin->backup('base');
my $base_at = time;
sql($origin, q{SELECT pg_create_restore_point('moment')});
my $moment = time;
my $count = sql($origin, 'SELECT count(*) FROM outbox.event');
$origin->command_ok([ 'pg_basebackup', '-R', '-D', $origin->backup_dir . '/replica', '-h', $origin->host, '-p', $origin->port, '--checkpoint', 'fast', '--no-sync' ], 'pg_basebackup -R');
wait_for(sub { sql($origin, 'SELECT count(*) FROM outbox.event') > $count + 50 }, 'more events');
my $switched = sql($origin, 'SELECT pg_walfile_name(pg_switch_wal())');
wait_for(sub { sql($origin, "SELECT last_archived_wal >= '$switched' FROM pg_stat_archiver") eq 't' }, 'the archive');

my $copy = copy_of('copy', 'base');
$copy->start;
is_quiet($copy, 'a base backup');
sql($copy, q{SELECT outbox.resume('held')});
sql($copy, 'SELECT outbox.start()');
is_delivered($copy, $base_at, 'a base backup, started');
$copy->stop;

my $skipped = copy_of('skipped', 'base');
$skipped->start;
is_quiet($skipped, 'another one');
sql($skipped, q{SELECT outbox.resume('held')});
sql($skipped, 'SELECT outbox.start(skip_backlog => true)');
my $new = enqueue($skipped, 'load.made', '"new"');
wait_for(sub { 3 == grep { $_->{id} eq $new } from('skipped') }, 'what is new there');
is(scalar(() = from('skipped')), 3, 'told to skip its backlog, it sends what is new, and nothing else');
$skipped->stop;

my $past = copy_of('past', 'base', has_restoring => 1, standby => 0);
$past->append_conf('postgresql.conf', "recovery_target_name = 'moment'\nrecovery_target_action = 'promote'");
$past->start;
is_quiet($past, 'a moment of the past');
cmp_ok(scalar(ids($past)), '<', $count + 50, 'of the past');
sql($past, q{SELECT outbox.resume('held')});
sql($past, 'SELECT outbox.start()');
is_delivered($past, $moment, 'a moment of the past, started');
$past->stop;

# ---- a standby is promoted, its primary comes back -----------------------------------------------------------------------------------------------

my $standby = copy_of('standby', 'replica');
$standby->append_conf('postgresql.auto.conf', "primary_conninfo = '" . $origin->connstr . " application_name=standby'");
$standby->start;
$origin->wait_for_catchup($standby);
wait_for(sub { sql($origin, 'SELECT count(*) FROM outbox.event') > $count + 100 }, 'more events');
is(scalar(() = from('standby')), 0, 'a base backup with -R is a standby, and sends nothing');
stop_producers($origin);
finish_producers($producers, $ledger);
my $unsent = enqueue($origin, 'load.made', '"the last one"', key => 'last');
$origin->wait_for_catchup($standby);
$origin->stop('immediate');
my $crashed_at = time;   # until then, it may have delivered, and told the standby
$standby->promote;
wait_for(sub { sql($standby, 'SELECT pg_is_in_recovery()') eq 'f' }, 'promotion');
sql($standby, q{SELECT outbox.resume('held')});
is_delivered($standby, $crashed_at, 'promoted');
is(sql($standby, q{SELECT count(*) FROM outbox.operation WHERE action = 'start'}), 1, 'nobody had to start it');

# Everything that a producer saw committed has arrived from one or the other, in order; the same ids and bytes
$ledger->committed($unsent, 'last');
$ledger->settle($standby);
for my $name (qw(live flaky))
{
	my $found = $ledger->check($receiver, $path{$name});
	is(scalar @{ $found->{$_} }, 0, "$name: $_ 0 of " . $ledger->count) for qw(lost changed);
}

# The old primary is a server like any other: it cannot know. Who wants it quiet says so, or makes a standby of it.
$origin->append_conf('postgresql.conf', 'outbox.enabled = off');
$origin->start;
is(sql($origin, q{SELECT detail FROM outbox.health() WHERE check_name = 'armed'}), 'outbox.enabled is off: nothing is delivered', 'an old primary that is switched off says so');
my $silent = enqueue($origin, 'load.made', '"old"');
is(sql($origin, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox delivery worker'}), 0, 'and delivers nothing');
sql($origin, 'SELECT outbox.stop()');
$origin->append_conf('postgresql.conf', 'outbox.enabled = on');
$origin->restart;
is(health($origin), 'armed warning', 'stopped, it may be switched on again');
is(scalar(grep { $_->{id} eq $silent } $receiver->requests), 0, 'it has sent nothing');
sql($origin, 'SELECT outbox.start()');
ok(wait_for(sub { grep { $_->{id} eq $silent } from('origin', $path{live}) }, 'an event of the old primary'), 'started, it delivers what is recorded there, on its own account');

unlike(slurp_file($_->logfile), qr/PANIC|TRAP|terminated by signal/, $_->name . ': nobody crashed') for $origin, $copy, $skipped, $past, $standby;

done_testing;
