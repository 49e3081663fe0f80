#!/bin/bash
# rustc for the crates of this workspace, with the counters that libFuzzer needs (RUSTC_WORKSPACE_WRAPPER): stable
# Rust has them as flags of its code generator. Build scripts and procedural macros go without, as they are linked
# without libFuzzer. Dependencies are those of all other builds; the program is linked dynamically all the same, as
# libFuzzer looks up functions of the C library while it runs.
arguments=()
for argument; do
	case $argument in
	build_script_build | proc-macro) exec "$@" ;;
	target-feature=+crt-static) arguments+=(target-feature=) ;;
	*) arguments+=("$argument") ;;
	esac
done
exec "${arguments[@]}" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
