# Certificates, made by openssl(1) when a test runs, and TLS in front of a server that has none, by socat(1).
package Outbox::Tls;

use strict;
use warnings;

use File::Temp qw(tempdir);
use IO::Socket::INET;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time sleep);

my @running;

sub new
{
	my ($class) = @_;
	my $self = bless { directory => tempdir('tls.XXXXXX', TMPDIR => 1, CLEANUP => 1) }, $class;
	_run('openssl', 'ecparam', '-genkey', '-noout', '-name', 'prime256v1', '-out', "$self->{directory}/key.pem");
	append_to_file("$self->{directory}/index.txt", '');
	append_to_file("$self->{directory}/ca.conf", <<"END");
[ca]
default_ca = any
[any]
database = $self->{directory}/index.txt
new_certs_dir = $self->{directory}
default_md = sha256
policy = anything
rand_serial = yes
unique_subject = no
[anything]
commonName = supplied
END
	append_to_file("$self->{directory}/req.conf", "[req]\ndistinguished_name = name\n[name]\n");
	return $self;
}

# authority(NAME): certifies others. Returns its certificate, PEM.
sub authority
{
	my ($self, $name) = @_;
	$self->certificate($name, issuer => $name, extensions => "basicConstraints = critical,CA:true\nkeyUsage = keyCertSign");
	return $self->pem($name);
}

sub pem { my ($self, $name) = @_; return slurp_file("$self->{directory}/$name.pem") =~ s/.*?(?=-----BEGIN)//sr }

# certificate(NAME, issuer => NAME, host => 'localhost', begins => days from now (-1), ends => days from now (1)).
# All have the same key: whom to trust is a matter of names and signatures, and keys take time.
sub certificate
{
	my ($self, $name, %options) = @_;
	my $directory = $self->{directory};
	my $own = ($options{issuer} // $name) eq $name;
	my @span = map { POSIX::strftime('%Y%m%d%H%M%SZ', gmtime(time + 86400 * $_)) } $options{begins} // -1, $options{ends} // 1;
	my $extensions = $options{extensions} // "subjectAltName = $options{host}";
	append_to_file("$directory/$name.ext", "$extensions\n");
	_run('openssl', 'req', '-new', '-key', "$directory/key.pem", '-subj', "/CN=$name", '-config', "$directory/req.conf", '-out', "$directory/$name.csr");
	_run('openssl', 'ca', '-batch', '-notext', '-config', "$directory/ca.conf", '-in', "$directory/$name.csr", '-out', "$directory/$name.pem", '-keyfile', "$directory/key.pem",
		'-startdate', $span[0], '-enddate', $span[1], '-extfile', "$directory/$name.ext", $own ? '-selfsign' : ('-cert', "$directory/$options{issuer}.pem"));
	return $self->pem($name);
}

# serve(NAME, TO, OPTION…): TLS with this certificate, on a port of 127.0.0.1 that is returned; what is inside goes to port TO. Options are socat's.
sub serve
{
	my ($self, $name, $to, @options) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $listen = join ',', "OPENSSL-LISTEN:$port", 'bind=127.0.0.1', 'reuseaddr', 'fork', 'backlog=100', "cert=$self->{directory}/$name.pem", "key=$self->{directory}/key.pem", 'verify=0', @options;
	my $pid = fork // die "cannot fork: $!";
	if ($pid == 0)
	{
		setpgrp;
		open STDIN, '<', '/dev/null';
		open STDERR, '>', "$self->{directory}/socat.$port.log";
		open STDOUT, '>&', \*STDERR;
		exec 'socat', $listen, "TCP:127.0.0.1:$to" or POSIX::_exit(127);
	}
	push @running, $pid;
	my $deadline = time + 30;
	until (IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port))
	{
		die 'socat does not listen: ' . slurp_file("$self->{directory}/socat.$port.log") if time > $deadline || waitpid($pid, 1) == $pid;
		sleep 0.01;
	}
	return $port;
}

sub _run
{
	my @command = @_;
	my $output;
	IPC::Run::run(\@command, '<', \undef, '>&', \$output) or die "@command:\n$output";
}

END
{
	my $status = $?;
	kill 'TERM', map { -$_ } @running;
	waitpid $_, 0 for @running;
	$? = $status;
}

1;
