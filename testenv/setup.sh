#!/usr/bin/env bash
# Installs what a fresh Debian 12 machine lacks for building, testing or showing Holdfast, and says what and why. Safe to
# repeat: when nothing is missing it prints nothing and takes a fraction of a second.
#
#   testenv/setup.sh build    a Go toolchain, and a C compiler if it can be had
#   testenv/setup.sh test     build, and everything that the tests run: libvirt, QEMU, PostgreSQL, NBD tools, Python
#   testenv/setup.sh demo     build, and what the demo runs: libvirt, QEMU, the guest's parts
#   testenv/setup.sh lint     build, and what make check runs
#   testenv/setup.sh bench    build, and the tools that make bench compares with
#
# Packages are installed as root or through sudo. Without either the script says what is missing: the tests that need it
# are then skipped and the demo falls back to a session libvirtd or to the simulated hypervisor. Where CI=true, anything
# missing is an error. It starts no service: PostgreSQL is kept from making a cluster of its own, and libvirt comes
# without its systemd units. Nothing that is installed already is changed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin # as in the Makefile
readonly go_needed=26      # the minor version that go.mod asks for
readonly go_fetched=1.26.8 # the version that is fetched where there is none
readonly links=$PWD/build/tools/bin # first in the Makefile's PATH

# One line per package: the modes that need it, its name, what it is for.
readonly packages='
build test demo lint bench | gcc                  | compiles libzstd into the data path; without it the slower pure Go codec is used
build test demo lint bench | libc6-dev            | headers for gcc
     test demo      | libvirt-daemon              | the hypervisor daemon that tests and demo run one of per site
     test demo      | libvirt-daemon-driver-qemu  | lets that daemon run QEMU
     test demo      | libvirt-clients             | virsh, to look at a site from outside Holdfast
     test demo      | qemu-system-x86             | runs the guests
     test demo      | qemu-utils                  | qemu-img and qemu-nbd, to make disks and to check ours
     test demo      | busybox-static              | the user space of the tiny guest
     test demo      | cpio                        | packs the initramfs of the guest
     test demo      | syslinux                    | boots the guest from its own disk
     test demo      | syslinux-common             | the boot record for it
     test demo      | mtools                      | writes the boot file system of the guest without mounting it
     test demo      | dosfstools                  | makes that file system
     test demo      | fdisk                       | partitions the disk of the guest
     test demo bench | e2fsprogs                  | makes the file systems of guests and of the images that bench backs up
     test demo      | iproute2                    | network namespaces: two sites with a network between them
     test           | libnbd-bin                  | nbdinfo and nbdcopy, the judges of our NBD client and server
     test           | nbdkit                      | an independent NBD server
     test           | postgresql                  | the second database; tests start private clusters as user postgres
     test           | python3                     | runs the independent reader of the repository format
     test           | python3-numpy               | makes its BLAKE3 bearable
     test           | python3-cryptography        | its AES-256-GCM and X25519
     test           | python3-zstandard           | its zstd
     test           | nodejs                      | runs the example of a plugin in JavaScript
     test           | npm                         | fetches what that plugin imports
               lint | shellcheck                  | reads the shell scripts
               lint | protobuf-compiler           | generates the plugin protocol from its .proto
              bench | borgbackup                  | a tool to compare with
'

log=$(mktemp)
trap 'rm -rf "$log"' EXIT

say() { printf 'setup: %s\n' "$*"; }

# give_up ends the script where going on without something makes no sense.
give_up() {
	say "$*"
	exit 1
}

# go_on tells that something is missing: fatal in CI, where every suite has to run.
go_on() {
	say "$*"
	[ "${CI:-}" != true ] || give_up "CI=true, so this is an error"
}

# ---- privileges

# as_root runs a command as root, or fails when there is no way to.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	else
		sudo "$@"
	fi
}

# can_be_root asks once: who could not give a password the first time is not asked again.
can_be_root() {
	[ -n "${root_way:-}" ] || root_way=$(find_root_way)
	[ "$root_way" != none ]
}

find_root_way() {
	if [ "$(id -u)" = 0 ]; then
		echo root
	elif ! command -v sudo >/dev/null; then
		echo none
	elif sudo -n true 2>/dev/null; then
		echo sudo
	elif [ -t 0 ] && say "sudo may ask for your password, to install packages" >&2 && sudo -v; then
		echo sudo
	else
		echo none
	fi
}

apt() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" >"$log" 2>&1
}

# ---- packages

# missing prints the lines of the table for this mode whose package is not installed.
missing() {
	local mode=$1 installed modes package why
	installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' | sed -n 's/ installed$//p')
	while IFS='|' read -r modes package why; do
		package=${package// /}
		[[ " $modes " == *" $mode "* ]] || continue
		grep -qxF -- "$package" <<<"$installed" || elsewhere "$package" || printf '%s|%s\n' "$package" "$why"
	done <<<"$packages"
}

# elsewhere says whether a program is there that many people have from somebody else than Debian, whose package would
# fight with theirs.
elsewhere() {
	case $1 in
	nodejs) command -v node ;;
	npm) command -v npm ;;
	*) false ;;
	esac >/dev/null
}

have_lists() { compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; }

refresh_lists() {
	say "apt-get update: the package lists are missing or old"
	apt update || { tail -n 3 "$log"; return 1; }
}

install_packages() {
	local wanted=("$@") package failed=()
	if [[ " ${wanted[*]} " == *" postgresql "* ]]; then
		# Read when the server package is configured; keeps Debian from making and starting a cluster that nobody asked for.
		as_root mkdir -p /etc/postgresql-common/createcluster.d
		echo 'create_main_cluster = false' |
			as_root tee /etc/postgresql-common/createcluster.d/holdfast.conf >/dev/null
	fi
	have_lists || refresh_lists || return
	apt install --no-install-recommends "${wanted[@]}" && return
	# Old lists name versions that the mirror has dropped.
	refresh_lists || return
	apt install --no-install-recommends "${wanted[@]}" && return
	for package in "${wanted[@]}"; do
		apt install --no-install-recommends "$package" && continue
		failed+=("$package")
		tail -n 3 "$log"
	done
	[ ${#failed[@]} = 0 ] || { say "not installed: ${failed[*]}"; return 1; }
}

ensure_packages() {
	local mode=$1 list package why names=()
	list=$(missing "$mode")
	[ -n "$list" ] || return 0
	while IFS='|' read -r package why; do
		say "missing $package:$why"
		names+=("$package")
	done <<<"$list"
	if ! can_be_root; then
		go_on "neither root nor a sudo that lets you. As root: apt-get install --no-install-recommends ${names[*]}"
		return 0
	fi
	say "installing ${#names[@]} packages"
	install_packages "${names[@]}" || go_on "going on without what could not be installed"
}

# QEMU's driver refuses to start when this user does not exist, even where guests run as root. Debian makes it in
# libvirt-daemon-system, which brings systemd units that are not wanted here.
ensure_qemu_user() {
	local user=libvirt-qemu
	! command -v libvirtd >/dev/null && [ ! -x /usr/sbin/libvirtd ] && return
	getent passwd $user >/dev/null && return
	say "missing user $user: libvirt's QEMU driver does not start without it"
	can_be_root || { go_on "neither root nor a sudo that lets you: a system libvirtd will not start"; return 0; }
	getent group $user >/dev/null || as_root groupadd -r $user
	as_root useradd -r -M -g $user -s /usr/sbin/nologin $user
}

# The guest's kernel is a package that is unpacked and never installed, so apt must know where it is.
ensure_lists() {
	have_lists && return
	can_be_root || { go_on "no package lists, which root gets with apt-get update: the guest's kernel cannot be fetched"; return 0; }
	refresh_lists || go_on "no package lists: the guest's kernel cannot be fetched"
}

# ---- Go

# go_fits says whether this go command builds Holdfast. Since 1.21 an older one fetches the version that go.mod names
# through the module proxy, unless it was told not to.
go_fits() {
	local version
	version=$("$1" version 2>/dev/null) || return
	[[ $version =~ go1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge $go_needed ]
}

ensure_go() {
	# What was fetched by an earlier run comes first, as it does in the Makefile.
	PATH=$links:$PATH
	if command -v go >/dev/null; then
		go_fits go && return
		say "missing Go 1.$go_needed: $(GOTOOLCHAIN=local go version 2>/dev/null || echo 'the go command') is too old"
	else
		say "missing Go 1.$go_needed: builds everything"
	fi
	fetch_go || give_up "no Go toolchain: install Go 1.$go_needed or later (https://go.dev/dl) and run this again"
}

# fetch_go gets the toolchain from the Go module proxy, checked against the checksum database, like any module. Any go
# command can do that, so where there is none Debian's is unpacked for this one download and thrown away.
fetch_go() {
	local work arch name dir bootstrap
	work=$(mktemp -d)
	# shellcheck disable=SC2064  # the value of now is meant
	trap "rm -rf '$log' '$work'" EXIT
	case $(dpkg --print-architecture) in
	amd64) arch=amd64 ;;
	arm64) arch=arm64 ;;
	*) say "no toolchain is known for $(dpkg --print-architecture)" && return 1 ;;
	esac
	bootstrap=$(command -v go) || bootstrap=$(unpack_go "$work") || return
	name=golang.org/toolchain@v0.0.1-go$go_fetched.linux-$arch
	say "fetching Go $go_fetched through the Go module proxy"
	dir=$(GOTOOLCHAIN=local GO111MODULE=on "$bootstrap" env GOMODCACHE)/$name
	(cd "$work" && GOTOOLCHAIN=local GO111MODULE=on GOFLAGS='' "$bootstrap" mod download "$name") >"$log" 2>&1 ||
		{ tail -n 5 "$log"; return 1; }
	# Modules hold no executable bits.
	chmod -R a+x "$dir/bin" "$dir/pkg/tool"
	mkdir -p "$links"
	ln -sfn "$dir/bin/go" "$links/go"
	ln -sfn "$dir/bin/gofmt" "$links/gofmt"
	go_fits "$links/go"
}

# unpack_go unpacks Debian's go command below the directory and prints its path. It needs no root.
unpack_go() {
	local work=$1 package
	if ! have_lists; then
		can_be_root >&2 || { say "no package lists, which root gets with apt-get update" >&2; return 1; }
		refresh_lists >&2 || return
	fi
	package=$(apt-cache depends golang-go | sed -n 's/.*Depends: \(golang-[0-9.]*-go\).*/\1/p' | head -n 1)
	[ -n "$package" ] || { say "apt knows no Go" >&2; return 1; }
	say "unpacking $package, only to fetch the right version with it" >&2
	(cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package") >"$log" 2>&1 ||
		{ tail -n 3 "$log" >&2; return 1; }
	dpkg -x "$work"/golang-*.deb "$work/debian"
	ls "$work"/debian/usr/lib/go-*/bin/go
}

# ensure_modules fetches what go.mod names, checked against go.sum, so that the build prints nothing but itself. The copy
# of go.sum says for which one that was done.
ensure_modules() {
	local fetched=build/tools/go.sum
	cmp -s go.sum $fetched && return
	say "fetching the Go modules that go.mod names, where they are missing"
	PATH=$links:$PATH go list -deps ./cmd/... ./plugins/... ./testenv/... >/dev/null 2>"$log" ||
		{ tail -n 5 "$log"; give_up "no Go modules: the Go module proxy has to be reachable (go env GOPROXY)"; }
	mkdir -p build/tools
	cp go.sum $fetched
}

# ---- generators

# protoc looks for its Go plugins in PATH, at the versions that wrote what is committed.
ensure_generators() {
	ensure_generator protoc-gen-go 1.36.12 google.golang.org/protobuf/cmd/protoc-gen-go
	ensure_generator protoc-gen-go-grpc 1.6.2 google.golang.org/grpc/cmd/protoc-gen-go-grpc
}

ensure_generator() {
	local name=$1 version=$2 module=$3
	[[ $("$links/$name" --version 2>/dev/null) == *"$version" ]] && return
	say "missing $name $version: generates the plugin protocol from its .proto"
	GOBIN=$links go install "$module@v$version" 2>"$log" || { tail -n 3 "$log"; go_on "make generate will not work"; }
}

# ---- tools to compare with

# Without one of them bench leaves it out and says so.
ensure_peers() {
	ensure_peer restic 0.19.1 github.com/restic/restic github.com/restic/restic/cmd/restic
	ensure_peer rest-server 0.14.0 github.com/restic/rest-server github.com/restic/rest-server/cmd/rest-server
	ensure_peer kopia 0.23.1 github.com/kopia/kopia github.com/kopia/kopia
}

# ensure_peer builds a program of a module of its own, since go install refuses modules that replace others.
ensure_peer() {
	local name=$1 version=$2 module=$3 package=$4 work
	go version -m "$links/$name" 2>/dev/null | grep -q "dep.$module.v$version" && return
	say "missing $name $version: bench compares with it"
	work=$(mktemp -d)
	mkdir -p "$links"
	(cd "$work" && go mod init peer && go mod edit -require="$module@v$version" &&
		go build -mod=mod -o "$links/$name" "$package") >"$log" 2>&1 ||
		{ tail -n 3 "$log"; say "going on without $name"; }
	rm -rf "$work"
}

# ---- what was asked for

mode=${1:-}
case $mode in
build | test | demo | lint | bench) ;;
*)
	sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
	exit 2
	;;
esac
if command -v dpkg-query >/dev/null; then
	ensure_packages "$mode"
	case $mode in test | demo)
		ensure_qemu_user
		ensure_lists
		;;
	esac
else
	go_on "this is not Debian: nothing is installed here, tests skip what they cannot find"
fi
ensure_go
ensure_modules
[ "$mode" != lint ] || ensure_generators
[ "$mode" != bench ] || ensure_peers
