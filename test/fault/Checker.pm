# The judge of the fault harness. It knows nothing of the extension: only what producers wrote into their ledgers (producer.c), what the receivers wrote into their logs
# (receiver.c), which effects were committed, when which fault was made, and which type of event each subscription wants.
#
#   my $report = Checker->new($directory)->report;
#
# Files of the directory:
#   plan            lines: subscription NAME FORMAT LOG|- EFFECTS TYPE…; FORMAT: binary | structured | batch | pull; EFFECTS: 0 if a 2xx is a delivery, 1 if only a row in `effects` is
#                   limit drain SECONDS
#                   soak: what grows (Growth.pm), or cannot be told, is a failure
#   ledger.N        of producer N
#   *.log           of receivers
#   samples         of memory, descriptors and tables: see Growth.pm
#   effects         lines: SUBSCRIPTION<tab>ID<tab>PAYLOAD, in the order of their commits
#   faults          lines: TIME KIND ENDED [SINCE]; ENDED: for faults that last, when they ended; else -. What is delivered SINCE then shows that it has recovered; without SINCE,
#                   what is delivered after the end of a fault that lasts, or over a connection that was made after any other. Times are microseconds.
#
# The report has lists of what must not be:
#   lost        committed, and not delivered
#   phantom     sent and not committed; or before COMMIT was sent; or to a subscription that does not want it; or another event of that number of its key
#   changed     the same event with another id, other bytes, other stable headers; or not what its producer enqueued; or a batch's id with other bytes
#   disorder    of a key, first delivered after a later one
#   overlap     in flight while another event of its key, or itself, was
#   twice       an effect, or an event of one dedup key, more than once
#   forged      a signature that does not verify
# and counts.  The ledger's word on an event:
#   c  committed: must be delivered.  Also an asynchronous commit that a later synchronous one of the same session has covered.
#   a  acknowledged asynchronously, u unknown (the connection was lost at COMMIT): may be delivered; if it was sent at all, it must be delivered
#   r  rolled back: must not be sent
# Numbers within a key are given under its row lock and rolled back with the event, so that those of what is committed are 1, 2, 3, …
package Checker;

use strict;
use warnings;

use Digest::MD5 qw(md5);
use Growth;

use constant { FIRST => 8, UUID => qr/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/ };

my @wrong = qw(lost phantom changed disorder overlap twice forged);

sub new
{
	my ($class, $directory) = @_;
	my $self = bless {
		directory => $directory, limit => 60, subscriptions => [], faults => [],
		state => [], id => [], key => [], n => [], committing => [], type => [],       # by producer: strings, a field of fixed length per serial
		keys => [''], key_number => { '' => 0 },
		types => [''], type_number => { '' => 0 },
		dedup => {}, group => {},
		wrong => { map { $_ => [] } @wrong }, count => { map { $_ => 0 } @wrong },
		producers => { committed => 0, rolled_back => 0, unknown => 0, async => 0, transactions => 0 },
		shapes => {}, last_commit => 0, ages => {}, repeated_otherwise => 0,
	}, $class;
	$self->_read_plan;
	$self->_read_faults;
	$self->_read_ledger($_) for sort glob "$directory/ledger.*";
	$self->_read_log($_) for grep { defined } map { my $log = $_; (grep { $_->{log} eq $log } @{ $self->{subscriptions} })[0] && $log }
		do { my %seen; grep { $_ ne '-' && !$seen{$_}++ } map { $_->{log} } @{ $self->{subscriptions} } };
	$self->_read_effects;
	$self->{growth} = Growth::of($directory);
	$self->_conclude;
	return $self;
}

# ---- what is given ----------------------------------------------------------------------------------------------------------------

sub _lines
{
	my ($self, $name, $code) = @_;
	open my $file, '<:raw', "$self->{directory}/$name" or return;
	while (my $line = <$file>) { last unless $line =~ s/\n\z//; $code->($line) }
}

sub _read_plan
{
	my ($self) = @_;
	$self->_lines('plan', sub {
			my ($what, $name, @rest) = split ' ', $_[0];
			if ($what eq 'limit') { $self->{limit} = $rest[0]; return }
			if ($what eq 'soak') { $self->{soak} = 1; return }
			return unless $what eq 'subscription';
			my ($format, $log, $effects, @types) = @rest;
			push @{ $self->{subscriptions} }, { name => $name, format => $format, log => $log, effects => $effects, wants => { map { $_ => 1 } @types }, done => [], digest => [],
				next => {}, missing => {}, open => {}, ended => {}, batches => {}, requests => 0, deliveries => 0, first => 0, duplicates => 0, delivered_ids => {}, refused => {} };
		});
	die "no subscription in $self->{directory}/plan\n" unless @{ $self->{subscriptions} };
}

sub _read_faults
{
	my ($self) = @_;
	$self->_lines('faults', sub {
			my ($at, $kind, $ended, $since) = split ' ', $_[0];
			my $from = $ended eq '-' ? $at : $ended;
			push @{ $self->{faults} }, { at => $at, kind => $kind, from => $from, since => $since // $from, lasts => $ended ne '-', any_connection => $ended ne '-' || defined $since, in_flight => 0 };
		});
	$self->{faults} = [ sort { $a->{since} <=> $b->{since} } @{ $self->{faults} } ];
	$self->{ends} = [ map { $_->{at} } grep { !$_->{any_connection} } @{ $self->{faults} } ];
}

sub _read_ledger
{
	my ($self, $path) = @_;
	my ($p) = $path =~ /ledger\.(\d+)$/ or return;
	my ($state, $id, $key, $n, $committing, $type) = ('', '', '', '', '', '');
	my (@serials, @undone, @covered, $w, $async, $writes, $shape);
	my $counts = $self->{producers};

	# what became of the transaction that is open
	my $settle = sub {
		my ($outcome, $at) = @_;
		$counts->{transactions}++;
		$self->{shapes}{ $shape . ($async ? ' async' : '') }++ if defined $shape;
		my $word = $outcome eq 'c' ? ($async ? 'a' : 'c') : $outcome eq 'u' ? 'u' : 'r';
		for my $s (@serials)
		{
			substr $state, $s, 1, $word;
			substr $committing, $s * 8, 8, pack 'q', $w // 0;
		}
		substr $state, $_, 1, 'r' for @undone;
		if ($word eq 'a') { push @covered, @serials }
		elsif ($word eq 'c' && $writes)
		{
			for my $s (@covered) { substr $state, $s, 1, 'c' if substr($state, $s, 1) eq 'a' }
			@covered = ();
		}
		$self->{last_commit} = $at if $word =~ /[cau]/ && $at > $self->{last_commit};
		@serials = @undone = ();
		undef $shape;
	};

	$self->_lines("ledger.$p", sub {
			my ($what, @fields) = split ' ', $_[0];
			if ($what eq 'E')
			{
				my ($s, $its_type, $its_key, $its_n, $its_id, $dedup) = @fields;
				if (length($state) <= $s)
				{
					my $more = $s - length($state) + 4096;
					$state .= "\0" x $more;
					$id .= "\0" x (16 * $more);
					$key .= "\0" x (2 * $more);
					$n .= "\0" x (4 * $more);
					$committing .= "\0" x (8 * $more);
					$type .= "\0" x $more;
				}
				push @serials, $s;
				substr $id, $s * 16, 16, pack 'H*', $its_id =~ tr/-//dr;
				substr $key, $s * 2, 2, pack 'S', $self->{key_number}{ $its_key eq '-' ? '' : $its_key } //= do { push @{ $self->{keys} }, $its_key; $#{ $self->{keys} } };
				substr $n, $s * 4, 4, pack 'L', $its_n;
				substr $type, $s, 1, chr($self->{type_number}{$its_type} //= do { push @{ $self->{types} }, $its_type; $#{ $self->{types} } });
				if ($dedup eq '-') { $writes = 1 }
				else
				{
					$self->{dedup}{"$p.$s"} = $dedup;
					push @{ $self->{group}{$dedup}{attempts} }, [ $p, $s ];
				}
			}
			elsif ($what eq 'X') { push @undone, $fields[0] }
			elsif ($what eq 'W') { ($w, $async) = ($fields[1], $fields[2] eq 'async') }
			elsif ($what eq 'B') { ($w, $async, $writes, $shape) = (undef, 0, 0, $fields[1]) }
			elsif ($what eq 'L') { @covered = () }
			elsif ($what =~ /^[cru]$/) { $settle->($what, $fields[1]) }
		});
	$settle->(defined $w ? 'u' : 'r', $w // 0) if defined $shape;    # the producer died
	$counts->{committed} += $state =~ tr/c//;
	$counts->{async} += $state =~ tr/a//;
	$counts->{unknown} += $state =~ tr/u//;
	$counts->{rolled_back} += $state =~ tr/r//;
	$self->{$_->[0]}[$p] = $_->[1] for [ state => $state ], [ id => $id ], [ key => $key ], [ n => $n ], [ committing => $committing ], [ type => $type ];
}

# ---- judging ----------------------------------------------------------------------------------------------------------------------

sub _wrong
{
	my ($self, $what, $text) = @_;
	$self->{count}{$what}++;
	push @{ $self->{wrong}{$what} }, $text if @{ $self->{wrong}{$what} } < FIRST;
}

# An event was sent (or did take effect): is it what its producer enqueued? Returns what the ledger says of it, or nothing.
sub _known
{
	my ($self, $subscription, $event, $at) = @_;
	my ($p, $s) = @{$event}{qw(p s)};
	my $name = "$p.$s ($event->{id}) to $subscription->{name}";
	my $state = defined $self->{state}[$p] && $s < length $self->{state}[$p] ? substr $self->{state}[$p], $s, 1 : "\0";
	if ($state eq "\0" || $state eq 'r')
	{
		$self->_wrong('phantom', "$name: " . ($state eq 'r' ? 'it was rolled back' : 'nobody enqueued it'));
		return;
	}
	my $type = $self->{types}[ ord substr $self->{type}[$p], $s, 1 ];
	$self->_wrong('phantom', "$name, which does not want $type") unless $subscription->{wants}{$type};
	my $committing = unpack 'q', substr $self->{committing}[$p], $s * 8, 8;
	$self->_wrong('phantom', sprintf '%s: sent %d us before COMMIT was', $name, $committing - $at) if $at && $at < $committing;
	my $id = unpack 'H*', substr $self->{id}[$p], $s * 16, 16;
	$self->_wrong('changed', "$name: enqueue() said $id") if $id ne $event->{id} =~ tr/-//dr;
	my $key = $self->{keys}[ unpack 'S', substr $self->{key}[$p], $s * 2, 2 ];
	my $n = unpack 'L', substr $self->{n}[$p], $s * 4, 4;
	$self->_wrong('changed', "$name: key $key number $n became key $event->{k} number $event->{n}") if $key ne $event->{k} || $n != $event->{n};
	substr $self->{state}[$p], $s, 1, uc $state if $state =~ /[au]/;     # it is there: now it must be delivered everywhere
	return { state => $state, type => $type };
}

# When it was delivered, and which fault ended the worker that did that: the first one after its connection was accepted. None of them, if the answer was lost.
sub _remember
{
	my ($self, $subscription, $p, $s, $at, $accepted) = @_;
	my $faults = $self->{ends};
	my ($low, $high) = (0, scalar @$faults);
	while ($low < $high) { my $middle = int(($low + $high) / 2); if ($faults->[$middle] <= $accepted) { $low = $middle + 1 } else { $high = $middle } }
	my $times = \$subscription->{times}[$p];
	$$times = '' unless defined $$times;
	$$times .= "\0" x (12 * ($s + 4096) - length $$times) if length($$times) < 12 * ($s + 1);
	substr $$times, $s * 12, 12, pack 'qL', $at, $accepted ? $low : scalar @$faults;
}

# Until then it was in flight, and its sender could not know: from here on it counts how long ago that was. Unless the event has meanwhile come again.
sub _answered
{
	my ($self, $subscription, $event, $began, $at) = @_;
	my $times = \$subscription->{times}[ $event->{p} ];
	substr $$times, $event->{s} * 12, 8, pack 'q', $at if unpack('q', substr $$times, $event->{s} * 12, 8) == $began;
}

# It has been delivered before: how long before the end of that worker? Or has it been the same one?
sub _repeated
{
	my ($self, $subscription, $p, $s, $at, $accepted) = @_;
	my ($before, $end) = unpack 'qL', substr $subscription->{times}[$p], $s * 12, 12;
	my $fault = $self->{ends}[$end];
	if (!defined $fault || $fault > $at) { $self->{repeated_otherwise}++ }
	else { $self->{ages}{ $before < $fault ? int(($fault - $before) / 1e5) : 0 }++ }    # tenths of a second
	$self->_remember($subscription, $p, $s, $at, $accepted);
}

# A delivery; returns true if it is the first.
sub _delivered
{
	my ($self, $subscription, $event, $at, $accepted) = @_;
	my ($p, $s) = @{$event}{qw(p s)};
	my $name = "$p.$s ($event->{id}) to $subscription->{name}";
	$subscription->{deliveries}++;
	my $done = \$subscription->{done}[$p];
	$$done = '' unless defined $$done;
	if (vec $$done, $s, 1)
	{
		$subscription->{duplicates}++;
		$self->_repeated($subscription, $p, $s, $at, $accepted) if $at;
		return 0;
	}
	vec($$done, $s, 1) = 1;
	$self->_remember($subscription, $p, $s, $at, $accepted) if $at;
	$subscription->{first}++;
	if (my $dedup = $self->{dedup}{"$p.$s"})
	{
		my $ids = $subscription->{delivered_ids}{$dedup} //= {};
		$ids->{ $event->{id} } = 1;
		$self->_wrong('twice', "$name: dedup key $dedup has been delivered as another event") if keys %$ids > 1;
	}
	if ($event->{n})
	{
		my $next = $subscription->{next}{ $event->{k} } // 1;
		my $missing = $subscription->{missing}{ $event->{k} };
		if ($event->{n} == $next) { $next++ }
		elsif ($event->{n} > $next)
		{
			$subscription->{missing}{ $event->{k} }{$_} = $name for $next .. $event->{n} - 1;
			$next = $event->{n} + 1;
		}
		elsif ($missing && defined(my $before = delete $missing->{ $event->{n} }))
		{
			$self->_wrong('disorder', "$name: number $event->{n} of key $event->{k} came after $before");
		}
		else { $self->_wrong('phantom', "$name: another number $event->{n} of key $event->{k} has been delivered") }
		$subscription->{next}{ $event->{k} } = $next;
	}
	return 1;
}

my $payload = qr/\{"k": ?"([^"]*)", ?"n": ?(\d+), ?"p": ?(\d+), ?"s": ?(\d+), ?"pad": ?"[^"]*"\}/;

# The events of a request.
sub _events
{
	my ($self, $subscription, $head, $body) = @_;
	if ($subscription->{format} eq 'binary')
	{
		my ($id) = $head =~ /^webhook-id: *(\S+)/mi or return;
		my @stable = sort grep { !/^(?:webhook-timestamp|webhook-signature|webhook-replay|traceparent):/i } split /\r\n/, $head;
		$body =~ /^$payload$/ or return;
		return { id => $id, k => $1, n => $2, p => $3, s => $4, digest => substr md5(join "\n", @stable, $body), 0, 8 };
	}
	my @events;
	my $rest = $body;
	while ($body =~ /(\{"specversion"[^{}]*?"id": ?"(@{[UUID]})"[^{}]*?"data": ?$payload[^{}]*\})/g)
	{
		push @events, { id => $2, k => $3, n => $4, p => $5, s => $6, digest => substr md5($1), 0, 8 };
	}
	return @events;
}

sub _read_log
{
	my ($self, $name) = @_;
	my %by_path = map { $_->{name} => $_ } grep { $_->{log} eq $name } @{ $self->{subscriptions} };
	my %open;     # seq => [subscription, keys, number of events, when it began, events delivered by it]
	my ($in_flight, $fault) = (0, 0);
	my @by_start = sort { $a->{at} <=> $b->{at} } @{ $self->{faults} };
	my ($newest_accepted, $newest_began) = (0, 0);
	my $recovering = 0;   # index into faults, by `since`

	open my $log, '<:raw', "$self->{directory}/$name" or die "cannot read $self->{directory}/$name: $!\n";
	while (my $line = <$log>)
	{
		my ($what, $seq, $at, @fields) = split ' ', $line;
		last unless $line =~ /\n\z/;
		while ($fault < @by_start && $by_start[$fault]{at} <= $at) { $by_start[ $fault++ ]{in_flight} += $in_flight }
		if ($what eq 'E')
		{
			my $request = delete $open{$seq} or next;
			my ($subscription, $keys, $count, $began, $delivered) = @$request;
			$in_flight -= $count;
			for my $key (@$keys) { delete $subscription->{open}{$key}; $subscription->{ended}{$key} = $at }
			$self->_answered($subscription, $_, $began, $at) for @$delivered;
			next;
		}
		die "$name: not a record: $line" unless $what eq 'R';
		my ($connection, $accepted, $path, $action, $signature, $head_length, $body_length) = @fields;
		last if read($log, my $head, $head_length) != $head_length || read($log, my $body, $body_length) != $body_length || read($log, my $newline, 1) != 1;
		my $subscription = $by_path{$path};
		if (!$subscription) { $self->_wrong('phantom', "a request to $path, where nobody is subscribed"); next }

		$subscription->{requests}++;
		$self->_wrong('forged', "request $seq to $path") if $signature ne 'valid';
		my $delivers = $action eq 'ok' || $action eq 'slow' || $action eq 'lost';
		$subscription->{refused}{$action}++ if $action ne 'ok';
		my @events = $self->_events($subscription, $head, $body);
		$self->_wrong('changed', "request $seq to $path has no event in it that could be read") unless @events;
		if ($subscription->{format} eq 'batch' && $head =~ /^webhook-id: *(\S+)/mi)
		{
			my $digest = substr md5($body), 0, 8;
			$self->_wrong('changed', "batch $1 with other bytes") if ($subscription->{batches}{$1} //= $digest) ne $digest;
		}

		my (%keys, @delivered);
		for my $event (@events)
		{
			$keys{ $event->{n} ? "k$event->{k}" : "e$event->{p}.$event->{s}" } = 1;
			$self->_known($subscription, $event, $at) or next;
			my ($p, $s) = @{$event}{qw(p s)};
			my $digests = \$subscription->{digest}[$p];
			$$digests = '' unless defined $$digests;
			$$digests .= "\0" x (8 * ($s + 4096) - length $$digests) if length($$digests) < 8 * ($s + 1);
			my $before = substr $$digests, $s * 8, 8;
			if ($before eq "\0" x 8) { substr $$digests, $s * 8, 8, $event->{digest} }
			elsif ($before ne $event->{digest}) { $self->_wrong('changed', "$p.$s ($event->{id}) to $path: other bytes in request $seq") }
			next if !$delivers || $subscription->{effects};
			$self->_delivered($subscription, $event, $at, $action eq 'lost' ? 0 : $accepted);
			push @delivered, $event;
		}
		for my $key (keys %keys)
		{
			if (my $other = $subscription->{open}{$key}) { $self->_wrong('overlap', "$path: request $seq while $other is in flight: " . substr $key, 1) }
			elsif (($subscription->{ended}{$key} // 0) > $at) { $self->_wrong('overlap', "$path: request $seq began before the last one was answered: " . substr $key, 1) }
			$subscription->{open}{$key} = $seq;
		}
		$open{$seq} = [ $subscription, [ keys %keys ], scalar @events, $at, \@delivered ];
		$in_flight += @events;

		if ($delivers)
		{
			while ($recovering < @{ $self->{faults} })
			{
				my $this = $self->{faults}[$recovering];
				last if ($this->{any_connection} ? $at : $accepted) < $this->{since};
				$this->{recovered} = $at if !defined $this->{recovered} || $at < $this->{recovered};
				$recovering++;
			}
			$self->{last_delivery} = $at if $at > ($self->{last_delivery} // 0);
		}
		$self->{first_request} //= $at;
	}
}

sub _read_effects
{
	my ($self) = @_;
	my %by_name = map { $_->{name} => $_ } grep { $_->{effects} } @{ $self->{subscriptions} };
	$self->_lines('effects', sub {
			my ($name, $id, $text) = split /\t/, $_[0];
			my $subscription = $by_name{$name} or return $self->_wrong('phantom', "an effect of $name, which is no subscription");
			$text =~ /^$payload$/ or return $self->_wrong('changed', "effect of $id: $text");
			my $event = { id => $id, k => $1, n => $2, p => $3, s => $4 };
			$self->_known($subscription, $event, 0) or return;
			$self->_delivered($subscription, $event, 0, 0) or $self->_wrong('twice', "the effect of $event->{p}.$event->{s} ($id)");
		});
}

sub _conclude
{
	my ($self) = @_;
	for my $subscription (@{ $self->{subscriptions} })
	{
		for my $p (grep { defined $self->{state}[$_] } 0 .. $#{ $self->{state} })
		{
			my $done = $subscription->{done}[$p] // '';
			my @wanted = map { $subscription->{wants}{$_} ? 1 : 0 } @{ $self->{types} };
			while ($self->{state}[$p] =~ /[cAU]/g)
			{
				my $s = $-[0];
				next if !$wanted[ ord substr $self->{type}[$p], $s, 1 ] || vec $done, $s, 1;
				my $id = unpack('H*', substr $self->{id}[$p], $s * 16, 16) =~ s/^(.{8})(.{4})(.{4})(.{4})/$1-$2-$3-$4-/r;
				my $dedup = $self->{dedup}{"$p.$s"};
				next if defined $dedup && $subscription->{delivered_ids}{$dedup}{$id};    # as the event of somebody who came first
				$self->_wrong('lost', "$p.$s ($id) to $subscription->{name}" . ($& eq 'c' ? '' : ', which was sent elsewhere, or not accepted'));
			}
		}
		for my $key (sort keys %{ $subscription->{missing} })
		{
			my ($some) = sort { $a <=> $b } keys %{ $subscription->{missing}{$key} } or next;
			$self->_wrong('lost', "number $some of key $key to $subscription->{name}, though later ones were delivered");
		}
	}
	my $recovered = sub { return [ sort { $a <=> $b } map { ($_->{recovered} - $_->{from}) / 1e6 } grep { defined $_->{recovered} } @_ ] };
	$self->{recovered} = $recovered->(@{ $self->{faults} });
	$self->{recovered_of_kills} = $recovered->(grep { $_->{kind} =~ /kill$|^immediate$/ } @{ $self->{faults} });
	my $calm = $self->{last_commit};
	for my $fault (@{ $self->{faults} }) { $calm = $fault->{from} if $fault->{from} > $calm }
	$self->{drained} = $self->{last_delivery} && $self->{last_delivery} > $calm ? ($self->{last_delivery} - $calm) / 1e6 : 0;
}

sub _sum { my ($self, $what) = @_; my $sum = 0; $sum += $_->{$what} for @{ $self->{subscriptions} }; return $sum }

sub report
{
	my ($self) = @_;
	my (%kinds, $in_flight);
	for my $fault (@{ $self->{faults} }) { $kinds{ $fault->{kind} }++; $in_flight += $fault->{in_flight} }
	my $at = sub { my ($part, @recovered) = @_; return @recovered ? sprintf('%.3f', $recovered[ int($part * $#recovered) ]) + 0 : undef };
	my $recovery = sub { my ($list) = @_; return { p50 => $at->(0.5, @$list), p99 => $at->(0.99, @$list), max => $at->(1, @$list) } };
	my $never = grep { !defined $_->{recovered} } @{ $self->{faults} };
	my %report = (
		wrong => { map { $_ => $self->{count}{$_} } @wrong }, examples => $self->{wrong},
		events => { %{ $self->{producers} } }, transactions => $self->{producers}{transactions}, shapes => $self->{shapes},
		requests => $self->_sum('requests'), deliveries => $self->_sum('deliveries'), first => $self->_sum('first'), duplicates => $self->_sum('duplicates'), in_flight_at_faults => $in_flight // 0,
		faults => \%kinds, fault_count => scalar @{ $self->{faults} }, not_recovered => $never,
		recovery => $recovery->($self->{recovered}), recovery_of_kills => $recovery->($self->{recovered_of_kills}),
		drained => sprintf('%.1f', $self->{drained}) + 0, limit => $self->{limit},
		subscriptions => { map { my $s = $_; $s->{name} => { map { $_ => $s->{$_} } qw(requests first duplicates refused) } } @{ $self->{subscriptions} } },
	);
	my @ages = sort { $a <=> $b } keys %{ $self->{ages} };
	my $all = 0;
	$all += $self->{ages}{$_} for @ages;
	for (my ($i, $sum) = (0, 0); $i < @ages; $i++)
	{
		$sum += $self->{ages}{ $ages[$i] };
		$report{repeated_from}{$_->[0]} //= ($ages[$i] + 1) / 10 for grep { $sum >= $_->[1] * $all } [ p50 => 0.5 ], [ p99 => 0.99 ], [ max => 1 ];
	}
	@report{qw(repeated_after_faults repeated_otherwise)} = ($all, $self->{repeated_otherwise});
	delete $report{events}{transactions};
	$report{growth} = $self->{growth} if $self->{growth};
	my $flat = !$self->{soak} || $self->{growth} && !@{ $self->{growth}{grown} } && !@{ $self->{growth}{unknown} };
	$report{flat} = $flat ? 1 : 0 if $self->{soak};
	$report{ok} = $flat && !(grep { $_ } values %{ $report{wrong} }) && $self->{drained} <= $self->{limit} && !$never ? 1 : 0;
	return \%report;
}

# The report for people.
sub text
{
	my ($report) = @_;
	my @lines;
	my $e = $report->{events};
	push @lines, sprintf 'events: %d committed, %d acknowledged asynchronously, %d unknown, %d rolled back, in %d transactions', @{$e}{qw(committed async unknown rolled_back)}, $report->{transactions};
	push @lines, sprintf 'transactions: %s', join ', ', map { "$_ $report->{shapes}{$_}" } sort keys %{ $report->{shapes} };
	push @lines, sprintf 'faults: %d: %s', $report->{fault_count}, join ', ', map { "$_ $report->{faults}{$_}" } sort keys %{ $report->{faults} };
	for my $name (sort keys %{ $report->{subscriptions} })
	{
		my $s = $report->{subscriptions}{$name};
		push @lines, sprintf '%s: %d requests, %d events delivered, %d again%s', $name, @{$s}{qw(requests first duplicates)}, join '', map { ", $_ $s->{refused}{$_}" } sort keys %{ $s->{refused} };
	}
	push @lines, sprintf 'repeated: %d; %d after a fault that ended the worker, delivered up to so long before it: p50 %s s, p99 %s s, max %s s; in flight at such moments: %d', @{$report}{qw(duplicates repeated_after_faults)},
		(map { $_ // '-' } @{ $report->{repeated_from} }{qw(p50 p99 max)}), $report->{in_flight_at_faults};
	push @lines, sprintf 'recovery, from a fault to the next delivery: p50 %s s, p99 %s s, max %s s; never: %d', (map { $_ // '-' } @{ $report->{recovery} }{qw(p50 p99 max)}), $report->{not_recovered};
	push @lines, sprintf 'of kills alone: p50 %s s, p99 %s s, max %s s', map { $_ // '-' } @{ $report->{recovery_of_kills} }{qw(p50 p99 max)};
	push @lines, sprintf 'drained %.1f s after the last fault and commit (limit %d s)', @{$report}{qw(drained limit)};
	push @lines, Growth::text($report->{growth}) if $report->{growth};
	push @lines, 'too little was seen to say whether it is flat: ' . join(', ', $report->{growth} ? @{ $report->{growth}{unknown} } : 'no samples') if defined $report->{flat} && !$report->{flat} && !@{ $report->{growth}{grown} // [] };
	push @lines, join ', ', map { "$_ $report->{wrong}{$_}" } @wrong;
	for my $what (@wrong) { push @lines, map { "  $what: $_" } @{ $report->{examples}{$what} } }
	push @lines, $report->{ok} ? 'verdict: ok' : 'verdict: FAILED';
	return join '', map { "$_\n" } @lines;
}

1;
