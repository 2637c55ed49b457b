# Changes to subscriptions take effect at once and without a restart; nothing is skipped and nothing is repeated, also under load and with a backlog.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use JSON::PP ();
use POSIX ();
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
my $worker = worker_pid($node);

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub alter { my ($name, $what) = @_; sql('SELECT outbox.alter_subscription(' . literal($name) . ", $what)") }
sub came { my ($path) = @_; return join ' ', sort map { $_->{bytes} } $receiver->requests($path) }
sub ids_at { my ($path) = @_; return map { $_->{id} } $receiver->requests($path) }
sub hanging { my ($path) = @_; return scalar grep { !defined $_->{how} } $receiver->requests($path) }
sub arrived { my ($path, $id) = @_; return wait_for(sub { scalar $receiver->of($path, $id) }, "event $id at $path") }

# ---- where a subscription starts ----------------------------------------------------------------------------------------------------

{
	my $open = session($node);
	my $subscriber = session($node);
	enqueue($node, 'start', 10);
	$open->query('BEGIN');
	$open->query(q{SELECT outbox.enqueue('start', '11')});
	wait_for(sub { sql('SELECT clock_timestamp() > max(created_at) + interval \'2 ms\' FROM outbox.event') eq 't' }, 'the next millisecond');
	my $between = sql('SELECT clock_timestamp()');
	wait_for(sub { sql("SELECT clock_timestamp() > '$between'::timestamptz + interval '2 ms'") eq 't' }, 'the next millisecond');
	enqueue($node, 'start', 12);

	$subscriber->query('BEGIN');
	$subscriber->query(q{SELECT outbox.enqueue('start', '20')});
	for my $start ('now', 'earliest', $between)
	{
		my $label = $start eq $between ? 'time' : $start;
		like($subscriber->query("SELECT outbox.subscribe('$label', '" . $receiver->url("/ok?$label") . "', network => 'private', types => '{start}', starting => '$start')"), qr/^whsec_/, "subscribed: $label");
	}
	$subscriber->query(q{SELECT outbox.enqueue('start', '21')});
	enqueue($node, 'start', 30);    # commits before subscribe() does
	$subscriber->query('COMMIT');
	enqueue($node, 'start', 40);
	$open->query('COMMIT');
	my $last = enqueue($node, 'start', 50);
	arrived("/ok?$_", $last) for qw(now earliest time);
	# the one that was open may be read by a later tick than the last
	wait_for(sub { came("/ok?$_->[0]") eq $_->[1] }, $_->[0])
		for [ now => '11 20 21 30 40 50' ], [ earliest => '10 11 12 20 21 30 40 50' ], [ time => '12 20 21 30 40 50' ];
	is(came('/ok?now'), '11 20 21 30 40 50', 'now: its own transaction\'s events, what was open, and what commits later; not what was committed before');
	is(came('/ok?earliest'), '10 11 12 20 21 30 40 50', 'earliest: all there are');
	is(came('/ok?time'), '12 20 21 30 40 50', 'a time: what was recorded since');

	$subscriber->query('BEGIN');
	$subscriber->query("SELECT outbox.subscribe('undone', '" . $receiver->url('/ok?undone') . "', network => 'private', types => '{start}', starting => 'earliest')");
	$subscriber->query('ROLLBACK');
	arrived('/ok?now', enqueue($node, 'start', 60));
	is(came('/ok?undone'), '', 'a subscription that was rolled back gets nothing');
	sql("SELECT outbox.unsubscribe('$_')") for qw(now earliest time);
}

# ---- limits and timeouts, pause, unsubscribe, while requests hang -----------------------------------------------------------------------

{
	my $path = '/hang?limit';
	subscribe($node, 'limit', $receiver->url($path), types => ['limit'], timeout => '10 min', max_in_flight => 2);
	sql(q{SELECT outbox.enqueue('limit', to_jsonb(i)) FROM generate_series(1, 12) AS i});
	wait_for(sub { hanging($path) == 2 }, 'two in flight');
	alter('limit', 'max_in_flight => 5');
	wait_for(sub { hanging($path) == 5 }, 'five in flight');
	is(came($path), '1 2 3 4 5', 'a higher max_in_flight applies to what waits already');

	alter('limit', 'max_in_flight => 3');
	$receiver->control(release => JSON::PP::true);
	wait_for(sub { hanging($path) == 3 && $receiver->requests($path) == 8 }, 'three in flight');
	is(scalar $receiver->requests($path), 8, 'a lower one too');

	sql(q{SELECT outbox.pause('limit', 'for a test')});
	$receiver->control(release => JSON::PP::true);
	wait_for(sub { sql(q{SELECT state, in_flight FROM outbox.subscription_status WHERE name = 'limit'}) eq 'paused|0' }, 'nothing being in flight any more');
	subscribe($node, 'beside', $receiver->url('/ok?beside'), types => ['beside']);
	arrived('/ok?beside', enqueue($node, 'beside', 1));
	is(scalar $receiver->requests($path), 8, 'pause() stops what waits');

	alter('limit', q{timeout => '2 s', connect_timeout => '2 s', retry_base => '1 h'});
	sql(q{SELECT outbox.resume('limit')});
	wait_for(sub { sql(q{SELECT count(*) FROM outbox.delivery_status WHERE subscription = 'limit' AND status = 'retrying' AND next_attempt_at > now() + interval '30 min'}) eq '4' }, 'a new timeout');
	is(scalar $receiver->requests($path), 12, 'resume() goes on where it stopped, the new timeout applies to every request since, and so does the new retry_base');
	is(sql(q{SELECT string_agg(DISTINCT a.error, ' ') FROM outbox.attempt AS a WHERE a.subscription = 'limit' AND a.outcome <> 'delivered'}) =~ /time/i ? 1 : 0, 1, 'these timed out')
		or diag sql(q{SELECT outcome, error, count(*) FROM outbox.attempt WHERE subscription = 'limit' GROUP BY 1, 2});
	alter('limit', 'url => ' . literal($receiver->url('/ok?moved')));
	is(sql(q{SELECT outbox.redrive('limit', types => '{limit}')}), 0, 'what waits for a retry is no dead letter');
	is(sql(q{SELECT outbox.unsubscribe('limit')}), 't', 'unsubscribe()');
	subscribe($node, 'limit', $receiver->url('/ok?again'), types => ['limit']);
	arrived('/ok?again', enqueue($node, 'limit', 100));
	is(came('/ok?again'), '100', 'after unsubscribe() a subscription of the same name inherits nothing');
	is(came('/ok?moved'), '', 'and nothing of the old one is sent any more');
	sql("SELECT outbox.unsubscribe('$_')") for qw(limit beside);
}

# ---- order ------------------------------------------------------------------------------------------------------------------------------

{
	my $path = '/hang?order';
	subscribe($node, 'order', $receiver->url($path), types => ['order'], timeout => '10 min');
	sql(q{SELECT outbox.enqueue('order', to_jsonb(i), key => 'k') FROM generate_series(1, 4) AS i});
	wait_for(sub { hanging($path) == 1 }, 'one in flight for its key');
	alter('order', q{ordering => 'none'});
	my $free = enqueue($node, 'order', 5, key => 'k');
	arrived($path, $free);
	ok($receiver->of($path, $free), 'ordering => none: a new event of a busy key is sent at once');
	wait_for(sub { $receiver->control(release => JSON::PP::true); came($path) eq '1 2 3 4 5' && hanging($path) == 0 }, 'all of them');
	alter('order', q{ordering => 'key'});
	sql(q{SELECT outbox.enqueue('order', to_jsonb(i), key => 'k') FROM generate_series(6, 8) AS i});
	arrived($path, enqueue($node, 'order', 9));
	is(came($path), '1 2 3 4 5 6 9', 'ordering => key: one at a time for each key again');
	wait_for(sub { $receiver->control(release => JSON::PP::true); came($path) eq '1 2 3 4 5 6 7 8 9' && hanging($path) == 0 }, 'the rest');
	is(join(' ', map { $_->{bytes} } grep { $_->{key} eq 'k' && $_->{bytes} > 5 } $receiver->requests($path)), '6 7 8', 'in order');
	is(came($path), '1 2 3 4 5 6 7 8 9', 'each once');
	sql(q{SELECT outbox.unsubscribe('order')});
}

# ---- types and tenant, at a snapshot that the test holds --------------------------------------------------------------------------------

subscribe($node, 'live', $receiver->url('/ok?live'), types => ['old']);
subscribe($node, 'held', $receiver->url('/ok?held'), types => ['old']);
subscribe($node, 'marker', $receiver->url('/ok?marker'), types => ['marker']);
sql(q{SELECT outbox.pause('held')});
sub read_on { arrived('/ok?marker', enqueue($node, 'marker', 0)) }    # everything committed before has been read
{
	my $open = session($node);
	my $changer = session($node);
	my $n = 0;
	my $both = sub { my ($session) = @_; $n++; $session->query("SELECT outbox.enqueue('$_', '\"$_$n\"')") for qw(old new) };
	my $other = session($node);

	$both->($other);    # 1: before
	read_on();
	$open->query('BEGIN');
	$both->($open);     # 2: open when it is altered
	$changer->query('BEGIN');
	$both->($changer);  # 3: of the altering transaction
	is($changer->query(qq{SELECT outbox.alter_subscription('$_', types => '{new}')}), '', "altered: $_") for qw(live held);
	$both->($changer);  # 4: of it too
	$both->($other);    # 5: committed before the change is
	read_on();
	is(came('/ok?live'), '"old1" "old5"', 'a change that is not committed changes nothing');
	$changer->query('COMMIT');
	$both->($other);    # 6: after
	$open->query('COMMIT');
	read_on();
	sql(q{SELECT outbox.resume('held')});
	wait_for(sub { came('/ok?live') =~ /new2.*new6/ && came('/ok?held') =~ /new2.*new6/ }, 'what is wanted now');
	read_on();
	my $expected = '"new2" "new3" "new4" "new6" "old1" "old5"';
	is(came('/ok?live'), $expected, 'types apply to what commits when the change is committed, the altering transaction and what was open included');
	is(came('/ok?held'), $expected, 'and no differently to a backlog');
	sql("SELECT outbox.unsubscribe('$_')") for qw(live held marker);
}

# ---- types and tenant, again and again under load -----------------------------------------------------------------------------------------

{
	# Producers of two types and two tenants, with transactions that last a while among them
	my $directory = PostgreSQL::Test::Utils::tempdir();
	my @producers;
	for my $p (1 .. 3)
	{
		open my $script, '>', "$directory/$p.sql" or die;
		for my $i (1 .. 1500)
		{
			my $one = sprintf q{SELECT outbox.enqueue('mix.%s', '%d', tenant => '%s');}, qw(a b)[ $i % 2 ], $i, qw(x y)[ int($i / 2) % 2 ];
			print $script $p == 3 ? "BEGIN;\n$one\nSELECT pg_sleep(0.008);\nCOMMIT;\n" : "$one\nSELECT pg_sleep(0.008);\n";
		}
		close $script;
		my $pid = fork // die;
		if ($pid == 0)
		{
			open STDIN, '<', "$directory/$p.sql";
			open STDOUT, '>', '/dev/null';
			exec 'psql', '-XAtq', '-d', $node->connstr('postgres') or POSIX::_exit(127);
		}
		push @producers, $pid;
	}
	my %rules = (live => [], held => [], tenant => [], heldtenant => []);
	subscribe($node, $_, $receiver->url("/ok?mix$_"), starting => 'earliest', types => ['mix.a']) for qw(live held);
	subscribe($node, $_, $receiver->url("/ok?mix$_"), starting => 'earliest', types => ['mix.*'], tenant => 'x') for qw(tenant heldtenant);
	my %now = (live => "type = 'mix.a'", held => "type = 'mix.a'", tenant => "tenant = 'x'", heldtenant => "tenant = 'x'");
	my %change = (live => [ [ 'a', 'b' ], 'types', "'{mix.%s}'", "type = 'mix.%s'" ], tenant => [ [ 'x', 'y' ], 'tenant', "'%s'", "tenant = '%s'" ]);
	@change{qw(held heldtenant)} = @change{qw(live tenant)};

	my $changer = session($node);
	my $changes = 0;
	for my $round (1 .. 8)
	{
		my $reached = sql('SELECT count(*) FROM outbox.event') + 150;
		wait_for(sub { sql('SELECT count(*) FROM outbox.event') >= $reached }, 'more events');
		if ($round == 2) { sql("SELECT outbox.pause('$_')") for qw(held heldtenant) }
		for my $name (sort keys %rules)
		{
			my ($values, $option, $format, $where) = @{ $change{$name} };
			my $value = $values->[ $round % 2 ];
			$changer->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
			my $snapshot = $changer->query('SELECT pg_current_snapshot()');
			is($changer->query("SELECT outbox.alter_subscription('$name', $option => " . sprintf($format, $value) . ')'), '', "round $round: $name") or next;
			$changer->query('COMMIT');
			my $after = $changer->query('SELECT pg_current_snapshot()');
			push @{ $rules{$name} }, { snapshot => $snapshot, after => $after, where => $now{$name} };
			$now{$name} = sprintf $where, $value;
			$changes++;
		}
		if ($round == 5) { sql("SELECT outbox.resume('$_')") for qw(held heldtenant) }
	}
	for my $pid (@producers) { waitpid $pid, 0; is($?, 0, 'a producer came to its end') }
	$? = 0;
	is($changes, 32, 'all changes were made under load');

	for my $name (sort keys %rules)
	{
		# before the change: the old rules; after its COMMIT: the new ones; what committed at that moment may have met either
		my @rules = (@{ $rules{$name} }, { where => $now{$name} });
		my ($must, $may) = map { my $how = $_; 'CASE ' . join('', map { "WHEN pg_visible_in_snapshot(xid, '$rules[$_]{snapshot}') THEN $rules[$_]{where} " .
				"WHEN pg_visible_in_snapshot(xid, '$rules[$_]{after}') THEN $rules[$_]{where} $how $rules[$_ + 1]{where} " } 0 .. $#rules - 1) . "ELSE $now{$name} END" } qw(AND OR);
		my @wanted = split /\n/, sql("SELECT id FROM outbox.event WHERE type LIKE 'mix.%' AND $must ORDER BY id");
		my %may = map { $_ => 1 } split /\n/, sql("SELECT id FROM outbox.event WHERE type LIKE 'mix.%' AND $may");
		my %sent;
		cmp_ok(scalar @wanted, '>', 1000, "$name: wants " . @wanted . ' events');
		wait_for(sub { %sent = map { $_ => 1 } ids_at("/ok?mix$name"); !grep { !$sent{$_} } @wanted }, "$name: all that is wanted");
		my @missing = grep { !$sent{$_} } @wanted;
		is("@missing[0 .. (@missing > 3 ? 3 : $#missing)]", '', "$name: nothing is skipped") or diag scalar @missing;
		my @unwanted = grep { !$may{$_} } sort keys %sent;
		is("@unwanted[0 .. (@unwanted > 3 ? 3 : $#unwanted)]", '', "$name: nothing is sent that was not wanted when it was committed") or diag scalar @unwanted;
		cmp_ok(keys(%may) - @wanted, '<', scalar @wanted, "$name: few events could have been either");
		is(scalar(() = ids_at("/ok?mix$name")), scalar keys %sent, "$name: nothing is repeated");
	}
	sql("SELECT outbox.unsubscribe('$_')") for sort keys %rules;
}

# ---- everything at once, under load -------------------------------------------------------------------------------------------------------

{
	my %at = (keyed => Outbox::Receiver->new(fsync => 0), free => Outbox::Receiver->new(fsync => 0));
	my $ledger = Outbox::Ledger->new;
	subscribe($node, $_, $at{$_}->url('/random/5/5?0'), types => ['load.made'], retry_base => '20 ms', max_attempts => 1000) for sort keys %at;
	my $producers = start_producers($node, count => 3, transactions => 30000, pause => 0.005);
	for my $round (1 .. 12)
	{
		my $before = () = $at{keyed}->requests;
		wait_for(sub { $at{keyed}->requests >= $before + 200 }, 'load');
		for my $name (sort keys %at)
		{
			alter($name, 'url => ' . literal($at{$name}->url("/random/5/5?$round")));
			my $ping = sql("SELECT outbox.ping('$name')");
			ok(wait_for(sub { $at{$name}->of("/random/5/5?$round", $ping) }, "a ping at the new URL"), "round $round: $name has moved");
			is(scalar(grep { $_->{id} eq $ping && $_->{path} ne "/random/5/5?$round" } $at{$name}->requests), 0, 'after alter_subscription() nothing new goes to the old URL');
			is(scalar(grep { $_->{id} eq $ping } map { $at{$_}->requests } grep { $_ ne $name } keys %at), 0, 'a ping is for one subscription alone');
			push @{ $ledger->{$name} }, $ping;
		}
		alter('free', q{ordering => '} . ($round % 2 ? 'none' : 'key') . q{'});
		alter($_, 'max_in_flight => ' . (1 + $round * 7 % 40)) for sort keys %at;
		alter('keyed', sprintf q{timeout => '%d s', connect_timeout => '1 s', response_kept => %d, max_blocked => %d}, 2 + $round, $round * 10, 5 + $round);
		if ($round % 3 == 0)
		{
			sql(q{SELECT outbox.pause('keyed')});
			wait_for(sub { sql(q{SELECT in_flight FROM outbox.subscription_status WHERE name = 'keyed'}) eq '0' }, 'nothing being in flight');
			my $sent = () = $at{keyed}->requests;
			my $other = () = $at{free}->requests;
			wait_for(sub { $at{free}->requests >= $other + 100 }, 'the other one going on');
			is(scalar(() = $at{keyed}->requests), $sent, "round $round: paused, nothing is sent");
			sql(q{SELECT outbox.resume('keyed')});
		}
		subscribe($node, "guest$round", $receiver->url("/ok?guest$round"), types => ['load.made'], starting => $round % 2 ? 'now' : 'earliest');
		sql('SELECT outbox.unsubscribe(\'guest' . ($round - 2) . '\')') if $round > 2;
	}
	my $running = grep { waitpid($_->{pid}, 1) == 0 } @$producers;
	cmp_ok($running, '>', 0, 'all of that was under load');
	alter($_, 'max_in_flight => 50') for sort keys %at;
	stop_producers($node);
	finish_producers($producers, $ledger);
	for my $name (sort keys %at)
	{
		my %pings = map { $_ => 1 } @{ $ledger->{$name} };
		local $ledger->{committed} = { %{ $ledger->{committed} }, map { $_ => '' } keys %pings };
		wait_for(sub { $ledger->complete($at{$name}) }, "$name: everything");
		my $found = $ledger->check($at{$name});
		is(scalar @{ $found->{$_} }, 0, "$name: $_ 0 of " . $ledger->count) for qw(lost phantom changed duplicates), $name eq 'keyed' ? qw(disorder overlap) : ();
	}
	is(scalar(map { my $guest = $_; my %times; $times{ $_->{id} }++ for $receiver->requests("/ok?guest$guest"); grep { $times{$_} > 1 } keys %times } 1 .. 12), 0,
		'subscriptions that came and went got nothing twice');
	my %committed = map { $_->{id} => 1 } grep { $_->{type} eq 'load.made' } $at{keyed}->requests;
	wait_for(sub { my %seen = map { $_->{id} => 1 } $receiver->requests('/ok?guest12'); !grep { !$seen{$_} } keys %committed }, 'the whole log at the last guest');
	is(scalar(() = $receiver->requests('/ok?guest12')), scalar keys %committed, 'a subscription made under load that starts at the earliest event gets each event once');
}

is(worker_pid($node), $worker, 'and all of it in one and the same worker');
unlike(slurp_file($node->logfile), qr/ (?:ERROR|PANIC|FATAL):(?!  terminating connection due to administrator command)/, 'without an error in the log, but for the producers that were ended');

done_testing;
