# A server that says what it is told, byte for byte: for everything that test/receiver, which speaks HTTP, cannot say.
#
# A process per connection, so what it does is plain code: sub { my ($socket, $request) = @_; … }, where the request is the header section and what came
# with it. A connection is closed when its code returns; use linger() for a reset instead.
package Outbox::Peer;

use strict;
use warnings;

use Exporter 'import';
use File::Temp qw(tempdir);
use IO::Socket::INET;
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);

our @EXPORT_OK = qw(say_all reset_at_close until_closed);

my @running;

# new(PATH => CODE, …, accepted => CODE): by path (without its query); `accepted` runs before anything is read.
sub new
{
	my ($class, %answers) = @_;
	my $directory = tempdir('peer.XXXXXX', TMPDIR => 1, CLEANUP => 1);
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1024, Proto => 'tcp') or die "cannot listen: $!";
	my $self = bless { directory => $directory, port => $listener->sockport }, $class;
	_write("$directory/log", '');
	my $parent = $$;
	$self->{pid} = fork // die "cannot fork: $!";
	if ($self->{pid} == 0)
	{
		setpgrp;
		$SIG{$_} = 'DEFAULT' for qw(TERM INT);
		$SIG{CHLD} = 'IGNORE';
		$SIG{PIPE} = 'IGNORE';
		eval { _serve($listener, "$directory/log", $parent, \%answers) };
		POSIX::_exit(1);
	}
	push @running, $self;
	return $self;
}

sub port { return $_[0]{port} }
sub url { my ($self, $path, $scheme, $host) = @_; return ($scheme // 'http') . '://' . ($host // '127.0.0.1') . ":$self->{port}$path" }

# What happened so far, a line each: "accepted", "asked PATH", "ended PATH" (its code returned); oldest first.
sub events
{
	my ($self, $pattern) = @_;
	open my $log, '<', "$self->{directory}/log" or die;
	chomp(my @lines = <$log>);
	return defined $pattern ? grep { /$pattern/ } @lines : @lines;
}

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;
	my $status = $?;
	kill 'TERM', -$pid;
	waitpid $pid, 0;
	$? = $status;
}

END { $_ && $_->stop for @running }

# ---- for the code of answers ----

# Writes all of it, so often; false when the other side is gone.
sub say_all
{
	my ($socket, $text, $times) = @_;
	for (1 .. $times // 1)
	{
		for (my $at = 0; $at < length $text;)
		{
			my $n = syswrite($socket, $text, length($text) - $at, $at) or return 0;
			$at += $n;
		}
	}
	return 1;
}

sub reset_at_close { setsockopt $_[0], SOL_SOCKET, SO_LINGER, pack('ii', 1, 0) }

# Reads on, to no purpose, until the other side goes.
sub until_closed { 1 while sysread $_[0], my $ignored, 65536 }

# ---- the process ----

sub _write { my ($file, $text) = @_; open my $out, '>>', $file or die; syswrite $out, $text if length $text }

sub _serve
{
	my ($listener, $log, $parent, $answers) = @_;
	for (;;)
	{
		my $ready = '';
		vec($ready, fileno($listener), 1) = 1;
		my $found = select $ready, undef, undef, 1;
		POSIX::_exit(0) unless kill 0, $parent;
		my $socket = $found > 0 && $listener->accept or next;
		_write($log, "accepted\n");
		next if fork;
		close $listener;
		$answers->{accepted}->($socket), POSIX::_exit(0) if $answers->{accepted};
		while (my $request = _request($socket))
		{
			my ($path) = $request =~ m{^POST ([^ ?]*)};
			my $answer = $answers->{ $path // '' } // sub { say_all($_[0], "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") };
			_write($log, "asked $path\n");
			my $goes_on = $answer->($socket, $request);
			_write($log, "ended $path\n");
			last unless ($goes_on // '') eq 'next';
		}
		POSIX::_exit(0);
	}
}

sub _request
{
	my ($socket) = @_;
	my $text = '';
	until ($text =~ /\r\n\r\n/) { sysread $socket, $text, 65536, length $text or return }
	my ($size) = $text =~ /^Content-Length: (\d+)/mi;
	while (length($text) < index($text, "\r\n\r\n") + 4 + ($size // 0)) { sysread $socket, $text, 65536, length $text or return }
	return $text;
}

1;
