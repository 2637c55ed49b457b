# Guarantees 2 and 10 for what pg_dump, pg_dumpall and CREATE DATABASE … TEMPLATE make of a database in the middle of its work: the copy says that it is quiet, sends nothing before
# start(), and then everything that had not been delivered to a subscription when it was copied, once; or, if told so, none of it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = outbox_node('main');
my $other = PostgreSQL::Test::Cluster->new('other');
$other->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
$other->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\nmax_worker_processes = 16\nautovacuum_naptime = 1s\n");
$other->start;
my $receiver = Outbox::Receiver->new(fsync => 0);
my %path = (held => '/ok?held', live => '/slow/20?live', flaky => '/random/3/20?flaky');

# `held` has had nothing, `live` is always some events behind, `flaky` has exceptions
subscribe($node, $_, $receiver->url($path{$_}), max_in_flight => 4, retry_base => '200 ms') for sort keys %path;
$node->safe_psql('postgres', q{SELECT outbox.pause('held')});

my $n = 0;
sub produce { $node->safe_psql('postgres', "SELECT count(outbox.enqueue('item.made', to_jsonb(i), key => 'k' || i % 50)) FROM generate_series($n + 1, $n + 100) AS i"); $n += 100 }
sub from { my ($source, $path) = @_; return grep { $_->{headers}{'ce-source'} eq "urn:outbox:$source" } $receiver->delivered($path) }
sub ids { my ($server, $database) = @_; return split /\n/, $server->safe_psql($database, q{SELECT id FROM outbox.event WHERE type = 'item.made'}) }
sub health { my ($server, $database) = @_; return $server->safe_psql($database, q{SELECT check_name || ' ' || status FROM outbox.health() WHERE status <> 'ok' AND check_name IN ('preload', 'versions', 'launcher', 'worker_slots', 'armed', 'log_size', 'secrets_unreadable')}) }

# What is due from a copy is at least what the original had not delivered when it was made.
sub check_copy
{
	my ($server, $database, $copied_at, $what, %options) = @_;
	my %there = map { $_ => 1 } ids($server, $database);
	cmp_ok(scalar keys %there, '>=', 100, "$what: " . (keys %there) . ' events');
	is(health($server, $database), 'armed warning', "$what: health() says that it is not armed");
	like($server->safe_psql($database, q{SELECT action FROM outbox.health() WHERE check_name = 'armed'}), qr/outbox\.start\(\)/, "$what: and what to do");
	my $late = enqueue($server, 'late.made', '"after"', database => $database);
	is(scalar(() = from($database)), 0, "$what: it has sent nothing");

	$server->safe_psql($database, q{SELECT outbox.resume('held')});
	$server->safe_psql($database, 'SELECT outbox.start(skip_backlog => ' . ($options{skip} ? 'true' : 'false') . ')');
	$late = enqueue($server, 'late.made', '"started"', database => $database) if $options{clone};   # which cannot tell what was enqueued in it
	for my $name (sort keys %path)
	{
		my %original = map { $_->{id} => 1 } grep { $_->{at} < $copied_at && $_->{headers}{'ce-source'} eq 'urn:outbox:postgres' } $receiver->delivered($path{$name});
		my @due = ($late, $options{skip} ? () : grep { !$original{$_} } keys %there);
		my %sent;
		wait_for(sub { %sent = (); $sent{ $_->{id} }++ for from($database, $path{$name}); !grep { !$sent{$_} } @due }, "$what: what is due to $name", 60);
		is(scalar(grep { !$sent{$_} } @due), 0, "$what: $name gets all of its " . @due);
		is(scalar(grep { $_ > 1 } values %sent), 0, "$what: once");
		is(scalar(keys %sent), scalar(@due), "$what: and nothing else") if $options{skip};
	}
	my (undef, undef, $err) = $server->psql($database, '\set VERBOSITY verbose
SELECT outbox.start(skip_backlog => true)');
	like($err, qr/ERROR:  55000: the backlog cannot be skipped while delivery is started\nDETAIL: .*\nHINT: /, "$what: which cannot be undone while it works");
	is(health($server, $database), '', "$what: health() has nothing more to say");
	$server->safe_psql($database, 'SELECT outbox.stop()');
}

# ---- pg_dump and pg_restore, while it delivers --------------------------------------------------------------------------------------------

my $dumps = $node->basedir;
produce();
command_ok([ 'pg_dump', '-Fd', '-j', 2, '-f', "$dumps/directory", '-d', $node->connstr('postgres') ], 'pg_dump -j');
my $directory_at = time;
produce();
command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/custom", '-d', $node->connstr('postgres') ], 'pg_dump -Fc');
my $custom_at = time;
produce();
command_ok([ 'pg_dump', '-Fp', '-C', '-f', "$dumps/create.sql", '-d', $node->connstr('postgres') ], 'pg_dump -C');
my $create_at = time;
$node->safe_psql('postgres', 'CREATE DATABASE parallel');
command_ok([ 'pg_restore', '-j', 2, '--exit-on-error', '-d', $node->connstr('parallel'), "$dumps/directory" ], 'pg_restore -j');
$other->safe_psql('postgres', "CREATE DATABASE $_") for qw(elsewhere skipped pieces shape);
command_ok([ 'pg_restore', '--exit-on-error', '-d', $other->connstr('skipped'), "$dumps/custom" ], 'pg_restore into another cluster');
command_ok([ 'pg_restore', '--exit-on-error', "--section=$_", '-d', $other->connstr('elsewhere'), "$dumps/custom" ], "pg_restore --section=$_") for qw(pre-data data post-data);
command_ok([ 'pg_restore', '--exit-on-error', "--$_-only", '-d', $other->connstr('pieces'), "$dumps/custom" ], "pg_restore --$_-only") for qw(schema data);
command_ok([ 'pg_restore', '--exit-on-error', '--schema-only', '-d', $other->connstr('shape'), "$dumps/custom" ], 'pg_restore --schema-only');

check_copy($node, 'parallel', $directory_at, 'restored in parallel');
check_copy($other, 'elsewhere', $custom_at, 'restored into another cluster');
check_copy($other, 'skipped', $custom_at, 'with skip_backlog', skip => 1);
check_copy($other, 'pieces', $custom_at, 'the schema, then the data');

is($other->safe_psql('shape', 'SELECT (SELECT count(*) FROM outbox.event), (SELECT count(*) FROM outbox.subscription)'), '0|0', 'the schema alone is a new installation');
is(health($other, 'shape'), '', 'of which health() says nothing');
$other->safe_psql('shape', 'SELECT outbox.start()');
subscribe($other, 'new', $receiver->url('/ok?new'), database => 'shape');
my $first = enqueue($other, 'item.made', 1, database => 'shape');
ok(wait_for(sub { grep { $_->{id} eq $first } from('shape', '/ok?new') }, 'its first event'), 'and it works as one');

# The database's own settings come with -C, also that it was armed: that names another epoch
my $script = slurp_file("$dumps/create.sql");
like($script, qr/^ALTER DATABASE postgres SET "?outbox\.armed"?/m, 'pg_dump -C saves that the database was armed');
$script =~ s/^(CREATE|ALTER|DROP|COMMENT ON) DATABASE postgres /$1 DATABASE created /mg;
$script =~ s/^\\connect postgres$/\\connect created/mg;
open my $file, '>', "$dumps/renamed.sql" or die;
print $file $script;
close $file;
command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $other->connstr('postgres'), '-f', "$dumps/renamed.sql" ], 'it is restored');
isnt($other->safe_psql('created', 'SHOW outbox.armed'), '', 'with that setting');
check_copy($other, 'created', $create_at, 'pg_dump -C');

# ---- CREATE DATABASE … TEMPLATE, while it delivers ----------------------------------------------------------------------------------------------

for my $strategy (qw(wal_log file_copy))
{
	produce();
	$node->safe_psql('postgres', "CREATE DATABASE $strategy TEMPLATE postgres STRATEGY = $strategy");
	check_copy($node, $strategy, time, "TEMPLATE, $strategy", $strategy eq 'file_copy' ? (skip => 1, clone => 1) : ());
}

# ---- pg_dumpall ---------------------------------------------------------------------------------------------------------------------------------------

my $last = PostgreSQL::Test::Cluster->new('last');
$last->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
$last->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\nmax_worker_processes = 16\n");
$last->start;
$node->safe_psql('postgres', "DROP DATABASE $_") for qw(parallel wal_log file_copy);
produce();
my $dumped = $node->safe_psql('postgres', 'SELECT max(id::text) FROM outbox.event');
command_ok([ 'pg_dumpall', '-f', "$dumps/all.sql", '-d', $node->connstr('postgres') ], 'pg_dumpall');
my $all_at = time;
$last->safe_psql('postgres', q{ALTER SYSTEM SET outbox.source = 'urn:outbox:all'});
$last->reload;
my ($out, $err) = run_command([ 'psql', '-Xq', '-d', $last->connstr('postgres'), '-f', "$dumps/all.sql" ]);
is(join("\n", grep { /ERROR/ && !/role "[^"]*" already exists/ } split /\n/, $err), '', 'its script runs');
is($last->safe_psql('postgres', "SELECT count(*) FROM outbox.event WHERE id = '$dumped'"), 1, 'pg_dumpall: everything is there');
is(health($last, 'postgres'), 'armed warning', 'pg_dumpall: health() says that it is not armed');
{
	my %original = map { $_->{id} => 1 } grep { $_->{at} < $all_at } from('postgres', $path{live});
	my @due = grep { !$original{$_} } ids($last, 'postgres');
	is(scalar(() = from('all')), 0, 'pg_dumpall: it has sent nothing');
	$last->safe_psql('postgres', 'SELECT outbox.start()');
	my %sent;
	wait_for(sub { %sent = (); $sent{ $_->{id} }++ for from('all', $path{live}); !grep { !$sent{$_} } @due }, 'what is due', 60);
	is(scalar(grep { !$sent{$_} } @due), 0, 'pg_dumpall: all that is due, ' . @due);
	is(scalar(grep { $_ > 1 } values %sent), 0, 'pg_dumpall: once');
}

# The original has not noticed
$node->safe_psql('postgres', q{SELECT outbox.resume('held')});
for my $name (sort keys %path)
{
	my %sent;
	wait_for(sub { %sent = (); $sent{ $_->{id} }++ for from('postgres', $path{$name}); keys %sent >= $n }, "the original delivers to $name", 60);
	is(scalar keys %sent, $n, "the original delivers all to $name");
	cmp_ok(scalar(grep { $_ > 1 } values %sent), '<=', 8, 'what was in flight when a clone was made, perhaps twice');
}
unlike(slurp_file($_->logfile), qr/PANIC|TRAP|terminated by signal/, $_->name . ': nobody crashed') for $node, $other, $last;

done_testing;
