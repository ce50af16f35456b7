#!/usr/bin/env bash
# Builds qmux-dp and qmux-ctl, optimized by a profile of traffic: the compiler is told which ways
# through the program are taken. Such a build executes an eighth fewer instructions of its own than
# `cargo build --release`, and takes three times as long to make: some 20 minutes on two CPUs.
#
#   scripts/optimize.sh             qmux-dp and qmux-ctl
#   scripts/optimize.sh --baseline  quinn-dp as well, by a profile of the same traffic, to be
#                                   measured beside it:
#                                   scripts/goals.sh --programs target/optimized/release
#
# The programs are then in target/optimized/release. Their profile is made here, by iperf3 and the
# loads of qmux-bench over loopback, and holds for this source and compiler alone. Needs iperf3, and
# the llvm-tools of the toolchain, which it has rustup add.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "optimize.sh: $*" >&2
    exit 2
}

baseline=false
for option in "$@"; do
    case $option in
        --help | -h)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --baseline) baseline=true ;;
        *) fail "unknown option '$option'; allowed is --baseline" ;;
    esac
done

scripts/setup.sh --build
command -v iperf3 >/dev/null || fail "there is no iperf3; on Debian and Ubuntu install iperf3"
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"
# BoringSSL for tests is not optimized, and the programs run here.
unset HOST_CMAKE_TOOLCHAIN_FILE CARGO_BUILD_TARGET

host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
if [ ! -x "$profdata" ]; then
    command -v rustup >/dev/null ||
        fail "there is no $profdata; install the llvm-tools of this Rust toolchain"
    rustup component add llvm-tools
fi

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
profiles=$target/optimized/profiles
measured=(qmux-dp)
! $baseline || measured+=(quinn-dp)

echo "optimize: building what makes the traffic"
cargo build --locked --release --bin qmux-bench
bench=$target/release/qmux-bench

# With a target of their own, these flags are not for build scripts and macros, which run here.
# They are separated by a character that no path has.
separator=$'\x1f'
flags=${CARGO_ENCODED_RUSTFLAGS-$(printf '%s' "${RUSTFLAGS-}" | tr -s ' ' "$separator")}
build() { # flag programs
    local flag=$1 program
    shift
    local programs=()
    for program in "$@"; do programs+=(--bin "$program"); done
    CARGO_TARGET_DIR=$target/optimized/build \
        CARGO_ENCODED_RUSTFLAGS="${flags:+$flags$separator}$flag" \
        cargo build --locked --release --target "$host" "${programs[@]}"
}
built=$target/optimized/build/$host/release

echo "optimize: building programs that count the ways they take"
rm -rf "$profiles"
mkdir -p "$profiles"
build "-Cprofile-generate=$profiles" "${measured[@]}"

# Each load a few seconds, as more of it adds nothing. Packets of a network and of loopback, both
# directions, many and few flows, and lanes over TLS.
train() { # kinds command options
    local kinds=$1
    shift
    "$bench" "$@" --tunnels "$kinds" --programs "$built" --repeats 1 --seconds 2 --warm-up 0.5 \
        >"$profiles/last.log" 2>&1 ||
        fail "the load '$*' failed: $(tail -n 3 "$profiles/last.log")"
}
echo "optimize: making traffic"
all=qmux-dp
! $baseline || all=qmux-dp,quinn-dp,quinn-dp-tuned
bulk=(iperf --streams '1,4' --cases '=tcp ×1,=tcp ×4,=tcp reverse')
train "$all" "${bulk[@]}"
train "$all" "${bulk[@]}" --quic 'max_udp_payload = 1452'
train "$all" udp --sizes 64,1150
train "$all" connect --visitors 1,64 --cases echo
train "$all" latency --cases =ping-pong
train qmux-dp-tls iperf --streams 1 --cases '=tcp ×1,=tcp reverse'
written=("$profiles"/*.profraw)
[ ${#written[@]} -ge ${#measured[@]} ] ||
    fail "not every program has written a profile to $profiles"
"$profdata" merge --output "$profiles/merged.profdata" "${written[@]}"
# By its name, cargo sees that a profile is another one.
sum=$(sha256sum "$profiles/merged.profdata")
profile=$profiles/${sum:0:16}.profdata
mv "$profiles/merged.profdata" "$profile"

echo "optimize: building by that profile"
build "-Cprofile-use=$profile" "${measured[@]}" qmux-ctl
mkdir -p "$target/optimized/release"
for program in "${measured[@]}" qmux-ctl; do
    install -m 755 "$built/$program" "$target/optimized/release/$program"
done
echo "optimize: the programs are in $target/optimized/release"
