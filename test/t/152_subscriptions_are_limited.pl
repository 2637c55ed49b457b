# No more subscriptions than outbox.max_subscriptions, and than outbox.max_subscriptions_per_tenant with one tenant, also when sessions subscribe at the same time.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";
use Outbox::Test;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = outbox_node('main', arm => 0, conf => [ 'outbox.max_subscriptions = 6', 'outbox.max_subscriptions_per_tenant = 2' ]);
my ($one, $two) = map { session($node) } 1 .. 2;

sub refused { my ($said, $what) = @_; like($said, qr/^ERROR:  54000: too many subscriptions/, $what) }
sub accepted { my ($said, $what) = @_; is($said, '', $what) }
sub make { my ($name, $tenant) = @_; return "SELECT outbox.subscribe('$name', tenant => " . literal($tenant) . ')' }

# ---- with one tenant
accepted($one->query(make('a', 'x')), 'the first of a tenant');
$one->query('BEGIN');
accepted($one->query(make('b', 'x')), 'the second, not committed');
refused($two->query(make('c', 'x')), 'who comes while another transaction is open with the last one is refused, at once');
accepted($two->query(make('c', 'y')), 'another tenant\'s is not');
refused($two->query(q{SELECT outbox.alter_subscription('c', tenant => 'x')}), 'nor may another one become the tenant\'s');
$one->query('ROLLBACK');
accepted($two->query(q{SELECT outbox.alter_subscription('c', tenant => 'x')}), 'when that has rolled back, it may');
refused($one->query(make('b', 'x')), 'then there are two');
$one->query('BEGIN');
$one->query(q{SELECT outbox.alter_subscription('c', tenant => 'z')});
refused($two->query(make('b', 'x')), 'one that is about to be given away counts');
$one->query('COMMIT');
accepted($two->query(make('b', 'x')), 'and then does not');
$one->query('BEGIN');
$one->query(q{SELECT outbox.pause('a')});
accepted($two->query(make('y1', 'y')), 'a change of another one counts no row twice');
$one->query('COMMIT');

# ---- in all: a, b, c, y1 so far
accepted($one->query(make('e')), 'the fifth');
$one->query('BEGIN');
$two->query('BEGIN');
accepted($one->query(make('f')), 'the sixth, not committed');
refused($two->query(make('g')), 'the seventh is refused');
$two->query('ROLLBACK');
$one->query('COMMIT');
refused($two->query(make('g')), 'and again');
like($two->query(make('g')), qr/DETAIL:.*outbox\.max_subscriptions.*HINT:.*unsubscribe/s, 'with the setting, and what to do');
accepted($two->query(q{SELECT outbox.subscribe('f', if_not_exists => true)}), 'one that is there already is no more');
is($two->query(q{SELECT outbox.unsubscribe('f')}), 't', 'one goes');
accepted($two->query(make('g')), 'one comes');
is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.subscription'), '6', 'six there are');

# ---- the setting for tenants takes effect with a reload
$node->append_conf('postgresql.conf', 'outbox.max_subscriptions_per_tenant = 1');
$node->reload;
wait_for(sub { $two->query('SHOW outbox.max_subscriptions_per_tenant') eq '1' }, 'the setting');
accepted($two->query(q{SELECT outbox.alter_subscription('a', types => '{t}')}), 'what is there may be changed');
is($two->query(q{SELECT outbox.unsubscribe('g')}), 't', 'room for another');
refused($two->query(make('g', 'x')), 'but no more');
$_->close for $one, $two;
done_testing;
