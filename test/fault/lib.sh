# Building and running the fault harness: for test/fault/run and test/all, inside (setup.sh).  Sourced by bash.

# shellcheck shell=bash

# With the named fault points in it; into the private tree.
build_faults() {
	make -s -j"$(nproc)" all FAULTS=1 with_llvm=no >"$scratch/fault-build.log" 2>&1 </dev/null &&
		make -s install FAULTS=1 with_llvm=no >>"$scratch/fault-build.log" 2>&1 </dev/null || { cat "$scratch/fault-build.log"; return 1; }
	build_fault_programs
}

build_fault_programs() {
	make -s -C test/fault >"$scratch/fault-programs.log" 2>&1 </dev/null || { cat "$scratch/fault-programs.log"; return 1; }
}

# run_faults WORK ARGUMENT…: a server, the harness, and its verdict. If $contender is set, without outbox.
run_faults() {
	local work=$1 status settings
	shift
	rm -rf "${work:?}"/*
	mkdir -p "$work"
	rm -f "$scratch/fault.log"
	# Small and quick to start again; a log that turns round in seconds; commits that are asynchronous stay so for a while
	settings=('fsync = on' 'shared_buffers = 32MB' 'wal_level = replica' 'max_wal_senders = 0' 'max_prepared_transactions = 50' 'checkpoint_timeout = 10min' 'wal_writer_delay = 2s' 'recovery_init_sync_method = syncfs' \
		'autovacuum_naptime = 5s')
	case ${contender-} in
		'') settings+=('outbox.segment_size = 2MB' 'outbox.event_retention = 5s' 'outbox.maintenance_interval = 1s') ;;
		pg_net) settings+=("shared_preload_libraries = 'pg_net'") ;;
		*) settings+=("shared_preload_libraries = ''") ;;
	esac
	[[ " $* " != *' --soak '* ]] || settings+=('outbox.attempt_retention = 5s' 'outbox.inbox_retention = 2min')   # full soon
	start_server fault "${settings[@]}" || return 1
	export PGDATA=$scratch/fault
	FAULT_POINTS=$([ -x test/fault/points ] && test/fault/points) perl test/fault/harness.pl --work "$work" "$@"
	status=$?
	stop_server fault immediate
	cp "$scratch/fault.log" "$work/server-first.log" 2>/dev/null
	return $status
}
