# Bytes of WAL, without full-page images: of an event that is recorded, and on top of that of one that is delivered.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(50_000);
my $db = database('db', unarmed => 1);
my $nginx = nginx();
my $payload = literal($PAYLOAD);
subscribe($db, 'receiver', $nginx->{url}, ordering => 'none');

my %statement = (
	plain => "INSERT INTO plain (type, key, payload) SELECT 'order.paid', 'o' || g, ${payload}::jsonb FROM generate_series(1, $n) AS g",
	outbox => "SELECT count(outbox.enqueue('order.paid', ${payload}::jsonb, key => 'o' || g)) FROM generate_series(1, $n) AS g");
my $recorded = alternate(3, map { my $name = $_; $name => sub {
	my $from = wal_now($db); sql($db, $statement{$name}); my $to = wal_now($db); return wal_between($db, $from, $to) / $n } } qw(plain outbox));
figure('WAL per event recorded', unit => 'bytes', ours => $recorded->{outbox}, beside => $recorded->{plain}, against => 'plain INSERT', goal => '<= 1.25');

# Three rounds were recorded; now they are delivered, and the last cursor is written.
my @figures;
for my $log (qw(all failures))
{
	settings('outbox.attempt_log' => $log);
	sql($db, $statement{outbox}) if $log ne 'all';
	my $events = $log eq 'all' ? 3 * $n : $n;
	my $before = $nginx->{count}->();
	my $from = wal_now($db);
	sql($db, 'SELECT outbox.start()');
	wait_for(sub { $nginx->{count}->() - $before >= $events }, 'all being delivered', 100);
	sleep 3;    # a cursor is written at least every second: the last one too
	my $to = wal_now($db);
	push @figures, wal_between($db, $from, $to) / $events;
	sql($db, 'SELECT outbox.stop()');
	sleep 1;
}
figure('WAL per event delivered, on top', unit => 'bytes', ours => $figures[0], goal => '<= 150');
figure('the same with outbox.attempt_log = failures', unit => 'bytes', ours => $figures[1]);
