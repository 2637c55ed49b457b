# With a key file, neither a dump nor a base backup nor the files of the server contain a signing secret or a header's value; and the key file is used only if it is fit.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use File::Find;
use MIME::Base64 qw(decode_base64 encode_base64);
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', key => 1, conf => [ 'log_statement = none', 'wal_level = replica', 'max_wal_senders = 4', "outbox.maintenance_interval = '1s'" ]);
my $receiver = Outbox::Receiver->new(fsync => 0);
my $token = 'token-that-nobody-may-find';

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub delivers
{
	my ($name, $what) = @_;
	my $id = enqueue($node, $name, '{"n": 1}');
	return ok(wait_status($node, $id, $name, 'delivered'), $what);
}
sub health { my ($check) = @_; return sql("SELECT status || ' ' || value FROM outbox.health() WHERE check_name = '$check'") }
sub healthy { my ($check, $expected, $what) = @_; return ok(wait_for(sub { health($check) eq $expected }, "$check: $expected"), $what // "$check: $expected") || diag health($check) }

# Everything that would give a secret away: as text, as bytes, and as bytea is written in a dump
my %marks;

sub mark
{
	my ($what, $secret) = @_;
	my $bytes = decode_base64($secret =~ s/^whsec_//r);
	@marks{ "$what as text", "$what as bytes", "$what in hexadecimal" } = (substr($secret, 6, 30), $bytes, unpack 'H*', $bytes);
}

# Which of them are in these bytes
sub found { my ($bytes) = @_; return join ', ', grep { index($bytes, $marks{$_}) >= 0 } sort keys %marks }

# In files below a directory, and how many those are
sub found_below
{
	my ($directory, $but) = @_;
	my ($files, @found) = (0);
	find({ no_chdir => 1, wanted => sub {
			return unless -f $_ && !(defined $but && m{$but});
			$files++;
			my $in = found(slurp_file($_));
			push @found, "$in in $_" if $in ne '';
		} }, $directory);
	return ($files, join '; ', @found);
}

# ---- a fresh installation -----------------------------------------------------------------------------------------------------------

mark('the secret', subscribe($node, 'fresh', $receiver->url('/ok?fresh'), types => ['fresh'], headers => qq({"Authorization": "Bearer $token"})));
mark('the second secret', sql(q{SELECT outbox.rotate_secret('fresh')}));
@marks{ 'the token', 'the token in hexadecimal' } = ($token, unpack 'H*', $token);
delivers('fresh', 'delivered');
is(($receiver->requests('/ok?fresh'))[0]{headers}{authorization}, "Bearer $token", 'with its header');
sql('CHECKPOINT');

my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ], 'dumped');
like(slurp_file($dump), qr/COPY outbox\.secret/, 'the dump has the table');
is(found(slurp_file($dump)), '', 'a dump contains no secret');
$node->backup('backup');
my ($files, $in) = found_below($node->backup_dir . '/backup');
cmp_ok($files, '>', 500, "a base backup of $files files");
is($in, '', 'a base backup contains no secret');
($files, $in) = found_below($node->data_dir);
cmp_ok($files, '>', 500, "$files files of the server");
is($in, '', 'nor do its files, WAL among them');
is(found(slurp_file($node->logfile)), '', 'nor the log');
ok((grep { index(slurp_file($_), substr(slurp_file(key_file($node)), 0, 40)) >= 0 } glob($node->backup_dir . '/backup/*')) == 0, 'the key is not there either');
is(sql(q{SELECT count(*) FROM outbox.secret WHERE key_id IS NULL}), '0', 'all are encrypted');
is(sql(q{SELECT string_agg(check_name || ' ' || status, ', ') FROM outbox.health() WHERE check_name LIKE 'secret%'}), 'secret_key ok, secrets_encrypted ok, secrets_unreadable ok', 'health() has nothing to say');

# what looks for them finds them
is(found(sql('SELECT secret_hint FROM outbox.subscription_status') . $marks{'the token'}), 'the token', '(the search would find what there is)');

# ---- who sees where the keys are ----------------------------------------------------------------------------------------------------

my $file = key_file($node);
sql(q{CREATE ROLE manager; SELECT outbox.grant_role('manager', 'manager'); CREATE ROLE operator; SELECT outbox.grant_role('operator', 'operator')});
for my $role (qw(manager operator))
{
	my (undef, $out, $err) = $node->psql('postgres', "SET ROLE $role; SHOW outbox.secret_key_file");
	unlike("$out$err", qr/\Q$file\E/, "a $role does not see where the file is");
	is(sql("SET ROLE $role; SELECT count(*) FROM pg_settings WHERE name = 'outbox.secret_key_file'"), '0', "a $role does not see the setting");
}
is(sql('SHOW outbox.secret_key_file'), $file, 'a superuser does');

# ---- a file that is not fit ---------------------------------------------------------------------------------------------------------

my @keys = grep { /\S/ } split /\n/, slurp_file($file);

# With the file like this nothing is stored, what there is cannot be read, and health() says why; then all is well again
sub unfit
{
	my ($what, $break, $why, $setting) = @_;
	$break->();
	sql("ALTER SYSTEM SET outbox.secret_key_file = '$setting'") if $setting;
	$node->reload;
	healthy('secret_key', 'critical 1', "$what: health() tells");
	like(sql(q{SELECT detail FROM outbox.health() WHERE check_name = 'secret_key'}), $why, "$what: and why");
	my (undef, undef, $err) = $node->psql('postgres', q{SELECT outbox.subscribe('none', 'https://example.com/')});
	like($err, qr/ERROR:  cannot store a secret\n/, "$what: nothing is stored");
	like($err, $why, "$what: and why");
	unlike($err, qr/\Q$file\E/, "$what: but not where");
	healthy('secrets_unreadable', 'critical 3', "$what: what there is cannot be read");
	ok(wait_for(sub { sql(q{SELECT state || ': ' || reason FROM outbox.subscription_status WHERE name = 'fresh'}) eq 'disabled: secret unreadable' }, 'disabled'), "$what: it is disabled");
	chmod 0600, $file;
	key_file($node, @keys);
	sql('ALTER SYSTEM RESET outbox.secret_key_file') if $setting;
	$node->reload;
	healthy($_, 'ok 0', "$what repaired: $_ is ok") for qw(secret_key secrets_unreadable disabled);
	return;
}

unfit('group access', sub { chmod 0640, $file }, qr/has group or world access/);
unfit('world access', sub { chmod 0604, $file }, qr/has group or world access/);
unfit('no file', sub { unlink $file }, qr/cannot be opened: No such file or directory\./);
unfit('no key', sub { key_file($node, '', '# nothing') }, qr/has no key\./);
unfit('no key on a line', sub { key_file($node, '# a comment', @keys, 'hunter2') }, qr/Line 3 of the secret key file is not a key/);
unfit('too many keys', sub { key_file($node, map { new_key() } 1 .. 17) }, qr/more than 16 keys/);
unfit('a large file', sub { key_file($node, @keys, ('# ' . 'x' x 80) x 101) }, qr/is larger than 8192 bytes/);
unfit('a directory', sub { unlink $file; mkdir "$file.d" }, qr/is not a regular file/, "$file.d");
unfit('a FIFO', sub { system('mkfifo', '-m', '600', "$file.fifo") }, qr/is not a regular file/, "$file.fifo");
my $inside = $node->data_dir . '/inside.key';
unfit('a file in the data directory', sub { system('cp', '-p', $file, $inside) }, qr/is in the data directory/, $inside);
unfit('a link to a file in the data directory', sub { symlink $inside, "$file.link" or die }, qr/is in the data directory/, "$file.link");
is(sql('SHOW outbox.secret_key_file'), $file, 'all is as it was');
symlink $file, $node->data_dir . '/link.key' or die;
sql("ALTER SYSTEM SET outbox.secret_key_file = '" . $node->data_dir . "/link.key'");
$node->reload;
healthy('secret_key', 'ok 0', 'a link from the data directory out of it will do');
unlink $inside, $node->data_dir . '/link.key';
sql('ALTER SYSTEM RESET outbox.secret_key_file');
$node->reload;
key_file($node, '# comments, empty lines and other line ends', '', (unpack 'H*', decode_base64($keys[0])) . "\r");
$node->reload;
healthy('secrets_unreadable', 'ok 0', 'the same key in hexadecimal');
delivers('fresh', 'and all is well in the end');
like(slurp_file($node->logfile), qr/WARNING:  secrets of subscription "fresh" cannot be read: it is disabled/, 'the log warned');
unlike(slurp_file($node->logfile), qr/hunter2/, 'and quoted no line of the file');

# ---- a record in the place of another -----------------------------------------------------------------------------------------------

subscribe($node, 'other', $receiver->url('/ok?other'), types => ['other'], headers => '{"Authorization": "Bearer other"}');
delivers('other', 'another subscription');
for my $kind (qw(headers signing))
{
	my $was = sql("SELECT k.id || ' ' || encode(k.secret, 'hex') FROM outbox.secret k JOIN outbox.subscription s ON s.id = k.subscription_id WHERE s.name = 'other' AND k.kind = '$kind'");
	my ($row, $bytes) = split ' ', $was;
	for my $forged ([ "another subscription's $kind", qq{(SELECT f.secret FROM outbox.secret f JOIN outbox.subscription s ON s.id = f.subscription_id WHERE s.name = 'fresh' AND f.kind = '$kind' ORDER BY f.id DESC LIMIT 1)} ],
		[ "what is no $kind", qq{(SELECT f.secret FROM outbox.secret f JOIN outbox.subscription s ON s.id = f.subscription_id WHERE s.name = 'other' AND f.kind <> '$kind')} ],
		[ "a changed byte of $kind", q{set_byte(secret, 20, get_byte(secret, 20) # 1)} ], [ "an empty record of $kind", q{''} ])
	{
		my ($what, $value) = @$forged;
		my $before = $receiver->requests('/ok?other');
		sql("UPDATE outbox.secret SET secret = $value WHERE id = $row");
		my $id = enqueue($node, 'other', '{"n": 2}');
		healthy('secrets_unreadable', 'critical 1', "$what is noticed");
		is(sql(q{SELECT subject FROM outbox.health() WHERE check_name = 'secrets_unreadable'}), 'other', "$what: and whose it is");
		ok(wait_for(sub { sql(q{SELECT state || ': ' || reason FROM outbox.subscription_status WHERE name = 'other'}) eq 'disabled: secret unreadable' }, 'disabled'), "$what: nothing more is sent");
		is(scalar $receiver->requests('/ok?other'), $before, "$what: nor was anything");
		sql("UPDATE outbox.secret SET secret = '\\x$bytes' WHERE id = $row");
		ok(wait_status($node, $id, 'other', 'delivered'), "$what undone: its events were not lost");
	}
}
is(scalar(grep { $_->{headers}{authorization} ne 'Bearer other' } $receiver->requests('/ok?other')), 0, 'no request had a header that was not its own');
delivers('fresh', 'the other one has not noticed');

done_testing();
