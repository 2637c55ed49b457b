# Secrets that were plain are encrypted when there is a key; a new key re-encrypts them, under load too; where the key is lost nothing is sent and nothing is lost, and it goes on by itself when the key is back.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use File::Find;
use MIME::Base64 qw(decode_base64);
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => [ "outbox.maintenance_interval = '1s'", 'wal_level = minimal', 'max_wal_senders = 0' ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my @key = map { new_key() } 0 .. 3;
my %secret;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub health { my ($check) = @_; return sql("SELECT status || ' ' || value FROM outbox.health() WHERE check_name = '$check'") }
sub healthy { my ($check, $expected, $what) = @_; return ok(wait_for(sub { health($check) eq $expected }, "$check: $expected"), $what // "$check: $expected") || diag health($check) }
sub state_of { my ($name) = @_; return sql("SELECT concat_ws(': ', state, reason) FROM outbox.subscription_status WHERE name = '$name'") }
sub becomes { my ($name, $state, $what) = @_; return ok(wait_for(sub { state_of($name) eq $state }, "$name being $state"), $what) || diag state_of($name) }
sub keys_are { my (@keys) = @_; key_file($node, @keys); $node->reload }

# An event is delivered, signed by the subscription's own secret and with its own header
sub delivers
{
	my ($name, $what) = @_;
	my $id = enqueue($node, $name, '{"n": 1}');
	wait_status($node, $id, $name, 'delivered');
	my ($request) = $receiver->of("/ok?$name", $id);
	return is(join(' ', map { $_ // 'none' } @{ $request->{headers} }{ 'webhook-signature', 'authorization' }), signature_of($request, $secret{$name}) . " Bearer $name", $what);
}

sub make { my ($name, %options) = @_; return $secret{$name} = subscribe($node, $name, $receiver->url("/ok?$name"), types => [$name], headers => qq({"Authorization": "Bearer $name"}), %options) }

# Is a secret in a file of the database?
sub on_disk
{
	my ($name) = @_;
	my $bytes = decode_base64($secret{$name} =~ s/^whsec_//r);
	my @found;
	sql('CHECKPOINT');
	find({ no_chdir => 1, wanted => sub { push @found, $_ if -f $_ && (index(slurp_file($_), $bytes) >= 0 || index(slurp_file($_), "Bearer $name") >= 0) } }, $node->data_dir . '/base');
	return scalar @found;
}

# ---- without a key ------------------------------------------------------------------------------------------------------------------

make('one');
make('two');
delivers('one', 'without a key file all works');
is(health('secret_key'), 'ok 0', 'no key file is no error');
is(health('secrets_encrypted'), 'warning 4', 'but secrets in plain text are a warning');
like(sql(q{SELECT action FROM outbox.health() WHERE check_name = 'secrets_encrypted'}), qr/outbox\.secret_key_file/, 'which says what to do');
is(on_disk('one'), 1, 'they are on the disk');

# ---- from then on -------------------------------------------------------------------------------------------------------------------

key_file($node, $key[0]);
sql("ALTER SYSTEM SET outbox.secret_key_file = '" . key_file($node) . "'");
sql('ALTER SYSTEM SET outbox.maintenance_interval = 3600');
$node->reload;
healthy('secrets_encrypted', 'ok 0', 'a key file, and all are encrypted, without waiting for the next round');
is(sql('SELECT count(*) FROM outbox.secret WHERE key_id IS NULL'), '0', 'none is plain');
delivers($_, "$_: with the same secret and headers") for qw(one two);
sql('VACUUM FULL outbox.secret');
is(on_disk($_), 0, "$_: after VACUUM FULL they are nowhere on the disk") for qw(one two);
make('three');
is(on_disk('three'), 0, 'a new one never was');
delivers('three', 'three');

# ---- another key, under load --------------------------------------------------------------------------------------------------------

# so many that it takes more than one transaction
sql(q{SELECT count(outbox.subscribe('many-' || i, 'https://example.com/', types => '{none}')) FROM generate_series(1, 700) AS i});
$secret{load} = subscribe($node, 'load', $receiver->url('/ok?load'), types => ['load.made'], max_in_flight => 20);
$receiver->control(path => '/ok?load', secret => $secret{load});
my $worker = worker_pid($node);
my $ledger = Outbox::Ledger->new;
my $producers = start_producers($node, count => 2, transactions => 100_000);
sub more { my $target = $receiver->requests('/ok?load') + 200; return wait_for(sub { $receiver->requests('/ok?load') >= $target }, 'some requests more') }
more();
my $before = sql(q{SELECT key_id FROM outbox.secret ORDER BY id LIMIT 1});
keys_are(@key[1, 0]);
healthy('secrets_encrypted', 'ok 0', 'a new first key, and all are under it');
is(sql("SELECT count(*) FROM outbox.secret WHERE key_id = '$before'"), '0', 'none is under the old one');
is(sql('SELECT count(DISTINCT key_id) FROM outbox.secret'), '1', 'all are under one');
cmp_ok(sql('SELECT count(DISTINCT xmin::text) FROM outbox.secret'), '>', 1, 'more than one transaction did it');
more();
keys_are($key[1]);
wait_for(sub { sql(q{SELECT count(*) FROM outbox.health() WHERE check_name LIKE 'secret%' AND status = 'ok'}) eq '3' }, 'health');
more();
is(health('secrets_unreadable'), 'ok 0', 'the old key is not needed any more');
stop_producers($node);
finish_producers($producers, $ledger);
ok(wait_for(sub { $ledger->complete($receiver, '/ok?load') }, 'the rest'), 'all were delivered');
check_ledger($ledger, $receiver, '/ok?load');
is(scalar(grep { $_->{signature} ne 'valid' } $receiver->requests('/ok?load')), 0, 'every request was signed by the secret it always had');
is(worker_pid($node), $worker, 'it is still the same worker');
sql(q{SELECT count(outbox.unsubscribe(name)) FROM outbox.subscription WHERE name LIKE 'many-%'});

# a row that somebody holds is left for later
my $holder = session($node);
$holder->query('BEGIN');
$holder->query(q{SELECT FROM outbox.secret WHERE id = (SELECT max(id) FROM outbox.secret) FOR UPDATE});
keys_are(@key[2, 1]);
healthy('secrets_encrypted', 'warning 1', 'a locked one is left for later');
delivers($_, "$_: under whatever key") for qw(one two three);
$holder->query('COMMIT');
sql('ALTER SYSTEM SET outbox.auto_maintain = off');
$node->reload;
is(sql(q{SELECT action, count, detail FROM outbox.maintain() WHERE action = 'encrypted'}), 'encrypted|1|secrets and headers that were plain, or under an older key', 'maintain() does it too, and says so');
sql('ALTER SYSTEM RESET outbox.auto_maintain');
keys_are($key[2]);
healthy('secrets_encrypted', 'ok 0', 'nothing is left');

# ---- the key is lost ----------------------------------------------------------------------------------------------------------------

sql(q{SELECT outbox.pause('two', 'for a reason')});
keys_are($key[3]);
becomes('one', 'disabled: secret unreadable', 'another key: what was active is disabled, and says why');
becomes('three', 'disabled: secret unreadable', 'all of them');
is(state_of('two'), 'paused: for a reason', 'what was paused stays paused');
is(health('secret_key'), 'ok 0', 'the file itself is well');
is(health('secrets_unreadable'), 'critical 7', 'health() is critical');
is(health('disabled'), 'warning 3', 'and counts the disabled ones');
my %waits = map { $_ => enqueue($node, $_, '{"n": 1}') } qw(one two three);
my $requests = $receiver->requests;
sql(q{SELECT outbox.resume('one')});
becomes('one', 'disabled: secret unreadable', 'resume() without the key does not last');
$node->restart;
becomes('one', 'disabled: secret unreadable', 'nor does a restart change anything');
worker_pid($node);
is(sql("SELECT status FROM outbox.event_status('$waits{one}') WHERE subscription = 'one'"), 'pending', 'its event waits');
is(scalar $receiver->requests, $requests, 'nothing was sent');
is(sql(q{SELECT secret_hint || ' ' || array_to_string(header_names, ',') FROM outbox.subscription_status WHERE name = 'one'}), "..." . substr($secret{one}, -4) . ' Authorization', 'views show what they always do');

make('new');
delivers('new', 'a new subscription uses the key there is');

keys_are(@key[3, 2]);
becomes($_, 'active', "$_: goes on by itself when the key is back") for qw(one three load);
for my $name (qw(one three))
{
	wait_status($node, $waits{$name}, $name, 'delivered');
	my ($request) = $receiver->of("/ok?$name", $waits{$name});
	is($request->{headers}{'webhook-signature'}, signature_of($request, $secret{$name}), "$name: what waited is delivered, and signed as ever");
}
is(state_of('two'), 'paused: for a reason', 'what was paused is paused');
sql(q{SELECT outbox.resume('two')});
ok(wait_status($node, $waits{two}, 'two', 'delivered'), 'until it is resumed');
healthy($_, 'ok 0') for qw(secrets_unreadable secrets_encrypted disabled);

# the file vanishes, and comes back without a reload
keys_are();
unlink key_file($node);
$node->reload;
becomes('one', 'disabled: secret unreadable', 'no file');
key_file($node, $key[3]);
becomes('one', 'active', 'the file is noticed without a reload, too');
delivers('one', 'and used');

# a signing secret that somebody has deleted
sql(q{CREATE TABLE kept AS SELECT k.* FROM outbox.secret k JOIN outbox.subscription s ON s.id = k.subscription_id WHERE s.name = 'one' AND k.kind = 'signing'; DELETE FROM outbox.secret WHERE id IN (SELECT id FROM kept)});
becomes('one', 'disabled: secret unreadable', 'nothing is sent unsigned');
sql('INSERT INTO outbox.secret OVERRIDING SYSTEM VALUE SELECT * FROM kept');
becomes('one', 'active', 'and it goes on');
delivers('one', 'signed');

# ---- a retry does not expire meanwhile ----------------------------------------------------------------------------------------------

$secret{slow} = subscribe($node, 'slow', $receiver->url('/script/slow'), types => ['slow'], give_up_after => '6 s', retry_base => '5 s', max_attempts => 100);    # time to take the key away before the retry
$receiver->control(script => 'slow', answers => [503], then => 200, per => 'path');
my $slow = enqueue($node, 'slow', '{"n": 1}');
wait_status($node, $slow, 'slow', 'retrying');
keys_are($key[0]);
becomes('slow', 'disabled: secret unreadable', 'disabled while an event is being retried');
my $first = sql(q{SELECT first_attempt_at FROM outbox.delivery WHERE event_id = } . literal($slow));
wait_for(sub { sql("SELECT clock_timestamp() > '$first'::timestamptz + interval '6200 ms'") eq 't' }, 'more than give_up_after');
$holder = session($node);
$holder->query('BEGIN');
$holder->query("SELECT FROM outbox.delivery WHERE event_id = '$slow' FOR UPDATE");
keys_are($key[3]);
becomes('one', 'active', 'the key is back');
delivers('one', 'somebody who has locked a delivery holds up nobody');
is(state_of('slow'), 'disabled: secret unreadable', 'but that subscription');
$holder->query('COMMIT');
ok(wait_status($node, $slow, 'slow', 'delivered'), 'give_up_after does not count that time');

# ---- a dump, elsewhere --------------------------------------------------------------------------------------------------------------

sql(q{SELECT outbox.stop()});
wait_for(sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}) eq '0' }, 'the worker to go');
my $backlog = enqueue($node, 'one', '{"n": 9}');
my $dump = $node->basedir . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-d', $node->connstr('postgres'), '-f', $dump ], 'dumped');

my $elsewhere = PostgreSQL::Test::Cluster->new('elsewhere');
$elsewhere->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
$elsewhere->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\nmax_worker_processes = 16\n");
$elsewhere->start;
$elsewhere->command_ok([ 'pg_restore', '-d', $elsewhere->connstr('postgres'), $dump ], 'restored on a server without a key');
$elsewhere->safe_psql('postgres', 'SELECT outbox.start()');
my $requests_there = $receiver->requests;
ok(wait_for(sub { $elsewhere->safe_psql('postgres', q{SELECT count(*) FROM outbox.subscription_status WHERE state = 'disabled' AND reason = 'secret unreadable'}) eq '6' }, 'disabled'), 'all are disabled there');
is($elsewhere->safe_psql('postgres', q{SELECT status FROM outbox.health() WHERE check_name = 'secrets_unreadable'}), 'critical', 'health() tells');
is(scalar $receiver->requests, $requests_there, 'nothing was sent');
key_file($elsewhere, $key[3]);
$elsewhere->append_conf('postgresql.conf', "outbox.secret_key_file = '" . key_file($elsewhere) . "'\n");
$elsewhere->reload;
ok(wait_for(sub { $receiver->of('/ok?one', $backlog) }, 'the backlog'), 'with the key what was left is delivered');
my ($request) = $receiver->of('/ok?one', $backlog);
is($request->{headers}{'webhook-signature'}, signature_of($request, $secret{one}), 'and signed as ever');
$elsewhere->stop;

# ---- lost for good ------------------------------------------------------------------------------------------------------------------

sql('SELECT outbox.start()');
delivers('two', 'here all goes on');
keys_are($key[0]);
becomes('two', 'disabled: secret unreadable', 'the key is lost for good');
my $id = enqueue($node, 'two', '{"n": 1}');
$secret{two} = sql(q{SELECT outbox.rotate_secret('two', overlap => '7 d')});
is(sql(q{SELECT selector ->> 'unreadable' FROM outbox.operation WHERE action = 'rotate_secret' AND subscription = 'two'}), '1', 'rotate_secret() drops what cannot be read, and records that');
sql(q{SELECT outbox.alter_subscription('two', headers => '{"Authorization": "Bearer two"}')});
becomes('two', 'active', 'with a new secret and new headers it goes on by itself');
ok(wait_status($node, $id, 'two', 'delivered'), 'nothing was lost');
delivers('two', 'under the key there is');

done_testing();
