# Does anything grow? The judge's (Checker.pm) word on memory, descriptors and tables, from samples that the harness took while nothing was wrong.
#
#   my $growth = Growth::of($directory);     undef if there are no samples
#
# File `samples`, lines; TIME in microseconds:
#   TIME process NAME PID AGE MEMORY DESCRIPTORS FILES   AGE: for how many seconds that process has lived. MEMORY: its own, in bytes. FILES: descriptors of tables' files, which
#                                                        PostgreSQL opens and closes as it sees fit; DESCRIPTORS: all others
#   TIME table NAME SIZE DEAD                            SIZE: with indexes and TOAST, in bytes; DEAD: rows that are dead and not yet vacuumed
#
# The run is divided into thirds. In the first, tables and caches fill. A quantity has grown if its median in the last third is more than a quarter above that in the second, and more than SPARE on top.
# Since a process begins anew when it is killed, its growth within its lives counts as well: the median of the slopes between any two samples of the same life, at least APART seconds from each other,
# leaving out the first YOUNG seconds of each, must not come to more than that quarter, and SPARE, in the time for which its lives were seen, or in ten minutes if that is less. With fewer than ENOUGH samples in a third, or slopes, nothing can be said.
package Growth;

use strict;
use warnings;

use constant { YOUNG => 60, APART => 30, ENOUGH => 10, MORE => 0.25, LONG => 600 };

my %spare = (memory => 4e6, descriptors => 16, files => 32, size => 2e6, dead => 10_000);

sub median { my @sorted = sort { $a <=> $b } @_; return @sorted ? $sorted[ $#sorted / 2 ] : undef }

sub of
{
	my ($directory) = @_;
	open my $file, '<', "$directory/samples" or return;
	my (%series, %at, $first, $last);
	while (my $line = <$file>)
	{
		last unless $line =~ s/\n\z//;
		my ($at, $what, $name, @values) = split ' ', $line;
		$at /= 1e6;
		$first //= $at;
		$last = $at;
		if ($what eq 'process')
		{
			my ($pid, $age, @quantities) = @values;
			next if $age < YOUNG;
			push @{ $series{"$name: $_"} }, [ $at, shift @quantities, $pid ] for qw(memory descriptors files);
		}
		else
		{
			push @{ $series{"$name: $_->[0]"} }, [ $at, $_->[1] ] for [ size => $values[0] ], [ dead => $values[1] ];
			$at{$at}{size} += $values[0];
			$at{$at}{dead} += $values[1];
		}
	}
	return unless defined $first && $last > $first;
	for my $at (sort { $a <=> $b } keys %at) { push @{ $series{"tables: $_"} }, [ $at, $at{$at}{$_} ] for qw(size dead) }
	my %quantities = map { my ($kind) = /(\w+)$/; $_ => _judge($series{$_}, $spare{$kind}, $first, ($last - $first) / 3) } keys %series;
	return { quantities => \%quantities, seconds => $last - $first, grown => [ grep { $quantities{$_}{grown} } sort keys %quantities ], unknown => [ grep { $quantities{$_}{unknown} } sort keys %quantities ] };
}

sub _judge
{
	my ($samples, $spare, $from, $third) = @_;
	my (@thirds, %life, @slopes, $max);
	my $seen = 0;
	for my $sample (@$samples)
	{
		my ($at, $value, $life) = @$sample;
		my $place = int(($at - $from) / $third);
		push @{ $thirds[ $place > 2 ? 2 : $place ] }, $value;
		push @{ $life{$life} }, $sample if defined $life;
		$max = $value if !defined $max || $value > $max;
	}
	for my $one (values %life)
	{
		$seen += $one->[-1][0] - $one->[0][0];
		for my $i (0 .. $#$one)
		{
			push @slopes, map { ($_->[1] - $one->[$i][1]) / ($_->[0] - $one->[$i][0]) } grep { $_->[0] - $one->[$i][0] >= APART } @{$one}[ $i + 1 .. $#$one ];
		}
	}
	my %said = (samples => scalar @$samples, max => $max, map { ((qw(first second last))[$_] => median(@{ $thirds[$_] // [] })) } 0 .. 2);
	$said{unknown} = 1 if grep { @{ $thirds[$_] // [] } < ENOUGH } 1, 2;
	if (%life)
	{
		$said{lives} = keys %life;
		$said{unknown} = 1 if @slopes < ENOUGH;
		$said{seen} = $seen < LONG ? $seen : LONG;
		$said{within} = @slopes ? median(@slopes) * $said{seen} : undef;
	}
	return \%said if $said{unknown};
	my $allowed = $said{second} * MORE + $spare;
	$said{grown} = 1 if $said{last} - $said{second} > $allowed || ($said{within} // 0) > $allowed;
	return \%said;
}

sub _number
{
	my ($name, $value) = @_;
	return '-' unless defined $value;
	return $name =~ /(?:memory|size)$/ ? sprintf '%.1f MB', $value / 1e6 : sprintf '%.0f', $value;
}

# For people: a line per process and one for the tables, if there is enough to say; then what has grown.
sub text
{
	my ($growth) = @_;
	my $all = $growth->{quantities};
	my $one = sub {
		my ($name) = @_;
		my $it = $all->{$name};
		return sprintf '%s %s, then %s, at most %s%s', $name =~ s/.*: //r, (map { _number($name, $_) } @{$it}{qw(second last max)}),
			defined $it->{within} ? sprintf ' (in its lives %s%s in %d s)', $it->{within} < 0 ? '' : '+', _number($name, $it->{within}), $it->{seen} : '';
	};
	my @lines;
	for my $who (sort map { /^(.*): memory$/ && !$all->{$_}{unknown} ? $1 : () } keys %$all)
	{
		push @lines, sprintf '%s: %s; %d samples of %d lives', $who, join('; ', map { $one->("$who: $_") } qw(memory descriptors files)), @{ $all->{"$who: memory"} }{qw(samples lives)};
	}
	push @lines, sprintf 'tables: %s; %s; %d samples', $one->('tables: size'), $one->('tables: dead'), $all->{'tables: size'}{samples} if $all->{'tables: size'} && !$all->{'tables: size'}{unknown};
	push @lines, map { "  grown: $_: " . $one->($_) =~ s/^\w+ //r } @{ $growth->{grown} };
	return @lines;
}

1;
