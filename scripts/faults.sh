#!/usr/bin/env bash
# Whether every byte and visitor gets through links that fail: loss in the handshake and in bursts, wrong bits, reordering,
# duplicates, a black hole of 5 s, a NAT that rebinds, 750 ms round trip, a small MTU without ICMP, a queue of 25
# packets. Prints one table and ends with 0 only if nothing was wrong or left over on any of them.
#
#   scripts/faults.sh                    20 MB each way, 500 UDP datagrams, 100 visitors over each link; ten minutes
#   scripts/faults.sh --links NAME,…     only these links
#   scripts/faults.sh OPTIONS            further options of `qmux-bench faults`, as --megabytes 2 or --tunnel quinn-dp
#
# Needs root's rights, for network namespaces.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

echo "faults: building; the first time takes some minutes, most of them for BoringSSL"
cargo build --locked --release --bin qmux-dp --bin quinn-dp --bin qmux-bench
exec "${CARGO_TARGET_DIR:-target}/release/qmux-bench" faults "$@"
