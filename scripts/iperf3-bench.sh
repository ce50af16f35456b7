#!/usr/bin/env bash
# Measures qmux-dp beside no tunnel, the same tunnel on quinn, and rathole where it is installed, all by iperf3, and
# writes a table, JSON and charts.
#
#   scripts/iperf3-bench.sh                some five minutes
#   scripts/iperf3-bench.sh --quick        within 90 seconds
#   scripts/iperf3-bench.sh --out DIR      results go there; otherwise to results/DATE-COMMIT
#   scripts/iperf3-bench.sh … -- OPTIONS   further options of `qmux-bench iperf`, as --cores 2 or --path veth
#
# Every round measures every tunnel in turn, so that ratios hold on a machine that has other things to do. Numbers of
# a busy machine are still worth little: the report says how busy it was. Ends with 0 only if everything was measured.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "iperf3-bench.sh: $*" >&2
    exit 2
}

quick=false
out=
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=true ;;
        --out)
            [ $# -gt 1 ] || fail "--out needs a directory"
            out=$2
            shift
            ;;
        --)
            shift
            break
            ;;
        *) fail "unknown option '$1'; allowed are --quick, --out DIR and, after --, those of qmux-bench iperf" ;;
    esac
    shift
done

scripts/setup.sh
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

echo "iperf3-bench: building; the first time takes some minutes, most of them for BoringSSL"
cargo build --locked --release --bin qmux-dp --bin quinn-dp --bin qmux-bench
bin=${CARGO_TARGET_DIR:-target}/release

[ -n "$out" ] || out=results/$(date -u +%Y-%m-%d)-$(git rev-parse --short=10 HEAD)

options=(
    --out "$out"
    --baseline "quinn-dp,raw"
    --streams "1,4"
    --udp-sizes 1150
    --udp-rates 500M
    # Not "tcp both ways": iperf3 tells its two connections apart by the order in which they arrive, which no proxy
    # promises, so that every third such run hangs with quinn-dp. `qmux-bench iperf` has it.
    --cases 'tcp ×1,tcp ×4,tcp reverse,udp'
)
# The ratios within a round are what counts, so that a quick run rather has two short rounds than a long one.
if $quick; then
    options+=(--seconds 1 --repeats 2)
    # Two more tunnels take half as long again.
    if command -v rathole >/dev/null; then
        options+=(--seconds 2 --repeats 1)
    fi
else
    options+=(--seconds 2 --repeats 5)
fi
exec "$bin/qmux-bench" iperf "${options[@]}" "$@"
