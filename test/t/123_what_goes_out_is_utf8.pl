# Whatever the encoding of the database: JSON, attributes and headers go out as UTF-8; what cannot be is a dead letter where it would have to be, and disturbs nobody.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use JSON::PP ();
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', arm => 0);
my $receiver = Outbox::Receiver->new(fsync => 0);
my %paths;

# A database of this encoding with a subscription in each format, and those events enqueued; statements are in UTF-8.
sub database
{
	my ($encoding, $client_encoding, @statements) = @_;
	my $database = lc $encoding;
	$node->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
	install($node, $database);
	for my $format (qw(binary structured batch))
	{
		subscribe($node, $format, $receiver->url("/fail-first/1?$encoding-$format"), database => $database, format => $format, batch_linger => '200 ms', max_attempts => 3);
	}
	my $ids = $node->safe_psql($database, join ';', "SET client_encoding = '$client_encoding'", @statements);
	return split /\n/, $ids;
}

sub wait_all
{
	my ($database, $subscription, $status, @ids) = @_;
	my $list = join ',', @ids;
	wait_for(sub { $node->safe_psql($database, "SELECT bool_and(s.status = '$status') FROM unnest('{$list}'::uuid[]) AS i, outbox.event_status(i) AS s WHERE s.subscription = '$subscription'") eq 't' },
		"$database: all being $status for $subscription");
}

sub delivered { my ($path) = @_; return grep { Outbox::Receiver::was_delivered($_) } $receiver->requests("/fail-first/1?$path") }

# ---- LATIN1: everything can be written in UTF-8 ----

my $name = "Zo\x{c3}\x{ab} \x{c2}\x{bd}";   # bytes of UTF-8
my @ids = database('LATIN1', 'UTF8',
	qq{SELECT outbox.enqueue('caf\x{c3}\x{a9}', '{"name": "$name", "escaped": "\\u00e9"}', key => '$name', headers => '{"x-name": "$name"}')},
	qq{SELECT outbox.enqueue('caf\x{c3}\x{a9}', '{"n": 2}', key => '$name', headers => '{"x-name": "$name"}')},
	q{SELECT outbox.enqueue_raw('raw', '\xe9'::bytea, 'text/plain; charset=ISO-8859-1')});
wait_all('latin1', $_, 'delivered', @ids) for qw(binary structured batch);

my %binary = map { $_->{id} => $_ } delivered('LATIN1-binary');
is($binary{ $ids[0] }{bytes}, qq({"name": "$name", "escaped": "\x{c3}\x{a9}"}), 'LATIN1, binary: the payload is UTF-8');
is($binary{ $ids[0] }{headers}{'ce-type'}, 'caf%C3%A9', 'so is the type, percent-encoded');
is($binary{ $ids[0] }{headers}{'ce-partitionkey'}, 'Zo%C3%AB%20%C2%BD', 'and the key');
utf8::decode(my $characters = $name);
is($binary{ $ids[0] }{headers}{'x-name'}, $characters, 'and a header');
is($binary{ $ids[2] }{bytes}, "\xe9", 'bytes stay bytes');

my %structured = map { $_->{id} => JSON::PP::decode_json($_->{bytes}) } delivered('LATIN1-structured');
is($structured{ $ids[0] }{data}{name}, $characters, 'structured: the payload is UTF-8');
is($structured{ $ids[0] }{type}, "caf\x{e9}", 'so is the type');
is($structured{ $ids[0] }{partitionkey}, $characters, 'and the key');
is($structured{ $ids[2] }{data_base64}, '6Q==', 'bytes stay bytes');

my %batch = map { $_->{id} => $_ } map { @{ JSON::PP::decode_json($_->{bytes}) } } delivered('LATIN1-batch');
is_deeply(\%batch, \%structured, 'batch: the same');
for my $format (qw(binary structured batch))
{
	my @order = map { $_->{id} } grep { $_->{key} ne '' } $receiver->delivered_events("/fail-first/1?LATIN1-$format");
	@order = grep { $_ ne $ids[2] } @order;
	is(join(' ', map { $_ eq $ids[0] ? 1 : 2 } grep { $_ eq $ids[0] || $_ eq $ids[1] } @order), '1 2', "$format: a key that is not ASCII keeps its order over a retry");
}

# ---- SQL_ASCII: nobody knows what it is ----

@ids = database('SQL_ASCII', 'SQL_ASCII',
	qq{SELECT outbox.enqueue('good', '"$name"', key => 'k1')}, qq{SELECT outbox.enqueue('bad', '"\xe9"', key => 'k2')}, qq{SELECT outbox.enqueue('bad', '1', key => '\xe9')});
wait_all('sql_ascii', $_, 'delivered', $ids[0]) for qw(binary structured batch);
wait_all('sql_ascii', $_, 'dead', @ids[ 1, 2 ]) for qw(structured batch);
wait_all('sql_ascii', 'binary', 'delivered', @ids[ 1, 2 ]);
is($node->safe_psql('sql_ascii', q{SELECT DISTINCT reason FROM outbox.dead_letter}), 'bad_request', 'SQL_ASCII: what is not UTF-8 is a dead letter in JSON');
is(join(' ', map { $_->{bytes} } sort { $a->{id} cmp $b->{id} } delivered('SQL_ASCII-binary')), qq("$name" "\xe9" 1), 'and goes out as it is in binary mode');

# ---- EUC_JP: a character that Unicode does not have ----

@ids = database('EUC_JP', 'EUC_JP',
	qq{SELECT outbox.enqueue('good', '"\xa4\xa2"')}, qq{SELECT outbox.enqueue('bad', '"\xa9\xa1"')}, qq{SELECT outbox.enqueue('good', '2')});
wait_all('euc_jp', $_, 'delivered', @ids[ 0, 2 ]) for qw(binary structured batch);
wait_all('euc_jp', $_, 'dead', $ids[1]) for qw(structured batch);
my ($kana) = grep { $_->{id} eq $ids[0] } delivered('EUC_JP-binary');
is($kana->{bytes}, qq("\x{e3}\x{81}\x{82}"), 'EUC_JP: the payload is UTF-8');
is($node->safe_psql('euc_jp', q{SELECT string_agg(DISTINCT reason || ': ' || last_error, ', ') FROM outbox.dead_letter}), 'bad_request: the payload is not UTF-8', 'what Unicode does not have is a dead letter in JSON');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox delivery%'}), '3', 'and the workers are well');
unlike(slurp_file($node->logfile), qr/ERROR:.*(?:encoding|character)/, 'nothing of that is an error in the log');

done_testing;
