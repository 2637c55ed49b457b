# test/all runs TAP files beside each other. Here it is shown files that pass, fail, and die in every way: none may be missed, and what each has to say stays together.
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use IPC::Run;
use Test::More;
use Time::HiRes qw(time sleep);

my $lib = abs_path(dirname(__FILE__) . '/../lib');
my $directory = tempdir(CLEANUP => 1);
mkdir "$directory/t";

# run(NAME => CODE, …): these files, so many at a time; returns what was said.
sub run
{
	my ($jobs, %files) = @_;
	unlink glob "$directory/t/*";
	for my $name (keys %files)
	{
		open my $out, '>', "$directory/t/$name.pl" or die;
		print $out "use Test::More;\n$files{$name}";
		close $out;
	}
	my $output = '';
	local @ENV{qw(scratch pgxs JOBS dir)} = ($directory, $directory, $jobs, $directory);
	IPC::Run::run([ 'bash', '-c', ". '$lib/run.sh'; cd \"\$dir\"; run_taps t/*.pl; closing_line" ], '<', \undef, '>&', \$output);
	return ($output, $?);
}

my $pass = 'ok(1) for 1 .. 3; done_testing;';
my ($said, $status) = run(2, '100_good' => $pass, '110_good' => $pass, '120_good' => $pass);
like($said, qr/^9 passed, 0 failed$/m, 'all pass');
is($status, 0, 'and so does the whole');

my %bad = (
	fails => ['ok(1); ok(0); ok(0); done_testing;', 1, 2],
	dies => ['ok(1); die "on purpose";', 1, 1],
	exits => ['ok(1); exit 0;', 1, 1],
	is_killed => ['$| = 1; ok(1); kill KILL => $$;', 1, 1],
	says_nothing => ['', 0, 1],
	falls_short => ['plan tests => 3; ok(1); ok(1);', 2, 1],
	takes_its_runner_along => ['ok(1); my $prove = getppid; my $shell = `ps -o ppid= -p $prove`; kill KILL => $shell, $prove, $$;', 0, 1],
);
for my $name (sort keys %bad)
{
	my ($code, $passed, $failed) = @{ $bad{$name} };
	for my $jobs (1, 3)
	{
		($said, $status) = run($jobs, '100_good' => $pass, "110_$name" => $code, '120_good' => $pass);
		like($said, qr/^@{[6 + $passed]} passed, $failed failed$/m, "a file that $name is counted, $jobs at a time") or diag $said;
		isnt($status, 0, 'and so the whole fails');
		is(scalar(() = $said =~ /^FAILED/mg), 1, 'it is named');
	}
}

# Three that tell each other that they are there can only end if they run at the same time; what each of them says stays together
my $meet = q{my ($name) = $0 =~ m{(\w+)\.pl$}; open my $out, '>', "$ENV{dir}/met.$name"; close $out;
	for (1 .. 3) { diag "$name says $_"; my $since = time; until (3 == (() = glob "$ENV{dir}/met.*") || time - $since > 20) { select undef, undef, undef, 0.01 } }
	is(scalar(() = glob "$ENV{dir}/met.*"), 3); ok(0); done_testing;};
($said) = run(3, '100_one' => $meet, '110_two' => $meet, '120_three' => $meet);
like($said, qr/^3 passed, 3 failed$/m, 'three run at the same time') or diag $said;
my @who = $said =~ /(\d+_\w+) says/g;
my $turns = 1 + grep { $who[$_] ne $who[ $_ - 1 ] } 1 .. $#who;
is("$turns of " . @who, '3 of 9', 'each says all it has to say in one piece');
unlink glob "$directory/met.*";

# A file that wants to be alone is, whatever its number
my $watch = q{open my $out, '>>', "$ENV{dir}/log"; $out->autoflush; my ($name) = $0 =~ m{(\w+)\.pl$}; print $out "begin $name\n"; select undef, undef, undef, 0.2; print $out "end $name\n"; ok(1); done_testing;};
($said) = run(3, '100_alone' => "# Alone: because.\n$watch", '110_one' => $watch, '120_two' => $watch, '130_alone' => "# Alone: because.\n$watch");
like($said, qr/^4 passed, 0 failed$/m, 'all of them run');
open my $in, '<', "$directory/log" or die;
chomp(my @log = <$in>);
is(join(', ', @log[ 4 .. 7 ]), 'begin 100_alone, end 100_alone, begin 130_alone, end 130_alone', 'those that want to be alone are, at the end');

done_testing;
