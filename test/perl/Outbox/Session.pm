# A session of psql that stays open, so that a test can hold several transactions at once.
package Outbox::Session;

use strict;
use warnings;

use IPC::Open3;
use Symbol qw(gensym);

sub new
{
	my ($class, $connection) = @_;
	my $pid = open3(my $in, my $out, undef, 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $connection);
	$in->autoflush(1);
	return bless { pid => $pid, in => $in, out => $out, mark => 0 }, $class;
}

# Sends statements and returns all they said, errors too; undef if the connection is lost.
sub query
{
	my ($self, $sql) = @_;
	$self->send($sql);
	return $self->receive;
}

# The two halves of it, for statements that wait.
sub send
{
	my ($self, $sql) = @_;
	local $SIG{PIPE} = 'IGNORE';
	$self->{mark}++;
	print { $self->{in} } "$sql\n;\n\\echo mark-$self->{mark}\n";
}

sub receive
{
	my ($self) = @_;
	my $out = $self->{out};
	my $said = '';
	while (defined(my $line = <$out>))
	{
		if ($line eq "mark-$self->{mark}\n")
		{
			$said =~ s/\n\z//;
			return $said;
		}
		$said .= $line;
	}
	$self->{last_words} = $said;
	return undef;
}

sub backend { my ($self) = @_; return $self->query('SELECT pg_catalog.pg_backend_pid()') }

sub close
{
	my ($self) = @_;
	return unless $self->{pid};
	local $SIG{PIPE} = 'IGNORE';
	my $status = $?;
	close $self->{in};
	close $self->{out};
	waitpid delete $self->{pid}, 0;
	$? = $status;
}

sub DESTROY { $_[0]->close }

1;
