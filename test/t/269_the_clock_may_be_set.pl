# A clock that is set forwards or back loses nothing, delays nothing by more than a retry may be away, and makes nobody busy.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $directory = PostgreSQL::Test::Utils::tempdir();
my $compiler = $ENV{CC} // 'cc';
is(system("$compiler -shared -fPIC -O1 -Wall -Wextra -Werror -o '$directory/clock.so' '$FindBin::RealBin/../lib/clock.c' -ldl 2>&1"), 0, 'the clock is compiled');
my %loaded = (LD_PRELOAD => "$directory/clock.so", OUTBOX_CLOCK => "$directory/ahead");

sub set
{
	my ($ahead) = @_;
	open my $out, '>', "$directory/new" or die;
	print $out $ahead;
	close $out;
	rename "$directory/new", "$directory/ahead" or die;
}

set(0);
local %ENV = (%ENV, %loaded);
my $node = outbox_node('main', conf => [ 'fsync = off', "outbox.maintenance_interval = '1s'" ]);
delete @ENV{ keys %loaded };
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub arrived { my ($path, $id) = @_; return wait_for(sub { scalar $receiver->delivered($path) && grep { $_->{id} eq $id } $receiver->delivered($path) }, "event $id at $path") }
my $began = sql('SELECT EXTRACT(epoch FROM clock_timestamp())');
set(7200);
cmp_ok(sql('SELECT EXTRACT(epoch FROM clock_timestamp())'), '>', $began + 7000, 'it is the clock of the server');
set(0);

subscribe($node, 'plain', $receiver->url('/ok?plain'), types => ['plain']);
subscribe($node, 'flaky', $receiver->url('/script/flaky?flaky'), types => ['flaky'], retry_base => '3 s', retry_max => '3 s', max_attempts => 100, give_up_after => '0');    # ten years later one may give up
sql(q{SELECT outbox.subscribe('pull', types => '{plain}')});
$receiver->control(script => 'flaky', answers => [], then => 500);
sql('CREATE TABLE consumed (id uuid)');

# What there is to pull is pulled and acknowledged; has this been?
sub consumed
{
	my ($id) = @_;
	sql(q{BEGIN; CREATE TEMP TABLE p ON COMMIT DROP AS SELECT * FROM outbox.pull('pull'); INSERT INTO consumed SELECT event_id FROM p; SELECT outbox.ack('pull', NULL, token) FROM p LIMIT 1; COMMIT});
	return sql("SELECT count(*) FROM consumed WHERE id = '$id'") eq '1';
}

sub delivers
{
	my ($what) = @_;
	my @ids = map { enqueue($node, 'plain', $_, key => 'k') } 1 .. 3;
	ok(arrived('/ok?plain', $_), "$what: an event is delivered") for @ids;
	ok(wait_status($node, $ids[2], 'plain', 'delivered'), "$what: and that is recorded");
	return $ids[2];
}

# What waits for a retry of the time before
sub changes
{
	my ($what, $ahead) = @_;
	$receiver->control(script => 'flaky', answers => [], then => 500);
	my $flaky = enqueue($node, 'flaky', '{}');
	wait_status($node, $flaky, 'flaky', 'retrying');
	delivers("before $what");
	my $cursors = sql('SELECT max(seq) FROM outbox.cursor');
	set($ahead);
	my $last = delivers($what);
	ok(wait_for(sub { sql('SELECT max(seq) FROM outbox.cursor') > $cursors }, 'cursors'), "$what: cursors are written");
	$receiver->control(script => 'flaky', answers => [], then => 200);
	ok(arrived('/script/flaky?flaky', $flaky), "$what: what waited for a retry is delivered");
	my $soon = sql(q{SELECT outbox.enqueue('plain', '"soon"', deliver_at => clock_timestamp() + interval '1 s')});
	ok(arrived('/ok?plain', $soon), "$what: what is scheduled comes");
	ok(wait_for(sub { consumed($last) }, 'a pull'), "$what: and can be pulled");
	my $pid = worker_pid($node);
	my $turns = sub { (split ' ', slurp_file("/proc/$pid/stat"))[13] };
	SKIP: {
		skip 'no /proc', 1 unless -e "/proc/$pid/stat";
		my $before = $turns->();
		select undef, undef, undef, 2;
		cmp_ok($turns->() - $before, '<', 100, "$what: nobody is busy");    # ticks of 10 ms; half of the time
	}
}

changes('an hour forwards', 3600);
changes('two hours back', -3600);
changes('back to the right time', 0);
changes('ten years forwards', 10 * 365 * 86400);
my @ids = sort map { $_->{id} } $receiver->delivered('/ok?plain');
my %times;
$times{$_}++ for @ids;
is(scalar(grep { $_ > 1 } values %times), 0, 'nothing was sent twice');
is(sql('SELECT count(*) FROM outbox.dead_letter'), '0', 'nothing was given up');

done_testing;
