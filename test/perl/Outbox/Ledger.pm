# The independent checker: what the clients know they committed, against what the receiver saw.
package Outbox::Ledger;

use strict;
use warnings;

use Outbox::Receiver;

sub new { my ($class) = @_; return bless { committed => {}, rolled_back => {}, unknown => {}, order => {} }, $class }

# The client saw COMMIT (in this order, for events of one key), saw ROLLBACK, or lost the connection before it saw either.
sub committed
{
	my ($self, $id, $key) = @_;
	push @{ $self->{order}{ $key // '' } }, $id;
	$self->{committed}{$id} = $key // '';
}
sub rolled_back { my ($self, $id) = @_; $self->{rolled_back}{$id} = 1 }

sub unknown
{
	my ($self, $id, $key) = @_;
	$self->{unknown}{$id} = $key // '';
	push @{ $self->{order}{ $key // '' } }, $id;   # if it was committed, this is its place
}

sub count { my ($self) = @_; return scalar keys %{ $self->{committed} } }

# After a recovery the table says what became of the unknown, and of commits that were acknowledged but not durable
# (synchronous_commit = off): only what is in the table was committed.
sub settle
{
	my ($self, $node, $database) = @_;
	my %there = map { $_ => 1 } split /\n/, $node->safe_psql($database // 'postgres', 'SELECT id FROM outbox.event UNION SELECT id FROM outbox.kept_event');
	my %settled = (committed => 0, rolled_back => 0, forgotten => 0);
	for my $id (keys %{ $self->{unknown} })
	{
		my $key = delete $self->{unknown}{$id};
		if ($there{$id}) { $self->{committed}{$id} = $key; $settled{committed}++ }
		else { $self->{rolled_back}{$id} = 1; $settled{rolled_back}++ }
	}
	for my $id (grep { !$there{$_} } keys %{ $self->{committed} })
	{
		delete $self->{committed}{$id};
		$self->{rolled_back}{$id} = 1;
		$settled{forgotten}++;
	}
	return \%settled;
}

# Are all committed events delivered at this path?
sub complete
{
	my ($self, $receiver, $path) = @_;
	my %delivered = map { $_->{id} => 1 } $receiver->delivered_events($path);
	return !grep { !$delivered{$_} } keys %{ $self->{committed} };
}

# What is wrong, as lists of ids: lost, phantom, changed (other bytes under the same id), disorder (delivered before an earlier event of its key),
# overlap (two in flight for one key); and duplicates, which are allowed.  Batches are looked at event by event; of a batch itself, changed also means the same bytes under
# another id.
sub check
{
	my ($self, $receiver, $path) = @_;
	my (%first, %bytes, %ids, %found);
	@found{qw(lost phantom changed disorder overlap duplicates)} = map { [] } 1 .. 6;

	for my $batch (grep { $_->{events} } $receiver->requests($path))
	{
		push @{ $found{changed} }, $batch->{id} if ($bytes{ $batch->{id} } //= $batch->{sha256}) ne $batch->{sha256};
		push @{ $found{changed} }, $batch->{id} if ($ids{ $batch->{sha256} } //= $batch->{id}) ne $batch->{id};
	}
	for my $request ($receiver->events($path))
	{
		my $id = $request->{id};
		push @{ $found{phantom} }, $id unless exists $self->{committed}{$id} || exists $self->{unknown}{$id};
		push @{ $found{changed} }, $id if ($bytes{$id} //= $request->{sha256}) ne $request->{sha256};
		push @{ $found{overlap} }, $id if defined $request->{overlap};
		if (Outbox::Receiver::was_delivered($request))
		{
			if (exists $first{$id}) { push @{ $found{duplicates} }, $id }
			else { $first{$id} = $request->{seq} + ($request->{place} // 0) / 1e6 }
		}
	}
	$found{lost} = [ grep { !exists $first{$_} } sort keys %{ $self->{committed} } ];
	for my $key (grep { $_ ne '' } keys %{ $self->{order} })
	{
		my $before = 0;
		for my $id (grep { exists $first{$_} } @{ $self->{order}{$key} })
		{
			push @{ $found{disorder} }, $id if $first{$id} < $before;
			$before = $first{$id};
		}
	}
	return \%found;
}

1;
