# An update, step by step: while the library and the script are of different versions nothing is delivered, the log and health() say what to do, and producers are not concerned; when they agree,
# delivery goes on by itself and nothing is lost. Also when the script is updated while a worker is at work.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $share = `pg_config --sharedir`;
chomp $share;
my $scripts = "$share/extension";
plan skip_all => "cannot write to $scripts" unless -w $scripts;

# Versions that were never released: 0.0.9 is 0.1.0 under another number, 0.1.1 has a function more, which only its own library has
my @made;
sub script
{
	my ($name, $text) = @_;
	push @made, "$scripts/$name";
	open my $file, '>', "$scripts/$name" or die "$name: $!";
	print $file $text;
	close $file or die;
}
END { unlink @made }
my $old = slurp_file("$scripts/outbox--0.1.0.sql");
script('outbox--0.0.9.sql', $old);
script('outbox--0.0.9--0.1.0.sql', "COMMENT ON SCHEMA outbox IS 'updated';\n");
script('outbox--0.1.0--0.1.1.sql', "ALTER TABLE outbox.subscription ADD COLUMN later text;\nCOMMENT ON COLUMN outbox.subscription.later IS 'Of 0.1.1';\n");
script('outbox--0.1.1--0.1.0.sql', "ALTER TABLE outbox.subscription DROP COLUMN later;\n");
script('outbox--0.1.0--0.1.2.sql', "CREATE FUNCTION outbox.later() RETURNS integer LANGUAGE C AS 'MODULE_PATHNAME', 'outbox_later';\n");

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }
sub arrives { my ($id, $path, $what) = @_; return ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->delivered($path) }, $what, 90), $what) }

# ---- the library is newer: between the restart and ALTER EXTENSION UPDATE -------------------------------------------------------------------------

sql('CREATE DATABASE behind');
sql(q{CREATE EXTENSION outbox VERSION '0.0.9'}, 'behind');
subscribe($node, 'main', $receiver->url('/ok?behind'), database => 'behind');
sql('SELECT outbox.start()', 'behind');
my $waiting = enqueue($node, 'made', 1, database => 'behind');
$node->wait_for_log(qr/ERROR:  extension "outbox" is of version 0\.0\.9, its library of version 0\.1\.0\n.*DETAIL:  .*\n.*HINT:  Run ALTER EXTENSION outbox UPDATE/);
pass('the library is newer: the worker refuses, and says what to do');
like(sql(q{SELECT status || ': ' || detail || '. ' || action FROM outbox.health() WHERE check_name = 'versions'}, 'behind'),
	qr/^critical: the library is 0\.1\.0, the extension 0\.0\.9\. Run ALTER EXTENSION outbox UPDATE/, 'so does health()');
sql('ALTER EXTENSION outbox UPDATE', 'behind');
arrives($waiting, '/ok?behind', 'updated, it goes on by itself');
is(sql(q{SELECT status FROM outbox.health() WHERE check_name = 'versions'}, 'behind'), 'ok', 'and health() is content');

# ---- the script is newer: ALTER EXTENSION UPDATE before the restart, with a worker at work ------------------------------------------------------------

subscribe($node, 'main', $receiver->url('/ok?main'), types => ['load.made']);
my $ledger = Outbox::Ledger->new;
my $producers = start_producers($node, count => 2, transactions => 100_000, pause => 0.01);
wait_for(sub { $receiver->requests('/ok?main') >= 10 }, 'the first deliveries');
for my $round (1 .. 5)
{
	sql(q{ALTER EXTENSION outbox UPDATE TO '0.1.1'});
	my $count = () = $receiver->requests('/ok?main');
	wait_for(sub { $receiver->requests('/ok?main') > $count + 3 }, 'deliveries');
	sql(q{BEGIN; ALTER EXTENSION outbox UPDATE TO '0.1.0'; ROLLBACK});
	sql(q{ALTER EXTENSION outbox UPDATE TO '0.1.0'});
}
pass('updated back and forth, it delivers');
sql(q{ALTER EXTENSION outbox UPDATE TO '0.1.1'});
sql('SELECT pg_terminate_backend(worker_pid, 30000) FROM outbox._worker()');
$node->wait_for_log(qr/ERROR:  extension "outbox" is of version 0\.1\.1, its library of version 0\.1\.0\n.*DETAIL:  .*\n.*HINT:  .*restart the server/);
pass('the script is newer: a new worker refuses, and says what to do');
like(sql(q{SELECT status || ': ' || detail FROM outbox.health() WHERE check_name = 'versions'}), qr/^critical: the library is 0\.1\.0, the extension 0\.1\.1$/, 'so does health()');
like(enqueue($node, 'load.made', 2), qr/^[0-9a-f-]{36}$/, 'events are recorded');
sql(q{ALTER EXTENSION outbox UPDATE TO '0.1.0'});

# A function that the library does not have
my (undef, undef, $said) = $node->psql('postgres', "\\set VERBOSITY verbose\nALTER EXTENSION outbox UPDATE TO '0.1.2'");
like($said, qr/ERROR:  42883: could not find function "outbox_later" in file/, 'a script for a library that is not loaded fails as a whole');
is(sql(q{SELECT extversion FROM pg_extension WHERE extname = 'outbox'}), '0.1.0', 'and changes nothing');

stop_producers($node);
finish_producers($producers, $ledger);
$ledger->settle($node);
ok(wait_for(sub { $ledger->complete($receiver, '/ok?main') }, 'all of it', 90), 'nothing is lost');
my $found = $ledger->check($receiver, '/ok?main');
is(scalar @{ $found->{$_} }, 0, "$_ 0 of " . $ledger->count) for qw(lost changed disorder overlap);
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal|XX000|cache lookup/, 'no crash and no internal error');

done_testing;
