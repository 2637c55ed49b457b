# Running the tests and counting them: for test/all and test/one, inside (setup.sh).  Sourced by bash.

# shellcheck shell=bash

passed=0 failed=0

verdict() {   # verdict ok|FAILED TEXT SECONDS
	local colour=$green
	[ "$1" = ok ] || colour=$red
	printf '%s%-6s%s %s %s(%s s)%s\n' "$colour" "$1" "$plain" "$2" "$dim" "$3" "$plain"
}

# Counts what is in the TAP of $1; the program that wrote it ended with $2. Sets good and bad.
count_tap() {
	good=$(grep -cE '^ok [0-9]' "$1")
	bad=$(grep -vE '# TODO' "$1" | grep -cE '^not ok [0-9]')
	if [ "$bad" = 0 ] && { [ "$2" != 0 ] || [ "$good" = 0 ]; }; then bad=1; fi   # it died, its plan does not agree, or it tested nothing
	passed=$((passed + good)) failed=$((failed + bad))
}

# What the delivery library wants of outbox.so and cannot have: from PostgreSQL 16 on, an extension is built so that only what is marked is to be seen.
hidden_symbols() {
	local name names
	names=$(nm -D --undefined-only src/delivery/*.so | sed -n 's/.* U \(outbox_.*\)/\1/p')
	for name in ${names:-nothing}; do
		grep -qE "^(extern )?(PGDLLEXPORT|__attribute__\(\(visibility\(\"default\"\)\)\)) .*\b$name\b" src/*.[ch] || echo "$name is used by the delivery library and not marked PGDLLEXPORT"
	done | grep .
}

run_build() {
	local began=$SECONDS
	if build && ! grep -qi 'warning' "$scratch/build.log" && ! grep -l 'outbox[.]fault' outbox.so src/delivery/*.so && ! hidden_symbols; then   # src/fault.h
		passed=$((passed + 1))
		verdict ok 'builds without a warning' $((SECONDS - began))
		return 0
	fi
	failed=$((failed + 1))
	cat "$scratch/build.log"
	verdict FAILED 'builds without a warning' $((SECONDS - began))
	return 1
}

# The same with the other compiler; nothing of it is installed.
run_clang() {
	local began=$SECONDS clang copy=$scratch/clang status
	clang=$(sed -n 's/^CLANG *= *//p' "$pgxs/src/Makefile.global")
	command -v "${clang:-clang}" >/dev/null || { note 'not built with clang: there is none'; return; }
	rm -rf "$copy"
	cp -r "$source" "$copy"
	make -s -C "$copy" clean with_llvm=no >"$scratch/clang.log" 2>&1 </dev/null
	make -s -C "$copy" -j"$(nproc)" all with_llvm=no CC="${clang:-clang}" >"$scratch/clang.log" 2>&1 </dev/null
	status=$?
	if [ $status = 0 ] && ! grep -qi 'warning' "$scratch/clang.log"; then
		passed=$((passed + 1))
		verdict ok 'builds without a warning with clang' $((SECONDS - began))
	else
		failed=$((failed + 1))
		cat "$scratch/clang.log"
		verdict FAILED 'builds without a warning with clang' $((SECONDS - began))
	fi
	rm -rf "$copy"
}

run_rooms() {
	local began=$SECONDS status
	bash test/rooms >"$scratch/rooms.log" 2>&1
	status=$?
	count_tap "$scratch/rooms.log" $status
	[ "$bad" = 0 ] || grep -v '^ok' "$scratch/rooms.log"
	verdict "$([ "$bad" = 0 ] && echo ok || echo FAILED)" "the walls between the rooms: $good checks" $((SECONDS - began))
}

run_unit() {
	local began=$SECONDS status
	[ -f test/unit/Makefile ] || return 0
	make -s -C test/unit check VERBOSE=-v >"$scratch/unit.log" 2>&1
	status=$?
	count_tap "$scratch/unit.log" $status
	[ "$bad" = 0 ] || grep -vE '^ok' "$scratch/unit.log" | tail -n 60
	verdict "$([ "$bad" = 0 ] && echo ok || echo FAILED)" "unit tests of the pure rooms: $good checks" $((SECONDS - began))
}

run_models() {
	local began=$SECONDS status
	bash test/model/check >"$scratch/models.log" 2>&1
	status=$?
	count_tap "$scratch/models.log" $status
	[ "$bad" = 0 ] || grep -v '^ok' "$scratch/models.log"
	verdict "$([ "$bad" = 0 ] && echo ok || echo FAILED)" "models of bell, ring and cursor: $good checks" $((SECONDS - began))
}

# run_regress KIND [NAME…]: KIND is regress or isolation; without names all of that kind. Needs a running server.
run_regress() {
	local kind=$1 began=$SECONDS status=0 names regress='' isolation='' good bad
	shift
	names=$*
	if [ "$kind" = regress ]; then
		[ -n "$names" ] || names=$(cd test/sql 2>/dev/null && ls -- *.sql 2>/dev/null | sed 's/\.sql$//' | tr '\n' ' ')
		regress=$names
	else
		[ -n "$names" ] || names=$(cd test/specs 2>/dev/null && ls -- *.spec 2>/dev/null | sed 's/\.spec$//' | tr '\n' ' ')
		isolation=$names
	fi
	[ -n "${names// /}" ] || return 0
	rm -f regression.diffs
	make -s installcheck with_llvm=no TAP_TESTS= REGRESS="$regress" ISOLATION="$isolation" >"$scratch/$kind.log" 2>&1 || status=1
	good=$(grep -cE '^(test .* ok\b|ok )' "$scratch/$kind.log")          # "test NAME ... ok" in 15, TAP later
	bad=$(grep -cE '^(test .* FAILED|not ok )' "$scratch/$kind.log")
	if [ "$bad" = 0 ] && [ $status != 0 ]; then bad=1; fi
	passed=$((passed + good)) failed=$((failed + bad))
	if [ "$bad" != 0 ]; then
		cat "$scratch/$kind.log"
		[ -f regression.diffs ] && cat regression.diffs
	fi
	verdict "$([ "$bad" = 0 ] && echo ok || echo FAILED)" "$kind tests: $good passed, $bad failed" $((SECONDS - began))
}

# run_tap FILE: one file of test/t. One that says "Needs: FAULTS=1" gets a server with fault points.
run_tap() {
	local file=$1 name began=$SECONDS status sentence log regress path=$PATH
	name=$(basename "$file" .pl)
	log=$scratch/$name.log
	sentence=${name#[0-9][0-9][0-9]_}
	regress=$pgxs/src/test/regress/pg_regress
	rm -rf "$scratch/tap/$name"
	mkdir -p "$scratch/tap/$name"
	if grep -q '^# Needs: FAULTS=1' "$file"; then
		path=$(build_tree faults "$PGVERSION" FAULTS=1):$PATH
	fi
	TESTDIR=$scratch/tap/$name TESTDATADIR=$scratch/tap/$name/tmp_check TESTLOGDIR=$scratch/tap/$name/tmp_check/log PG_REGRESS=$regress top_builddir=$scratch \
		PGPORT= PGHOST= PGUSER= PGDATABASE= PATH=$path env --default-signal=INT,QUIT prove --merge -v -I "$pgxs/src/test/perl" -I test/perl "$file" >"$log" 2>&1
	status=$?
	count_tap "$log" $status
	# What a server with assertions finds, the test may not notice
	if [ "$bad" = 0 ] && grep -qE 'TRAP: |write past chunk end' "$scratch/tap/$name/tmp_check/log"/*.log 2>/dev/null; then bad=1 failed=$((failed + 1)); fi
	if [ "$bad" != 0 ]; then
		grep -vE '^(ok|# (Running|Postmaster|Checking|Data directory|Backup directory|Archive directory|Connection string|Log file))' "$log" | tail -n 80 | cut -c 1-400
		[ -n "${OUTBOX_KEEP_LOGS-}" ] && cp -r "$scratch/tap/$name/tmp_check/log" "$OUTBOX_KEEP_LOGS/$name" 2>/dev/null
		grep -q '^1\.\.[0-9]' "$log" || tail -n 20 "$scratch/tap/$name/tmp_check/log/regress_log_$name" | cut -c 1-400
		for log in "$scratch/tap/$name/tmp_check/log"/*.log; do
			[ -f "$log" ] && grep -qE 'PANIC|TRAP|write past chunk end|terminated by signal (6|11)|FATAL|ERROR' "$log" && {
				echo "--- $(basename "$log"), what looks like trouble:"
				grep -E 'PANIC|TRAP|write past chunk end|terminated by signal|FATAL|ERROR' "$log" | sed "s/^[-0-9]* [0-9:.]* [A-Z]* \[[0-9]*\] //" | cut -c 1-400 | sort | uniq -c | sort -rn | head -n 12
			}
		done
	fi
	verdict "$([ "$bad" = 0 ] && echo ok || echo FAILED)" "${sentence//_/ }: $good checks$([ "$bad" = 0 ] || echo ", $bad failed")" $((SECONDS - began))
}

# run_taps FILE…: $JOBS files at a time, then, one by one, those that say "# Alone: WHY". What a file has to say is printed whole when it ends.
run_taps() {
	local jobs=$JOBS file name company=() alone=()
	local -A running=()
	for file; do
		if grep -q '^# Alone: ' "$file"; then alone+=("$file"); else company+=("$file"); fi
	done
	mkdir -p "$scratch/taps"
	for file in "${company[@]}" '' "${alone[@]}" ''; do
		[ -n "$file" ] || jobs=1   # until all have ended
		while [ ${#running[@]} -ge "$jobs" ]; do
			collect_taps || wait -n
		done
		[ -n "$file" ] || continue
		name=$(basename "$file" .pl)
		rm -f "$scratch/taps/$name.counts"
		(
			run_tap "$file"
			echo "$good $bad" >"$scratch/taps/$name.counts"
		) >"$scratch/taps/$name.out" 2>&1 &
		running[$!]=$name
	done
}

# Those of $running that have ended, if any: prints and counts them.
collect_taps() {
	local pid name still any=1
	still=" $(jobs -rp | tr '\n' ' ')"
	for pid in "${!running[@]}"; do
		[[ $still != *" $pid "* ]] || continue
		name=${running[$pid]} any=0
		unset "running[$pid]"
		cat "$scratch/taps/$name.out"
		if read -r good bad 2>/dev/null <"$scratch/taps/$name.counts"; then
			passed=$((passed + good)) failed=$((failed + bad))
		else
			failed=$((failed + 1))
			verdict FAILED "${name//_/ }: its runner died" 0
		fi
	done
	return $any
}

# A short run of the fault harness (test/fault), with a build of its own: the last of all.
run_fault_harness() {
	local began=$SECONDS said
	make -s clean with_llvm=no >/dev/null 2>&1
	if build_faults && run_faults "$scratch/fault-harness" --seconds 150 --limit 180 >"$scratch/fault-harness.log" 2>&1; then
		passed=$((passed + 1))
		said=$(sed -n 's/^\(seed [0-9]*\), PostgreSQL [0-9]*: \([^;]*\);.*/\1: \2/p' "$scratch/fault-harness.log")
		verdict ok "hurt all the time, it loses nothing; $said" $((SECONDS - began))
	else
		failed=$((failed + 1))
		[ -f "$scratch/fault-harness.log" ] && cat "$scratch/fault-harness.log"
		[ -n "${OUTBOX_KEEP_LOGS-}" ] && cp -r "$scratch/fault-harness" "$OUTBOX_KEEP_LOGS/" 2>/dev/null
		verdict FAILED 'hurt all the time, it loses nothing' $((SECONDS - began))
	fi
}

closing_line() {
	printf '%d passed, %d failed\n' $passed $failed
	[ $failed = 0 ]
}
