# test/fault trusts its judge. Here it is shown, in ledgers and logs that are made up, each fault that it must find, and what it must not mistake for one.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../fault";
use Checker;
use File::Temp qw(tempdir);
use Test::More;

my $second = 1_000_000;
my $start = 1_700_000_000 * $second;

sub uuid { my ($p, $s) = @_; return sprintf '%08x-0000-7000-8000-%012x', $p, $s }

# An event of producer p: s, key, number; as it is in the ledger and in requests.
sub event { my ($s, $k, $n, %more) = @_; return { p => 1, s => $s, k => $k, n => $n, type => 'one', id => uuid(1, $s), pad => '', dedup => '-', %more } }

my %transaction = (1 => 0, 2 => 0);

# Lines of a ledger: a transaction with these events, and what became of it (c | r | u | none). Options: p, async, undone (serials), at (when COMMIT was sent), shape.
sub transaction
{
	my ($outcome, $events, %option) = @_;
	my $number = ++$transaction{ $option{p} // 1 };
	my $at = $start + ($option{at} // 0);
	my @lines = "B $number " . ($option{shape} // 'plain');
	push @lines, "E $_->{s} $_->{type} " . ($_->{k} eq '' ? '-' : $_->{k}) . " $_->{n} $_->{id} $_->{dedup}" for @$events;
	push @lines, "X $_" for @{ $option{undone} // [] };
	push @lines, "W $number $at " . ($option{async} ? 'async' : 'sync') unless $option{never_sent};
	push @lines, "$outcome $number " . ($at + 1000) unless $outcome eq 'none';
	return map { "$_\n" } @lines;
}

sub committed { return transaction('c', [@_]) }

sub payload { my ($e) = @_; return sprintf '{"k": "%s", "n": %d, "p": %d, "s": %d, "pad": "%s"}', @{$e}{qw(k n p s pad)} }

my $seq = 0;

# Records of a receiver: a request. Options: at (seconds), path, action, signature, accepted, head (more header lines), body, ended (seconds; undef: never), how, time.
sub request
{
	my ($at, $event, %option) = @_;
	my $began = $start + int($at * $second);
	my $path = $option{path} // 'single';
	my $action = $option{action} // 'ok';
	my ($head, $body) = ("POST /$path HTTP/1.1\r\nHost: x\r\n" . ($option{head} // ''), $option{body});
	if (ref $event eq 'ARRAY')
	{
		$head .= "webhook-id: $option{id}\r\n";
		$body //= '[' . join(',', map { qq({"specversion":"1.0","id":"$_->{id}","source":"urn:x","type":"fault.$_->{type}","data":) . payload($_) . '}' } @$event) . ']';
	}
	else
	{
		$head .= "webhook-id: $event->{id}\r\nce-type: fault.$event->{type}\r\n";
		$body //= payload($event);
	}
	$head .= 'webhook-timestamp: ' . int($at) . "\r\n\r\n";
	$seq++;
	my $record = join(' ', 'R', $seq, $began, $option{connection} // 1, $option{accepted} // $start, $path, $action, $option{signature} // 'valid', length $head, length $body) . "\n$head$body\n";
	my $ended = exists $option{ended} ? $option{ended} : $at + 0.1;
	return ($record, defined $ended ? join(' ', 'E', $seq, $start + int($ended * $second), $option{how} // 'answered', 200) . "\n" : ());
}

my $plan = "limit drain 60\nsubscription single binary receiver.log 0 one\nsubscription batch batch receiver.log 0 bulk\nsubscription effect binary effects.log 1 effect\n";

# What the judge says of files: names of what is wrong, with counts; and the whole report.
sub judged
{
	my (%file) = @_;
	my $directory = tempdir(CLEANUP => 1);
	%file = (plan => [$plan], 'receiver.log' => [], 'effects.log' => [], faults => [], effects => [], %file);
	for my $name (keys %file)
	{
		open my $out, '>:raw', "$directory/$name" or die;
		print $out @{ $file{$name} };
		close $out or die;
	}
	my $report = Checker->new($directory)->report;
	my $said = join ' ', map { "$_:$report->{wrong}{$_}" } grep { $report->{wrong}{$_} } sort keys %{ $report->{wrong} };
	is($report->{ok} ? '' : 'failed', $said eq '' && $report->{drained} <= 60 && !$report->{not_recovered} && $report->{flat} // 1 ? '' : 'failed', "its verdict fits: $said");
	return wantarray ? ($said, $report) : $said;
}

my ($a, $b, $c) = (event(1, 'k', 1), event(2, 'k', 2), event(3, 'k', 3));
my @ledger = (committed($a), committed($b), committed($c));

sub with { my ($log, @more) = @_; return judged('ledger.1' => [@ledger], 'receiver.log' => $log, @more) }

# ---- nothing is wrong ---------------------------------------------------------------------------------------------------------------

my ($said, $report) = with([ request(1, $a), request(2, $b), request(3, $c) ]);
is($said, '', 'nothing is wrong');
is($report->{events}{committed}, 3, 'it has counted');

($said, $report) = with([ request(1, $a, action => '500'), request(1.5, $a, action => 'lost', how => 'cut'), request(2, $a), request(3, $b, how => 'gone'), request(4, $b, accepted => $start + $second * 3.5), request(5, $c) ]);
is($said, '', 'refused, and repeated after an answer that was lost or a crash');
is($report->{duplicates}, 2, 'what was repeated is counted');
($said, $report) = with([ request(1, $a), request(4.25, $a, accepted => $start + 4 * $second), request(5, $b), map({ request($_, $c, accepted => $start + 4 * $second) } 6, 7) ], faults => [ $start + int(3.45 * $second) . " worker-kill -\n" ]);
is("$said $report->{repeated_after_faults} $report->{repeated_from}{max} $report->{repeated_otherwise}", ' 1 2.4 1', 'so is how long before a fault it had been answered, and what no fault explains');
my ($began, $answered) = request(5, $b, accepted => $start + 4 * $second, ended => 7.5);
($said, $report) = with([ request(1, $a, action => 'slow', ended => 3.4), request(4.25, $a, accepted => $start + 4 * $second), $began, request(7, $b, accepted => $start + 6 * $second), $answered, request(10, $b, accepted => $start + 9.5 * $second), request(11, $c) ], faults => [ map { $start + int($_ * $second) . " worker-kill -\n" } 3.45, 5.5, 9.05 ]);
is("$said $report->{repeated_after_faults} $report->{repeated_from}{max}", 'overlap:1 3 2', 'an answer that came late does not count as long ago, nor one to a request whose event has come again as a delivery of that');
($said, $report) = with([ request(1, $a), request(1.4, $b), request(6, $a, accepted => $start + 5.5 * $second), request(7, $b, accepted => $start + 5.5 * $second), request(8, $c) ],
	faults => [ map { $start + int($_ * $second) . " worker-kill -\n" } 1.35, 5 ]);
is("$said $report->{repeated_after_faults} $report->{repeated_from}{p50} $report->{repeated_from}{max}", ' 2 0.1 0.3', 'the fault is the first one after the connection was accepted, whatever came later, and also for what the receiver came to only after it');

($said, $report) = judged('ledger.1' => [ @ledger, transaction('u', [ event(4, 'k', 4) ]) ], 'receiver.log' => [ request(1, $a), request(2, $b), request(3, $c), request(4, event(4, 'k', 4)) ]);
is($said, '', 'unknown, and delivered');
is($report->{events}{unknown}, 1, 'that one is counted');
is(judged('ledger.1' => [ @ledger, transaction('u', [ event(4, 'k', 4) ]) ], 'receiver.log' => [ request(1, $a), request(2, $b), request(3, $c) ]), '', 'unknown, and not delivered');
is(judged('ledger.1' => [ @ledger, transaction('r', [ event(4, 'k', 4) ]), committed(event(5, 'k', 4)) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, event(5, 'k', 4) ]),
	'', 'what was rolled back gives its number back');
is(judged('ledger.1' => [ @ledger, transaction('c', [ map { event($_, 'k', $_) } 4, 5 ], undone => [5]), committed(event(6, 'k', 5)) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, event(4, 'k', 4), event(6, 'k', 5) ]),
	'', 'so does what a savepoint took back');
is(judged('ledger.1' => [ @ledger, transaction('c', [ event(4, 'k', 4) ], async => 1), "L $start\n", "R $start\n", committed(event(5, 'k', 4)) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, event(5, 'k', 4) ]),
	'', 'an asynchronous commit that a crash took back');
is(judged('ledger.1' => [ @ledger, transaction('none', [ event(4, 'k', 4) ]) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, event(4, 'k', 4) ]), '', 'a producer that died at COMMIT');
is(judged('ledger.1' => [ @ledger, 'E 4 o' ], 'receiver.log' => [ (map { request($_->{s}, $_) } $a, $b, $c), 'R 99 17' ]), '', 'files that end in the middle of a line');

# ---- lost ---------------------------------------------------------------------------------------------------------------------------

is(with([ request(1, $a), request(2, $b) ]), 'lost:1', 'lost: the last of its key');
is(with([ request(1, $a), request(2, $b, action => '500'), request(3, $b, action => 'close'), request(4, $b, action => 'hang', ended => undef) ]), 'lost:2', 'lost: refused is not delivered');
is(with([ request(1, $a), request(3, $c) ]), 'lost:2', 'lost: one in the middle, found by the ledger and by the numbers of the key');
is(judged('ledger.1' => [ committed(event(1, '', 0)) ]), 'lost:1', 'lost: without a key');
is(judged('ledger.1' => [ transaction('u', [ event(1, 'k', 1) ]), committed(event(2, 'k', 2)) ], 'receiver.log' => [ request(2, event(2, 'k', 2)) ]), 'lost:1', 'lost: unknown, but the number of a later one shows that it was committed');
is(judged('ledger.1' => [ transaction('c', [ event(1, 'k', 1) ], async => 1), committed(event(2, 'j', 1)) ], 'receiver.log' => [ request(2, event(2, 'j', 1)) ]), 'lost:1', 'lost: asynchronous, but covered by a later commit of its session');
is(judged('ledger.1' => [ transaction('u', [ event(1, '', 0) ]) ], 'receiver.log' => [ request(2, event(1, '', 0), action => '500') ]), 'lost:1', 'lost: unknown, but it was sent once');

# ---- phantom ------------------------------------------------------------------------------------------------------------------------

my $x = event(4, 'k', 4);
is(judged('ledger.1' => [ @ledger, transaction('r', [$x]) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, $x ]), 'phantom:1', 'phantom: rolled back');
is(judged('ledger.1' => [ @ledger, transaction('r', [$x]) ], 'receiver.log' => [ (map { request($_->{s}, $_) } $a, $b, $c), request(5, $x, action => '500') ]), 'phantom:1', 'phantom: it need not be accepted');
is(judged('ledger.1' => [ @ledger, transaction('c', [ $x, event(5, 'k', 5) ], undone => [5]) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, $x, event(5, 'k', 5) ]), 'phantom:1', 'phantom: undone by a savepoint');
is(judged('ledger.1' => [ @ledger, transaction('none', [$x], never_sent => 1) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, $x ]), 'phantom:1', 'phantom: COMMIT was never sent');
is(judged('ledger.1' => [ @ledger, transaction('c', [$x], at => 10 * $second) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, $x ]), 'phantom:1', 'phantom: sent before COMMIT was');
is(with([ map { request($_->{s}, $_) } $a, $b, $c, event(77, 'k', 77) ]), 'phantom:1', 'phantom: nobody enqueued it');
is(judged('ledger.1' => [ @ledger, transaction('c', [$x], async => 1), committed(event(5, 'k', 4)) ], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c, $x, event(5, 'k', 4) ]),
	'phantom:1', 'phantom: delivered, forgotten by a crash, and its number given to another one');
is(judged('ledger.1' => [ committed(event(1, 'k', 1, type => 'bulk')) ], 'receiver.log' => [ request(1, event(1, 'k', 1, type => 'bulk')), request(2, [ event(1, 'k', 1, type => 'bulk') ], path => 'batch', id => 'b') ]),
	'phantom:1', 'phantom: to somebody who does not want it');

is(with([ (map { request($_->{s}, $_) } $a, $b, $c), request(5, $a, path => 'nobody') ]), 'phantom:1', 'phantom: to nobody');

# ---- changed, forged ----------------------------------------------------------------------------------------------------------------

is(with([ request(1, $a), request(2, $b), request(3, { %$b, pad => 'y' }), request(4, $c) ]), 'changed:1', 'changed: a duplicate with other bytes');
is(with([ request(1, $a), request(2, $b, action => '500'), request(3, { %$b, pad => 'y' }), request(4, $c) ]), 'changed:1', 'changed: after a failure too');
is(with([ request(1, $a), request(2, $b), request(3, { %$b, id => uuid(9, 9) }), request(4, $c) ]), 'changed:2', 'changed: a duplicate with another id');
is(with([ request(1, $a), request(2, { %$b, id => uuid(9, 9) }), request(4, $c) ]), 'changed:1', 'changed: not the id that enqueue() gave');
is(with([ request(1, $a), request(2, $b), request(3, $b, head => "ce-subject: y\r\n"), request(4, $c) ]), 'changed:1', 'changed: another header');
is(with([ request(1, $a), request(2, $b), request(3, $c), request(4, $c, head => "traceparent: 00-y\r\nwebhook-signature: v1,y\r\n") ]), '', 'changed: not those that are of the attempt');
is(with([ request(1, $a), request(2, { %$b, k => 'other', n => 1 }), request(3, $c) ]), 'changed:1 lost:1', 'changed: another key');
is(with([ request(1, $a), request(2, $b, body => '{"torn": '), request(3, $b), request(4, $c) ]), 'changed:1', 'changed: what cannot be read');
is(with([ request(1, $a), request(2, $b, signature => 'invalid'), request(3, $c) ]), 'forged:1', 'forged');

# ---- order, in flight ---------------------------------------------------------------------------------------------------------------

is(with([ request(1, $a), request(2, $c), request(3, $b) ]), 'disorder:1', 'disorder');
is(with([ request(1, $a), request(2, $b), request(3, $a), request(4, $c) ]), '', 'disorder: not of what is repeated');
my ($first, $first_end) = request(1, $a, ended => 2.5);
my ($second_begin, $second_end) = request(2, $b, ended => 2.6);
is(with([ $first, $second_begin, $first_end, $second_end, request(3, $c) ]), 'overlap:1', 'overlap: two of a key at a time');
is(with([ $first, $first_end, $second_begin, $second_end, request(3, $c) ]), 'overlap:1', 'overlap: its first byte came before the answer');
($first, $first_end) = request(1, event(1, '', 0), ended => 2.5);
($second_begin, $second_end) = request(2, event(1, '', 0), ended => 2.6);
is(judged('ledger.1' => [ committed(event(1, '', 0)) ], 'receiver.log' => [ $first, $second_begin, $first_end, $second_end ]), 'overlap:1', 'overlap: an event beside itself');
($first, $first_end) = request(1, event(1, 'k', 1), ended => 2.5);
($second_begin, $second_end) = request(2, event(2, 'j', 1), ended => 2.6);
is(judged('ledger.1' => [ committed(event(1, 'k', 1)), committed(event(2, 'j', 1)) ], 'receiver.log' => [ $first, $second_begin, $first_end, $second_end ]), '', 'overlap: not of two keys');

# ---- batches ------------------------------------------------------------------------------------------------------------------------

my @bulk = map { event($_, 'k', $_, type => 'bulk') } 1 .. 4;
my @bulk_ledger = committed(@bulk);
my %batch = (path => 'batch');
sub batches { return judged('ledger.1' => [@bulk_ledger], 'receiver.log' => [@_]) }
is(batches(request(1, [ @bulk[ 0, 1 ] ], %batch, id => '1'), request(2, [ @bulk[ 2, 3 ] ], %batch, id => '2')), '', 'batch: nothing is wrong');
is(batches(request(1, [ @bulk[ 0, 1 ] ], %batch, id => '1'), request(2, [ @bulk[ 0 .. 2 ] ], %batch, id => '2'), request(3, [ $bulk[3] ], %batch, id => '3')), '', 'batch: repeated in other company');
is(batches(request(1, [ @bulk[ 0, 1 ] ], %batch, id => '1'), request(2, [ $bulk[3] ], %batch, id => '2')), 'lost:2', 'batch: lost');
is(batches(request(1, [ @bulk[ 0, 2, 1, 3 ] ], %batch, id => '1')), 'disorder:1', 'batch: out of order');
is(batches(request(1, [@bulk], %batch, id => '1'), request(2, [ { %{ $bulk[0] }, pad => 'y' } ], %batch, id => '2')), 'changed:1', 'batch: a member with other bytes');
is(batches(request(1, [ @bulk[ 0, 1 ] ], %batch, id => '1'), request(2, [ @bulk[ 2, 3 ] ], %batch, id => '1')), 'changed:1', 'batch: its id for another one');
($first, $first_end) = request(1, [ @bulk[ 0, 1 ] ], %batch, id => '1', ended => 3);
($second_begin, $second_end) = request(2, [ @bulk[ 2, 3 ] ], %batch, id => '2', ended => 4);
is(batches($first, $second_begin, $first_end, $second_end), 'overlap:1', 'batch: two of a key at a time');

# ---- effects ------------------------------------------------------------------------------------------------------------------------

my @work = map { event($_, 'k', $_, type => 'effect') } 1 .. 2;
my @work_log = map { request($_->{s}, $_, path => 'effect') } @work;
sub line { my ($e) = @_; return "effect\t$e->{id}\t" . payload($e) . "\n" }
sub effects { return judged('ledger.1' => [ committed(@work) ], 'effects.log' => [@work_log], effects => [ map { line($_) } @_ ]) }
is(effects(@work), '', 'effects: nothing is wrong');
is(effects(@work, $work[1]), 'twice:1', 'effects: twice');
is(effects($work[0]), 'lost:1', 'effects: an answer is not an effect');
is(effects(@work[ 1, 0 ]), 'disorder:1', 'effects: out of order');
is(effects(@work, event(9, '', 0)), 'phantom:1', 'effects: of what nobody enqueued');
is(judged('effects' => ["other\t$work[0]{id}\t" . payload($work[0]) . "\n"]), 'phantom:1', 'effects: of nobody');
is(judged('effects' => ["effect\t$work[0]{id}\t{}\n"]), 'changed:1', 'effects: of what cannot be read');

# ---- dedup keys ---------------------------------------------------------------------------------------------------------------------

my $winner = event(1, '', 0, dedup => 'd');
my $other = event(1, '', 0, p => 2, dedup => 'd');
my %both = ('ledger.1' => [ committed($winner) ], 'ledger.2' => [ transaction('c', [ { %$other, id => $winner->{id} } ], p => 2) ]);
is(judged(%both, 'receiver.log' => [ request(1, $winner) ]), '', 'dedup: one for both');
is(judged(%both), 'lost:2', 'dedup: none for both');
is(judged('ledger.1' => [ committed($winner) ], 'ledger.2' => [ transaction('c', [ { %$other, id => uuid(2, 1) } ], p => 2) ], 'receiver.log' => [ request(1, $winner), request(2, { %$other, id => uuid(2, 1) }) ]),
	'twice:1', 'dedup: two for both');

# ---- faults and times ---------------------------------------------------------------------------------------------------------------

my @log = (request(1, $a, ended => 1.6), request(2.5, $b, accepted => $start + 2 * $second), request(3, $c, accepted => $start + 2 * $second));
($said, $report) = with([@log], faults => [ $start + int(1.5 * $second) . " worker-kill -\n" ]);
is(sprintf('%s %.1f %.1f %d', $said, $report->{recovery}{max}, $report->{recovery_of_kills}{max}, $report->{in_flight_at_faults}), ' 1.0 1.0 1', 'recovery is from the fault to the next delivery over a new connection; what was in flight is counted');
($said, $report) = with([@log], faults => [ $start + int(0.2 * $second) . ' lock ' . int($start + 2.2 * $second) . "\n" ]);
is(sprintf('%s %.1f', $said, $report->{recovery}{max}), ' 0.3', 'of a fault that lasts, from its end');
is($report->{recovery_of_kills}{max}, undef, 'which is no kill');
($said, $report) = with([ request(1, $a), request(2, $b, ended => 2.1), request(2.2, $b), request(3, $c) ], faults => [ join(' ', map { int($start + $_ * $second) } 1.5, 2.4) =~ s/ / backend-kill - /r . "\n" ]);
is(sprintf('%s %.1f %d %d', $said, $report->{recovery}{max}, @{$report}{qw(not_recovered repeated_otherwise)}), ' 1.5 0 1', 'with a time since when, to the next delivery after that, also over an old connection');
($said, $report) = with([@log], faults => [ $start + 10 * $second . " worker-kill -\n" ]);
is("$said $report->{not_recovered} $report->{ok}", ' 1 0', 'nothing was delivered after the last fault: failed');
($said, $report) = with([ request(1, $a), request(2, $b), request(100, $c, accepted => $start + 5 * $second) ], faults => [ $start + 3 * $second . " worker-kill -\n" ]);
is("$said $report->{drained} $report->{ok}", ' 97 0', 'it took too long after the last fault: failed');
like(Checker::text($report), qr/^verdict: FAILED$/m, 'the report says so');

# ---- what grows ---------------------------------------------------------------------------------------------------------------------

# Samples of ten minutes, one in two seconds, of a worker that is killed every so many seconds, and of two tables. Its memory, descriptors and files, and the size and dead rows of the second table, are functions of
# the time since the run began and since the process did.
sub samples
{
	my (%option) = @_;
	my %of = (lives => 150, from => 0, memory => sub { 40e6 }, descriptors => sub { 30 }, files => sub { 120 }, size => sub { 5e6 }, dead => sub { 1000 }, %option);
	my @lines;
	for (my $time = $of{from}; $time < 600; $time += 2)
	{
		my $at = $start + $time * $second;
		my ($life, $age) = (int($time / $of{lives}), $time % $of{lives});
		my $noise = ($time / 2) % 3 - 1;
		push @lines, join(' ', $at, 'process worker', 100 + $life, $age, map { int $_ } $of{memory}->($time, $age) * (1 + 0.02 * $noise), $of{descriptors}->($time, $age) + 5 * $noise, $of{files}->($time, $age)) . "\n";
		push @lines, "$at table one 8192 0\n", join(' ', $at, 'table two', map { int $_->($time) } @of{qw(size dead)}) . "\n";
	}
	return @lines;
}

sub soaked
{
	my ($said, $report) = judged(plan => [ $plan, "soak\n" ], 'ledger.1' => [@ledger], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c ], samples => [@_]);
	my $growth = $report->{growth} // { grown => [], unknown => ['everything'] };
	return join(', ', @{ $growth->{grown} }, map { "$_?" } @{ $growth->{unknown} }) . ($report->{ok} ? '' : ' FAILED');
}

is(soaked(samples()), '', 'growth: there is none');
is(soaked(samples(memory => sub { $_[1] < 60 ? 6e5 * $_[1] : 40e6 }, size => sub { $_[0] < 200 ? 1e5 * $_[0] : 20e6 })), '', 'growth: not of what is young');
is(soaked(samples(memory => sub { 40e6 + ($_[1] > 142 ? 100e6 : 0) }, size => sub { $_[0] < 400 || $_[0] % 50 ? 5e6 : 400e6 })), '', 'growth: not what is so for a moment');
is(soaked(samples(memory => sub { 40e6 + 25_000 * $_[1] })), '', 'growth: not a little');
is(soaked(samples(memory => sub { 40e6 + 50_000 * $_[1] })), 'worker: memory FAILED', 'growth: memory of a worker, in each of its lives anew');
is(soaked(samples(memory => sub { 40e6 + 20e6 * int($_[0] / 150) })), 'worker: memory FAILED', 'growth: from life to life');
is(soaked(samples(lives => 98, memory => sub { 40e6 + 100_000 * $_[1] })), 'worker: memory FAILED', 'growth: in lives that are short');
is(soaked(samples(lives => 98, memory => sub { 40e6 + 50_000 * $_[1] })), '', 'growth: not what it would have come to, had there been time');
is(soaked(samples(descriptors => sub { 30 + $_[1] / 5 })), 'worker: descriptors FAILED', 'growth: descriptors');
is(soaked(samples(files => sub { 120 + $_[1] / 5 })), 'worker: files FAILED', 'growth: files');
is(soaked(samples(size => sub { 5e6 + 40_000 * $_[0] })), 'tables: size, two: size FAILED', 'growth: a table');
is(soaked(samples(dead => sub { 100 * $_[0] })), 'tables: dead, two: dead FAILED', 'growth: dead rows');
is(soaked(samples(from => 300)), '', 'growth: enough of a shorter run');
is(soaked(samples(from => 560)), join(', ', map { "$_?" } 'one: dead', 'one: size', 'tables: dead', 'tables: size', 'two: dead', 'two: size', 'worker: descriptors', 'worker: files', 'worker: memory') . ' FAILED', 'growth: nothing can be said of a short one');
is(soaked(samples(lives => 80)), join(', ', map { "worker: $_?" } qw(descriptors files memory)) . ' FAILED', 'growth: nor of lives that all were too short');
is(soaked(), 'everything? FAILED', 'growth: nor without samples');
($said, $report) = judged('ledger.1' => [@ledger], 'receiver.log' => [ map { request($_->{s}, $_) } $a, $b, $c ], samples => [ samples(size => sub { 5e6 + 40_000 * $_[0] }) ]);
is("$said $report->{ok}", ' 1', 'growth: told, and no failure, if it is no soak');
like(Checker::text($report), qr/^worker: memory 40\.0 MB, then 40\.0 MB, at most 40\.8 MB .*^tables: size 16\.9 MB, then 24\.9.*^  grown: two: size: 16\.9 MB, then 24\.9/ms, 'growth: the report says so');

done_testing;
