# The log is read without bodies while nobody looks at them, and again with them for whoever comes: a push subscription, a filter. A damaged body is noticed all the same.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Digest::MD5 qw(md5_hex);
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', conf => ['fsync = off']);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $session = session($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

# Pulls and acknowledges until there are n; a row of columns for each, in the order of the leases
sub drain
{
	my ($name, $n, $columns) = @_;
	my @rows;
	wait_for(sub {
			my @more = split /\n/, $session->query("SELECT token || '|' || $columns FROM outbox.pull('$name', 1000)");
			$session->query("SELECT outbox.ack('$name', NULL, '" . ($more[0] =~ /^([^|]+)/)[0] . "')") if @more;
			push @rows, map { s/^[^|]+\|//r } @more;
			@rows >= $n }, "$n events for $name");
	return @rows;
}

# ---- nobody but a pull subscription: payloads and bodies of any size, and how they are stored
sql(q{SELECT outbox.subscribe('all', types => '{pulled.**}')});
sql(q{SELECT outbox.enqueue('pulled.json', jsonb_build_object('i', i, 'x', repeat('ab', i * i * i))) FROM generate_series(1, 20) AS i});
sql(q{SELECT outbox.enqueue_raw('pulled.raw', decode(repeat('00ff', i * i * i), 'hex'), 'application/octet-stream') FROM generate_series(1, 20) AS i});
my $digest = "event_id || ' ' || coalesce(md5(payload::text), md5(body))";
my @there = sort split /\n/, sql('SELECT ' . ($digest =~ s/event_id/id/r) . ' FROM outbox.event');
is_deeply([ sort(drain('all', 40, $digest)) ], \@there, 'a consumer gets them as they are');

# ---- what was read without is sent with
subscribe($node, 'push', $receiver->url('/ok?push'), types => ['pulled.**'], starting => 'earliest');
ok(wait_for(sub { $receiver->delivered('/ok?push') >= 40 }, 'pushed'), 'a push subscription that begins in the past gets all of them');
my %sent = map { ("$_->{id} " . md5_hex($_->{bytes}) => 1) } $receiver->delivered('/ok?push');
is_deeply([ sort keys %sent ], \@there, 'each as it is');
sql(q{SELECT outbox.unsubscribe('push')});

# ---- a filter that comes and goes, with an event in the same transaction that it lets through: whatever has been read when the worker hears of it
sql(q{SELECT outbox.subscribe('picky', types => '{picked}')});
my $rounds = 300;
sql(<<"END");
DO \$\$
BEGIN
    FOR i IN 1 .. $rounds LOOP
        PERFORM outbox.alter_subscription('picky', filter => '\$.n >= 0');
        PERFORM outbox.enqueue('picked', jsonb_build_object('n', i));
        COMMIT;
        PERFORM outbox.alter_subscription('picky', reset => '{filter}');
        COMMIT;
    END LOOP;
    PERFORM outbox.alter_subscription('picky', filter => '\$.n >= 0');
    PERFORM outbox.enqueue('picked', '{"n": -1}'), outbox.enqueue('picked', '{"n": 0}');
END \$\$
END
my @picked = sort { $a <=> $b } drain('picky', $rounds + 1, "(payload->>'n')");
is("@picked", "@{[ 0 .. $rounds ]}", 'what the filter lets through comes, and nothing else');

# ---- a test event is recognized by its body
sql(q{SELECT outbox.ping('all')});
is(join(',', drain('all', 1, 'type')), 'outbox.ping', 'a test event of a pull subscription');

done_testing;
