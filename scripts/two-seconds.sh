#!/usr/bin/env bash
# Measures how long it takes until what has died is worked around, for each kind of death, and prints one Markdown table.
# Takes about two minutes after the build, and needs no privilege.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh >&2
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cargo test --locked --release -p qmux-dp --test e2e -- \
    --ignored --nocapture --exact two_seconds_table::table >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
grep '^|' "$log"
