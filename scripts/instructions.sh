#!/usr/bin/env bash
# What a round trip, a visitor, a datagram and a byte cost in instructions of each side, in user space, and which functions
# execute them: by valgrind, on the real programs. Counts of what is done one at a time repeat within a few percent on any
# machine, however busy.
#
#   scripts/instructions.sh [--out DIR] [OPTIONS]
#
# The table and, for each case, tunnel and side, the functions go to results/instructions unless told otherwise. OPTIONS
# are further ones of `qmux-bench instructions`, as --cases 'round trip' or
# --tunnels before=qmux-dp:PROGRAM,after=qmux-dp for two builds. What valgrind changes: io_uring is not used, and ciphers
# do without AVX-512.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "instructions.sh: $*" >&2
    exit 2
}

out=results/instructions
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --out)
            [ $# -gt 1 ] || fail "--out needs a directory"
            out=$2
            shift 2
            ;;
        *)
            options+=("$1")
            shift
            ;;
    esac
done

scripts/setup.sh
command -v valgrind >/dev/null || fail "there is no valgrind; on Debian and Ubuntu install valgrind"
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

echo "instructions: building; the first time takes some minutes, most of them for BoringSSL"
cargo build --locked --release --bin qmux-dp --bin quinn-dp --bin qmux-bench
bin=${CARGO_TARGET_DIR:-target}/release

exec "$bin/qmux-bench" instructions --out "$out" --functions "$out" "${options[@]}"
