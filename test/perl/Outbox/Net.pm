# The net as a test wants it: names from a name server of the test's own, addresses that lead to loopback, every connect() written down.
#
# A server started with this environment sees it (test/lib/net.c, compiled here and loaded ahead of libc). Needs no rights.
package Outbox::Net;

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use IO::Socket::INET;
use POSIX ();
use Socket qw(AF_INET6 inet_pton inet_aton);

my $source = abs_path(dirname(__FILE__) . '/../../lib/net.c');
my @running;

sub new
{
	my ($class) = @_;
	my $directory = tempdir('net.XXXXXX', TMPDIR => 1, CLEANUP => 1);
	my $self = bless { directory => $directory, zone => {}, routes => {} }, $class;
	my $compiler = $ENV{CC} // 'cc';
	system("$compiler -shared -fPIC -O1 -Wall -Wextra -Werror -o '$directory/net.so' '$source' -ldl -lresolv 2>&1") == 0 or die "cannot compile $source";
	$self->_write($_, '') for qw(zone routes connects queries);

	my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'udp') or die "no UDP socket: $!";
	$self->{dns} = $socket->sockport;
	my $parent = $$;
	$self->{pid} = fork // die "cannot fork: $!";
	if ($self->{pid} == 0)
	{
		$SIG{TERM} = 'DEFAULT';
		eval { _serve_names($socket, $directory, $parent) };
		POSIX::_exit(1);
	}
	push @running, $self;
	return $self;
}

# For the server: { NAME => VALUE }
sub environment
{
	my ($self) = @_;
	my $directory = $self->{directory};
	return (LD_PRELOAD => "$directory/net.so", OUTBOX_NET_DNS => $self->{dns}, OUTBOX_NET_ROUTES => "$directory/routes", OUTBOX_NET_CONNECTS => "$directory/connects");
}

# names(NAME => [A => '192.0.0.9', AAAA => '2001:1::1', CNAME => 'other', SERVFAIL => 1, SILENT => 1], …): from now on. TTLs are 0; what is not there is NXDOMAIN.
sub names
{
	my ($self, %names) = @_;
	$self->{zone} = { %{ $self->{zone} }, %names };
	my @lines;
	for my $name (sort keys %{ $self->{zone} })
	{
		my @records = @{ $self->{zone}{$name} };
		while (my ($type, $data) = splice @records, 0, 2) { push @lines, "$name $type $data\n" }
	}
	$self->_write('zone', join '', @lines);
}

# route(ADDRESS, PORT, TO): an IPv4 address leads to this port of 127.0.0.1.
sub route
{
	my ($self, $address, $port, $to) = @_;
	$self->{routes}{"$address $port"} = $to;
	$self->_write('routes', join '', map { "$_ $self->{routes}{$_}\n" } sort keys %{ $self->{routes} });
}

# Every address that was dialled so far, as "ADDRESS PORT", and every name that was asked for, as "TYPE NAME"; oldest first.
sub connects { return _lines($_[0], 'connects') }
sub queries { return _lines($_[0], 'queries') }

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;
	my $status = $?;
	kill 'TERM', $pid;
	waitpid $pid, 0;
	$? = $status;
}

END { $_ && $_->stop for @running }

sub _lines
{
	my ($self, $file) = @_;
	open my $in, '<', "$self->{directory}/$file" or die;
	chomp(my @lines = <$in>);
	return @lines;
}

sub _write
{
	my ($self, $file, $text) = @_;
	open my $out, '>', "$self->{directory}/$file.new" or die;
	print $out $text;
	close $out;
	rename "$self->{directory}/$file.new", "$self->{directory}/$file" or die;
}

# ---- the name server: RFC 1035, as much as a stub resolver asks for ----

my %type = (A => 1, CNAME => 5, AAAA => 28);
my %type_name = reverse %type;

sub _name { return join('', map { chr(length) . $_ } split /\./, $_[0]) . "\0" }

sub _serve_names
{
	my ($socket, $directory, $parent) = @_;
	for (;;)
	{
		my $ready = '';
		vec($ready, fileno($socket), 1) = 1;
		my $found = select $ready, undef, undef, 1;
		POSIX::_exit(0) unless kill 0, $parent;
		next unless $found > 0 && defined $socket->recv(my $query, 4096);
		my ($id, $flags) = unpack 'n2', $query;
		my ($at, @labels) = (12);
		while (my $size = ord substr $query, $at, 1) { push @labels, substr $query, $at + 1, $size; $at += $size + 1 }
		my $wanted = unpack 'n', substr $query, $at + 1, 2;
		my $question = substr $query, 12, $at + 5 - 12;
		my $name = lc join '.', @labels;
		open my $log, '>>', "$directory/queries" or die;
		print $log $type_name{$wanted} // $wanted, " $name\n";
		close $log;

		open my $in, '<', "$directory/zone" or die;
		my @zone = map { [split] } <$in>;
		my ($known, $failed, $silent, @answers);
		for (my $owner = $name; defined $owner;)
		{
			my $next;
			for (grep { $_->[0] eq $owner } @zone)
			{
				my (undef, $kind, $data) = @$_;
				$known = 1;
				if ($kind eq 'SERVFAIL') { $failed = 1 }
				elsif ($kind eq 'SILENT') { $silent = 1 }
				elsif ($kind eq 'CNAME') { push @answers, [ $owner, $kind, _name($next = $data) ] }
				elsif ($type{$kind} == $wanted) { push @answers, [ $owner, $kind, $kind eq 'A' ? inet_aton($data) : inet_pton(AF_INET6, $data) ] }
			}
			$owner = $next;
		}
		next if $silent;
		my $status = $failed ? 2 : $known ? 0 : 3;
		$socket->send(pack('n6', $id, 0x8180 | ($flags & 0x0100) | $status, 1, scalar @answers, 0, 0) . $question
			. join '', map { _name($_->[0]) . pack('nnNn/a*', $type{ $_->[1] }, 1, 0, $_->[2]) } @answers);
	}
}

1;
