#!/usr/bin/env bash
# Measures what traffic notices when a network stops carrying UDP, in each of the ways that
# networks do that, and when it carries UDP again; prints one Markdown table. Takes some four
# minutes after the build. Each case has a network namespace of its own with nftables: that takes
# root.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh >&2
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cargo test --locked --release -p qmux-dp --test e2e -- \
    --ignored --nocapture --exact udp_blocked::table >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
grep '^|' "$log"
