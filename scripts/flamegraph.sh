#!/usr/bin/env bash
# Where the time of a tunnel's server or client goes under load: a flamegraph (SVG) and the symbols that ran most (text).
#
#   scripts/flamegraph.sh SCENARIO server|client [--seconds N] [--out DIR] [OPTIONS]
#
# SCENARIO is tcp (visitor to service), tcp-reverse or udp; several scenarios and both sides as tcp,udp server,client. Results go to results/flamegraph unless told otherwise.
# OPTIONS are further ones of `qmux-bench profile`, as --tunnel quinn-dp-tuned or --path veth; --stages adds what each stage
# of a byte's way costs, per GB and per packet, and whether the stages add up to the whole.
#
# Before and after: --tunnel before=qmux-dp:PROGRAM profiles another build; its files have that label in their names. A
# plain release build has no frame pointers; with --call-graph dwarf its callers are found all the same, in some minutes.
#
# Samples the CPU clock, so that it works in virtual machines, which rarely have hardware counters. Programs are built
# with frame pointers and names, into target/profiling, beside the release build.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "flamegraph.sh: $*" >&2
    exit 2
}

usage="usage: scripts/flamegraph.sh tcp|tcp-reverse|udp server|client [--seconds N] [--out DIR] [OPTIONS]"
[ $# -ge 2 ] || fail "$usage"
scenario=$1 side=$2
shift 2
[[ $scenario =~ ^(tcp|tcp-reverse|udp)(,(tcp|tcp-reverse|udp))*$ ]] || fail "unknown scenario '$scenario'; $usage"
[[ $side =~ ^(server|client)(,(server|client))?$ ]] || fail "unknown side '$side'; $usage"

scripts/setup.sh
command -v perf >/dev/null || fail "there is no perf; on Debian install linux-perf, on Ubuntu linux-tools-generic"
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

# Frame pointers everywhere, in BoringSSL's C, too.
export RUSTFLAGS="${RUSTFLAGS-} -Cforce-frame-pointers=yes"
export CFLAGS="${CFLAGS-} -fno-omit-frame-pointer"
export CXXFLAGS="${CXXFLAGS-} -fno-omit-frame-pointer"
echo "flamegraph: building; the first time takes some minutes, most of them for BoringSSL"
cargo build --locked --profile profiling --bin qmux-dp --bin quinn-dp --bin qmux-bench
bin=${CARGO_TARGET_DIR:-target}/profiling

for load in ${scenario//,/ }; do
    for process in ${side//,/ }; do
        "$bin/qmux-bench" profile "$load" "$process" --out results/flamegraph "$@"
    done
done
