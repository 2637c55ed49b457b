# The webhook receiver of test/receiver, as tests use it.
package Outbox::Receiver;

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use IO::Socket::INET;
use JSON::PP ();
use MIME::Base64 ();
use POSIX ();
use Time::HiRes qw(time sleep);

my $program = abs_path(dirname(__FILE__) . '/../../receiver');
my @running;

# new(%options): starts one and waits until it listens. Options: port (default: a free one), fsync (default: true), log (continue this one).
sub new
{
	my ($class, %options) = @_;
	my $directory = tempdir('receiver.XXXXXX', TMPDIR => 1, CLEANUP => 1);
	my $self = bless { directory => $directory, log => $options{log} // "$directory/log", requests => [], by_seq => {}, offset => 0, partial => '' }, $class;
	my @command = ($^X, $program, '--ready', "$directory/ready", '--log', $self->{log}, '--parent', $$);
	push @command, '--port', $options{port} if $options{port};
	push @command, '--no-fsync' if defined $options{fsync} && !$options{fsync};

	my $pid = fork // die "cannot fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>', "$directory/output";
		open STDERR, '>&', \*STDOUT;
		exec @command or POSIX::_exit(127);
	}
	$self->{pid} = $pid;
	push @running, $self;
	my $deadline = time + 30;
	until (-s "$directory/ready")
	{
		die "the receiver does not start, see $directory/output" if time > $deadline || waitpid($pid, 1) == $pid;
		sleep 0.01;
	}
	open my $ready, '<', "$directory/ready" or die;
	($self->{port}) = split ' ', <$ready>;
	return $self;
}

sub port { $_[0]{port} }
sub url { "http://127.0.0.1:$_[0]{port}$_[1]" }

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

# What it was sent so far: hashes with the fields of the log (see test/receiver), and `how` and `ended` of those that were answered later.
# Oldest first. With a path, only what came there.
sub requests
{
	my ($self, $path) = @_;
	$self->_read;
	return grep { !defined $path || $_->{path} eq $path } @{ $self->{requests} };
}

# Those with this webhook-id.
sub of { my ($self, $path, $id) = @_; return grep { $_->{id} eq $id } $self->requests($path) }

# What it was sent, event by event: of a batch its members, as requests that have all in common but id, key, type, sha256, and their place in it.
sub events
{
	my ($self, $path) = @_;
	return map { _members($_) } $self->requests($path);
}

sub _members
{
	my ($request) = @_;
	return $request unless $request->{events};
	my $place = 0;
	return map { { %$request, place => $place++, %$_ } } @{ $request->{events} };
}

# Those that got a 2xx.  Events that did.
sub delivered_events { my ($self, $path) = @_; return map { _members($_) } $self->delivered($path) }
sub delivered { my ($self, $path) = @_; return grep { was_delivered($_) } $self->requests($path) }

sub was_delivered { my ($request) = @_; return $request->{status} >= 200 && $request->{status} < 300 && ($request->{how} // 'answered') eq 'answered' }

sub _read
{
	my ($self) = @_;
	open my $log, '<:raw', $self->{log} or die "cannot read $self->{log}: $!";
	seek $log, $self->{offset}, 0;
	while (my $line = <$log>)
	{
		last unless $line =~ /\n\z/;
		$self->{offset} += length $line;
		my $entry = entry($line);
		if ($entry->{end})
		{
			my $request = $self->{by_seq}{ $entry->{end} } or next;
			@{$request}{qw(how ended status)} = @{$entry}{qw(how at status)};
		}
		else
		{
			$entry->{bytes} = MIME::Base64::decode_base64(delete $entry->{body64});
			push @{ $self->{requests} }, $self->{by_seq}{ $entry->{seq} } = $entry;
		}
	}
}

# A line of the log. There may be very many, all of one shape: this is twenty times as fast as JSON::PP.
my $string = qr/"([^"\\]*+(?:\\.[^"\\]*+)*+)"/;

sub entry
{
	my ($line) = @_;
	my (%entry, %headers);
	for ($line)
	{
		/\G\{/gc or die "not a log line: " . substr $line, 0, 300;
		my $fields = \%entry;
		while (/\G$string:/gc)
		{
			my $name = $1;
			if (/\G$string/gc) { $fields->{$name} = unescape($1) }
			elsif (/\G([0-9.]+)/gc) { $fields->{$name} = 0 + $1 }
			elsif (/\Gnull/gc) { $fields->{$name} = undef }
			elsif (/\G\{/gc) { $fields->{$name} = \%headers; $fields = \%headers }
			elsif (/\G\[/gc)
			{
				my @events;
				while (/\G,?\{"id":$string,"key":$string,"type":$string,"sha256":$string\}/gc)
				{
					push @events, { id => unescape($1), key => unescape($2), type => unescape($3), sha256 => $4 };
				}
				/\G\]/gc or die "not a log line: " . substr $line, 0, 300;
				$fields->{$name} = \@events;
			}
			else { die "not a log line: " . substr $line, 0, 300 }
			$fields = \%entry if /\G\}(?=,)/gc;
			/\G,/gc;
		}
		/\G\}\n\z/gc or die "not a log line: " . substr $line, 0, 300;
	}
	return \%entry;
}

sub unescape
{
	my ($text) = @_;
	$text =~ s{\\(?:u([0-9a-f]{4})|(.))}{defined $1 ? chr hex $1 : $2}ge if $text =~ /\\/;
	utf8::decode($text) if $text =~ /[^\x00-\x7f]/;
	return $text;
}

# Orders to the receiver while it runs, see test/receiver.
sub control
{
	my ($self, %order) = @_;
	my $body = JSON::PP::encode_json(\%order);
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port}, Timeout => 10) or die "the receiver is gone: $!";
	print $socket "POST /_control HTTP/1.1\r\nHost: localhost\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
	my $answer = <$socket>;
	die "the receiver refused: $answer" unless $answer =~ / 200 /;
}

1;
