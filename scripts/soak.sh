#!/usr/bin/env bash
# Carries mixed load for many minutes and draws what it costs: memory, descriptors, CPU time per byte, latency. Ends with
# 0 only if every byte was right and memory and descriptors stayed as they were.
#
#   scripts/soak.sh                      15 minutes, picture in soak.svg
#   scripts/soak.sh --minutes N          N minutes
#   scripts/soak.sh OPTIONS              further options of `qmux-bench soak`, as --cores 4 or --svg FILE
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

echo "soak: building; the first time takes some minutes, most of them for BoringSSL"
cargo build --locked --release --bin qmux-dp --bin qmux-bench
exec "${CARGO_TARGET_DIR:-target}/release/qmux-bench" soak "$@"
