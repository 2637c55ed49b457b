# Whatever arguments are given to whatever function of the extension, the answer is a result or an error that says what is wrong: no crash, no internal error, and the worker lives through what
# comes of it. Also in a database of SQL_ASCII, where text can be any bytes. The calls are made up from a seed ($OUTBOX_FUZZ_SEED) for $OUTBOX_FUZZ_SECONDS: test/fuzz runs this for longer.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $seconds = $ENV{OUTBOX_FUZZ_SECONDS} || 120;
my $seed = $ENV{OUTBOX_FUZZ_SEED} || 1 + int(rand(1e9));
srand $seed;
diag "seed $seed";

my $node = outbox_node('main', key => 1, conf => [ 'log_error_verbosity = verbose', "outbox.maintenance_interval = '1s'", "outbox.segment_size = '64kB'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }
sql('CREATE ROLE somebody; CREATE ROLE boss');
sql(q{CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'});
install($node, 'bytes');
my @ids;
for my $database (qw(bytes postgres))
{
	subscribe($node, 'main', $receiver->url('/ok?main'), database => $database);
	sql(q{SELECT outbox.subscribe('pulled', types => '{a.**}')}, $database);
	sql(q{CREATE TABLE thing (id int PRIMARY KEY, name text); CREATE VIEW seen AS SELECT * FROM thing; SELECT outbox.grant_role('boss', 'operator')}, $database);
	push @ids, map { enqueue($node, 'a.b', $_, key => 'k', database => $database) } 1 .. 5;
}
my $secret = sql(q{SELECT outbox.rotate_secret('main')});

# ---- nasty values of every type ---------------------------------------------------------------------------------------------------------------------

my $url = $receiver->url('/ok?fuzz');
my @text = map { literal($_) } '', ' ', 'x', 'main', 'pulled', 'a.b', 'a.**', '**', '*', '.', 'a..b', '%s%n%d', "'; --", '\\', '-1', '0', 'NaN', 'infinity', 'now', 'earliest', '2000-01-01', '294276-12-31', 'publisher', 'operator', 'push',
	'pull', 'key', 'none', 'skip', 'block', 'public', 'private', 'binary', 'structured', 'batch', 'signing', 'headers', $url, 'http://127.0.0.1:1/', 'http://[::1]:1/', 'http://127.0.0.1:99999/', 'http://', 'https://[', 'file:///etc/passwd', $secret, 'whsec_', 'whsec_AAAA',
	'application/json', 'text/plain; charset=utf-8', '{', '[]', '$', '$.a > 1', 'name', 'thing';
push @text, map { "E'$_'" } '\xff', 'a\xc3', '\xe4\xb8', '\xf0\x9f\x98.b', '\x80\xed\xa0\x80';    # no text in UTF-8
push @text, 'NULL', q{repeat('x', 128)}, q{repeat('x', 129)}, q{repeat('x', 1025)}, q{repeat('x', 300000)}, q{E'\x01'}, q{E'a\nb'}, q{E'a\rb: c'}, q{U&'\00dc\+01f600'}, q{repeat(U&'\+01f600', 300)};
my @json = map { literal($_) } 'null', 'true', '0', '-1e300', '"x"', '""', '{}', '[]', '[null]', '[[]]', '{"a": null}', '{"a": {"b": [1]}}', '{"x-a": "b"}', '{"x-a": 1}', '{"host": "x"}', '{"a b": "c"}', '{"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}',
	'{"webhook-id": "x", "webhook-timestamp": "99999999999999999999", "webhook-signature": ""}', '[{"type": "a.b", "payload": 1}]', '[{"type": "a.b"}]', '[{"type": null, "payload": null}]', '[{"type": "a.b", "payload": {}, "deliver_at": "infinity"}]',
	'[{"type": "a.b", "payload": {}, "deliver_at": "x", "key": 1}]', '[{"type": "a.b", "payload": 1, "dedup_key": "d"}, {"type": "a.b", "payload": 1, "dedup_key": "d"}]', '{"armed": {"warning": "x"}}', '{"armed": {"warning": null, "critical": 1e100}}', '{"launcher": 1}';
push @json, map { "E'$_'" } '"\xff"', '{"x-a": "\xc3"}', '{"\xe4": 1}', '[{"type": "a.\xff", "payload": "\x80"}]';
push @json, 'NULL', q{(repeat('[', 500) || repeat(']', 500))::jsonb}, q{to_jsonb(repeat('x', 2000000))}, q{(SELECT jsonb_object_agg('x-' || i, 'y') FROM generate_series(1, 2000) AS i)}, q{(SELECT jsonb_agg('{"type": "a.b", "payload": 1}'::jsonb) FROM generate_series(1, 300))};
my @ints = qw(NULL 0 -1 1 2 10 100 1000 2147483647 (-2147483648));
my @uuids = ('NULL', (map { literal($_) } @ids, '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '01900000-0000-7000-8000-000000000000'), 'gen_random_uuid()');
my %values = (
	text => \@text, name => \@text, jsonb => \@json, uuid => \@uuids, int4 => \@ints, bool => [qw(NULL true false)],
	int2 => [qw(NULL 0 -1 1 32767 (-32768))], int8 => [ @ints, qw(9223372036854775807 (-9223372036854775808)) ], float8 => [ @ints, qw('NaN' 'infinity' '-infinity' 1e308 -1e-308) ],
	bytea => [ 'NULL', q{''}, q{'\x00'}, q{'x'}, q{'\xff80'}, q{decode(repeat('00', 300000), 'hex')}, q{decode(repeat('41', 32), 'hex')} ],
	interval => [ 'NULL', map { literal($_) } '0', '-1 us', '1 us', '10 ms', '100 ms', '1 s', '1 day', '1 mon', '-1 mon 40 days', '100 years', '178000000 years', '-178000000 years', '2147483647 days 2562047788 h' ],
	timestamptz => [ 'NULL', 'now()', q{now() + interval '1 s'}, q{now() - interval '1 day'}, map { literal($_) } 'infinity', '-infinity', 'epoch', '4713-01-01 BC', '294276-12-31', '9999-12-31', '2262-04-12', '1582-10-14' ],
	oid => [qw(NULL 0 1 4294967295)], xid => [ 'NULL', map { literal($_) } 0, 1, 2, 3, 4294967295 ], xid8 => [ 'NULL', map { literal($_) } '0', '3', '18446744073709551615' ],
	regclass => [ 'NULL', '0::oid', '1::oid', map { literal($_) } 'thing', 'seen', 'pg_class', 'outbox.event', 'outbox.subscription', 'outbox.event_id_idx', 'outbox.subscription_id_seq' ],
	regrole => [ 'NULL', '0::oid', '1::oid', map { literal($_) } 'somebody', 'boss' ],
	jsonpath => [ 'NULL', map { literal($_) } '$', '$.a', '$.a > 1', 'strict $.a.b', 'strict $[*] ? (@ > 1)', '$.** ? (@ like_regex "(a+)+$")', '1 / 0', '$.datetime()', '$.a == $b', '-$', '$[last - 2147483647]', '$[1000000000000]' ],
	pg_snapshot => [ 'NULL', map { literal($_) } '1:1:', '3:100:3,50', '18446744073709551614:18446744073709551615:' ],
	_text => [ 'NULL', q{'{}'}, q{'{NULL}'}, q{'{a.b}'}, q{'{**}'}, q{'{{a,b},{c,d}}'}, q{'[5:6]={a,b}'}, q{'{"",x}'}, q{'{url,types,filter,retry_base,nonsense}'}, q{array_fill('a.b'::text, ARRAY[20000])}, q{ARRAY[repeat('x', 100000)]} ],
	_name => [ 'NULL', q{'{}'}, q{'{NULL}'}, q{'{id}'}, q{'{id,name}'}, q{'{id,id}'}, q{'{{id},{name}}'}, q{'{xmin}'}, q{'{nonsense}'} ],
	_int4 => [ 'NULL', q{'{}'}, q{'{NULL}'}, q{'{443}'}, q{'{0}'}, q{'{-1,65536}'}, q{'{{1,2},{3,4}}'}, q{'{503,404}'}, q{array_fill(80, ARRAY[20000])} ],
	_uuid => [ 'NULL', q{'{}'}, q{'{NULL}'}, "ARRAY['$ids[0]']", "ARRAY[['$ids[1]'], ['$ids[2]']]", q{array_fill(gen_random_uuid(), ARRAY[20000])} ],
	record => [ 'NULL', 'ROW()', 'ROW(1)', q{(SELECT x FROM (SELECT 'fuzz' AS name) AS x)} ],
	subscription => [ 'NULL', 'outbox._default_subscription()', q{(SELECT s FROM outbox.subscription AS s LIMIT 1)} ],
);

my @functions = map { my ($call, $name, $arguments, $defaults) = split /\|/, $_, 4; { call => $call, name => $name, types => [ map { my ($type, $sql) = split /=/; { type => $type, sql => $sql } } split /;/, $arguments ], defaults => $defaults } }
	split /\n/, sql(q{
SELECT concat_ws('|', p.prokind, p.proname,
                 COALESCE((SELECT string_agg(t.typname || '=' || format_type(t.oid, NULL), ';' ORDER BY a.n) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n) JOIN pg_type t ON t.oid = a.type), ''), p.pronargdefaults)
  FROM pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace AND p.prorettype <> 'trigger'::regtype ORDER BY p.proname});
cmp_ok(scalar @functions, '>=', 80, scalar(@functions) . ' functions');
my %unknown = map { $_->{type} => 1 } grep { !$values{ $_->{type} } } map { @{ $_->{types} } } @functions;
is(join(' ', sort keys %unknown), '', 'there are nasty values of every type of argument');

sub pick { my ($list) = @_; return $list->[ int rand @$list ] }

# A call; uuids are often those of events, or one would get no further than the first check.
sub call
{
	my ($f) = @_;
	my @types = @{ $f->{types} };
	splice @types, @types - int rand($f->{defaults} + 1) if $f->{defaults} && rand() < 0.7;
	my @arguments = map { my $value = $_->{type} eq 'uuid' && rand() < 0.5 ? literal(pick(\@ids)) : pick($values{ $_->{type} }); $_->{type} eq 'record' ? $value : "($value)::$_->{sql}" } @types;
	my $list = join ', ', @arguments;
	return "CALL outbox.$f->{name}($list)" if $f->{call} eq 'p';
	return "SELECT * FROM outbox.$f->{name}($list)";
}

# ---- calling ---------------------------------------------------------------------------------------------------------------------------------------

my ($calls, %codes, %called, $lost, @wrong) = (0);
sub connected
{
	my ($role, $database) = @_;
	my $session = session($node, $database);
	$session->query("SET statement_timeout = '2s'; SET client_min_messages = error; SET default_statistics_target = 10" . ($role ? "; SET ROLE $role" : ''));
	return $session;
}
my @sessions = (connected(), connected(), connected('boss'), connected(undef, 'bytes'));
my $until = time + $seconds;
CALLS: while (time < $until || $calls < @sessions * @functions)
{
	for my $session (@sessions)
	{
		my $f = $calls < @sessions * @functions ? $functions[ int($calls / @sessions) ] : pick(\@functions);
		my $sql = call($f);
		my $block = $f->{call} ne 'p' && $f->{name} ne 'maintain' && rand() < 0.3;
		$session->query('BEGIN') if $block;
		my $said = $session->query(rand() < 0.9 ? "\\o /dev/null\n$sql" : "\\o /dev/null\n$sql;\n$sql");
		if (!defined $said)
		{
			$lost = $sql;
			last CALLS;
		}
		$session->query(rand() < 0.5 ? 'COMMIT' : 'ROLLBACK') if $block;
		$calls++;
		$called{ $f->{name} }{ $said =~ /ERROR/ ? 'error' : 'fine' }++;
		$codes{$1}++ while $said =~ /ERROR: +([0-9A-Z]{5}):/g;
		push @wrong, "$sql\n$said" if $said =~ /XX\d\d\d|cache lookup failed|could not open relation|unrecognized node/ || $said =~ /ERROR:  (?!$)(?![0-9A-Z]{5}:)/;
	}
}
diag "$calls calls; " . join ' ', map { "$_:$codes{$_}" } sort { $codes{$b} <=> $codes{$a} } keys %codes;
is($lost, undef, "$calls calls, and the connection holds");
is(scalar @wrong, 0, 'no internal error') or diag substr(join("\n", @wrong[ 0 .. ($#wrong > 4 ? 4 : $#wrong) ]), 0, 6000);
is(join(' ', grep { !$called{$_} } map { $_->{name} } @functions), '', 'every function was called');

# ---- and in the end, it works --------------------------------------------------------------------------------------------------------------------------

if (defined $lost) { wait_for(sub { is_reachable($node) }, 'the server') }
$_->close for @sessions;
$receiver = Outbox::Receiver->new(fsync => 0);    # one whose log can be read
for my $database (qw(postgres bytes))
{
	sql(q{SELECT outbox.start(); SELECT outbox.unsubscribe(name) FROM outbox.subscription}, $database);
	subscribe($node, 'after', $receiver->url('/ok?after'), types => ['after'], database => $database);
	my $id = enqueue($node, 'after', 1, database => $database);
	ok(wait_for(sub { grep { $_->{id} eq $id } $receiver->delivered('/ok?after') }, 'a delivery', 60), "an event is delivered from $database");
}
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|TRAP:|terminated by signal|stack smashing/, 'nobody crashed') or diag join "\n", grep { /PANIC|TRAP:|terminated by signal|Failed process/ } split /\n/, $log;
my @internal = grep { /XX\d\d\d:|cache lookup failed|unrecognized node/ } split /\n/, $log;
is(scalar @internal, 0, 'no internal error in the log') or diag join "\n", @internal[ 0 .. ($#internal > 9 ? 9 : $#internal) ];
diag "seed $seed" unless Test::More->builder->is_passing;

done_testing;
