# Ten subscriptions to everything: the log is read once for all of them, which shows in how many rows of it are fetched for each delivery.
use strict;
use warnings;

use Outbox::Bench;

my $n = size(20_000);
my $db = database('db');
my $nginx = nginx();
subscribe($db, "s$_", $nginx->{url}, ordering => 'none', max_in_flight => 10) for 1 .. 10;
my $read = sub { sql($db, q{SELECT pg_sleep(1.5)}); return sql($db, q{SELECT coalesce(sum(idx_tup_fetch + seq_tup_read), 0) FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^event_[0-9]'}) };
push_live($db, 'warm', size(4000), $nginx->{count}, fan => 10);
my $before = $read->();
my ($rate, $cpu) = push_live($db, 'order.paid', $n, $nginx->{count}, fan => 10);
my $fetched = $read->() - $before;
figure('rows of the log read per event delivered, 10 subscriptions to everything', ours => $fetched / $n / 10, goal => '<= 0.12', note => sprintf '%d rows were read, %d requests made, %.0f a second.', $fetched, $n * 10, $rate);
figure('CPU of the worker per delivery, the same', unit => 'µs', ours => $cpu);
