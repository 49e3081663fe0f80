#!/bin/sh
# Builds the demo's Go program for both architectures and packs it beside its source, so that
# `cargo xtask demo` needs no Go. The result does not depend on where it is built.
set -eu
cd "$(dirname "$0")"
for arch in amd64 arm64; do
	GOTOOLCHAIN=go1.24.11 GOOS=linux GOARCH=$arch CGO_ENABLED=0 GOWORK=off GOFLAGS= \
		go build -buildvcs=false -trimpath -ldflags='-s -w' -o "demo.$arch" .
	gzip -9 -n -f "demo.$arch"
done
sha256sum demo.amd64.gz demo.arm64.gz >SHA256SUMS
