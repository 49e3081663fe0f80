#!/bin/sh
# Records the memory images beside it: what a snapshot reads of the demo's program, natively and, for
# arm64, in an emulator (Debian's qemu-user). To be run again after tests/go/demo was built anew, on
# amd64, as root, with `cargo build -p gotrace-tests --bin save-image` done. $1: that program.
set -eu
save=$(realpath "$1")
cd "$(dirname "$0")"
work=$(mktemp -d)
for arch in amd64 arm64; do
	gzip -dc "../../gotrace-daemon/demo/demo.$arch.gz" >"$work/$arch"
	chmod +x "$work/$arch"
	if [ "$arch" = arm64 ]; then
		qemu-aarch64 "$work/$arch" -for 1m &
	else
		"$work/$arch" -for 1m &
	fi
	sleep 5
	"$save" $! "$work/$arch" "demo.$arch.img"
	kill $!
done
rm -r "$work"
