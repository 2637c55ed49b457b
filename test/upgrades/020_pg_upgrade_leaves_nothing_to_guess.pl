# What is missing for an upgrade, or after it, is said in clear words, by pg_upgrade or by health(); nothing is lost meanwhile. Guarantee 10: neither the old server, when it is started again, nor an
# upgraded copy sends what it should not.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use Outbox::Upgrade;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $preload = "shared_preload_libraries = 'outbox'";
my $old = outbox_node('old', server => old_server(), key => 1, conf => [ 'fsync = off' ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
subscribe($old, 'one', $receiver->url('/ok?one'));
my @ids = enqueue($old, 'thing.made', 1);
wait_status($old, $ids[0], 'one', 'delivered');
$old->append_conf('postgresql.conf', 'outbox.enabled = off');
$old->restart;
push @ids, enqueue($old, 'thing.made', 2);
$old->stop;

sub sql { my ($server, $sql) = @_; return $server->safe_psql('postgres', $sql) }
sub error { my ($server, $sql) = @_; return ($server->psql('postgres', "\\set VERBOSITY verbose\n$sql"))[2] }
sub check { my ($server, $name) = @_; return sql($server, "SELECT status || ': ' || COALESCE(detail, '') || ' ' || COALESCE(action, '') FROM outbox.health() WHERE check_name = '$name' ORDER BY status <> 'ok' DESC LIMIT 1") }
sub sent { return join ' ', map { $_->{id} } $receiver->requests('/ok?one') }

# What pg_upgrade found wrong with libraries
sub libraries { my ($new) = @_; return join '', map { slurp_file($_) } glob $new->data_dir . '/pg_upgrade_output.d/*/loadable_libraries.txt' }

# ---- before ---------------------------------------------------------------------------------------------------------------------------------

SKIP: {
	my $server = '/usr/lib/postgresql/' . new_version();
	skip "outbox is installed in $server, too", 2 if -e "$server/lib/outbox.so";
	my $without = new_node('without', server => $server);
	ok(!(pg_upgrade($old->data_dir, $without, '--check'))[1], 'without outbox on the new server it is not upgraded');
	like(libraries($without), qr/could not load library "\$libdir\/outbox": ERROR:  could not access file/, 'pg_upgrade says which library is missing');
}

my $forgotten = new_node('forgotten');
ok(!(pg_upgrade($old->data_dir, $forgotten, '--check'))[1], 'without preload it is not upgraded');
like(libraries($forgotten), qr/could not load library "\$libdir\/outbox": ERROR:  outbox must be loaded via "shared_preload_libraries"\nHINT:  Add outbox to shared_preload_libraries and restart the server\./,
	'it says what to do');

# A copy that has not been disarmed yet would take that it is one along to nowhere
append_to_file($old->data_dir . '/outbox.quiet', '');
my $new = new_node('new', conf => [$preload]);
my ($said, $done) = pg_upgrade($old->data_dir, $new, '--check');
ok(!$done, 'a restored copy that is still armed is not upgraded');
like(join('', map { slurp_file($_) } glob $new->data_dir . '/pg_upgrade_output.d/*/log/pg_upgrade_server.log'),
	qr/this server was restored from a copy, and delivery is not stopped yet\n.*\n.*HINT:  Start it with outbox\.enabled = on/, 'its log says what to do') or diag $said;
unlink $old->data_dir . '/outbox.quiet' or die;
($said, $done) = pg_upgrade($old->data_dir, $new);
ok($done, 'then it is') or diag $said;
is(sent(), $ids[0], 'and nothing is sent by it');

# ---- after ----------------------------------------------------------------------------------------------------------------------------------

$new->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$new->start;
like(error($new, q{SELECT outbox.enqueue('thing.made', '3')}), qr/ERROR:  55000: outbox must be loaded via "shared_preload_libraries"\nHINT:  Add outbox/, 'without preload nothing is recorded that would not be delivered');
like(check($new, 'preload'), qr/^critical: .*shared_preload_libraries/, 'health() says why');
$new->append_conf('postgresql.conf', $preload);
$new->restart;
ok(worker_pid($new), 'preloaded, it goes on');
wait_for(sub { check($new, 'secrets_unreadable') =~ /^critical/ }, 'the secrets being missed');
like(check($new, 'secrets_unreadable'), qr/^critical: .*outbox\.secret_key_file/, 'without the key file nothing can be signed: health() says why');
like(check($new, 'disabled'), qr/^warning/, 'and that the subscription is disabled');
push @ids, enqueue($new, 'thing.made', 3);
is(sent(), $ids[0], 'nothing is sent meanwhile');
$new->append_conf('postgresql.conf', "outbox.secret_key_file = '" . key_file($old) . "'");
$new->reload;
wait_for(sub { sent() eq "@ids" }, 'the events');
is(sent(), "@ids", 'given the file, it goes on by itself: everything arrives, once');
is(sql($new, q{SELECT string_agg(check_name, ' ') FROM outbox.health() WHERE status <> 'ok'}), '', 'and health() has nothing more to say');

# ---- the old server, started again -----------------------------------------------------------------------------------------------------------

$old->start;
like(check($old, 'armed'), qr/^warning: outbox\.enabled is off/, 'the old server, switched off, says so');
is(sql($old, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox delivery worker'}), 0, 'it has no worker');
sql($old, 'SELECT outbox.stop()');
$old->append_conf('postgresql.conf', 'outbox.enabled = on');
$old->restart;
push @ids, enqueue($new, 'thing.made', 4);
wait_for(sub { sent() eq "@ids" }, 'another event');
is(sent(), "@ids", 'stopped, it sends nothing, though it may; the new one does');

unlike(slurp_file($_->logfile), qr/PANIC|TRAP|terminated by signal/, $_->name . ': nobody crashed') for $old, $new;

done_testing;
