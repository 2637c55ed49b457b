# Tests under those who look for mistakes with memory: for test/memory and test/all, inside (setup.sh), behind run.sh.  Sourced by bash.
#
# What is built here is installed into the private tree and stays there.
#
# The server is Debian's: the sanitizers see what our code does to memory of malloc(), to its stack and its variables, and valgrind what it does with memory that nobody has
# written to. Inside a block of PostgreSQL's own allocator they do not tell one chunk from another, and know memory that was used before as written. A server built with --enable-cassert
# does (OUTBOX_SERVER, in setup.sh), and one built with USE_VALGRIND, too, tells valgrind.
# What valgrind says about PostgreSQL alone does not count: only what has a frame of outbox, libcurl or OpenSSL in it.

# shellcheck shell=bash

sanitizers='address,undefined'
reports=$scratch/reports
mkdir -p "$reports"

# wrap_server LINE [COMMAND…]: from now on the server is started after this line of shell, and by this command.
wrap_server() {
	local bin=$tree/usr/lib/postgresql/$PGVERSION/bin line=$1 name=''
	shift
	[ -e "$bin/postgres-itself" ] || mv "$bin/postgres" "$bin/postgres-itself"
	[ $# -gt 0 ] || name="-a '$bin/postgres'"   # the name that it calls itself is the one that pg_ctl restart starts
	printf '#!/bin/bash\n%s\nexec %s "%s" "$@"\n' "$line" "$name $*" "$bin/postgres-itself" >"$bin/postgres"
	chmod 755 "$bin/postgres"
}

# A frame in which our code is (--fullpath-after), or what it brought along; and what PostgreSQL writes with gaps in it, whoever asks for that.
export ours='\(src/\S+:\d+\)|outbox\.so|libcurl|libssl|libcrypto' not_ours='RelationCacheInitializePhase3|XLogFlush|XLogInsert'

# What was said of memory, in files of $reports and in servers' logs: none of it may be there.
judge_reports() {
	local began=$SECONDS found
	found=$(
		find "$reports" -type f -name 'valgrind.*' -exec perl -0777 -ne 'for (split /^==\d+== *\n/m) { print "$_\n" if /^==\d+==\s+at 0x/m && /$ENV{ours}/ && !/$ENV{not_ours}/ }' {} +
		find "$reports" -type f -name 'sanitizer*' -exec cat {} +
		find "$scratch" -type f -name '*.log' -exec grep -h -A 12 ': runtime error: ' {} +
	)
	if [ -z "$found" ]; then
		passed=$((passed + 1))
		verdict ok "$1: nothing was found" $((SECONDS - began))
	else
		failed=$((failed + 1))
		printf '%s\n' "$found" | cut -c 1-200 | head -n 200
		verdict FAILED "$1: what is above was found" $((SECONDS - began))
	fi
	rm -rf "${reports:?}"/*
}

build_sanitized() {
	make -s clean with_llvm=no >/dev/null 2>&1
	# -fno-wrapv: PostgreSQL has overflow of signed numbers defined, and so not looked for
	export COPT="-fsanitize=$sanitizers -fno-sanitize-recover=undefined -fno-omit-frame-pointer -fno-wrapv"
	run_build || { unset COPT; return 1; }
	unset COPT
	# AddressSanitizer begins with the first malloc(). Made by libgpg-error, under a lock of gettext's, that one would hang: so this one comes first.
	# UndefinedBehaviorSanitizer begins when it has something to say, and finds the name of the process where its environment was: so its options are told here. It says it to the server's log.
	echo '#include <stdlib.h>
		__attribute__((constructor)) static void begin(void) { free(malloc(1)); }
		const char *__ubsan_default_options(void) { return "print_stacktrace=1:abort_on_error=1"; }' |
		gcc -x c -shared -fPIC -fno-builtin -Wl,-z,initfirst -o "$scratch/first.so" - || return 1
	wrap_server "export LD_PRELOAD=$(gcc -print-file-name=libasan.so):$scratch/first.so:\$LD_PRELOAD
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:print_legend=0:log_path=$reports/sanitizer"
	export OUTBOX_PATIENCE=${OUTBOX_PATIENCE:-3}
}

build_for_valgrind() {
	make -s clean with_llvm=no >/dev/null 2>&1
	run_build || return 1
	wrap_server '' valgrind --quiet --num-callers=30 --error-limit=no --fullpath-after="$source/" --log-file="$reports/valgrind.%p"
	export OUTBOX_PATIENCE=${OUTBOX_PATIENCE:-20} PGCTLTIMEOUT=300 PG_TEST_TIMEOUT_DEFAULT=900
}

# Here leaks are looked for, too: these programs free what they have.
run_sanitized_unit() {
	local began=$SECONDS status
	make -s -C test/unit clean
	make -s -C test/unit check SANITIZE=1 VERBOSE=-v >"$scratch/unit.log" 2>&1
	status=$?
	count_tap "$scratch/unit.log" $status
	[ "$bad" = 0 ] || grep -vE '^ok' "$scratch/unit.log" | tail -n 60
	verdict "$([ "$bad" = 0 ] && echo ok || echo FAILED)" "unit tests with sanitizers: $good checks" $((SECONDS - began))
	make -s -C test/unit clean
}

# run_watched WHO NAME…: TAP files that begin so, and what was said meanwhile.
run_watched() {
	local who=$1 name files=()
	shift
	for name; do files+=(test/t/"$name"*.pl); done
	run_taps "${files[@]}"
	judge_reports "$who"
}
