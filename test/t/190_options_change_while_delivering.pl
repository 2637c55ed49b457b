# Every option of a subscription may be changed at any moment: back and forth under load, to several values and to its default, while a tenth of the answers is a
# failure, and nothing is lost, out of order, or in two requests at a time.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $worker = worker_pid($node);
my %at = map { $_ => Outbox::Receiver->new(fsync => 0) } qw(keyed free);

# Short pauses, so that the defaults of some options, which are long ones, may be met by an event or two
my %base = (types => ['load.*'], retry_base => '10 ms', retry_factor => 2, retry_max => '100 ms', breaker_threshold => 10, breaker_probe => '10 ms', breaker_max => '50 ms');
subscribe($node, $_, $at{$_}->url('/random/7/10?0'), %base) for sort keys %at;

# What each is set to, one after the other: arguments of alter_subscription(). All of these let every event through; types and tenants that do not are changed
# in test 045. Last comes the value that the others are changed with.
my $ca = "E'-----BEGIN CERTIFICATE-----\\nMAMCAQE=\\n-----END CERTIFICATE-----'";
my %values = (
	url => sub { my ($name) = @_; map { 'url => ' . literal($at{$name}->url("/random/$_/10?$_")) } 8, 9, 7 },
	types => [ "types => '{**}'", "reset => '{types}'", "types => '{load.made,other.**}'", "types => '{load.*}'" ],
	tenant => [ "tenant => 'acme'", "reset => '{tenant}'", "tenant => 'acme'" ],
	filter => [ "filter => '\$.i > 0'", "reset => '{filter}'", "filter => '\$.producer'", "reset => '{filter}'" ],
	ordering => sub { my ($name) = @_; (map { $_ eq 'none' && $name eq 'keyed' ? () : "ordering => '$_'" } qw(none key none)), "reset => '{ordering}'" },
	on_dead => [ "on_dead => 'block'", "reset => '{on_dead}'", "on_dead => 'block'", "on_dead => 'skip'" ],
	network => ["network => 'private'"],   # as it is: the receiver is not on the public one
	ports => [ "ports => '{443,8443}'", "reset => '{ports}'" ],
	ca => [ "ca => $ca", "reset => '{ca}'" ],
	max_in_flight => [ 'max_in_flight => 1', 'max_in_flight => 1000', "reset => '{max_in_flight}'" ],
	rate_limit => [ 'rate_limit => 200', 'rate_limit => 1000000', "reset => '{rate_limit}'" ],
	timeout => [ "timeout => '10 min'", "timeout => '5 s'", "reset => '{timeout}'" ],
	connect_timeout => [ "connect_timeout => '15 s'", "connect_timeout => '1 s'", "reset => '{connect_timeout}'" ],
	retry_base => [ "retry_base => '1 ms'", "retry_base => '100 ms'", "reset => '{retry_base,retry_max}'", "retry_base => '10 ms', retry_max => '100 ms'" ],
	retry_factor => [ 'retry_factor => 1', "reset => '{retry_factor}'", 'retry_factor => 100', 'retry_factor => 2' ],
	retry_max => [ "retry_max => '10 ms'", "reset => '{retry_max}'", "retry_max => '100 ms'" ],
	retry_jitter => [ 'retry_jitter => 1', "reset => '{retry_jitter}'", 'retry_jitter => 0' ],
	max_attempts => [ 'max_attempts => 1000', "reset => '{max_attempts}'" ],
	give_up_after => [ "give_up_after => '0'", "give_up_after => '1 h'", "reset => '{give_up_after}'" ],
	fatal_statuses => [ "fatal_statuses => '{400,422}'", "reset => '{fatal_statuses}'" ],
	max_blocked => [ 'max_blocked => 1', 'max_blocked => 5', "reset => '{max_blocked}'" ],
	response_kept => [ 'response_kept => 0', 'response_kept => 65536', "reset => '{response_kept}'" ],
	headers => [ q{headers => '{"X-Token": "one", "X-Other": "1"}'}, q{headers => '{"X-Token": "two"}'}, "reset => '{headers}'" ],
	format => [ map { ("format => 'batch'", "format => '$_'", "reset => '{format}'") } qw(structured binary) ],
	# and what concerns batches, while there are some
	batch_size => [ "format => 'batch', batch_size => 1", 'batch_size => 7', "reset => '{batch_size}'", "reset => '{format}'" ],
	batch_bytes => [ "format => 'batch', batch_bytes => 1024", 'batch_bytes => 16777216', "reset => '{batch_bytes}'", "reset => '{format}'" ],
	batch_linger => [ "format => 'batch', batch_linger => '0'", "batch_linger => '100 ms'", "reset => '{batch_linger}'", "reset => '{format}'" ],
	breaker_threshold => [ 'breaker_threshold => 1', 'breaker_threshold => 0', "reset => '{breaker_threshold}'" ],
	breaker_probe => [ "breaker_probe => '50 ms'", "reset => '{breaker_probe,breaker_max}'", "breaker_probe => '10 ms', breaker_max => '50 ms'" ],
	breaker_max => [ "breaker_max => '30 days'", "reset => '{breaker_max}'", "breaker_max => '50 ms'" ],
	disable_after => [ "disable_after => '1 s'", "disable_after => '0'", "reset => '{disable_after}'" ],
	labels => [ q{labels => '{"team": "billing"}'}, "reset => '{labels}'" ],
	description => [ "description => 'being changed'", "reset => '{description}'" ],
);
my @options = split /\n/, $node->safe_psql('postgres',
	q{SELECT unnest(proargnames) FROM pg_proc WHERE oid = 'outbox.alter_subscription'::regproc EXCEPT SELECT unnest('{name,reset}'::text[]) ORDER BY 1});
is(join(' ', sort keys %values), join(' ', @options), 'every option that can be altered is');

my $changer = session($node);
my $ledger = Outbox::Ledger->new;
my $producers = start_producers($node, count => 3, transactions => 100_000, keys => 4, pause => 0.003, arguments => "tenant => 'acme'");
my %steps;
for my $option (@options)
{
	for my $name (sort keys %at)
	{
		my $values = $values{$option};
		push @{ $steps{$option}{$name} }, ref $values eq 'CODE' ? $values->($name) : @$values;
	}
	# side by side, so that both deliver meanwhile
	while (grep { @{ $steps{$option}{$_} } } sort keys %at)
	{
		my $said = join "\n", map { my $change = shift @{ $steps{$option}{$_} }; $change ? $changer->query("SELECT outbox.alter_subscription('$_', $change)") : () } sort keys %at;
		my %before = map { $_ => scalar(() = $at{$_}->requests) } keys %at;    # ten of those that follow may have been under way before
		like($said, qr/\A\n*\z/, "$option: changed");
		my $still = wait_for(sub { !grep { (() = $at{$_}->requests) < $before{$_} + 15 } keys %at }, "$option: both delivering");
		diag("at: " . $node->safe_psql('postgres', "SELECT name, state, reason, in_flight, breaker_open_until, last_error FROM outbox.subscription_status")) unless $still;
	}
}
is(scalar(grep { waitpid($_->{pid}, 1) == 0 } @$producers), 3, 'all of that was under load');
stop_producers($node);
finish_producers($producers, $ledger);

for my $name (sort keys %at)
{
	wait_for(sub { $ledger->complete($at{$name}) }, "$name: everything");
	my $found = $ledger->check($at{$name});
	# an event has other bytes in another format: what is compared is what came in the same one
	my (%bytes, %failed);
	my @changed = grep { my $in = "$_->{id} " . $_->{headers}{'content-type'}; ($bytes{$in} //= $_->{sha256}) ne $_->{sha256} } $at{$name}->events;
	is(scalar @{ $found->{$_} }, 0, "$name: $_ 0 of " . $ledger->count) for qw(lost phantom duplicates), $name eq 'keyed' ? qw(disorder overlap) : ();
	is(scalar @changed, 0, "$name: in one format the same bytes each time");
	$failed{ $_->{status} }++ for $at{$name}->requests;
	cmp_ok(($failed{500} // 0) + ($failed{503} // 0), '>', 20, "$name: there were failures") or diag explain \%failed;
	my %formats = map { ($_->{headers}{'content-type'} =~ s/;.*//r) => 1 } $at{$name}->requests;
	is(join(' ', sort keys %formats), 'application/cloudevents+json application/cloudevents-batch+json application/json', "$name: all formats were used");
	my %tokens = map { ($_->{headers}{'x-token'} // 'none') => 1 } $at{$name}->requests;
	is(join(' ', sort keys %tokens), 'none one two', "$name: so were all headers");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.dead_letter'), 0, 'there are no dead letters');
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT state, ' ') FROM outbox.subscription}), 'active', 'nobody was disabled');

# all of them at once: then nothing is left of all that
my $all = join ',', grep { !/^(?:url|network)$/ } @options;
$node->safe_psql('postgres', "SELECT outbox.alter_subscription(name, reset => '{$all}') FROM outbox.subscription");
is($node->safe_psql('postgres', q{SELECT s.name, o.key, o.value, d.value FROM outbox.subscription AS s, jsonb_each(to_jsonb(s)) AS o JOIN jsonb_each(to_jsonb(outbox._default_subscription())) AS d USING (key)
	WHERE outbox._is_option(o.key) AND o.key <> 'network' AND o.value <> d.value}), '', 'reset takes every option back to its default');
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.secret WHERE kind = 'headers'}), 0, 'and leaves no headers');

is(worker_pid($node), $worker, 'all of it in one and the same worker');
unlike(slurp_file($node->logfile), qr/ (?:ERROR|PANIC|FATAL):(?!  terminating connection due to administrator command)/, 'without an error in the log, but for the producers that were ended');

done_testing;
