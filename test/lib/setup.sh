# What test/all, test/demo, test/one and the example have in common: the packages they need, a private copy of the server to install into, and a
# scratch directory that is gone afterwards.  Sourced by bash.
#
# Each of these scripts runs twice. Outside, as whoever called it: `enter` installs what is missing, copies the project into the scratch
# directory, and starts the same script there, as somebody who may run PostgreSQL. Inside, `enter` returns.
#
# Works where there is no /proc (no process substitution, no pgrep).

# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if [ -t 1 ] && [ "${TERM-dumb}" != dumb ] && [ -z "${NO_COLOR-}" ]; then
	bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
	bold='' dim='' red='' green='' plain=''
fi

note() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
complain() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

# ---- packages -------------------------------------------------------------------------------------------------------------------

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The version to build for: $PGVERSION, or the newest server that is installed, or the newest that can be.
choose_version() {
	local version
	[ -n "${PGVERSION-}" ] && return
	for version in $(printf '%s\n' /usr/lib/postgresql/*/bin/postgres | sed -n 's,.*/\([0-9]*\)/bin/postgres$,\1,p' | sort -rn); do
		PGVERSION=$version
		return
	done
	refresh_packages
	PGVERSION=$(apt-cache pkgnames postgresql-server-dev- | sed -n 's/^postgresql-server-dev-\([0-9]*\)$/\1/p' | sort -rn | head -n 1)
	[ -n "$PGVERSION" ] || { complain "apt-cache knows no postgresql-server-dev-N"; exit 2; }
}

with_rights() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

refresh_packages() {
	[ -n "${packages_refreshed-}" ] && return
	packages_refreshed=1
	note "apt-get update"
	with_rights apt-get update -qq || { complain "apt-get update failed"; exit 2; }
}

# Installs the packages among "$@" that are missing.  A server that this brings along gets no default cluster and starts nothing.
need_packages() {
	local package missing=() policy=/usr/sbin/policy-rc.d made_policy='' log main=/etc/postgresql/$PGVERSION/main had_main='' status

	for package; do
		installed "$package" || missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return

	refresh_packages
	note "apt-get install ${missing[*]}"
	[ -e "$main" ] && had_main=1
	if [ ! -e $policy ]; then
		made_policy=1
		printf '#!/bin/sh\nexit 101\n' | with_rights tee $policy >/dev/null
		with_rights chmod 755 $policy
	fi
	log=$(mktemp)
	with_rights env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >"$log" 2>&1 </dev/null
	status=$?
	[ -n "$made_policy" ] && with_rights rm -f $policy
	if [ -z "$had_main" ] && [ -e "$main" ]; then
		with_rights pg_dropcluster --stop "$PGVERSION" main >>"$log" 2>&1
	fi
	[ $status = 0 ] || { tail -n 30 "$log" >&2; rm -f "$log"; complain "apt-get install failed"; exit 2; }
	rm -f "$log"
}

build_packages() {
	printf '%s\n' gcc make perl openssl procps libc6-dev libcurl4-openssl-dev libssl-dev libipc-run-perl \
		"postgresql-$PGVERSION" "postgresql-server-dev-$PGVERSION"
}

# What only the tests need.
test_packages() {
	printf '%s\n' "postgresql-$PGVERSION-cron" pgbouncer socat python3-psycopg spin
	foreign_node || printf '%s\n' nodejs node-pg
	command -v npm >/dev/null || printf '%s\n' npm
}

# What the example needs to run.
example_packages() {
	command -v node >/dev/null || printf '%s\n' nodejs
	command -v npm >/dev/null || printf '%s\n' npm
}

# A node that is not Debian's: no package of Debian's that wants node can be installed beside it.
foreign_node() { command -v node >/dev/null && ! installed node-pg && ! apt-get install -s -qq --no-install-recommends node-pg >/dev/null 2>&1; }

# Then node-postgres, which is only JavaScript, is unpacked from the same packages into the scratch directory.
unpack_node_pg() {
	local to=$scratch/node
	if installed node-pg || [ -d "$to" ]; then return; fi
	refresh_packages
	mkdir -p "$to"
	(cd "$to" && apt-get download -qq node-pg node-split2 node-xtend 2>/dev/null && for package in *.deb; do dpkg-deb -x "$package" .; done) ||
		{ complain "apt-get download node-pg failed"; exit 2; }
}

# install_npm_packages DIRECTORY: what its package.json wants; which versions of what, says the lock file.
install_npm_packages() {
	local to=$scratch/npm from=$1
	if cmp -s "$from/package-lock.json" "$to/package-lock.json" && [ -d "$to/node_modules" ]; then return; fi
	rm -rf "$to"
	mkdir -p "$to"
	note "npm ci"
	cp "$from/package.json" "$from/package-lock.json" "$to"
	(cd "$to" && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error --cache "$to/cache" >"$to/log" 2>&1 </dev/null) ||
		{ tail -n 20 "$to/log" >&2; rm -rf "$to"; complain "npm ci failed"; exit 2; }
	rm -rf "$to/cache"
}

# ---- the private tree -----------------------------------------------------------------------------------------------------------

# PostgreSQL finds its directories relative to its own binary.  So a copy of the binaries, beside links to everything else, is a server of its own
# into which `make install` can put things without touching the system.
#
# OUTBOX_SERVER=DIR: not of Debian's server, but of one that lies in DIR as Debian's lies in / (make install DESTDIR=DIR), configured like it but with --enable-cassert, say.
make_tree() {
	local tree=$1 of=${OUTBOX_SERVER-} from=/usr/lib/postgresql/$PGVERSION share=/usr/share/postgresql/$PGVERSION
	local bin=$tree$from/bin

	mkdir -p "$bin" "$tree$from/lib" "$tree$share/extension" "$tree/usr/include"
	cp "$of$from"/bin/* "$bin"
	ln -sf "$of$from"/lib/* "$tree$from/lib"
	ln -sf "$of$share"/* "$tree$share" 2>/dev/null
	rm -f "$tree$share/extension"/extension
	ln -sf "$of$share"/extension/* "$tree$share/extension"
	ln -sfn "$of/usr/include/postgresql" "$tree/usr/include/postgresql"
	rm -f "$tree$from/lib"/outbox*.so "$tree$share/extension"/outbox* # of an installed outbox: not ours
}

# ---- the scratch directory ------------------------------------------------------------------------------------------------------

# Sources only, with their times, so that a second copy into the same place rebuilds what changed and nothing else.
copy_sources() {
	local to=$1
	mkdir -p "$to"
	rm -rf "$to/test" "$to/expected" "$to/sql"
	tar -C "$root" -cf - --warning=no-file-changed --exclude=./.git --exclude='*.o' --exclude='*.so' --exclude='*.bc' --exclude='*.bin' --exclude=./results --exclude=./output_iso \
		--exclude=./tmp_check --exclude=./log --exclude='./regression.*' --exclude=node_modules . | tar -C "$to" -xf - --no-same-owner
}

# Whatever still runs out of the scratch directory, by the process ids written there.
stop_everything() {
	local file pid pids=() tries
	while IFS= read -r file; do
		[ -n "$file" ] && read -r pid <"$file" && [[ $pid =~ ^[0-9]+$ ]] && kill -QUIT "$pid" 2>/dev/null && pids+=("$pid")
	done <<<"$(find "$scratch" -name postmaster.pid 2>/dev/null)"
	while IFS= read -r file; do
		[ -n "$file" ] && read -r pid <"$file" && [[ $pid =~ ^[0-9]+$ ]] && kill -TERM "$pid" 2>/dev/null && pids+=("$pid")
	done <<<"$(find "$scratch/run" -name '*.pid' 2>/dev/null)"
	for ((tries = 0; tries < 100; tries++)); do
		for pid in "${pids[@]}"; do
			kill -0 "$pid" 2>/dev/null && sleep 0.05 && continue 2
		done
		break
	done
}

leave() {
	local tries
	trap '' INT TERM HUP
	if [ -n "${inside-}" ] && kill -0 "$inside" 2>/dev/null; then
		kill -TERM -- "-$inside" 2>/dev/null
		wait "$inside" 2>/dev/null
		for ((tries = 0; tries < 100; tries++)); do   # those that it had running beside each other
			kill -0 -- "-$inside" 2>/dev/null || break
			sleep 0.05
		done
		kill -KILL -- "-$inside" 2>/dev/null
	fi
	if [ -n "${scratch-}" ]; then
		stop_everything
		[ -n "${scratch_is_kept-}" ] || rm -rf "$scratch"
	fi
}

# The account that runs PostgreSQL, which refuses root.
unprivileged() {
	local name
	for name in postgres nobody; do
		id "$name" >/dev/null 2>&1 && echo "$name" && return
	done
}

as_unprivileged() {
	local user
	if [ "$(id -u)" != 0 ]; then
		"$@"
		return
	fi
	user=$(unprivileged)
	if command -v setpriv >/dev/null; then
		setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups "$@"
	else
		runuser -u "$user" -- "$@"
	fi
}

# enter SCRIPT [ARGUMENT…] — with `packages`, `npm_packages` (a directory with a package.json, or empty) and `keep_scratch` (a directory, or empty) set by the caller.
# SCRIPT is relative to test/.
# Inside it returns, with $scratch, $tree, $source and PATH set, the working directory being the copy of the project.
enter() {
	local script=$1 status variable
	shift

	if [ -n "${OUTBOX_INSIDE-}" ]; then
		scratch=$OUTBOX_INSIDE tree=$scratch/tree source=$scratch/source
		pgxs=$tree/usr/lib/postgresql/$PGVERSION/lib/pgxs
		cd "$source" || exit 2
		return
	fi

	[ -e /etc/debian_version ] || complain "this is not Debian: install what is missing by hand"
	choose_version
	# shellcheck disable=SC2046
	need_packages $(build_packages) $(for variable in ${packages-}; do "$variable"; done)

	trap 'leave; exit 130' INT TERM HUP
	trap leave EXIT
	if [ -n "${keep_scratch-}" ]; then
		scratch=$keep_scratch scratch_is_kept=1
		mkdir -p "$scratch"
		exec 9>"$scratch.lock"
		flock 9
	else
		scratch=$(mktemp -d "${TMPDIR:-/tmp}/outbox.XXXXXX") || exit 2
	fi
	chmod 755 "$scratch"
	[ -d "$scratch/tree/usr/lib/postgresql/$PGVERSION" ] || make_tree "$scratch/tree"
	mkdir -p "$scratch/run" "$scratch/home"
	[ "${packages-}" != test_packages ] || unpack_node_pg
	[ -z "${npm_packages-}" ] || install_npm_packages "$npm_packages"
	copy_sources "$scratch/source"
	[ "$(id -u)" = 0 ] && chown -R "$(unprivileged):" "$scratch"
	for variable in $(compgen -v | grep '^PG'); do # nobody's server but ours
		[ "$variable" = PGVERSION ] || unset "$variable"
	done

	set -m
	as_unprivileged env OUTBOX_INSIDE="$scratch" PGVERSION="$PGVERSION" JOBS="${JOBS:-3}" HOME="$scratch/home" LC_ALL=C.UTF-8 TZ=UTC TMPDIR="$scratch/run" NODE_PATH="$scratch/npm/node_modules:$scratch/node/usr/share/nodejs:/usr/share/nodejs" \
		PATH="$scratch/tree/usr/lib/postgresql/$PGVERSION/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
		bash "$scratch/source/test/$script" "$@" </dev/null 9>&- &
	inside=$!
	set +m
	wait "$inside"
	status=$?
	exit $status
}

# ---- inside ---------------------------------------------------------------------------------------------------------------------

# Builds and installs into the private tree, quietly; all that was said goes to $scratch/build.log.
build() {
	make -s -j"$(nproc)" all with_llvm=no >"$scratch/build.log" 2>&1 </dev/null &&
		make -s install with_llvm=no >>"$scratch/build.log" 2>&1 </dev/null
}

# build_tree NAME VERSION [VARIABLE=VALUE…]: the same for this version of PostgreSQL, made with these variables, into a tree of its own, once; says where its programs are.
build_tree() {
	local name=$1 PGVERSION=$2 tree=$scratch/$1 bin
	shift 2
	bin=$tree/usr/lib/postgresql/$PGVERSION/bin
	(
		flock 8    # several tests may want it
		[ -e "$tree/built" ] && [ ! "$tree/built" -ot "$scratch/build.log" ] && exit
		[ -d "$bin" ] || make_tree "$tree"
		mkdir -p "$tree/source"
		tar -C "$source" -cf - --exclude='*.o' --exclude='*.so' --exclude=test Makefile outbox.control sql src | tar -C "$tree/source" -xf - &&
			PATH=$bin:$PATH make -s -C "$tree/source" -j"$(nproc)" all with_llvm=no "$@" >"$scratch/$name.log" 2>&1 </dev/null &&
			PATH=$bin:$PATH make -s -C "$tree/source" install with_llvm=no "$@" >>"$scratch/$name.log" 2>&1 </dev/null &&
			touch "$tree/built" || cat "$scratch/$name.log" >&2
	) 8>"$scratch/$name.lock"
	echo "$bin"
}

free_port() {
	perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 1)->sockport'
}

# start_server NAME [LINE OF postgresql.conf…]: a server of our own in $scratch/NAME, on a socket there; sets PGHOST, PGPORT, PGUSER.
start_server() {
	local name=$1 data=$scratch/$1
	shift
	rm -rf "$data"
	if [ ! -d "$scratch/initdb" ]; then
		initdb -N -A trust -U postgres --no-locale -E UTF8 -D "$scratch/initdb" >"$scratch/initdb.log" 2>&1 || { cat "$scratch/initdb.log"; return 1; }
	fi
	cp -a "$scratch/initdb" "$data"
	export PGHOST=$scratch/run PGUSER=postgres PGDATABASE=postgres
	PGPORT=$(free_port) && export PGPORT
	{
		printf '%s\n' "listen_addresses = '127.0.0.1'" "port = $PGPORT" "unix_socket_directories = '$PGHOST'" 'max_connections = 100' \
			"shared_preload_libraries = 'outbox'" 'max_prepared_transactions = 20' 'wal_level = logical' 'max_worker_processes = 16' \
			'fsync = off' "log_line_prefix = '%m [%p] %b %q%a '" "lc_messages = 'C'" "timezone = 'UTC'"
		printf '%s\n' "$@"
	} >>"$data/postgresql.conf"
	pg_ctl -s -w -t 60 -D "$data" -l "$scratch/$name.log" start || { tail -n 40 "$scratch/$name.log"; return 1; }
}

stop_server() {
	[ -f "$scratch/$1/postmaster.pid" ] && pg_ctl -s -m "${2:-fast}" -t 60 -D "$scratch/$1" stop
}
