# All connections taken, or nearly all file descriptors: events are delivered all the same, and nobody crashes.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $receiver = Outbox::Receiver->new(fsync => 0);

# ---- connections ----
my $node = outbox_node('connections', conf => [ 'max_connections = 12', 'max_wal_senders = 0', 'fsync = off' ]);
subscribe($node, 'plain', $receiver->url('/ok?plain'), types => ['plain']);
my $mine = session($node);
my $worker = $mine->query('SELECT worker_pid FROM outbox._worker()');
my @others;
while (@others < 20)
{
	my $other = session($node);
	last unless defined $other->query('SELECT 1');
	push @others, $other;
}
cmp_ok(scalar @others, '<', 20, 'no connection is left');
isnt(($node->psql('postgres', 'SELECT 1'))[0], 0, 'not for anybody');
my $id = $mine->query(q{SELECT outbox.enqueue('plain', '1')});
ok(wait_for(sub { scalar $receiver->of('/ok?plain', $id) }, 'an event'), 'delivery needs none');
$mine->query("SELECT pg_terminate_backend($worker, 30000)");
$id = $mine->query(q{SELECT outbox.enqueue('plain', '2')});
ok(wait_for(sub { scalar $receiver->of('/ok?plain', $id) }, 'an event for another worker'), 'nor does another worker');
isnt($mine->query('SELECT worker_pid FROM outbox._worker()'), $worker, 'which it is');
$_->close for @others, $mine;
$node->stop('fast');

# ---- descriptors: the server's processes may open 400 files, of which PostgreSQL's own may be 100, and hundreds of requests hang ----
my $directory = PostgreSQL::Test::Utils::tempdir();
my ($real) = grep { -x } map { "$_/pg_ctl" } split /:/, $ENV{PATH};
open my $script, '>', "$directory/pg_ctl" or die;
print $script "#!/bin/sh\nulimit -n 400\nexec '$real' \"\$@\"\n";
close $script;
chmod 0755, "$directory/pg_ctl";
{
	local $ENV{PATH} = "$directory:$ENV{PATH}";
	$node = outbox_node('files', conf => [ 'max_files_per_process = 100', 'fsync = off' ]);
}
SKIP:
{
	skip 'no /proc', 1 unless -e '/proc/self/limits';
	like(slurp_file('/proc/' . worker_pid($node) . '/limits'), qr/^Max open files\s+400 /m, 'few files may be opened');
}
subscribe($node, "hang-$_", $receiver->url("/hang?$_"), types => ['hang'], timeout => '10 min', max_in_flight => 50, retry_base => '200 ms', max_attempts => 1000, give_up_after => '1 d') for 1 .. 6;
subscribe($node, 'plain', $receiver->url('/ok?files'), types => ['plain'], retry_base => '50 ms', max_attempts => 1000);
$node->safe_psql('postgres', q{SELECT count(outbox.enqueue('hang', to_jsonb(i))) FROM generate_series(1, 60) i});
wait_for(sub { $node->safe_psql('postgres', 'SELECT in_flight FROM outbox._worker()') >= 50 }, 'requests that hang');
my @ids = map { enqueue($node, 'plain', $_) } 1 .. 20;
ok(wait_for(sub { my %there = map { $_->{id} => 1 } $receiver->delivered('/ok?files'); !grep { !$there{$_} } @ids }, 'the others', 60), 'others are delivered');
wait_status($node, $_, 'plain', 'delivered') for @ids;
pass('and that is recorded');
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.attempt WHERE error LIKE '%too many open files%'}), '0', 'no attempt fails for want of a descriptor');
my $log = slurp_file($node->logfile);
is(scalar(() = $log =~ /terminated by signal|PANIC|FATAL/g), 0, 'nobody crashed') or diag grep { /signal|PANIC|FATAL/ } split /^/, $log;
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.dead_letter}), '0', 'nothing was given up');

done_testing;
