#!/bin/sh
# Builds the demo's Go program for both architectures, packed, into gotrace-daemon/demo, where it becomes part of gotrace
# (`gotrace demo`): nobody needs Go for it. The result does not depend on where it is built. Beside it go the notices that
# it has to come with.
set -eu
cd "$(dirname "$0")"
version=1.24.11
export GOTOOLCHAIN=go$version
to=../../../gotrace-daemon/demo
for arch in amd64 arm64; do
	GOOS=linux GOARCH=$arch CGO_ENABLED=0 GOWORK=off GOFLAGS= \
		go build -buildvcs=false -trimpath -ldflags='-s -w' -o "$to/demo.$arch" .
	gzip -9 -n -f "$to/demo.$arch"
	chmod 644 "$to/demo.$arch.gz"
done
{
	echo "The program of \`gotrace demo\` has code of Go's runtime and standard library."
	printf '\ngo %s (BSD-3-Clause)\n\n' "$version"
	cat "$(go env GOROOT)/LICENSE"
} >"$to/THIRD-PARTY"
cd "$to"
sha256sum demo.amd64.gz demo.arm64.gz >SHA256SUMS
