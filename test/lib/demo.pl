# The story that test/demo tells. Everything it claims is checked; the first claim that is not true ends it.
use strict;
use warnings;

use JSON::PP ();
use Outbox::Receiver;
use Outbox::Session;
use Time::HiRes qw(time sleep);

$| = 1;
my ($bold, $dim, $red, $green, $blue, $plain) = $ENV{OUTBOX_DEMO_COLOURS} ? map { "\e[${_}m" } 1, 2, 31, 32, 36, 0 : ('') x 6;
my $version = shift;
my $began = time;
my $claims = 0;

# ---- telling ----------------------------------------------------------------------------------------------------------------------

sub chapter { my ($title, $text) = @_; printf "\n%s%s%s\n%s\n", $bold, $title, $plain, $text ? "$dim$text$plain\n" : '' }

# moment(who, what[, when]): a line of the timeline.
sub moment
{
	my ($who, $what, $at) = @_;
	my ($first, @more) = split /\n/, $what;
	printf "%s%8.3f s%s  %s%-12s%s %s\n", $dim, ($at // time) - $began, $plain, $blue, $who, $plain, $first;
	print ' ' x 25, "$_\n" for @more;
}

sub claim
{
	my ($true, $what) = @_;
	unless ($true)
	{
		print "\n${red}This did not happen: $what$plain\n";
		exit 1;
	}
	$claims++;
	print ' ' x 25, "$green✓$plain $what\n";
}

sub wait_until
{
	my ($what, $code) = @_;
	my $deadline = time + 30;
	my $result;
	until ($result = $code->())
	{
		claim(0, $what) if time > $deadline;
		sleep 0.002;
	}
	return $result;
}

# ---- the actors -------------------------------------------------------------------------------------------------------------------

my $receiver = Outbox::Receiver->new;
my $application = Outbox::Session->new('dbname=postgres');
my $operator = Outbox::Session->new('dbname=postgres');

sub ask
{
	my ($sql) = @_;
	my $answer = $operator->query($sql) // claim(0, 'the server is there');
	claim(0, "this works: $sql\n$answer") if $answer =~ /ERROR/;
	return $answer;
}

sub run
{
	my ($sql) = @_;
	my $answer = $application->query($sql);
	claim(0, "this works: $sql\n" . ($answer // '')) if !defined $answer || $answer =~ /ERROR/;
	moment('application', $sql . ($sql =~ /^SELECT/ ? "\n→ $answer" : ''));
	return $answer;
}

sub subscribe { my ($name, $path, $more) = @_; return ask("SELECT outbox.subscribe('$name', '" . $receiver->url($path) . "', network => 'private'" . ($more ? ", $more" : '') . ')') }

# The n-th request with this id at this path.
sub arrived { my ($path, $id, $n) = @_; return wait_until("request $n for $id arrives", sub { ($receiver->of($path, $id))[ $n - 1 ] }) }

sub status { my ($id, $name) = @_; return ask("SELECT status FROM outbox.event_status('$id') WHERE subscription = '$name'") }

sub show
{
	my ($request, $note) = @_;
	my %reason = (200 => 'OK', 500 => 'Internal Server Error', 503 => 'Service Unavailable');
	moment('receiver', "POST $request->{path}  →  " . ($request->{status} < 300 ? $green : $red) . "$request->{status} " . ($reason{ $request->{status} } // '') . $plain . ($note ? "   $dim$note$plain" : ''), $request->{at});
}

sub paragraph { my ($text) = @_; print ' ' x 25, "$dim$_$plain\n" for split /\n/, $text }

# ---- the story --------------------------------------------------------------------------------------------------------------------

moment('server', "PostgreSQL $version with outbox preloaded");
moment('receiver', 'listens at ' . $receiver->url('/') . ' and writes down every request');
ask('CREATE EXTENSION outbox');
ask('CREATE TABLE orders (id int PRIMARY KEY, total numeric)');
ask('SELECT outbox.start()');
my $secret = subscribe('shop', '/ok', "types => '{order.paid}'");
$receiver->control(secret => $secret, path => '/ok');
moment('operator', "SELECT outbox.subscribe('shop', '" . $receiver->url('/ok') . "', …)\n→ " . substr($secret, 0, 12) . '…, the secret that requests are signed with');
subscribe('billing', '/flaky/2', "types => '{invoice.*}', retry_base => '400 ms', retry_factor => 2, retry_jitter => 0");
$receiver->control(script => 'crm', then => 503);
subscribe('crm', '/script/crm', "types => '{customer.*}', max_attempts => 3, retry_base => '200 ms', retry_factor => 2, retry_jitter => 0");
subscribe('stock', '/after-effect/1', "types => '{stock.*}', retry_base => '300 ms', retry_jitter => 0");
ask("SELECT outbox.ping('shop')");
wait_until('the delivery worker works', sub { $receiver->requests('/ok') >= 1 });

chapter('An order is paid', 'The business write and the event are one transaction.');
run('BEGIN');
run('INSERT INTO orders VALUES (42, 19.99)');
my $id = run(q{SELECT outbox.enqueue('order.paid', '{"order": 42, "total": "19.99"}', key => '42')});
my $before = $receiver->of('/ok', $id);
my $committing = time;
run('COMMIT');
my $committed = time;
my $request = arrived('/ok', $id, 1);
show($request, sprintf '%.1f ms after COMMIT was sent', 1000 * ($request->{at} - $committing));
for my $name ('content-type', grep { /^(?:webhook|ce)-/ } sort keys %{ $request->{headers} })
{
	print ' ' x 25, "$dim$name:$plain $request->{headers}{$name}\n";
}
print ' ' x 25, "\n", ' ' x 25, "$request->{bytes}\n\n";
claim($before == 0, 'nothing was sent before COMMIT');
claim($request->{signature} eq 'valid', 'the receiver verified the signature: HMAC-SHA256 over id, timestamp and body');
claim($request->{headers}{'ce-id'} eq $id, 'the event id is webhook-id and ce-id');

chapter('Another one is rolled back', 'The event goes with its transaction.');
run('BEGIN');
run('INSERT INTO orders VALUES (43, 5.00)');
my $never = run(q{SELECT outbox.enqueue('order.paid', '{"order": 43, "total": "5.00"}', key => '43')});
run('ROLLBACK');
my $next = run(q{SELECT outbox.enqueue('order.paid', '{"order": 44, "total": "7.50"}', key => '44')});
show(arrived('/ok', $next, 1), 'order 44');
claim($receiver->of('/ok', $never) == 0, 'order 44 arrived, order 43 never did');
claim(ask("SELECT count(*) FROM outbox.event WHERE id = '$never'") eq '0', 'there is no trace of it in the event log');

chapter('A receiver that fails twice', 'Retried with growing delays, always the same id and the same bytes.');
$id = run(q{SELECT outbox.enqueue('invoice.issued', '{"invoice": 7}', key => '7')});
my @attempts = map { arrived('/flaky/2', $id, $_) } 1 .. 3;
show($attempts[0]);
show($attempts[$_], sprintf '%.2f s later', $attempts[$_]{at} - $attempts[ $_ - 1 ]{at}) for 1, 2;
claim(join(' ', map { $_->{status} } @attempts) eq '503 503 200', 'failed, failed, delivered');
claim((grep { $_->{sha256} eq $attempts[0]{sha256} && $_->{headers}{'webhook-id'} eq $id } @attempts) == 3, 'three times the same webhook-id and the same bytes');
wait_until('event_status says delivered', sub { status($id, 'billing') eq 'delivered' });
claim(1, 'outbox.event_status says: delivered');

chapter('A receiver that never succeeds', 'After max_attempts (here 3) the event is a dead letter: kept, with its reason.');
my $dead = run(q{SELECT outbox.enqueue('customer.moved', '{"customer": 9}', key => '9')});
show(arrived('/script/crm', $dead, $_), "attempt $_") for 1 .. 3;
wait_until('the event becomes a dead letter', sub { status($dead, 'crm') eq 'dead' });
moment('operator', 'SELECT subscription, type, reason, attempts, last_status_code FROM outbox.dead_letter');
my $letter = ask('SELECT subscription, type, reason, attempts, last_status_code FROM outbox.dead_letter');
paragraph('→ ' . join('  ', split /\|/, $letter));
claim($letter eq 'crm|customer.moved|max_attempts|3|503', 'it says who did not get what, and why');

chapter('The receiver is repaired, the dead letter sent again');
$receiver->control(script => 'crm', then => 200);
my $count = ask(q{SELECT outbox.redrive('crm')});
moment('operator', "SELECT outbox.redrive('crm')\n→ $count");
$request = arrived('/script/crm', $dead, 4);
show($request);
claim($request->{status} == 200 && $request->{sha256} eq ($receiver->of('/script/crm', $dead))[0]{sha256}, 'the redriven event arrived, the same bytes under the same id');
wait_until('there is no dead letter left', sub { ask('SELECT count(*) FROM outbox.dead_letter') eq '0' });
claim(ask(q{SELECT action || ' ' || count FROM outbox.operation WHERE subscription = 'crm'}) eq 'redrive 1', 'there is no dead letter left, and outbox.operation knows who redrove it');

chapter('A duplicate is refused by the receiver', 'It took effect, but its answer was a failure: delivery is at least once, and webhook-id tells the repetition.');
$id = run(q{SELECT outbox.enqueue('stock.reserved', '{"item": "lamp", "pieces": 2}', key => 'lamp')});
@attempts = map { arrived('/after-effect/1', $id, $_) } 1, 2;
show($attempts[0], 'after reserving two lamps');
show($attempts[1], 'knows this webhook-id: reserves nothing');
claim($attempts[0]{effect} eq 'new' && $attempts[1]{effect} eq 'duplicate', 'two requests, one effect');

chapter('What became of it?', 'SELECT * FROM outbox.trace(…), for the event that died and was redriven:');
wait_until('event_status says delivered', sub { status($dead, 'crm') eq 'delivered' });
my @trace = split /\n/, ask("SELECT to_char(at - min(at) OVER (), 'SS.MS'), what, COALESCE(subscription, ''), COALESCE(detail, '') FROM outbox.trace('$dead')");
for (@trace)
{
	my ($at, $what, $subscription, $detail) = split /\|/, $_, 4;
	printf "%s   +%s s%s  %-14s %-6s %s\n", $dim, $at, $plain, $what, $subscription, $detail;
}
print "\n";
claim(@trace >= 6, 'one event\'s life, in order');

printf "\n%s%d claims, all of them checked.%s That took %.0f seconds; server, receiver and files are being removed.\n", $bold, $claims, $plain, time - $began;
