# Folders that hold another Debian, and so another PostgreSQL, and nothing of this machine's: for test/version and test/upgrade.  Sourced by bash, after setup.sh.
#
# Needs root, Debian and its mirror, for debootstrap; takes some minutes the first time. The folders stay in ~/.cache/outbox ($OUTBOX_FOLDERS for
# another place) and are made anew after a week, or if an installation in them was cut off. The mirror is the one this machine's apt uses. SUITE=forky names another Debian.

# shellcheck shell=bash disable=SC2154

folders=${OUTBOX_FOLDERS:-${XDG_CACHE_HOME:-$HOME/.cache}/outbox}
give_up() { complain "PostgreSQL $version was not tried: $*"; exit 3; }

# The Debian that a PostgreSQL comes with.
suite_of() {
	case $1 in
		15) echo bookworm ;;
		17) echo trixie ;;
		18) echo sid ;;
	esac
}

# The folder is a file system of its own while something runs in it: /proc, /dev and the project are mounted where nobody else sees them, and all that was started
# ends with the first process.
in_folder() {
	# shellcheck disable=SC2016
	unshare --mount --pid --fork bash -c 'folder=$1 root=$2; shift 2
		mount --make-rprivate / && mount -t proc proc "$folder/proc" && mount --rbind /dev "$folder/dev" && mount -t tmpfs tmpfs "$folder/dev/shm" &&
			mount --bind "$root" "$folder/mnt" && mount -o remount,bind,ro "$folder/mnt" || exit 3
		chroot "$folder" "$@" & wait $!' - "$folder" "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
		TERM="${TERM-dumb}" ${NO_COLOR+NO_COLOR=1} ${JOBS+JOBS="$JOBS"} ${http_proxy+http_proxy="$http_proxy"} ${https_proxy+https_proxy="$https_proxy"} \
		${extra_ca:+NODE_EXTRA_CA_CERTS=/etc/extra-ca.crt} PGVERSION="$version" "$@" </dev/null &
	running=$!
	wait $running
	status=$?
	running=
	return $status
}

leave_folder() {
	trap '' INT TERM HUP
	# The first process in there is a child of unshare's
	[ -z "${running-}" ] || { ps -o pid= --ppid "$running" | xargs -r kill -KILL; wait "$running"; } 2>/dev/null
	[ -z "${making-}" ] || { kill -TERM -- "-$making" && wait "$making"; } 2>/dev/null
	rm -rf "$folder.new" "$folder"/tmp/outbox.??????
}

# Where this machine's apt gets this Debian from.
mirror() {
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" 'Component: main' 2>/dev/null | head -n 1
}

find_mirror() {
	command -v apt-get >/dev/null || give_up 'this is not Debian'
	mirror=$(mirror)
	[ -n "$mirror" ] || { refresh_packages && mirror=$(mirror); }
	[ -n "$mirror" ] || give_up 'apt says no mirror of this Debian'
}

make_folder() {
	[ "$(id -u)" = 0 ] || give_up 'making the folder needs root'
	find_mirror
	PGVERSION=$version need_packages debootstrap debian-archive-keyring
	rm -rf "$folder.new"
	note "debootstrap $suite"
	set -m
	debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg "$suite" "$folder.new" "$mirror" >"$folder.log" 2>&1 </dev/null &
	making=$!
	set +m
	wait $making ||
		{ tail -n 5 "$folder.log" >&2; give_up "debootstrap $suite failed (see $folder.log)"; }
	echo force-unsafe-io >"$folder.new/etc/dpkg/dpkg.cfg.d/fast"
	echo 'Acquire::Check-Valid-Until "false";' >"$folder.new/etc/apt/apt.conf.d/late" # a mirror may lag behind
	making=
	rm -rf "$folder" && mv "$folder.new" "$folder"
}

# Young, and nothing in it half installed: dpkg would ask for help.
is_usable() {
	[ -d "$folder" ] && [ -z "$(find "$folder" -maxdepth 0 -mtime +7)" ] && [ -z "$(ls -A "$folder/var/lib/dpkg/updates")" ] && [ -z "$(chroot "$folder" dpkg --audit 2>&1)" ]
}

# enter_folder VERSION: makes the folder with this PostgreSQL if there is none, and keeps others out of it until the script ends.
enter_folder() {
	version=$1 suite=${SUITE:-$(suite_of "$1")}
	[ -n "$suite" ] || give_up 'SUITE must say in which Debian it is'
	mkdir -p "$folders"
	folder=$folders/$suite
	exec 9>"$folder.lock"
	flock 9
	trap leave_folder EXIT
	trap 'exit 130' INT TERM HUP
	rm -rf "$folder"/tmp/outbox.??????
	is_usable || make_folder
	eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
	cp -L /etc/resolv.conf /etc/hosts "$folder/etc/"
	[ -r "${NODE_EXTRA_CA_CERTS-}" ] && extra_ca=1 && cp "$NODE_EXTRA_CA_CERTS" "$folder/etc/extra-ca.crt" # a network that shows a certificate of its own
	note "PostgreSQL $version of Debian $suite"
}

# add_older VERSION: what only an older Debian has can be installed, too; everything else still comes from the folder's own.
add_older() {
	local older
	older=$(suite_of "$1")
	[ ! -e "$folder/etc/apt/sources.list.d/$older.list" ] || return
	find_mirror
	printf 'Package: *\nPin: release n=%s\nPin-Priority: 50\n' "$older" >"$folder/etc/apt/preferences.d/$older"
	echo "deb $mirror $older main" >"$folder/etc/apt/sources.list.d/$older.list"
}

# The exit status is that of the tests, or 3 if they could not be run.
run_in_folder() {
	in_folder "$@"
	status=$?
	[ $status != 2 ] || give_up 'not all that the tests need could be installed'
	exit $status
}
