# Scheduled events and dedup keys are part of a dump. The copy sends nothing before start(), not even what is overdue; then it does, under the same ids; or, if told so, none of it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main');
my $receiver = Outbox::Receiver->new(fsync => 0);
sub sql { my ($sql, $database) = @_; return $node->safe_psql($database // 'postgres', $sql) }
# enqueue(), due in so many seconds
sub schedule
{
	my ($seconds, $payload, $database) = @_;
	return sql("SELECT outbox.enqueue('item', '$payload', deliver_at => clock_timestamp() + interval '$seconds s', dedup_key => CASE '$payload' WHEN '2' THEN 'k' END)", $database);
}
sub ids { return join ' ', map { $_->{id} } $receiver->delivered('/ok') }

subscribe($node, 'all', $receiver->url('/ok'), types => ['item']);
my $before = schedule(0.3, 1);
wait_status($node, $before, 'all', 'delivered');
sql('SELECT outbox.stop()');
wait_for(sub { sql('SELECT worker_pid IS NULL FROM outbox._worker()') eq 't' }, 'stopped');
my $due = schedule(0.3, 2);
my $later = schedule(86400, 3);
my $gone = schedule(86400, 4);
sql("SELECT outbox.cancel('$gone')");

my $dump = $node->basedir . '/dump';
command_ok(['pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres')], 'pg_dump');
for my $copy (qw(copy skipped))
{
	$node->safe_psql('postgres', "CREATE DATABASE $copy");
	command_ok(['pg_restore', '--exit-on-error', '-d', $node->connstr($copy), $dump], "pg_restore into $copy");
	is(sql("SELECT string_agg(status, ' ' ORDER BY n) FROM unnest('{$before,$due,$later,$gone}'::uuid[]) WITH ORDINALITY AS i (id, n) CROSS JOIN LATERAL outbox.event_status(i.id)", $copy),
		'delivered scheduled scheduled cancelled', 'and the copy knows it all');
	is(sql(q{SELECT outbox.enqueue('item', '5', dedup_key => 'k')}, $copy), $due, 'also the dedup_key');
}

# By the time that the original has delivered it, a copy that did not wait would have done so too
sql('SELECT outbox.start()');
wait_status($node, $due, 'all', 'delivered');
is(ids(), "$before $due", 'the original delivers it; the copies nothing');
sql('SELECT outbox.stop()');
wait_for(sub { sql('SELECT worker_pid IS NULL FROM outbox._worker()') eq 't' }, 'stopped');

sql('SELECT outbox.start(skip_backlog => true)', 'skipped');
my $new = schedule(0.3, 6, 'skipped');
wait_for(sub { ids() eq "$before $due $new" }, 'a copy that is told to skip the backlog begins with what is scheduled there');
is(ids(), "$before $due $new", 'and nothing else');
is(sql("SELECT string_agg(status, ' ' ORDER BY n) FROM unnest('{$due,$later,$gone}'::uuid[]) WITH ORDINALITY AS i (id, n) CROSS JOIN LATERAL outbox.event_status(i.id)", 'skipped'),
	'discarded discarded cancelled', 'what it left alone is discarded');

sql('SELECT outbox.start()', 'copy');
wait_for(sub { ids() eq "$before $due $new $due" }, 'the other copy delivers what was overdue, under its id');
is(sql("SELECT status FROM outbox.event_status('$later')", 'copy'), 'scheduled', 'and keeps what is not due');
is(sql("UPDATE outbox.scheduled SET deliver_at = clock_timestamp() WHERE id = '$later' RETURNING 1", 'copy') =~ /1/, 1, 'until it is');
wait_for(sub { ids() eq "$before $due $new $due $later" }, 'then it comes too');

$node->stop;
done_testing();
